//! Snapshots that belong together: one cut over several volumes.

use serde::Serialize;

use super::SnapshotId;
use crate::error::{Error, Result};
use crate::identity::VolumeId;
use crate::object::fields::{Fields, FieldsOut};

/// Most volumes of one group.
pub const GROUP_VOLUMES_MAX: usize = 64;

/// The group of a snapshot, as each of its members says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// By which it is known: the snapshot of its first volume.
    lead: SnapshotId,
    /// Its volumes, ascending, at least two.
    volumes: Vec<VolumeId>,
}

impl Group {
    /// The group of these snapshots, each of another volume.
    pub fn new(mut members: Vec<(VolumeId, SnapshotId)>) -> Result<Self> {
        members.sort_unstable();
        let lead = members.first().map_or(SnapshotId(0), |first| first.1);
        Self::of(lead, members.into_iter().map(|member| member.0).collect())
    }

    /// The group known by `lead`.
    pub fn of(lead: SnapshotId, volumes: Vec<VolumeId>) -> Result<Self> {
        let ascends = volumes.is_sorted_by(|a, b| a < b);
        match ascends && (2..=GROUP_VOLUMES_MAX).contains(&volumes.len()) {
            true => Ok(Self { lead, volumes }),
            false => Err(Error::invalid(format!(
                "a group has from 2 to {GROUP_VOLUMES_MAX} volumes, each once"
            ))),
        }
    }

    /// By which it is known.
    pub fn lead(&self) -> SnapshotId {
        self.lead
    }

    /// Its volumes, ascending.
    pub fn volumes(&self) -> &[VolumeId] {
        &self.volumes
    }

    /// Bytes behind the name in a record.
    pub(super) fn encoded_bytes(&self) -> usize {
        8 + 8 * self.volumes.len()
    }

    pub(super) fn encode_into(&self, out: &mut impl FieldsOut) {
        out.put_u64(self.lead.0);
        self.volumes.iter().for_each(|volume| out.put_u64(volume.0));
    }

    pub(super) fn decode(volumes: u32, fields: &mut Fields<'_>) -> Result<Self> {
        let lead = SnapshotId(fields.u64()?);
        let volumes = fields.list(volumes, 8, |fields| Ok(VolumeId(fields.u64()?)))?;
        Self::of(lead, volumes)
            .map_err(|e| Error::corrupt("the group of a snapshot is none").with_source(e))
    }
}
