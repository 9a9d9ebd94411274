//! Settings before they mean anything: keys and raw values from the file and the flags, read with
//! typed getters that collect every problem instead of stopping at the first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use taipan_engine::size;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// A text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// True or false.
    Boolean(bool),
    /// A list.
    List(Vec<Self>),
    /// Anything else, by the name of its type.
    Other(&'static str),
}

impl Raw {
    fn of_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Boolean(value) => Self::Boolean(*value),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Self::Other("number too large"), Self::Integer),
            DeValue::Array(items) => {
                Self::List(items.iter().map(|i| Self::of_toml(i.get_ref())).collect())
            }
            other => Self::Other(other.type_str()),
        }
    }

    /// Reads the value of `--set`: TOML if it is, else a text.
    pub(super) fn of_text(text: &str) -> Self {
        DeValue::parse(text).map_or_else(
            |_| Self::Text(text.to_owned()),
            |value| Self::of_toml(value.get_ref()),
        )
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Other(name) => name,
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// Where it was written, for messages.
    place: String,
    raw: Raw,
}

/// All settings as written, the problems found so far, and the keys that mean something.
#[derive(Debug, Default)]
pub(super) struct Document {
    entries: BTreeMap<String, Entry>,
    asked: BTreeSet<String>,
    problems: Vec<String>,
}

