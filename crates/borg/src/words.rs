//! Splitting a command line into words, as `BORG_RSH` and `BORG_PASSCOMMAND` need it.

/// Splits like a POSIX shell, without any expansion. `None` if a quotation does not end.
pub(crate) fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn splits_like_a_shell() {
        assert_eq!(
            split(r#"ssh -i '/a b/k' -o "X=\"y\" \z" a\ b ''"#).unwrap(),
            ["ssh", "-i", "/a b/k", "-o", r#"X="y" \z"#, "a b", ""]
        );
        assert_eq!(split("  ").unwrap(), [""; 0]);
        assert_eq!(split("a 'b"), None);
    }
}
