//! The layers that ARCHITECTURE.md names, and the arrows that run against them.

/// Layers from the lowest up; the names in one do not know each other.
#[derive(Debug, PartialEq, Eq)]
pub struct Layers(Vec<Vec<String>>);

impl Layers {
    /// Reads the block that begins with a line ```` ```layers NAME ````: one layer a line, the highest first.
    pub fn parse(document: &str, name: &str) -> Option<Self> {
        let start = format!("```layers {name}");
        let lines = document.lines().skip_while(|line| *line != start).skip(1);
        let mut layers: Vec<Vec<String>> = lines
            .take_while(|line| *line != "```")
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect();
        layers.reverse();
        (!layers.is_empty()).then_some(Self(layers))
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flatten().map(String::as_str)
    }

    /// Whether what is called `from` may use what is called `to`: it is in a higher layer.
    pub fn allows(&self, from: &str, to: &str) -> bool {
        let layer = |name: &str| {
            self.0
                .iter()
                .position(|layer| layer.iter().any(|other| other == name))
        };
        matches!((layer(from), layer(to)), (Some(from), Some(to)) if from > to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_higher_uses_what_is_lower() {
        let layers = Layers::parse("text\n```layers x\ntop\nleft right\nground\n```\nmore\n", "x").unwrap();
        assert!(layers.allows("top", "ground") && layers.allows("left", "ground"));
        for (from, to) in [
            ("ground", "top"),
            ("left", "right"),
            ("top", "unknown"),
            ("top", "top"),
        ] {
            assert!(!layers.allows(from, to), "{from} {to}");
        }
        assert_eq!(layers.names().count(), 4);
        assert_eq!(Layers::parse("```layers x\n```", "y"), None);
    }
}
