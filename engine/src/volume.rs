//! What a volume is called and how it is set up.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::block::BlockSize;
use crate::error::{Error, Result};

/// Longest volume name in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Largest volume in bytes (64 TiB), which keeps every block number far below its field's width.
pub const SIZE_BYTES_MAX: u64 = 64 << 40;
/// Bytes of which a volume's size is a multiple.
pub const SIZE_GRAIN_BYTES: u64 = 512;

const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// A valid volume name: UTF-8 of 1..=255 bytes, parts separated by `/`, none empty, `.` or `..`,
/// no control characters, no `@` (which separates a snapshot).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// Checks `name`; the error says which rule it breaks.
    pub fn parse(name: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::invalid(format!(
                "volume name {:?} is refused: {why}",
                Shortened(name)
            )))
        };
        if name.is_empty() {
            return refuse("it is empty");
        }
        if name.len() > NAME_BYTES_MAX {
            return refuse("it is longer than 255 bytes");
        }
        if name.contains('@') {
            return refuse("'@' separates a snapshot from its volume");
        }
        if name.chars().any(char::is_control) {
            return refuse("it has a control character");
        }
        for part in name.split('/') {
            match part {
                "" => return refuse("it has an empty part ('/' at an end, or two in a row)"),
                "." | ".." => return refuse("'.' and '..' may not be parts of it"),
                _ => {}
            }
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as one path component or object-key component, percent-encoded.
    pub fn encoded(&self) -> String {
        encoded(&self.0)
    }

    /// Undoes [`VolumeName::encoded`].
    pub fn decode(text: &str) -> Result<Self> {
        let name = percent_decode_str(text)
            .decode_utf8()
            .map_err(|e| Error::invalid(format!("{text:?} does not decode to UTF-8: {e}")))?;
        Self::parse(&name)
    }
}

/// A name as one path component, percent-encoded.
pub(crate) fn encoded(name: &str) -> String {
    let text = utf8_percent_encode(name, KEPT).to_string();
    // A leading dot would make a hidden file.
    match text.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => text,
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl TryFrom<String> for VolumeName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

/// Quotes at most 64 characters of a text that may be huge.
struct Shortened<'a>(&'a str);

impl fmt::Debug for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(64) {
            Some((cut, _)) => write!(f, "{:?}…", &self.0[..cut]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// From memory that outlives the process; FLUSH makes it survive power loss.
    #[default]
    Memory,
    /// After it is durable in the WAL.
    Durable,
}

/// What to do after a host crash took answered but unflushed writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLostCache {
    /// Serve, and report the exposed window.
    #[default]
    Continue,
    /// Serve for reading only.
    ReadOnly,
    /// Do not serve until the operator decides.
    Refuse,
}

/// What FLUSH and FUA promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// The data is on the local disk; the bucket follows.
    #[default]
    Local,
    /// The data is in the bucket.
    Remote,
}

/// Smallest `rpo_bytes`: a limit below the size of a few requests would only stop and go.
pub const RPO_BYTES_MIN: u64 = 1 << 20;
/// Longest `commit_interval_seconds` and `rpo_seconds` (a day): the log is not endless.
pub const INTERVAL_SECONDS_MAX: u64 = 86_400;
/// Longest `pitr_window_seconds`: 31 days.
pub const PITR_SECONDS_MAX: u64 = 31 * 86_400;

/// Smallest `bandwidth_bytes`: a request of some length would block the volume for minutes.
pub const BANDWIDTH_BYTES_MIN: u64 = 64 << 10;
/// Longest `burst_seconds` (an hour).
pub const BURST_SECONDS_MAX: u64 = 3600;

