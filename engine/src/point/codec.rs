//! Bytes of moments, in manifests, and of points, in roots of checkpoints.

use super::{Moment, POINTS_MAX, Point, PointTable};
use crate::error::{Error, Result};
use crate::identity::{Epoch, ManifestNum};
use crate::object::fields::{Fields, FieldsOut};
use crate::timestamp::UnixMs;

impl Moment {
    /// Bytes in a manifest.
    pub(crate) const ENCODED_BYTES: usize = 24;

    pub(crate) fn encode_into(&self, out: &mut impl FieldsOut) {
        out.put_u64(self.committed.0);
        out.put_u64(self.age_ms);
        out.put_u64(self.since.0);
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        Ok(Self {
            committed: UnixMs(fields.u64()?),
            age_ms: fields.u64()?,
            since: ManifestNum(fields.u64()?),
        })
    }
}

impl Point {
    const ENCODED_BYTES: usize = 40;

    fn encode_into(&self, out: &mut impl FieldsOut) {
        out.put_u64(self.manifest.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.committed.0);
        out.put_u64(self.age_ms);
        out.put_u64(self.added_bytes);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        Ok(Self {
            manifest: ManifestNum(fields.u64()?),
            epoch: Epoch(fields.u64()?),
            committed: UnixMs(fields.u64()?),
            age_ms: fields.u64()?,
            added_bytes: fields.u64()?,
        })
    }
}

impl PointTable {
    pub(crate) fn encode_into(&self, out: &mut impl FieldsOut) {
        out.put_u32(self.iter().count() as u32);
        out.put_u32(0); // reserved
        self.iter().for_each(|point| point.encode_into(out));
    }

    /// A table that is not empty.
    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        let (count, reserved) = (fields.u32()?, fields.u32()?);
        if reserved != 0 || count == 0 || count as usize > POINTS_MAX {
            return Err(Error::corrupt("the table of points contradicts itself"));
        }
        Self::new(fields.list(count, Point::ENCODED_BYTES, Point::decode)?)
    }
}
