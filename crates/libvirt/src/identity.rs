//! Which disk a `<disk>` is, as far as its definition says ([`Identity`]).

use roxmltree::Node;
use strongroom_hypervisor::Identity;

use crate::xml::{child, children, text};

/// Attributes of a source that say how it is used, and not which it is.
const USE: [&str; 2] = ["index", "startupPolicy"];

/// Reads what the definition says. A path stands by itself; of other sources all words count, and the hosts.
pub fn read(disk: Node<'_, '_>) -> Identity {
    let word = |name| child(disk, name).map(text).filter(|text| !text.is_empty());
    Identity {
        source: child(disk, "source").and_then(source),
        serial: word("serial"),
        wwn: word("wwn"),
        ..Identity::default()
    }
}

fn source(source: Node<'_, '_>) -> Option<String> {
    if let Some(path) = source.attribute("file").or(source.attribute("dev")) {
        return Some(path.to_owned()).filter(|path| !path.is_empty());
    }
    let words = |node: Node<'_, '_>| {
        let words = node.attributes().filter(|word| !USE.contains(&word.name()));
        words
            .map(|word| format!("{}={}", word.name(), word.value()))
            .collect::<Vec<_>>()
    };
    let mut all = words(source);
    all.extend(children(source, "host").flat_map(words));
    Some(all.join(" ")).filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use crate::definition;

    /// A7: what tells two disks of one size apart, for each kind of source.
    #[test]
    fn a_source_is_told_from_others() {
        let identity = |inner: &str| {
            let xml = format!(
                "<domain><name>a</name><devices><disk type='network'>{inner}<target dev='vda'/></disk></devices></domain>"
            );
            definition::read(&xml).unwrap().disks[0].identity.clone()
        };
        let file =
            identity("<source file='/a' index='3' startupPolicy='optional'/><serial>S</serial><wwn>5</wwn>");
        assert_eq!(file.source.as_deref(), Some("/a"));
        assert_eq!(
            (file.serial.as_deref(), file.wwn.as_deref()),
            (Some("S"), Some("5"))
        );
        assert_eq!(
            identity("<source dev='/dev/x'/>").source.as_deref(),
            Some("/dev/x")
        );
        let rbd = identity("<source protocol='rbd' name='p/i' index='1'><host name='h' port='1'/></source>");
        assert_eq!(rbd.source.as_deref(), Some("protocol=rbd name=p/i name=h port=1"));
        let volume = identity("<source pool='p' volume='v'/>");
        assert_eq!(volume.source.as_deref(), Some("pool=p volume=v"));
        assert_eq!(identity("").source, None);
        assert_eq!(identity("<source file=''/>").source, None);
    }
}
