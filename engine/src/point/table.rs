//! The points of a volume as of one manifest, and which objects they keep.

use std::collections::VecDeque;

use super::{Moment, POINTS_MAX, Point, PointName};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::ManifestNum;
use crate::manifest::Manifest;
use crate::timestamp::UnixMs;

/// The points of a volume, oldest first. Every manifest from the first of them on is kept; listed
/// are those that changed the content; if they are many, not all that are very close to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PointTable(VecDeque<Point>);

impl PointTable {
    /// A table as a checkpoint holds it; `Corrupt` if it cannot be one.
    pub fn new(points: Vec<Point>) -> Result<Self> {
        let ascends = points.is_sorted_by(|a, b| {
            a.manifest < b.manifest && a.epoch < b.epoch && a.age_ms <= b.age_ms
        });
        let first = points.first().map_or(1, |point| point.manifest.0);
        match ascends && first > 0 && points.len() <= POINTS_MAX {
            true => Ok(Self(points.into())),
            false => Err(Error::corrupt("the points in time do not ascend")),
        }
    }

    /// All points, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Point> {
        self.0.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The oldest manifest whose image is kept.
    pub fn since(&self) -> Option<ManifestNum> {
        self.0.front().map(|point| point.manifest)
    }

    /// The point that is meant; `NotFound` if there is none.
    pub fn find(&self, name: PointName) -> Result<Point> {
        let found = match name {
            PointName::Manifest(number) => self.iter().rfind(|p| p.manifest == number),
            PointName::Time(time) => {
                let mut known = self.iter().filter(|point| point.committed.0 > 0);
                known.rfind(|point| point.committed <= time)
            }
        };
        found.copied().ok_or_else(|| {
            let oldest = self.iter().find(|point| point.committed.0 > 0);
            let told = match oldest {
                Some(point) => format!("the oldest is of {}", point.committed),
                None if self.is_empty() => "the volume has no pitr_window".to_owned(),
                None => "nothing was committed since they are kept".to_owned(),
            };
            let text = format!("there is no point in time {name}: {told}");
            Error::new(ErrorKind::NotFound, text)
        })
    }

    /// Takes up the next manifest; `Corrupt` if it cannot follow. Nothing is changed then.
    pub fn follow(&mut self, manifest: &Manifest) -> Result<()> {
        let Some(moment) = &manifest.moment else {
            self.0.clear();
            return Ok(());
        };
        let point = Point {
            manifest: manifest.number,
            epoch: manifest.epoch,
            committed: moment.committed,
            age_ms: moment.age_ms,
            added_bytes: manifest.added.iter().map(|chunk| chunk.bytes).sum(),
        };
        let gone = self.0.partition_point(|p| p.manifest < moment.since);
        let first = self.0.get(gone).map_or(point.manifest, |p| p.manifest);
        let newest = self.0.back().map(|last| (last.epoch, last.age_ms));
        if first != moment.since || newest.is_some_and(|last| last > (point.epoch, point.age_ms)) {
            let text = format!(
                "manifest {} keeps points that are not there",
                point.manifest
            );
            return Err(Error::corrupt(text));
        }
        self.0.drain(..gone);
        if self.0.back().is_none_or(|last| last.epoch < point.epoch) {
            self.enter(point, manifest.settings.pitr_window_ms());
        }
        Ok(())
    }

    /// Once there are many, of points that are closer to each other than a share of the window only
    /// the newest stays, so that there is room for all of the window.
    fn enter(&mut self, point: Point, window_ms: u64) {
        let many = POINTS_MAX / 2;
        let mut newest = self.0.iter().rev();
        if let (Some(last), Some(before)) = (newest.next(), newest.next()) {
            let grain_ms = window_ms.div_ceil(many as u64);
            let is_close = last.age_ms - before.age_ms < grain_ms;
            if (is_close && self.0.len() >= many) || self.0.len() >= POINTS_MAX {
                self.0.pop_back();
            }
        }
        self.0.push_back(point);
    }

    /// From which manifest on images are kept once `age_ms` have passed: the last one at the
    /// window's beginning is. None is given up from `held` on, because it is in use.
    pub fn since_at(
        &self,
        age_ms: u64,
        window_ms: u64,
        held: Option<ManifestNum>,
    ) -> Option<ManifestNum> {
        let leaves = |point: &Point| {
            let out = point.age_ms.saturating_add(window_ms) <= age_ms;
            out && held.is_none_or(|held| point.manifest <= held)
        };
        let out = self.0.iter().take_while(|point| leaves(point)).count();
        self.0
            .get(out.saturating_sub(1))
            .map(|point| point.manifest)
    }

    /// The moment of the manifest that follows `last`, made at `committed` after `passed_ms` more.
    pub fn next_moment(
        &self,
        last: Moment,
        (committed, passed_ms): (UnixMs, u64),
        window_ms: u64,
        held: Option<ManifestNum>,
    ) -> Moment {
        let age_ms = last.age_ms.saturating_add(passed_ms);
        Moment {
            committed,
            age_ms,
            since: self
                .since_at(age_ms, window_ms, held)
                .map_or(last.since, |since| since.max(last.since)),
        }
    }
}
