//! Names of objects in a backend: which keys are valid, and how chunks, index objects, manifests
//! and volume names are called. Names are never reused.

pub(crate) mod fields;

use std::fmt;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::identity::{Generation, ManifestNum, VolumeId};
use crate::snapshot::SnapshotId;
use crate::volume::VolumeName;

use fields::{Fields, FieldsOut};

/// Longest object key in bytes (the limit of S3).
pub const KEY_BYTES_MAX: usize = 1024;
/// Layout version of the bucket: the first part of every key.
pub const LAYOUT_PREFIX: &str = "v1/";
/// Prefix under which volume names are listed.
pub const NAMES_PREFIX: &str = "v1/names/";
/// Prefix under which deleted volumes are listed whose objects are not known to be freed.
pub const DELETED_PREFIX: &str = "v1/deleted/";
/// Prefix of the verdicts on groups of snapshots.
pub const GROUPS_PREFIX: &str = "v1/groups/";

/// A valid object key: at most 1024 bytes of parts separated by `/`; each part is not empty, does
/// not start with `.`, and has only `A–Z a–z 0–9 - _ . %`. So a key is safe as a relative path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Checks `text`; anything that could leave a directory or hide in it is [`Invalid`].
    ///
    /// [`Invalid`]: crate::error::ErrorKind::Invalid
    pub fn parse(text: &str) -> Result<Self> {
        if Self::is_valid(text) {
            return Ok(Self(text.to_owned()));
        }
        let head: String = text.chars().take(80).collect();
        Err(Error::invalid(format!(
            "object key {head:?} is refused: parts of [A-Za-z0-9._%-], none empty or with a \
             leading '.', at most {KEY_BYTES_MAX} bytes"
        )))
    }

    /// Whether `text` is a valid key.
    pub fn is_valid(text: &str) -> bool {
        let part_ok = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'%'))
        };
        text.len() <= KEY_BYTES_MAX && text.split('/').all(part_ok)
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Entry `number` of the log of a volume name: `v1/names/<encoded>/<number>`.
    pub fn name_entry(name: &VolumeName, number: u64) -> Self {
        Self::built(format!("{}{number:016x}", Self::name_prefix(name)))
    }

    /// Prefix of the log of a volume name.
    pub fn name_prefix(name: &VolumeName) -> String {
        format!("{NAMES_PREFIX}{}/", name.encoded())
    }

    /// A manifest of a volume: `v1/<volume>/manifests/<number>`.
    pub fn manifest(volume: VolumeId, number: ManifestNum) -> Self {
        let prefix = Self::manifest_prefix(volume);
        Self::built(format!("{prefix}{:016x}", number.0))
    }

    /// Prefix of a volume's manifests.
    pub fn manifest_prefix(volume: VolumeId) -> String {
        format!("{LAYOUT_PREFIX}{volume}/manifests/")
    }

    /// Entry `number` of the log of a snapshot's pins: `v1/<volume>/snapshots/<snapshot>/<number>`.
    pub fn pin_entry(volume: VolumeId, snapshot: SnapshotId, number: u64) -> Self {
        let prefix = Self::pin_prefix(volume, snapshot);
        Self::built(format!("{prefix}{number:016x}"))
    }

    /// Prefix of the log of a snapshot's pins.
    pub fn pin_prefix(volume: VolumeId, snapshot: SnapshotId) -> String {
        format!("{LAYOUT_PREFIX}{volume}/snapshots/{snapshot}/")
    }

    /// What became of a group of snapshots: `v1/groups/<its lead>`.
    pub fn group(lead: SnapshotId) -> Self {
        Self::built(format!("{GROUPS_PREFIX}{lead}"))
    }

    /// The mark of a deleted volume whose objects are to be freed: `v1/deleted/<volume>`.
    pub fn deleted(volume: VolumeId) -> Self {
        Self::built(format!("{DELETED_PREFIX}{volume}"))
    }

    /// Another mark of such a volume, by a writer that stored something after its deletion:
    /// `v1/deleted/<volume>-<random>`.
    pub fn deleted_again(volume: VolumeId, random: u64) -> Self {
        Self::built(format!("{DELETED_PREFIX}{volume}-{random:016x}"))
    }

    /// A key that this module built and that is valid by construction.
    fn built(text: String) -> Self {
        assert!(Self::is_valid(&text), "built an invalid object key: {text}");
        Self(text)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ObjectKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The number at the end of a manifest's or name entry's key: the last part, 16 hexadecimal digits.
/// The greatest is none: nothing could follow it.
pub fn number_of(key: &str) -> Option<u64> {
    let digits = key.rsplit('/').next()?;
    (digits.len() == 16).then_some(())?;
    let number = parse_hex(digits)?;
    (number < u64::MAX).then_some(number)
}

/// Lower-case hexadecimal digits only (`from_str_radix` also takes a sign and capitals).
fn parse_hex(digits: &str) -> Option<u64> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (!digits.is_empty() && digits.bytes().all(lower)).then_some(())?;
    u64::from_str_radix(digits, 16).ok()
}

