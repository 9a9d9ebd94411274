//! Points in time of volumes that nobody serves: each reads as its cut while it is listed, and none
//! leaves that was the image within the window, or that somebody reads, whatever the clock says.

use std::collections::BTreeMap;

use futures::executor::block_on;

use crate::backend::MemBackend;
use crate::commit::{Reading, VolumeCommit};
use crate::identity::{Epoch, ManifestNum, VolumeId};
use crate::point::{Point, PointTable};
use crate::registry::read_kept;
use crate::sim::coverage::Coverage;
use crate::sim::dice::Dice;
use crate::sim::image::read_all;
use crate::sim::pattern::Lattice;
use crate::snapshot::KeptImage;
use crate::timestamp::UnixMs;

/// The clock on the wall is wrong by so many milliseconds at most.
const WRONG_MS: u64 = 100_000_000;

/// The cuts of one volume, and a clock.
pub(super) struct Kept {
    /// 0: none are kept.
    window_ms: u64,
    now_ms: u64,
    /// When the writer began.
    began_ms: u64,
    cuts: BTreeMap<Epoch, Cut>,
    /// Somebody reads it, by this writer.
    held: Option<ManifestNum>,
}

struct Cut {
    image: Vec<u8>,
    /// When a later one took its place.
    replaced_ms: u64,
}

impl Kept {
    pub(super) fn new(window_ms: u64) -> Self {
        Self {
            window_ms,
            now_ms: 1000,
            began_ms: 1000,
            cuts: BTreeMap::new(),
            held: None,
        }
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
    }

    /// A writer opens the volume: its clock begins, and nobody reads anything yet.
    pub(super) fn opened(&mut self) {
        self.began_ms = self.now_ms;
        self.held = None;
    }

    /// Tells a writer the time, by a clock on the wall that is set at random.
    pub(super) fn tell_time(&mut self, commit: &mut VolumeCommit, dice: &mut Dice) {
        if self.window_ms == 0 {
            return;
        }
        if dice.chance(100) {
            let points: Vec<_> = commit.points().iter().map(|p| p.manifest).collect();
            self.held = (!points.is_empty() && self.held.is_none()).then(|| dice.pick(&points));
        }
        let wrong_ms = match dice.chance(200) {
            true => dice.range(0..=WRONG_MS),
            false => WRONG_MS / 2,
        };
        let reading = Reading {
            wall: UnixMs(self.now_ms + wrong_ms),
            steady_ms: self.now_ms - self.began_ms,
        };
        commit.note_time(reading, self.held);
    }

    /// A point of which it is known what it holds.
    pub(super) fn pick(&self, points: &PointTable, dice: &mut Dice) -> Option<(Point, Vec<u8>)> {
        let known = points.iter().filter(|p| self.cuts.contains_key(&p.epoch));
        let known: Vec<Point> = known.copied().collect();
        let point = (!known.is_empty()).then(|| dice.pick(&known))?;
        Some((point, self.cuts[&point.epoch].image.clone()))
    }

    /// The image of the head is this one.
    pub(super) fn note(&mut self, epoch: Epoch, image: &[u8]) {
        if self.window_ms == 0 || self.cuts.contains_key(&epoch) {
            return;
        }
        if let Some(mut last) = self.cuts.last_entry() {
            last.get_mut().replaced_ms = self.now_ms;
        }
        let cut = Cut {
            image: image.to_vec(),
            replaced_ms: u64::MAX,
        };
        self.cuts.insert(epoch, cut);
    }

    /// What is listed reads as it was, and nothing is missing. An error is a broken promise.
    pub(super) fn check(
        &self,
        objects: &MemBackend,
        (id, lattice): (VolumeId, Lattice),
        points: &PointTable,
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        if self.window_ms == 0 {
            return Ok(());
        }
        for (epoch, cut) in &self.cuts {
            let point = points.iter().find(|point| point.epoch == *epoch);
            let Some(point) = point else {
                if cut.replaced_ms.saturating_add(self.window_ms) > self.now_ms {
                    return Err(format!("the cut of epoch {epoch} of {id} is gone"));
                }
                coverage.hit("a point of a clone left its window");
                continue;
            };
            let image = KeptImage::Point(*point);
            let read = block_on(async {
                let (_, rebuilt) = read_kept(objects, id, &image).await?;
                read_all(objects, &rebuilt.base, lattice).await
            });
            let number = point.manifest;
            let read = read.map_err(|error| format!("point @{number} of {id}: {error}"))?;
            if read != cut.image {
                return Err(format!("point @{number} of {id} has changed"));
            }
        }
        let Some(held) = self.held else { return Ok(()) };
        match points.since() {
            Some(since) if since <= held => {
                coverage.hit("a point of a clone was kept for its reader");
                Ok(())
            }
            _ => Err(format!("point @{held} of {id} is gone, somebody reads it")),
        }
    }
}
