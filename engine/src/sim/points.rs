//! Points in time: in some seeds volumes keep their cuts for a short window. Each reads the same to
//! the byte whenever it is read, through everything else that happens, until it leaves; and none
//! leaves that was the newest cut within the window, counted from when its successor's writer was
//! last told the time: how long the bucket takes to store that one makes neither of them younger.

use std::cell::RefCell;
use std::collections::BTreeMap;

use futures::executor::block_on;

use super::bucket::Late;
use super::dice::Dice;
use super::image::read_all;
use super::plan::MS;
use super::world::World;
use crate::commit::{Reading, VolumeCommit};
use crate::error::Result;
use crate::identity::ManifestNum;
use crate::index::rebuild::rebuild;
use crate::manifest::{Manifest, ManifestKind};
use crate::point::Point;
use crate::registry::{read_history, read_kept};
use crate::snapshot::KeptImage;
use crate::timestamp::UnixMs;

/// Only some seeds keep points, so that the others stay the runs that they were.
const SEEDS_WITH: u64 = 5;
/// The clock on the wall is wrong by so many milliseconds at most.
const WRONG_MS: u64 = 100_000_000;

/// Everything known of the points of all appliances.
pub(super) struct Points {
    /// 0: none are kept.
    window_seconds: u64,
    book: RefCell<Book>,
}

struct Book {
    dice: Dice,
    /// What the clock on the wall was when it said that.
    told: BTreeMap<UnixMs, u64>,
    /// The cuts of each volume, by manifest: when they were made, and their images if they were
    /// read.
    cuts: BTreeMap<usize, BTreeMap<ManifestNum, Cut>>,
}

struct Cut {
    made_us: u64,
    image: Option<Vec<u8>>,
}

impl Points {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x706F_696E);
        let window_seconds = match seed % SEEDS_WITH {
            2 => dice.pick(&[1, 1, 2, 5]),
            _ => 0,
        };
        let book = Book {
            dice,
            told: BTreeMap::new(),
            cuts: BTreeMap::new(),
        };
        Self {
            window_seconds,
            book: RefCell::new(book),
        }
    }

    /// The window of every volume.
    pub(super) fn window_seconds(&self) -> u64 {
        self.window_seconds
    }

    /// Tells a volume's commits the time, by a clock that is set at random.
    pub(super) fn tell_time(&self, commit: &mut VolumeCommit, (now_us, began_us): (u64, u64)) {
        if self.window_seconds == 0 {
            return;
        }
        let book = &mut *self.book.borrow_mut();
        let wrong_ms = match book.dice.chance(200) {
            true => book.dice.range(0..=WRONG_MS),
            false => WRONG_MS / 2,
        };
        let reading = Reading {
            wall: UnixMs(now_us / MS + wrong_ms),
            steady_ms: (now_us - began_us) / MS,
        };
        book.told.entry(reading.wall).or_insert(now_us);
        commit.note_time(reading, None);
    }
}

impl World {
    /// A request has reached the bucket: a manifest may be a new point.
    pub(super) fn points_landed(&mut self, late: &Late) {
        let Late::Put(_, body) = late else { return };
        let Ok(manifest) = Manifest::decode(body) else {
            return;
        };
        let moment = match manifest.kind {
            ManifestKind::Commit => manifest.moment,
            _ => None,
        };
        let volume = self.ids.iter().position(|id| *id == manifest.volume);
        let (Some(moment), Some(volume)) = (moment, volume) else {
            return;
        };
        let book = &mut *self.snapshots.points.book.borrow_mut();
        let told_us = book.told.get(&moment.committed);
        let made_us = told_us.map_or(self.now_us, |told_us| self.now_us.min(*told_us));
        let cuts = book.cuts.entry(volume).or_default();
        let newer = cuts.last_key_value();
        if newer.is_none_or(|(number, _)| *number < manifest.number) {
            let cut = Cut {
                made_us,
                image: None,
            };
            cuts.insert(manifest.number, cut);
        }
    }

    /// All points of the volume can be read and are what they were, and none is missing.
    pub(super) fn check_points(&mut self, volume: usize) -> std::result::Result<(), String> {
        let window_us = self.snapshots.points.window_seconds * 1000 * MS;
        if window_us == 0 {
            return Ok(());
        }
        let found = self.read_points(volume);
        let found = found.map_err(|error| format!("a point in time cannot be read: {error}"))?;
        let mut book = self.snapshots.points.book.borrow_mut();
        let cuts = book.cuts.entry(volume).or_default();
        let since = found.first().map(|(point, _)| point.manifest);
        let since = since.ok_or_else(|| format!("volume {volume} has no points"))?;
        let mut replaced_us = u64::MAX;
        for (number, cut) in cuts.iter().rev() {
            let recent = replaced_us.saturating_add(window_us) > self.now_us;
            if recent && *number < since {
                let text = format!("the cut of manifest {number} of volume {volume} is gone");
                return Err(text);
            }
            replaced_us = cut.made_us;
        }
        if since.0 > 1 {
            self.coverage.hit("a point in time left the window");
        }
        for (point, image) in found {
            let Some(cut) = cuts.get_mut(&point.manifest) else {
                continue;
            };
            match &cut.image {
                None => cut.image = Some(image),
                Some(known) if *known != image => {
                    let number = point.manifest;
                    return Err(format!("point @{number} of volume {volume} has changed"));
                }
                Some(_) => self.coverage.hit("a point in time was read again"),
            }
        }
        Ok(())
    }

    fn read_points(&self, volume: usize) -> Result<Vec<(Point, Vec<u8>)>> {
        let (id, lattice) = (self.ids[volume], self.oracle.lattices[volume]);
        block_on(async {
            let history = read_history(&self.objects, id, None).await?;
            let head = rebuild(&self.objects, &history.manifests).await?;
            let mut images = Vec::new();
            for point in head.points.iter() {
                let image = KeptImage::Point(*point);
                let (_, rebuilt) = read_kept(&self.objects, id, &image).await?;
                let image = read_all(&self.objects, &rebuilt.base, lattice).await?;
                images.push((*point, image));
            }
            Ok(images)
        })
    }
}
