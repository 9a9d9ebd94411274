//! What the contents of every cell may be, given everything that clients were told.
//!
//! Time is a count of observations. A version is *older* than another one if its write had ended
//! before the other's began. It is dead for reads once a newer one was answered or read, and gone
//! even for a power loss once a newer one was flushed.

use std::cell::Cell as Shared;
use std::ops::Range;
use std::rc::Rc;

use super::pattern::{Lattice, WriteId};

/// After everything.
const NEVER: u64 = u64::MAX;

type Verdict = Result<(), String>;

/// One write, zeroing or trim.
#[derive(Clone, Debug)]
struct Write {
    volume: usize,
    cells: Range<u32>,
    zeroes: bool,
    began: u64,
    /// When the client was told, or when it was decided that nothing more can happen.
    ended: u64,
    /// The client was told that it succeeded.
    answered: bool,
}

#[derive(Clone, Copy, Debug)]
struct Version {
    id: WriteId,
    /// Reads that begin later cannot return it.
    dead: u64,
    /// When a newer version was answered; what an image with anything later must not hold.
    outdone: u64,
    /// Not even a power loss brings it back.
    gone: bool,
    /// Not even the loss of the disk does: the bucket holds something newer.
    replaced: bool,
}

/// Where a write is that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kept {
    Memory,
    Disk,
    Bucket,
}

/// Versions of one cell, in the order in which their writes began. The first is the initial zeros.
type Cell = Vec<Version>;

/// The history of all volumes, as the clients of one appliance know it.
#[derive(Clone)]
pub(super) struct Oracle {
    pub(super) lattices: Vec<Lattice>,
    now: u64,
    /// Number of the next write of any appliance.
    next_id: Rc<Shared<WriteId>>,
    writes: Vec<Write>,
    cells: Vec<Vec<Cell>>,
    /// Greatest beginning of a write that the bucket's image is known to hold, by volume.
    image_through: Vec<u64>,
}

impl Oracle {
    pub(super) fn new(lattices: Vec<Lattice>) -> Self {
        let initial = Version {
            id: 0,
            dead: NEVER,
            outdone: NEVER,
            gone: false,
            replaced: false,
        };
        let cells = lattices
            .iter()
            .map(|l| vec![vec![initial]; l.cells() as usize])
            .collect();
        let zeros = Write {
            volume: 0,
            cells: 0..0,
            zeroes: true,
            began: 0,
            ended: 0,
            answered: true,
        };
        let image_through = vec![0; lattices.len()];
        Self {
            lattices,
            now: 0,
            next_id: Rc::new(Shared::new(1)),
            writes: vec![zeros],
            cells,
            image_through,
        }
    }

    /// Numbers writes together with others, so that each write has bytes of its own.
    pub(super) fn share_ids(&mut self, next_id: Rc<Shared<WriteId>>) {
        self.next_id = next_id;
    }

    /// A volume begins anew with the image of another appliance, whose history is `before`.
    pub(super) fn adopt(&mut self, before: &Self, volume: usize, image: &[u8]) -> Verdict {
        let now = self.tick();
        let cells = 0..self.lattices[volume].cells();
        let ids = self.lattices[volume].identify(&cells, image)?;
        let past = |write: Write| Write {
            began: now,
            ended: now,
            answered: true,
            ..write
        };
        // Zeros do not tell by whom; here they are one write of their own.
        let zeros = self.enter(past(Write {
            cells: 0..0,
            ..before.writes[0].clone()
        }));
        for (cell, id) in cells.zip(ids) {
            let id = if id == 0 { zeros } else { id };
            if id != zeros {
                self.fill_up(id);
                self.writes[id as usize] = past(before.writes[id as usize].clone());
            }
            let version = Version {
                id,
                dead: NEVER,
                outdone: NEVER,
                gone: false,
                replaced: false,
            };
            self.cells[volume][cell as usize] = vec![version];
        }
        self.image_through[volume] = now;
        Ok(())
    }

    /// Enters a write under the next number.
    fn enter(&mut self, write: Write) -> WriteId {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.fill_up(id);
        self.writes[id as usize] = write;
        id
    }

    /// Makes room for the write `id`; those of others that are not known yet stay blank.
    fn fill_up(&mut self, id: WriteId) {
        let blank = Write {
            zeroes: false,
            ..self.writes[0].clone()
        };
        let len = self.writes.len().max(id as usize + 1);
        self.writes.resize(len, blank);
    }

    /// The next moment.
    pub(super) fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A client sends a write (or zeroes) of these cells.
    pub(super) fn begin(&mut self, volume: usize, cells: Range<u32>, zeroes: bool) -> WriteId {
        let began = self.tick();
        let id = self.enter(Write {
            volume,
            cells: cells.clone(),
            zeroes,
            began,
            ended: NEVER,
            answered: false,
        });
        for cell in &mut self.cells[volume][cells.start as usize..cells.end as usize] {
            cell.push(Version {
                id,
                dead: NEVER,
                outdone: NEVER,
                gone: false,
                replaced: false,
            });
        }
        id
    }

