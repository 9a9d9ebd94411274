//! Index parts: the objects in which a checkpoint stores changed leaves and chunks. Format:
//! `docs/internals/extent-index.md`.

use bytes::Bytes;

use super::leaf::{ChunkOrdinal, LEAF_BYTES_MAX, LEAVES_MAX, Leaf, LeafKey};
use crate::backend::{Backend, Portion, read_checked};
use crate::block::ShardId;
use crate::chunk::ChunkRef;
use crate::error::{Error, Result};
use crate::identity::ManifestNum;
use crate::manifest::CheckpointRef;
use crate::object::fields::{Fields, FieldsOut};
use crate::object::{ChunkKey, IndexKey, SealedRef};
use crate::point::PointTable;
use crate::snapshot::{SNAPSHOTS_MAX, Snapshot};

/// First bytes of every index part.
pub const MAGIC: [u8; 8] = *b"TaipanIx";
/// Version of the format.
pub const VERSION: u16 = 1;
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 80;
/// No part is larger.
pub const PART_BYTES_MAX: usize = 64 << 20;

const CRC_BYTES: usize = 4;
const LENGTH: std::ops::Range<usize> = 12..16;
const LEAF_HEADER_BYTES: usize = 8;
const CHUNK_BYTES: usize = 8 + ChunkRef::ENCODED_BYTES;
const PART_REF_BYTES: usize = CheckpointRef::ENCODED_BYTES;
const RETAINED_BYTES: usize = IndexKey::ENCODED_BYTES + 8;
const FLAG_ROOT: u16 = 1;
const FLAG_POINTS: u16 = 2;
const ABSENT: u32 = 0;
const PRESENT: u32 = 1;

/// What one part says; later parts of a checkpoint override earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexPart {
    /// Its name.
    pub key: IndexKey,
    /// The manifest whose index it belongs to.
    pub manifest: ManifestNum,
    /// Changed leaves; `None` removes one.
    pub leaves: Vec<(ShardId, LeafKey, Option<Leaf>)>,
    /// Changed chunks; `None` frees an ordinal.
    pub chunks: Vec<(ChunkOrdinal, Option<ChunkRef>)>,
    /// Only in the last part of a checkpoint, which the manifest names.
    pub root: Option<RootPart>,
}

/// What ties the parts of a checkpoint together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootPart {
    /// Parts to be applied before this one, oldest first.
    pub parts: Vec<CheckpointRef>,
    /// Objects condemned whose deletion is not known to be done.
    pub condemned: Vec<SealedRef>,
    /// Index parts that only snapshots need, and the manifest that replaced each.
    pub retained: Vec<(IndexKey, ManifestNum)>,
    /// The snapshots after this manifest, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// The points in time after this manifest.
    pub points: PointTable,
}

impl RootPart {
    fn flags(&self) -> u16 {
        match self.points.is_empty() {
            true => FLAG_ROOT,
            false => FLAG_ROOT | FLAG_POINTS,
        }
    }
}

impl IndexPart {
    /// Bytes that a leaf takes in a part.
    pub fn leaf_bytes(leaf: Option<&Leaf>) -> usize {
        LEAF_HEADER_BYTES + leaf.map_or(0, |leaf| leaf.encode().len())
    }

    /// Bytes that a chunk takes in a part.
    pub fn chunk_bytes() -> usize {
        CHUNK_BYTES
    }