/// Settings of a volume, stored in its manifests. Those that have their default and came after
/// version 1 of the manifest are left out of its JSON, so that its bytes stay what they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSettings {
    /// Size in bytes, a multiple of [`SIZE_GRAIN_BYTES`].
    pub size_bytes: u64,
    /// Unit of routing, index, checksum and WAL record.
    pub block_size_bytes: u32,
    /// Most payload bytes of one chunk object (blocks only).
    pub chunk_size_bytes: u32,
    /// When writes are answered.
    #[serde(default)]
    pub ack: Ack,
    /// What a lost cache means.
    #[serde(default)]
    pub on_lost_cache: OnLostCache,
    /// What FLUSH and FUA promise.
    #[serde(default, skip_serializing_if = "is_default")]
    pub durability: Durability,
    /// No new write is answered while the oldest one that the bucket lacks is older; 0: no limit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rpo_seconds: u64,
    /// No new write is answered while the bucket lacks more bytes; 0: no limit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rpo_bytes: u64,
    /// Longest time that a change waits for its commit to begin; 0: as the daemon is configured.
    #[serde(default, skip_serializing_if = "is_default")]
    pub commit_interval_seconds: u64,
    /// Requests that commits may make in an hour before those wait that only the interval makes
    /// due; 0: no budget.
    #[serde(default, skip_serializing_if = "is_default")]
    pub requests_per_hour: u64,
    /// Requests of clients that begin in a second; 0: no limit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub iops: u64,
    /// Bytes that clients read and write in a second, together; 0: no limit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bandwidth_bytes: u64,
    /// An idle volume saves up so many seconds of both; 0: one second.
    #[serde(default, skip_serializing_if = "is_default")]
    pub burst_seconds: u64,
    /// For how long committed cuts are kept as [points](crate::point) to go back to; 0: not at all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pitr_window_seconds: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl VolumeSettings {
    /// Settings for a volume of `size_bytes` with all defaults (4 KiB blocks, 4 MiB chunks).
    pub fn with_size(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            block_size_bytes: 4096,
            chunk_size_bytes: 4 << 20,
            ack: Ack::default(),
            on_lost_cache: OnLostCache::default(),
            durability: Durability::default(),
            rpo_seconds: 0,
            rpo_bytes: 0,
            commit_interval_seconds: 0,
            requests_per_hour: 0,
            iops: 0,
            bandwidth_bytes: 0,
            burst_seconds: 0,
            pitr_window_seconds: 0,
        }
    }

    /// What an idle volume saves up of its limits, in seconds.
    pub fn burst(&self) -> u64 {
        self.burst_seconds.max(1)
    }

    /// Checks every field and reports all problems at once.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(SIZE_GRAIN_BYTES) {
            problems.push(format!(
                "size {} is not a positive multiple of {SIZE_GRAIN_BYTES} bytes",
                self.size_bytes
            ));
        }
        if self.size_bytes > SIZE_BYTES_MAX {
            problems.push(format!("size {} is above 64 TiB", self.size_bytes));
        }
        if BlockSize::new(self.block_size_bytes).is_none() {
            problems.push(format!(
                "block size {} is not a power of two from 4 KiB to 64 KiB",
                self.block_size_bytes
            ));
        }
        let chunk = self.chunk_size_bytes;
        if !chunk.is_power_of_two() || !((1 << 20)..=(64 << 20)).contains(&chunk) {
            problems.push(format!(
                "chunk size {chunk} is not a power of two from 1 to 64 MiB"
            ));
        }
        if self.rpo_bytes > 0 && self.rpo_bytes < RPO_BYTES_MIN {
            let bytes = self.rpo_bytes;
            problems.push(format!("rpo_bytes {bytes} is below 1 MiB; 0 is no limit"));
        }
        if self.bandwidth_bytes > 0 && self.bandwidth_bytes < BANDWIDTH_BYTES_MIN {
            let bytes = self.bandwidth_bytes;
            problems.push(format!(
                "bandwidth {bytes} is below 64 KiB a second; 0 is no limit"
            ));
        }
        if self.burst_seconds > BURST_SECONDS_MAX {
            let seconds = self.burst_seconds;
            problems.push(format!("burst_seconds {seconds} is above an hour"));
        }
        for (name, seconds) in [
            ("rpo_seconds", self.rpo_seconds),
            ("commit_interval_seconds", self.commit_interval_seconds),
        ] {
            if seconds > INTERVAL_SECONDS_MAX {
                problems.push(format!("{name} {seconds} is above a day"));
            }
        }
        if self.pitr_window_seconds > PITR_SECONDS_MAX {
            let seconds = self.pitr_window_seconds;
            problems.push(format!("pitr_window_seconds {seconds} is above 31 days"));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Error::invalid(problems.join("; ")))
        }
    }

    /// The block size; valid after [`VolumeSettings::validate`], else the default.
    pub fn block_size(&self) -> BlockSize {
        BlockSize::new(self.block_size_bytes).unwrap_or(BlockSize::MIN)
    }

    /// The window of points in time in milliseconds.
    pub fn pitr_window_ms(&self) -> u64 {
        self.pitr_window_seconds.saturating_mul(1000)
    }

    /// Block slots of a full chunk.
    pub fn chunk_slots(&self) -> u32 {
        self.chunk_size_bytes / self.block_size_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_through_their_encoding() {
        for name in [
            "vol0",
            "tenant/volume",
            "münchen",
            ".hidden",
            "a b%c",
            "x/.y",
            "a..b",
        ] {
            let name = VolumeName::parse(name).unwrap();
            let encoded = name.encoded();
            assert!(
                !encoded.contains('/') && !encoded.starts_with('.'),
                "{encoded}"
            );
            assert_eq!(VolumeName::decode(&encoded).unwrap(), name);
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_reason() {
        let long = "x".repeat(256);
        for (name, why) in [
            ("", "empty"),
            ("/a", "empty part"),
            ("a//b", "empty part"),
            ("a/", "empty part"),
            ("..", "'..'"),
            ("a/../b", "'..'"),
            ("a@s", "'@'"),
            ("a\0b", "control"),
            ("a\nb", "control"),
            (long.as_str(), "255 bytes"),
        ] {
            let error = VolumeName::parse(name).unwrap_err().to_string();
            assert!(error.contains(why), "{name:?}: {error}");
        }
    }

    #[test]
    fn settings_of_version_1_keep_their_bytes_and_later_ones_have_golden_ones() {
        let plain = VolumeSettings::with_size(1 << 30);
        let old = concat!(
            r#"{"size_bytes":1073741824,"block_size_bytes":4096,"chunk_size_bytes":4194304,"#,
            r#""ack":"memory","on_lost_cache":"continue"}"#
        );
        assert_eq!(serde_json::to_string(&plain).unwrap(), old);
        assert_eq!(serde_json::from_str::<VolumeSettings>(old).unwrap(), plain);
        let full = VolumeSettings {
            durability: Durability::Remote,
            rpo_seconds: 60,
            rpo_bytes: 1 << 28,
            commit_interval_seconds: 5,
            requests_per_hour: 60,
            iops: 500,
            bandwidth_bytes: 1 << 20,
            burst_seconds: 3,
            pitr_window_seconds: 86_400,
            ..plain
        };
        let new = concat!(
            r#"{"size_bytes":1073741824,"block_size_bytes":4096,"chunk_size_bytes":4194304,"#,
            r#""ack":"memory","on_lost_cache":"continue","durability":"remote","#,
            r#""rpo_seconds":60,"rpo_bytes":268435456,"commit_interval_seconds":5,"#,
            r#""requests_per_hour":60,"iops":500,"bandwidth_bytes":1048576,"burst_seconds":3,"#,
            r#""pitr_window_seconds":86400}"#
        );
        assert_eq!(serde_json::to_string(&full).unwrap(), new);
        assert_eq!(serde_json::from_str::<VolumeSettings>(new).unwrap(), full);
    }

    #[test]
    fn limits_of_loss_are_checked() {
        let bad = VolumeSettings {
            rpo_bytes: 4096,
            rpo_seconds: 100_000,
            pitr_window_seconds: 3_000_000,
            ..VolumeSettings::with_size(1 << 20)
        };
        let text = bad.validate().unwrap_err().to_string();
        assert!(text.contains("rpo_bytes 4096") && text.contains("rpo_seconds 100000"));
        assert!(text.contains("pitr_window_seconds 3000000 is above 31 days"));
    }

    #[test]
    fn settings_report_all_problems_at_once() {
        let bad = VolumeSettings {
            block_size_bytes: 5000,
            ..VolumeSettings::with_size(1000)
        };
        let text = bad.validate().unwrap_err().to_string();
        assert!(
            text.contains("size 1000") && text.contains("block size 5000"),
            "{text}"
        );
    }
}
