//! The little JSON that the probe has to write.

use std::fmt::Write;

/// A JSON string literal.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// One numeric field, `"name":value`.
pub fn number(name: &str, value: u64) -> String {
    format!("{}:{value}", quote(name))
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_characters_and_quotes_are_escaped() {
        let text = "a\"b\\c\nd\u{1}é";
        let parsed: String = serde_json::from_str(&super::quote(text)).unwrap();
        assert_eq!(parsed, text);
    }
}