impl Document {
    /// Takes in a TOML text; `file` is its name in messages. Syntax errors become problems.
    pub(super) fn read_file(&mut self, file: &str, text: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map_or(0, |span| line_of(text, span.start));
            self.problems
                .push(format!("{file}:{line}: {}", error.message()));
        }
        self.flatten(file, text, "", table.get_ref());
    }

    fn flatten(&mut self, file: &str, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = format!("{prefix}{}", key.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => self.flatten(file, text, &format!("{path}."), inner),
                DeValue::Array(items) if is_table_list(items.iter()) => {
                    for (index, item) in items.iter().enumerate() {
                        let prefix = format!("{path}[{index}].");
                        if let DeValue::Table(inner) = item.get_ref() {
                            self.flatten(file, text, &prefix, inner);
                        }
                    }
                }
                other => {
                    let line = line_of(text, key.span().start);
                    let place = format!("{file}:{line}: {path}");
                    let raw = Raw::of_toml(other);
                    self.entries.insert(path, Entry { place, raw });
                }
            }
        }
    }

    /// Sets `key`, over what the file says; `place` is the flag.
    pub(super) fn set(&mut self, key: &str, place: &str, raw: Raw) {
        let place = place.to_owned();
        self.entries.insert(key.to_owned(), Entry { place, raw });
    }

    /// How many tables the list of tables `key` has.
    pub(super) fn tables(&self, key: &str) -> usize {
        let prefix = format!("{key}[");
        let index = |path: &String| {
            let (number, _) = path.strip_prefix(&prefix)?.split_once(']')?;
            number.parse::<usize>().ok()
        };
        let last = self.entries.keys().filter_map(index).max();
        last.map_or(0, |last| last + 1)
    }

    /// Adds a problem that has no key.
    pub(super) fn problem(&mut self, message: String) {
        self.problems.push(message);
    }

    /// Adds a problem with the value of `key`, named by the place where it was written.
    pub(super) fn refuse(&mut self, key: &str, why: impl std::fmt::Display) {
        let place = self.place(key);
        self.problems.push(format!("{place}: {why}"));
    }

    /// Where `key` was written.
    pub(super) fn place(&self, key: &str) -> String {
        self.entries
            .get(key)
            .map_or_else(|| format!("{key} (default)"), |entry| entry.place.clone())
    }

    /// True if `key` was written anywhere.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn ask(&mut self, key: &str) -> Option<Raw> {
        self.asked.insert(key.to_owned());
        self.entries.get(key).map(|entry| entry.raw.clone())
    }

    fn wrong_type<T>(&mut self, key: &str, wanted: &str, found: &Raw) -> Option<T> {
        self.refuse(
            key,
            format!("expected {wanted}, found {}", found.type_name()),
        );
        None
    }

    /// A text.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.ask(key)? {
            Raw::Text(text) => Some(text),
            other => self.wrong_type(key, "a text", &other),
        }
    }

    /// A path, made absolute.
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let text = self.text(key)?;
        match std::path::absolute(&text) {
            Ok(path) => Some(path),
            Err(error) => {
                self.refuse(key, format!("{text:?} is not a path: {error}"));
                None
            }
        }
    }

    /// True or false.
    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        match self.ask(key)? {
            Raw::Boolean(value) => Some(value),
            other => self.wrong_type(key, "true or false", &other),
        }
    }

    /// A whole number within `range`.
    pub(super) fn integer(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match self.ask(key)? {
            Raw::Integer(number) => number,
            other => return self.wrong_type(key, "a number", &other),
        };
        match u64::try_from(number) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let (low, high) = range.into_inner();
                self.refuse(key, format!("{number} is not within {low} to {high}"));
                None
            }
        }
    }

    /// A number of milliseconds.
    pub(super) fn millis(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<Duration> {
        self.integer(key, range).map(Duration::from_millis)
    }

    /// A number of seconds.
    pub(super) fn seconds(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<Duration> {
        self.integer(key, range).map(Duration::from_secs)
    }

    /// A size in bytes within `range`.
    pub(super) fn size(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let parsed = match self.ask(key)? {
            Raw::Text(text) => size::parse(&text).map_err(|e| e.to_string()),
            Raw::Integer(number) => {
                u64::try_from(number).map_err(|_| format!("{number} is negative"))
            }
            other => return self.wrong_type(key, "a size such as \"4GiB\"", &other),
        };
        let (low, high) = range.into_inner();
        match parsed {
            Ok(bytes) if (low..=high).contains(&bytes) => Some(bytes),
            Ok(bytes) => {
                let (bytes, low, high) = (size::exact(bytes), size::exact(low), size::exact(high));
                self.refuse(key, format!("{bytes} is not within {low} to {high}"));
                None
            }
            Err(why) => {
                self.refuse(key, why);
                None
            }
        }
    }

    /// True if `key` holds exactly the text `word`.
    pub(super) fn is_word(&mut self, key: &str, word: &str) -> bool {
        matches!(self.ask(key), Some(Raw::Text(text)) if text == word)
    }

    /// One of a few words, each with its meaning.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let words = words.iter().map(|(word, _)| format!("{word:?}"));
            let words = words.collect::<Vec<_>>().join(", ");
            self.refuse(key, format!("{text:?} is not one of {words}"));
        }
        found.map(|&(_, value)| value)
    }

    /// A list of texts; a single text counts as a list of one.
    pub(super) fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        let items = match self.ask(key)? {
            Raw::List(items) => items,
            single => vec![single],
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Raw::Text(text) => texts.push(text),
                Raw::Integer(number) => texts.push(number.to_string()),
                other => self.wrong_type(key, "a list of texts", &other)?,
            }
        }
        Some(texts)
    }

    /// A list of `ADDR:PORT`; addresses that cannot be read become problems and are left out.
    pub(super) fn addresses(&mut self, key: &str) -> Option<Vec<SocketAddr>> {
        let texts = self.texts(key)?;
        let parsed = texts.iter().filter_map(|text| self.address(key, text));
        Some(parsed.collect())
    }

    /// Reads one `ADDR:PORT` of `key`.
    pub(super) fn address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let hint = match text.strip_prefix(':') {
            Some(port) => format!("for all addresses write 0.0.0.0:{port} or [::]:{port}"),
            None => "write for example 127.0.0.1:10809 or [::1]:10809; names are not looked up"
                .to_owned(),
        };
        self.refuse(key, format!("{text:?} is not ADDR:PORT; {hint}"));
        None
    }

    /// Every key that has a meaning, as asked for so far.
    #[cfg(test)]
    pub(super) fn known_keys(&self) -> &BTreeSet<String> {
        &self.asked
    }

    /// All problems, those with unknown keys included.
    pub(super) fn finish(mut self) -> Vec<String> {
        let unknown: Vec<String> = self
            .entries
            .iter()
            .filter(|(key, _)| !self.asked.contains(*key))
            .map(|(key, entry)| format!("{}: unknown key{}", entry.place, self.hint(key)))
            .collect();
        self.problems.extend(unknown);
        self.problems
    }

    /// What an unknown key may have been meant to be.
    fn hint(&self, key: &str) -> String {
        if self
            .asked
            .iter()
            .any(|known| known.starts_with(&format!("{key}.")))
        {
            return format!("; it is a section, write [{key}]");
        }
        if key.starts_with("volume.") {
            return "; volumes are a list, write [[volume]]".to_owned();
        }
        let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        // The nearest by its last part; among those, the nearest as a whole: keys of the section.
        let far = |known: &str| {
            let whole = distance(known, key);
            (whole.min(distance(&last(known), &last(key))), whole)
        };
        match self.asked.iter().map(|known| (far(known), known)).min() {
            Some(((edits, _), known)) if edits <= 2 => format!("; did you mean {known}?"),
            _ => String::new(),
        }
    }
}