/// Declares the name of a sealed, immutable object of a volume under one folder.
macro_rules! sealed_key {
    ($(#[$doc:meta])* $name:ident, $folder:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// The volume under which the object is stored (a clone refers to its parent's).
            pub volume: VolumeId,
            /// Generation of the writer that made it.
            pub generation: Generation,
            /// Counts the objects of that generation; gaps are fine, repeats are not.
            pub sequence: u64,
            /// Random, so that a name is never used twice, not even by a restored machine.
            pub random: u64,
        }

        impl $name {
            /// Bytes of a key on disk.
            pub const ENCODED_BYTES: usize = 32;

            /// The object's key.
            pub fn object(&self) -> ObjectKey {
                ObjectKey::built(format!(
                    "{}{:08x}-{:016x}-{:016x}",
                    Self::prefix(self.volume),
                    self.generation.0,
                    self.sequence,
                    self.random
                ))
            }

            /// Prefix of all such objects of a volume.
            pub fn prefix(volume: VolumeId) -> String {
                format!(concat!("v1/{}/", $folder, "/"), volume)
            }

            /// Undoes [`Self::object`]; `None` for a key of any other form.
            pub fn parse(key: &str) -> Option<Self> {
                let (volume, rest) = key.strip_prefix(LAYOUT_PREFIX)?.split_once('/')?;
                let name = rest.strip_prefix(concat!($folder, "/"))?;
                let mut parts = name.split('-');
                let parsed = Self {
                    volume: VolumeId::parse(volume)?,
                    generation: Generation(parse_hex(parts.next()?)?),
                    sequence: parse_hex(parts.next()?)?,
                    random: parse_hex(parts.next()?)?,
                };
                // Only the one canonical spelling is a name.
                (parsed.object().as_str() == key).then_some(parsed)
            }

            pub(crate) fn encode_into(&self, out: &mut impl FieldsOut) {
                out.put_u64(self.volume.0);
                out.put_u64(self.generation.0);
                out.put_u64(self.sequence);
                out.put_u64(self.random);
            }

            pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self> {
                Ok(Self {
                    volume: VolumeId(fields.u64()?),
                    generation: Generation(fields.u64()?),
                    sequence: fields.u64()?,
                    random: fields.u64()?,
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.object().fmt(f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(
                &self,
                serializer: S,
            ) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

sealed_key! {
    /// Name of a chunk object: `v1/<volume>/chunks/<generation>-<sequence>-<random>`.
    ChunkKey, "chunks"
}
sealed_key! {
    /// Name of an index object: `v1/<volume>/index/<generation>-<sequence>-<random>`.
    IndexKey, "index"
}

/// A sealed object of either class, as manifests condemn and drop them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SealedRef {
    /// A chunk.
    Chunk(ChunkKey),
    /// An index object.
    Index(IndexKey),
}

impl SealedRef {
    /// Bytes of a reference on disk.
    pub const ENCODED_BYTES: usize = 8 + ChunkKey::ENCODED_BYTES;

    /// The object's key.
    pub fn object(&self) -> ObjectKey {
        match self {
            Self::Chunk(key) => key.object(),
            Self::Index(key) => key.object(),
        }
    }

    /// The object of that key; `None` for a key of any other form.
    pub fn parse(key: &str) -> Option<Self> {
        let chunk = ChunkKey::parse(key).map(Self::Chunk);
        chunk.or_else(|| IndexKey::parse(key).map(Self::Index))
    }

    /// The volume under which it is stored, which alone may condemn it, and the generation of the
    /// writer that named it.
    pub fn owner(&self) -> (VolumeId, Generation) {
        match self {
            Self::Chunk(key) => (key.volume, key.generation),
            Self::Index(key) => (key.volume, key.generation),
        }
    }

    pub(crate) fn encode_into(&self, out: &mut impl FieldsOut) {
        match self {
            Self::Chunk(key) => {
                out.put_u64(1);
                key.encode_into(out);
            }
            Self::Index(key) => {
                out.put_u64(2);
                key.encode_into(out);
            }
        }
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        match fields.u64()? {
            1 => Ok(Self::Chunk(ChunkKey::decode(fields)?)),
            2 => Ok(Self::Index(IndexKey::decode(fields)?)),
            class => Err(Error::corrupt(format!("unknown object class {class}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkKey = ChunkKey {
        volume: VolumeId(0xAB),
        generation: Generation(3),
        sequence: 0x10,
        random: 0xFEED,
    };

    #[test]
    fn keys_have_their_documented_spelling() {
        assert_eq!(
            CHUNK.object().as_str(),
            "v1/00000000000000ab/chunks/00000003-0000000000000010-000000000000feed"
        );
        assert_eq!(
            ObjectKey::manifest(VolumeId(1), ManifestNum(0x2A)).as_str(),
            "v1/0000000000000001/manifests/000000000000002a"
        );
        let name = VolumeName::parse("tenant/volume").unwrap();
        assert_eq!(
            ObjectKey::name_entry(&name, 1).as_str(),
            "v1/names/tenant%2Fvolume/0000000000000001"
        );
        assert_eq!(number_of("v1/x/manifests/000000000000002a"), Some(0x2A));
        assert_eq!(number_of("v1/x/manifests/+00000000000002a"), None);
        assert_eq!(number_of("v1/x/manifests/2a"), None);
        let last = "v1/x/manifests/ffffffffffffffff";
        assert_eq!(number_of(last), None, "nothing could follow it");
    }

    #[test]
    fn sealed_names_parse_back_and_only_in_their_own_class() {
        let key = CHUNK.object();
        assert_eq!(ChunkKey::parse(key.as_str()), Some(CHUNK));
        assert_eq!(IndexKey::parse(key.as_str()), None);
        for bad in [
            "v1/00000000000000ab/chunks/3-0000000000000010-000000000000feed",
            "v1/00000000000000AB/chunks/00000003-0000000000000010-000000000000feed",
            "v1/00000000000000ab/chunks/00000003-0000000000000010-000000000000feed-1",
            "v1/00000000000000ab/chunks/",
        ] {
            assert_eq!(ChunkKey::parse(bad), None, "{bad}");
        }
        let huge = ChunkKey {
            generation: Generation(u64::MAX),
            ..CHUNK
        };
        assert_eq!(ChunkKey::parse(huge.object().as_str()), Some(huge));
    }

    #[test]
    fn the_longest_volume_name_still_makes_a_key() {
        let name = VolumeName::parse(&"ü".repeat(127)).unwrap();
        let key = ObjectKey::name_entry(&name, u64::MAX);
        assert!(key.as_str().len() <= KEY_BYTES_MAX);
    }

    #[test]
    fn hostile_keys_are_refused() {
        let long = "x".repeat(1025);
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "a/",
            "a//b",
            ".",
            "..",
            "../x",
            "a/../b",
            "a/./b",
            ".tmp/x",
            "a/.hidden",
            "a\0b",
            "a\nb",
            "a b",
            "a\\b",
            "ü",
            long.as_str(),
        ] {
            assert!(ObjectKey::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ObjectKey::parse("v1/names/a%2Fb-c_d.e").is_ok());
    }
}