    /// What a write covers.
    pub(super) fn cells_of(&self, id: WriteId) -> Range<u32> {
        self.writes[id as usize].cells.clone()
    }

    /// The client is told that it succeeded, and where it is.
    pub(super) fn answered(&mut self, id: WriteId, place: Kept) {
        let now = self.tick();
        let write = &mut self.writes[id as usize];
        (write.ended, write.answered) = (now, true);
        let (volume, cells, began) = (write.volume, write.cells.clone(), write.began);
        for cell in cells {
            for version in &mut self.cells[volume][cell as usize] {
                if version.id != id && self.writes[version.id as usize].ended < began {
                    version.dead = version.dead.min(now);
                    version.outdone = version.outdone.min(now);
                    version.gone |= place >= Kept::Disk;
                    version.replaced |= place >= Kept::Bucket;
                }
            }
        }
    }

    /// The write has landed or never will; nobody was told which.
    pub(super) fn decided(&mut self, id: WriteId) {
        let now = self.tick();
        let write = &mut self.writes[id as usize];
        if write.ended == NEVER {
            write.ended = now;
        }
    }

    /// A FLUSH that began at `began` succeeded: what was answered before is in that place.
    pub(super) fn flushed(&mut self, volume: usize, began: u64, place: Kept) {
        for version in self.cells[volume].iter_mut().flatten() {
            version.gone |= version.outdone < began;
            version.replaced |= version.outdone < began && place >= Kept::Bucket;
        }
    }

    /// Nothing runs any more. A power loss takes what was not flushed.
    pub(super) fn crashed(&mut self, power: bool) {
        let now = self.tick();
        for write in &mut self.writes {
            write.ended = write.ended.min(now);
        }
        if !power {
            return;
        }
        for version in self.cells.iter_mut().flatten().flatten() {
            if !version.gone {
                (version.dead, version.outdone) = (NEVER, NEVER);
            }
        }
    }

    /// A read of `cells` that began at `began` returned `data`. `settled`: it is durable, too.
    pub(super) fn read(
        &mut self,
        (volume, cells): (usize, &Range<u32>),
        began: u64,
        data: &[u8],
        settled: bool,
    ) -> Verdict {
        let ids = self.lattices[volume].identify(cells, data)?;
        for (cell, id) in cells.clone().zip(&ids) {
            self.check(volume, cell, *id, began)?;
        }
        self.check_blocks(volume, cells, &ids, began)?;
        let now = self.tick();
        for (cell, id) in cells.clone().zip(&ids) {
            self.observe(volume, cell, *id, (began, now), settled);
        }
        Ok(())
    }

    /// Whether a read that began then may return this version of a cell.
    fn check(&self, volume: usize, cell: u32, id: WriteId, began: u64) -> Verdict {
        if self
            .candidates(volume, cell, id)
            .any(|version| version.dead >= began)
        {
            return Ok(());
        }
        Err(format!(
            "{} returns write {id} at {began}; history: {}",
            self.place(volume, cell),
            self.story(volume, cell)
        ))
    }

