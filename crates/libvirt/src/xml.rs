//! The guards that every XML text passes, and the words for what is wrong with one.

use std::path::Path;

use roxmltree::{Document, Node, ParsingOptions};

/// Longest text that is looked at, in bytes: what libvirt's own protocol allows for a string (`REMOTE_STRING_MAX`).
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Most nodes in one document. A domain with a hundred disks has about three thousand.
const MAX_NODES: u32 = 50_000;

/// Parses a document whose root is `root`. No document type, hence no entities but the five of XML itself.
pub fn parse<'a>(text: &'a str, root: &str) -> Result<Document<'a>, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it has {} bytes, more than {MAX_BYTES}", text.len()));
    }
    let options = ParsingOptions {
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(text, options).map_err(|error| error.to_string())?;
    if !is(document.root_element(), root) {
        return Err(format!("its root element is not <{root}>"));
    }
    Ok(document)
}

/// Child elements of that name, in order.
pub fn children<'a, 'i>(
    node: Node<'a, 'i>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> + use<'a, 'i> {
    node.children().filter(move |child| is(*child, name))
}

/// The first child element of that name.
pub fn child<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// The child element of that name; more than one is an error.
pub fn only_child<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> Result<Option<Node<'a, 'i>>, String> {
    let mut found = children(node, name);
    let first = found.next();
    if found.next().is_some() {
        return Err(format!("it has more than one <{name}>"));
    }
    Ok(first)
}

/// All text directly in an element, comments left out.
pub fn text(node: Node<'_, '_>) -> String {
    node.children()
        .filter(Node::is_text)
        .filter_map(|child| child.text())
        .collect()
}

/// Returns `value` if it can be written into XML and read back unchanged.
///
/// Control characters cannot: XML 1.0 has no way to write most of them, and turns the others into spaces.
pub fn writable<'a>(what: &str, value: &'a str) -> Result<&'a str, String> {
    let bad = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    if value.is_empty() || value.contains(bad) {
        return Err(format!("{what} {value:?} is empty or has control characters"));
    }
    Ok(value)
}

/// Returns an absolute path as text that can be written into XML.
pub fn writable_path<'a>(what: &str, path: &'a Path) -> Result<&'a str, String> {
    if !path.is_absolute() {
        return Err(format!("{what} {} is not absolute", path.display()));
    }
    let text = path
        .to_str()
        .ok_or_else(|| format!("{what} {} is not UTF-8", path.display()))?;
    writable(what, text)
}

fn is(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}
