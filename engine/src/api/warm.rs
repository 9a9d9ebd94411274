//! JSON of warm-ups: reading a volume's objects into the caches in the background.

use serde::{Deserialize, Serialize};

use super::volume_path;
use crate::size;
use crate::volume::VolumeName;

/// Path of the warm-up of one volume: `POST` starts one, `GET` tells how it is getting on.
pub fn warm_path(name: &VolumeName) -> String {
    format!("{}/warm", volume_path(name))
}

/// Body of `POST /v1/volumes/{name}/warm`. Without a range the whole volume is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmVolume {
    /// First byte of the range; 0 if there is only a length.
    #[serde(
        alias = "offset",
        default,
        deserialize_with = "size::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub offset_bytes: Option<u64>,
    /// Bytes of the range; up to the end of the volume if there is only an offset.
    #[serde(
        alias = "length",
        default,
        deserialize_with = "size::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub length_bytes: Option<u64>,
}

/// What a warm-up is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmState {
    /// None was started since the daemon started.
    #[default]
    None,
    /// It reads.
    Running,
    /// Everything was read, or was there already.
    Done,
    /// The cache is full; the oldest objects were left out.
    Full,
}

/// How a warm-up is getting on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStatus {
    /// What it is doing.
    pub state: WarmState,
    /// Objects of the volume.
    pub objects: u64,
    /// Objects looked at so far.
    pub objects_done: u64,
    /// Blocks read into the caches.
    pub blocks: u64,
    /// Blocks that could not be read.
    pub failed_blocks: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_text_or_numbers_and_unknown_fields_are_refused() {
        let asked: WarmVolume = serde_json::from_str(r#"{"offset":"1GiB","length":4096}"#).unwrap();
        assert_eq!(asked.offset_bytes, Some(1 << 30));
        assert_eq!(asked.length_bytes, Some(4096));
        assert!(serde_json::from_str::<WarmVolume>(r#"{"range":"1GiB"}"#).is_err());
        let name = VolumeName::parse("a/b").unwrap();
        assert_eq!(warm_path(&name), "/v1/volumes/a%2Fb/warm");
    }
}
