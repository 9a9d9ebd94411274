//! Sizes as people write them (`4KiB`, `10GiB`, plain bytes) and as programs show them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// Binary units from small to large: (name, power of two).
const UNITS: [(&str, u32); 5] = [
    ("KiB", 10),
    ("MiB", 20),
    ("GiB", 30),
    ("TiB", 40),
    ("PiB", 50),
];

/// Longest text that is looked at; longer ones are refused unread.
const TEXT_BYTES_MAX: usize = 32;

/// Parses a size in bytes: digits, then nothing, `B`, `KiB`…`PiB` or the short `K`…`P` (binary too,
/// as in QEMU). A space before the unit, any case and `_` between digits are accepted; fractions
/// and the ambiguous `KB`…`PB` are refused with the reason.
pub fn parse(text: &str) -> Result<u64> {
    let refuse = |why: &str| {
        let shown: String = text.chars().take(TEXT_BYTES_MAX).collect();
        Err(Error::invalid(format!(
            "size {shown:?} is refused: {why}; write for example 4096, 64KiB, 4MiB, 10GiB or 1TiB"
        )))
    };
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return refuse("it is empty");
    }
    if trimmed.len() > TEXT_BYTES_MAX {
        return refuse("it is too long");
    }
    let digits_end = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(digits_end);
    let digits = digits.replace('_', "");
    if digits.is_empty() {
        return refuse("it does not start with a number");
    }
    let Some(shift) = unit_shift(unit.trim()) else {
        return refuse(unit_problem(unit.trim()));
    };
    let Ok(number) = digits.parse::<u64>() else {
        return refuse("the number is too large");
    };
    if number > u64::MAX >> shift {
        return refuse("it is above 16 EiB");
    }
    Ok(number << shift)
}

/// log2 of a unit's bytes.
fn unit_shift(unit: &str) -> Option<u32> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return Some(0);
    }
    let known = UNITS
        .iter()
        .find(|(name, _)| unit.eq_ignore_ascii_case(name) || unit.eq_ignore_ascii_case(&name[..1]));
    known.map(|&(_, shift)| shift)
}

/// Why a unit is not understood.
fn unit_problem(unit: &str) -> &'static str {
    if unit.starts_with(['.', ',']) {
        return "fractions are not accepted, take the next smaller unit";
    }
    let decimal = UNITS
        .iter()
        .any(|(name, _)| unit.eq_ignore_ascii_case(&format!("{}B", &name[..1])));
    if decimal {
        "KB, MB, GB and TB are ambiguous, units are powers of 1024 and called KiB, MiB, GiB, TiB"
    } else {
        "the unit is unknown"
    }
}

/// The exact shortest text: the largest unit of which `bytes` is a multiple (`10GiB`, `4097`).
pub fn exact(bytes: u64) -> String {
    let unit = UNITS
        .iter()
        .rev()
        .find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    match unit {
        Some((name, shift)) => format!("{}{name}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// For people's eyes: at most one decimal and a unit (`1.5 GiB`, `812 B`). Rounded down.
pub fn human(bytes: u64) -> String {
    let unit = UNITS.iter().rev().find(|(_, shift)| bytes >> shift != 0);
    let Some((name, shift)) = unit else {
        return format!("{bytes} B");
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    if tenths.is_multiple_of(10) || tenths >= 1000 {
        format!("{} {name}", tenths / 10)
    } else {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    }
}

/// A number of bytes that is written as text (`"4GiB"`) and read from text or a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&exact(self.0))
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).map(Self)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        number_or_text(deserializer).map(Self)
    }
}

/// Reads bytes from a JSON or TOML number or from a text for [`parse`].
pub fn number_or_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<u64, D::Error> {
    struct Visitor;

    impl serde::de::Visitor<'_> for Visitor {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number of bytes or a size such as \"10GiB\"")
        }

        fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> std::result::Result<u64, E> {
            Ok(bytes)
        }

        fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> std::result::Result<u64, E> {
            u64::try_from(bytes).map_err(|_| E::custom("a size is not negative"))
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<u64, E> {
            parse(text).map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Visitor)
}

/// [`number_or_text`] for a field that may be absent or null (needs `#[serde(default)]` too).
pub fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<u64>, D::Error> {
    Option::<ByteSize>::deserialize(deserializer).map(|size| size.map(|s| s.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4KiB", 4096),
            ("4k", 4096),
            ("4 MiB", 4 << 20),
            ("10GiB", 10 << 30),
            ("10g", 10 << 30),
            (" 1TiB ", 1 << 40),
            ("1_000_000", 1_000_000),
            ("15PiB", 15 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text:?}");
        }
    }

    #[test]
    fn bad_sizes_are_refused_with_the_reason() {
        let long = "1".repeat(40);
        for (text, why) in [
            ("", "empty"),
            ("GiB", "does not start with a number"),
            ("-1", "does not start with a number"),
            ("1.5GiB", "fractions"),
            ("10GB", "ambiguous"),
            ("10 parsecs", "unit is unknown"),
            ("16384PiB", "above 16 EiB"),
            ("99999999999999999999", "too large"),
            (long.as_str(), "too long"),
            ("1é", "unit is unknown"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn exact_text_reads_back_and_human_text_is_short() {
        for bytes in [0, 1, 511, 4096, 4097, 10 << 30, 3 << 39, u64::MAX] {
            assert_eq!(parse(&exact(bytes)).unwrap(), bytes);
        }
        assert_eq!(exact(10 << 30), "10GiB");
        assert_eq!(human(812), "812 B");
        assert_eq!(human(3 << 29), "1.5 GiB");
        assert_eq!(human(u64::MAX), "16383 PiB");
    }

    #[test]
    fn json_takes_numbers_and_text_and_writes_text() {
        assert_eq!(
            serde_json::from_str::<ByteSize>("4096").unwrap(),
            ByteSize(4096)
        );
        assert_eq!(
            serde_json::from_str::<ByteSize>("\"4KiB\"").unwrap(),
            ByteSize(4096)
        );
        assert!(serde_json::from_str::<ByteSize>("-4").is_err());
        assert!(serde_json::from_str::<ByteSize>("4.5").is_err());
        assert_eq!(serde_json::to_string(&ByteSize(4096)).unwrap(), "\"4KiB\"");
    }
}
