//! Bytes of a snapshot's record, in manifests and in roots of checkpoints.

use serde::Serialize;

use super::{Group, Snapshot, SnapshotId, SnapshotName};
use crate::error::{Error, Result};
use crate::identity::{Epoch, Generation, ManifestNum};
use crate::object::fields::{Fields, FieldsOut};

const KIND_TAKEN: u16 = 1;
const KIND_DELETED: u16 = 2;
/// As the first two, of a snapshot that is of a group.
const KIND_MEMBER_TAKEN: u16 = 3;
const KIND_MEMBER_DELETED: u16 = 4;
/// Of an earlier manifest, which was a point in time until then.
const KIND_KEPT: u16 = 5;

/// What a manifest does to the snapshots of its volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotChange {
    /// The manifest's own image is a snapshot.
    Taken(Snapshot),
    /// The image of an earlier manifest, a point in time, is a snapshot from here on.
    Kept(Snapshot),
    /// An earlier snapshot is gone for good.
    Deleted(Snapshot),
}

impl SnapshotChange {
    /// Least bytes of a change on disk.
    pub(crate) const ENCODED_BYTES_MIN: usize = Snapshot::HEADER_BYTES + 1;

    /// Bytes of this change on disk.
    pub(crate) fn encoded_bytes(&self) -> usize {
        match self {
            Self::Taken(snapshot) | Self::Kept(snapshot) | Self::Deleted(snapshot) => {
                snapshot.encoded_bytes()
            }
        }
    }

    pub(crate) fn encode_into(&self, out: &mut impl FieldsOut) {
        match self {
            Self::Taken(snapshot) => snapshot.encode_into(out),
            // A point is of one volume.
            Self::Kept(snapshot) => snapshot.encode_as([KIND_KEPT; 2], out),
            Self::Deleted(snapshot) => snapshot.encode_as([KIND_DELETED, KIND_MEMBER_DELETED], out),
        }
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        match decode(fields)? {
            (KIND_TAKEN | KIND_MEMBER_TAKEN, snapshot) => Ok(Self::Taken(snapshot)),
            (KIND_KEPT, snapshot) => Ok(Self::Kept(snapshot)),
            (KIND_DELETED | KIND_MEMBER_DELETED, snapshot) => Ok(Self::Deleted(snapshot)),
            (kind, _) => Err(Error::corrupt(format!(
                "change {kind} of a snapshot is not known to this release"
            ))),
        }
    }
}

impl Snapshot {
    const HEADER_BYTES: usize = 56;
    /// Least bytes of a record on disk.
    pub(crate) const ENCODED_BYTES_MIN: usize = Self::HEADER_BYTES + 1;

    /// Bytes of this record on disk.
    pub(crate) fn encoded_bytes(&self) -> usize {
        let group = self.group.as_ref().map_or(0, Group::encoded_bytes);
        Self::HEADER_BYTES + self.name.as_str().len() + group
    }

    pub(crate) fn encode_into(&self, out: &mut impl FieldsOut) {
        self.encode_as([KIND_TAKEN, KIND_MEMBER_TAKEN], out);
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        match decode(fields)? {
            (KIND_TAKEN | KIND_MEMBER_TAKEN, snapshot) => Ok(snapshot),
            _ => Err(Error::corrupt("a table of snapshots holds something else")),
        }
    }

    /// `kinds`: of one without a group, and of one with.
    fn encode_as(&self, kinds: [u16; 2], out: &mut impl FieldsOut) {
        let volumes = self.group.as_ref().map_or(0, |group| group.volumes().len());
        let name = self.name.as_str().as_bytes();
        out.put_u64(self.id.0);
        out.put_u64(self.manifest.0);
        out.put_u64(self.generation.0);
        out.put_u64(self.sequence);
        out.put_u64(self.epoch.0);
        out.put_u64(self.taken_ms);
        out.put_u16(kinds[usize::from(volumes > 0)]);
        out.put_u16(name.len() as u16);
        out.put_u32(volumes as u32);
        out.put(name);
        if let Some(group) = &self.group {
            group.encode_into(out);
        }
    }
}

fn decode(fields: &mut Fields<'_>) -> Result<(u16, Snapshot)> {
    let id = SnapshotId(fields.u64()?);
    let manifest = ManifestNum(fields.u64()?);
    let generation = Generation(fields.u64()?);
    let sequence = fields.u64()?;
    let epoch = Epoch(fields.u64()?);
    let taken_ms = fields.u64()?;
    let (kind, name_bytes, volumes) = (fields.u16()?, fields.u16()?, fields.u32()?);
    let name = std::str::from_utf8(fields.take(usize::from(name_bytes))?)
        .ok()
        .and_then(|name| SnapshotName::parse(name).ok())
        .ok_or_else(|| Error::corrupt("the name of a snapshot is not valid"))?;
    let is_member = matches!(kind, KIND_MEMBER_TAKEN | KIND_MEMBER_DELETED);
    if is_member != (volumes > 0) || manifest.0 == 0 {
        return Err(Error::corrupt("a snapshot's record contradicts itself"));
    }
    let group = is_member.then(|| Group::decode(volumes, fields));
    let snapshot = Snapshot {
        id,
        name,
        manifest,
        generation,
        sequence,
        epoch,
        taken_ms,
        group: group.transpose()?,
    };
    Ok((kind, snapshot))
}