    /// The object's bytes.
    ///
    /// # Panics
    /// If they exceed [`PART_BYTES_MAX`]; checkpoints are cut into parts far below it.
    pub fn encode(&self) -> Bytes {
        let root = self.root.as_ref();
        let mut out = Vec::new();
        out.put(&MAGIC);
        out.put_u16(VERSION);
        out.put_u16(root.map_or(0, RootPart::flags));
        out.put_u32(0); // length, set below
        self.key.encode_into(&mut out);
        out.put_u64(self.manifest.0);
        out.put_u32(self.leaves.len() as u32);
        out.put_u32(self.chunks.len() as u32);
        out.put_u32(root.map_or(0, |root| root.parts.len()) as u32);
        out.put_u32(root.map_or(0, |root| root.condemned.len()) as u32);
        out.put_u32(root.map_or(0, |root| root.retained.len()) as u32);
        out.put_u32(root.map_or(0, |root| root.snapshots.len()) as u32);
        assert_eq!(out.len(), HEADER_BYTES);
        for (shard, key, leaf) in &self.leaves {
            let bytes = leaf.as_ref().map_or(&[][..], Leaf::encode);
            out.put_u32(key.0);
            out.put_u16(shard.index() as u16);
            out.put_u16(bytes.len() as u16);
            out.put(bytes);
        }
        for (ordinal, chunk) in &self.chunks {
            encode_chunk(*ordinal, chunk.as_ref(), &mut out);
        }
        for part in root.iter().flat_map(|root| &root.parts) {
            part.key.encode_into(&mut out);
            out.put_u64(part.bytes);
            out.put_u32(part.crc32c);
            out.put_u32(0);
        }
        for object in root.iter().flat_map(|root| &root.condemned) {
            object.encode_into(&mut out);
        }
        for (key, replaced_by) in root.iter().flat_map(|root| &root.retained) {
            key.encode_into(&mut out);
            out.put_u64(replaced_by.0);
        }
        for snapshot in root.iter().flat_map(|root| &root.snapshots) {
            snapshot.encode_into(&mut out);
        }
        if let Some(root) = root.filter(|root| !root.points.is_empty()) {
            root.points.encode_into(&mut out);
        }
        let total = out.len() + CRC_BYTES;
        assert!(total <= PART_BYTES_MAX, "index part of {total} bytes");
        out[LENGTH].copy_from_slice(&(total as u32).to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.put_u32(crc);
        Bytes::from(out)
    }

    /// Undoes [`IndexPart::encode`]; never panics, checks every leaf.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(checked_content(bytes)?);
        fields.take(MAGIC.len())?;
        let (version, flags) = (fields.u16()?, fields.u16()?);
        let known = [0, FLAG_ROOT, FLAG_ROOT | FLAG_POINTS].contains(&flags);
        if version != VERSION || !known {
            return Err(Error::corrupt(format!(
                "index part format {version}, flags {flags:x} are not known to this release"
            )));
        }
        let total = fields.u32()?;
        let key = IndexKey::decode(&mut fields)?;
        let manifest = ManifestNum(fields.u64()?);
        let mut count = || fields.u32();
        let (leaves, chunks) = (count()?, count()?);
        let lists = [count()?, count()?, count()?, count()?];
        let rootless_lists = flags == 0 && lists != [0; 4];
        if total as usize != bytes.len() || rootless_lists {
            return Err(Error::corrupt("the index part's header contradicts itself"));
        }
        let part = Self {
            key,
            manifest,
            leaves: fields.list(leaves, LEAF_HEADER_BYTES, decode_leaf)?,
            chunks: fields.list(chunks, CHUNK_BYTES, decode_chunk)?,
            root: decode_root(flags, lists, &mut fields)?,
        };
        if fields.remaining() != 0 {
            return Err(Error::corrupt(
                "bytes are left behind the index part's lists",
            ));
        }
        Ok(part)
    }
}

/// What a manifest or root says of an encoded part.
pub fn part_ref(key: IndexKey, body: &[u8]) -> CheckpointRef {
    CheckpointRef {
        key,
        bytes: body.len() as u64,
        crc32c: crc32c::crc32c(body),
    }
}

/// Decodes the part that `reference` names; anything else is
/// [`Corrupt`](crate::error::ErrorKind::Corrupt).
pub fn decode_named(reference: &CheckpointRef, body: &[u8]) -> Result<IndexPart> {
    let refuse = |why: &str| Error::corrupt(format!("index part {}: {why}", reference.key));
    if part_ref(reference.key, body) != *reference {
        return Err(refuse("length or CRC differ from what names it"));
    }
    let part = IndexPart::decode(body)?;
    if part.key != reference.key {
        return Err(refuse("it holds another part"));
    }
    Ok(part)
}

/// Reads and decodes the part that `reference` names.
pub(crate) async fn read_part(
    backend: &dyn Backend,
    reference: &CheckpointRef,
) -> Result<IndexPart> {
    let decode = |body: &Bytes| decode_named(reference, body);
    read_checked(backend, &reference.key.object(), Portion::Whole, decode).await
}

/// Fuzzing entry: decoding anything must not panic, and what decodes must encode to itself.
pub fn fuzz_part(data: &[u8]) {
    if let Ok(part) = IndexPart::decode(data) {
        assert_eq!(part.encode(), data);
    }
}