    /// Versions that look like `id`: zeros do not tell which.
    fn candidates(
        &self,
        volume: usize,
        cell: u32,
        id: WriteId,
    ) -> impl Iterator<Item = &Version> + '_ {
        self.cells[volume][cell as usize]
            .iter()
            .filter(move |version| self.looks_like(version.id, id))
    }

    fn looks_like(&self, version: WriteId, id: WriteId) -> bool {
        match id {
            0 => self.writes[version as usize].zeroes,
            _ => version == id && !self.writes[version as usize].zeroes,
        }
    }

    /// A write is in a block wholly or not at all: beside its cells there may be newer versions,
    /// never older ones.
    fn check_blocks(
        &self,
        volume: usize,
        cells: &Range<u32>,
        ids: &[WriteId],
        began: u64,
    ) -> Verdict {
        let lattice = self.lattices[volume];
        let mut from = 0;
        while from < ids.len() {
            let block = lattice.block(cells.start + from as u32);
            let of_block =
                (from..ids.len()).take_while(|at| lattice.block(cells.start + *at as u32) == block);
            let to = from + of_block.count();
            let mut present: Vec<WriteId> = ids[from..to].to_vec();
            present.sort_unstable();
            present.dedup();
            for id in present.into_iter().filter(|id| *id != 0) {
                let write = &self.writes[id as usize];
                for (at, held) in ids.iter().copied().enumerate().take(to).skip(from) {
                    let cell = cells.start + at as u32;
                    let covered = write.cells.contains(&cell) && held != id;
                    let newer = |v: &Version| {
                        v.dead >= began && self.writes[v.id as usize].ended >= write.began
                    };
                    if covered && !self.candidates(volume, cell, held).any(newer) {
                        return Err(format!(
                            "{} holds write {held} beside write {id} in the same block: torn; {}",
                            self.place(volume, cell),
                            self.story(volume, cell)
                        ));
                    }
                }
            }
            from = to;
        }
        Ok(())
    }

    /// A read that ran from `began` to `now` returned this version.
    fn observe(
        &mut self,
        volume: usize,
        cell: u32,
        id: WriteId,
        (began, now): (u64, u64),
        settled: bool,
    ) {
        let fits = |v: &&Version| v.dead >= began;
        let only = {
            let mut fitting = self.candidates(volume, cell, id).filter(fits);
            (fitting.next().map(|v| v.id), fitting.next())
        };
        let answered = match only {
            (Some(only), None) => self.writes[only as usize].ended < began,
            _ => false,
        };
        let zeroes: Vec<bool> = self.cells[volume][cell as usize]
            .iter()
            .map(|version| self.looks_like(version.id, id))
            .collect();
        let writes = &self.writes;
        for (version, same) in self.cells[volume][cell as usize].iter_mut().zip(zeroes) {
            if !same && writes[version.id as usize].ended < began {
                version.dead = version.dead.min(now);
                if answered || settled {
                    version.outdone = version.outdone.min(now);
                }
                version.gone |= settled;
            }
        }
    }

    /// The image in the bucket: it must be a cut with everything that was flushed to the bucket.
    /// Nothing that was outdone before the beginning of anything that it holds may be in it.
    /// `complete`: it holds everything answered.
    pub(super) fn image(&mut self, volume: usize, data: &[u8], complete: bool) -> Verdict {
        let cells = 0..self.lattices[volume].cells();
        let ids = self.lattices[volume].identify(&cells, data)?;
        let newest = ids
            .iter()
            .map(|id| self.writes[*id as usize].began)
            .max()
            .unwrap_or(0);
        let through = newest.max(self.image_through[volume]);
        self.image_through[volume] = through;
        let through = if complete { self.now } else { through };
        self.check_cut(volume, &ids, through, |version| !version.replaced)?;
        self.check_blocks(volume, &cells, &ids, 0)
    }

    /// The image of a snapshot that was asked for at `asked` and sealed at `sealed`, or not yet: it
    /// must be a cut with everything answered before the one and nothing begun after the other.
    pub(super) fn snapshot(
        &self,
        volume: usize,
        data: &[u8],
        (asked, sealed): (u64, Option<u64>),
    ) -> Verdict {
        let cells = 0..self.lattices[volume].cells();
        let ids = self.lattices[volume].identify(&cells, data)?;
        let begun = ids.iter().map(|id| self.writes[*id as usize].began);
        let newest = begun.max().unwrap_or(0);
        if sealed.is_some_and(|sealed| newest > sealed) {
            return Err(format!(
                "a snapshot of volume {volume} that was sealed at {sealed:?} holds what was begun \
                 at {newest}"
            ));
        }
        self.check_cut(volume, &ids, newest.max(asked), |_| true)?;
        self.check_blocks(volume, &cells, &ids, 0)
    }

    /// These images, each of another volume, are one cut over all of them.
    pub(super) fn one_cut(&self, images: &[(usize, &[u8])]) -> Verdict {
        let mut all = Vec::new();
        for (volume, data) in images {
            let cells = 0..self.lattices[*volume].cells();
            all.push((*volume, self.lattices[*volume].identify(&cells, data)?));
        }
        let ids = all.iter().flat_map(|(_, ids)| ids);
        let begun = ids.map(|id| self.writes[*id as usize].began);
        let newest = begun.max().unwrap_or(0);
        let mut all = all.iter();
        all.try_for_each(|(volume, ids)| self.check_cut(*volume, ids, newest, |_| true))
    }

    /// Nothing in an image was outdone before `through`.
    fn check_cut(
        &self,
        volume: usize,
        ids: &[WriteId],
        through: u64,
        allowed: impl Fn(&Version) -> bool,
    ) -> Verdict {
        for (cell, id) in (0..).zip(ids) {
            if !self
                .candidates(volume, cell, *id)
                .any(|version| version.outdone >= through && allowed(version))
            {
                return Err(format!(
                    "the image is no cut: {} is write {id}, the image holds things begun at \
                     {through}; history: {}",
                    self.place(volume, cell),
                    self.story(volume, cell)
                ));
            }
        }
        Ok(())
    }

    fn place(&self, volume: usize, cell: u32) -> String {
        format!(
            "volume {volume} block {} cell {cell}",
            self.lattices[volume].block(cell)
        )
    }

    fn story(&self, volume: usize, cell: u32) -> String {
        let versions = &self.cells[volume][cell as usize];
        let recent = &versions[versions.len().saturating_sub(12)..];
        let time = |at: u64| {
            if at == NEVER {
                "-".to_owned()
            } else {
                at.to_string()
            }
        };
        let told = recent.iter().map(|version| {
            let write = &self.writes[version.id as usize];
            format!(
                "[{}{} {}..{}{} dead {}{}]",
                if write.zeroes { "zeros " } else { "" },
                version.id,
                write.began,
                time(write.ended),
                if write.answered { " ok" } else { "" },
                time(version.dead),
                match (version.gone, version.replaced) {
                    (_, true) => " replaced",
                    (true, false) => " gone",
                    (false, false) => "",
                }
            )
        });
        told.collect::<Vec<_>>().join(" ")
    }
}
