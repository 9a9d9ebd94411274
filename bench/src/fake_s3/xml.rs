//! The little XML that S3 speaks: escaping, and the tags of two request bodies.

/// `text` as the content of an element.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Control characters are not XML 1.0; S3 writes them as references all the same.
            letter if letter < ' ' => out.push_str(&format!("&#{};", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let entity = rest[at..].find(';').map(|end| &rest[at + 1..at + end]);
        match entity.and_then(letter_of) {
            Some(letter) => {
                out.push(letter);
                rest = &rest[at + entity.map_or(0, str::len) + 2..];
            }
            None => {
                out.push('&');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn letter_of(entity: &str) -> Option<char> {
    match entity {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        other => {
            let number = other.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

/// Raw contents of all elements `tag` in `text`, in order.
pub(crate) fn elements<'a>(text: &'a str, tag: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(&open) {
        let inner = &rest[begin + open.len()..];
        let Some(end) = inner.find(&close) else {
            break;
        };
        found.push(&inner[..end]);
        rest = &inner[end + close.len()..];
    }
    found
}

/// Text of the first element `tag` in `text`.
pub(crate) fn text_of(text: &str, tag: &str) -> Option<String> {
    elements(text, tag).first().map(|inner| unescaped(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_comes_back() {
        let odd = "a<b>&\"c' \u{1}é&amp;";
        assert_eq!(unescaped(&escaped(odd)), odd);
        assert_eq!(unescaped("&#x41;&#66;&nope; & x"), "AB&nope; & x");
    }

    #[test]
    fn elements_are_found_in_order() {
        let text = "<D><O><Key>a&amp;b</Key></O><O><Key>c</Key></O><Quiet>true</Quiet></D>";
        assert_eq!(elements(text, "O").len(), 2);
        assert_eq!(text_of(text, "Key").as_deref(), Some("a&b"));
        assert_eq!(text_of(elements(text, "O")[1], "Key").as_deref(), Some("c"));
        assert_eq!(text_of("<Key>open", "Key"), None);
    }
}