fn checked_content(bytes: &[u8]) -> Result<&[u8]> {
    if bytes.len() < HEADER_BYTES + CRC_BYTES || bytes.len() > PART_BYTES_MAX {
        return Err(Error::corrupt(format!(
            "{} bytes cannot be an index part",
            bytes.len()
        )));
    }
    if !bytes.starts_with(&MAGIC) {
        return Err(Error::corrupt("this is no index part: the magic differs"));
    }
    let (content, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
    if crc32c::crc32c(content).to_le_bytes() != crc {
        return Err(Error::corrupt("the index part fails its CRC"));
    }
    Ok(content)
}

fn encode_chunk(ordinal: ChunkOrdinal, chunk: Option<&ChunkRef>, out: &mut Vec<u8>) {
    out.put_u32(ordinal.0);
    let Some(chunk) = chunk else {
        out.put_u32(ABSENT);
        out.put(&[0; ChunkRef::ENCODED_BYTES]);
        return;
    };
    out.put_u32(PRESENT);
    chunk.key.encode_into(out);
    out.put_u32(chunk.head_bytes);
    out.put_u32(chunk.slots);
    out.put_u64(chunk.bytes);
}

fn decode_chunk(fields: &mut Fields<'_>) -> Result<(ChunkOrdinal, Option<ChunkRef>)> {
    let (ordinal, present) = (ChunkOrdinal(fields.u32()?), fields.u32()?);
    if present == ABSENT {
        let zeros = fields
            .take(ChunkRef::ENCODED_BYTES)?
            .iter()
            .all(|b| *b == 0);
        let freed = zeros.then_some((ordinal, None));
        return freed.ok_or_else(|| Error::corrupt("a freed chunk of the index has a name"));
    }
    let chunk = ChunkRef {
        key: ChunkKey::decode(fields)?,
        head_bytes: fields.u32()?,
        slots: fields.u32()?,
        bytes: fields.u64()?,
    };
    match present {
        PRESENT => Ok((ordinal, Some(chunk))),
        _ => Err(Error::corrupt(
            "a chunk of the index is neither present nor freed",
        )),
    }
}

fn decode_leaf(fields: &mut Fields<'_>) -> Result<(ShardId, LeafKey, Option<Leaf>)> {
    let key = LeafKey(fields.u32()?);
    let shard = u8::try_from(fields.u16()?).ok().and_then(ShardId::new);
    let len = usize::from(fields.u16()?);
    let (Some(shard), true) = (shard, key.0 < LEAVES_MAX && len <= LEAF_BYTES_MAX) else {
        return Err(Error::corrupt(
            "a leaf of the index is of no shard or volume",
        ));
    };
    let bytes = fields.take(len)?;
    let leaf = (len > 0).then(|| Leaf::decode(bytes)).transpose()?;
    Ok((shard, key, leaf))
}

fn decode_root(
    flags: u16,
    [parts, condemned, retained, snapshots]: [u32; 4],
    fields: &mut Fields<'_>,
) -> Result<Option<RootPart>> {
    if flags == 0 {
        return Ok(None);
    }
    if snapshots as usize > SNAPSHOTS_MAX {
        return Err(Error::corrupt("the index part has too many snapshots"));
    }
    let part = |fields: &mut Fields<'_>| {
        let part = CheckpointRef {
            key: IndexKey::decode(fields)?,
            bytes: fields.u64()?,
            crc32c: fields.u32()?,
        };
        match fields.u32()? {
            0 => Ok(part),
            _ => Err(Error::corrupt("a reserved field of the index part is set")),
        }
    };
    Ok(Some(RootPart {
        parts: fields.list(parts, PART_REF_BYTES, part)?,
        condemned: fields.list(condemned, SealedRef::ENCODED_BYTES, SealedRef::decode)?,
        retained: fields.list(retained, RETAINED_BYTES, |fields| {
            Ok((IndexKey::decode(fields)?, ManifestNum(fields.u64()?)))
        })?,
        snapshots: fields.list(snapshots, Snapshot::ENCODED_BYTES_MIN, Snapshot::decode)?,
        points: match flags & FLAG_POINTS {
            0 => PointTable::default(),
            _ => PointTable::decode(fields)?,
        },
    }))
}

#[cfg(test)]
mod tests;