fn is_table_list<'a, 'i: 'a>(mut items: impl Iterator<Item = &'a Spanned<DeValue<'i>>>) -> bool {
    let mut any = false;
    let all = items.all(|item| {
        any = true;
        item.get_ref().is_table()
    });
    any && all
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// Edits (insert, remove, replace) between two short texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        let mut document = Document::default();
        document.read_file("t.toml", text);
        document
    }

    #[test]
    fn every_problem_is_found_with_its_line_and_key() {
        let mut doc = document("a = 1\n[s]\nsize = \"10GB\"\nflag = 3\n");
        assert_eq!(doc.text("a"), None);
        assert_eq!(doc.size("s.size", 0..=u64::MAX), None);
        assert_eq!(doc.boolean("s.flag"), None);
        let problems = doc.finish();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].starts_with("t.toml:1: a: expected a text, found a number"));
        assert!(problems[1].starts_with("t.toml:3: s.size: ") && problems[1].contains("ambiguous"));
        assert!(problems[2].starts_with("t.toml:4: s.flag: expected true or false"));
    }

    #[test]
    fn unknown_keys_come_with_a_guess() {
        let mut doc = document("walsize = 1\n[wal]\nsise = 2\n[zzz]\nq = 1\n");
        doc.size("wal.size", 0..=9);
        let problems = doc.finish();
        assert_eq!(
            problems,
            [
                "t.toml:3: wal.sise: unknown key; did you mean wal.size?",
                "t.toml:1: walsize: unknown key; did you mean wal.size?",
                "t.toml:5: zzz.q: unknown key",
            ]
        );
    }

    #[test]
    fn a_scalar_where_a_section_belongs_is_explained() {
        let mut doc = document("wal = 5\n[volume]\nname = \"v\"\n");
        doc.size("wal.size", 0..=9);
        let problems = doc.finish().join("\n");
        assert!(
            problems.contains("it is a section, write [wal]"),
            "{problems}"
        );
        assert!(problems.contains("write [[volume]]"), "{problems}");
    }

    #[test]
    fn several_syntax_errors_are_all_reported() {
        let problems = document("a = \nb = \"x\nc = 1\n").finish();
        let syntax = problems.iter().filter(|p| !p.contains("unknown key"));
        assert!(syntax.count() >= 2, "{problems:?}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let mut doc = document("a = \"file\"");
        doc.set("a", "--a", Raw::of_text("flag"));
        assert_eq!(doc.text("a").as_deref(), Some("flag"));
        assert_eq!(doc.place("a"), "--a");
    }

    #[test]
    fn values_of_set_are_toml_or_else_text() {
        assert_eq!(Raw::of_text("5"), Raw::Integer(5));
        assert_eq!(Raw::of_text("true"), Raw::Boolean(true));
        assert_eq!(Raw::of_text("4GiB"), Raw::Text("4GiB".into()));
        assert_eq!(
            Raw::of_text("[\"a\"]"),
            Raw::List(vec![Raw::Text("a".into())])
        );
    }

    #[test]
    fn edit_distance_counts_edits() {
        for (a, b, far) in [
            ("", "", 0),
            ("abc", "", 3),
            ("size", "sise", 1),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a, b), far, "{a} {b}");
        }
    }
}
