//! Bitmaps of what has changed since a snapshot, for clients: the image of the snapshot is loaded
//! when a client selects such a context, kept by the cores as a baseline, and given up some time
//! after the last client has left. See `docs/internals/snapshots.md`.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::bounded;
use taipan_engine::block::ShardId;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::extents::{Seat, Seats};
use taipan_engine::failpoint;
use taipan_engine::identity::VolumeId;
use taipan_engine::index::{Baseline, Comparison, Reassigned, VolumeBase};
use taipan_engine::registry;
use taipan_engine::shard::VolumeSlot;
use taipan_engine::snapshot::{Snapshot, SnapshotId, SnapshotName};

use super::Uploader;
use super::changes::Change;
use super::effects::Means;
use super::patience::while_answering;
use super::views::{Asker, IDLE_MS, refusal, used_by};
use crate::directory::{Bitmap, Bookmark, Volume};
use crate::inbox::{AddBaseline, CoreMessage};

/// Bitmaps that are loaded at a time: each may have an index in memory.
const BITMAPS_MAX: usize = 64;

/// Wishes that wait for a commit, at most.
const EARLY_MAX: usize = 256;

/// A client's wish to know what has changed since a snapshot.
pub struct BitmapWish {
    /// The volume, or open snapshot of it, that the client looks at.
    pub export: Arc<Volume>,
    /// Since which snapshot.
    pub since: Bookmark,
    /// The client.
    pub asker: Asker,
}

/// The bitmaps that are loaded, or about to be.
#[derive(Default)]
pub(super) struct LoadedBitmaps {
    loaded: Vec<Loaded>,
    loading: Vec<Loading>,
    /// Wishes for bitmaps since snapshots whose commit the cores do not have yet.
    early: Vec<BitmapWish>,
}

/// What is compared with what.
#[derive(Clone)]
struct Pair {
    export: Arc<Volume>,
    /// The volume whose snapshot it is.
    of: VolumeId,
    since: Bookmark,
    seat: Seat,
    /// What changes in the export's chunk table meanwhile.
    reassigned: Arc<Reassigned>,
}

impl Pair {
    fn is(&self, export: &Arc<Volume>, since: SnapshotId) -> bool {
        Arc::ptr_eq(&self.export, export) && self.since.id == since
    }
}

struct Loaded {
    pair: Pair,
    bitmap: Arc<Bitmap>,
    /// Since when nobody wants it.
    idle_since_ms: Option<u64>,
}

struct Loading {
    pair: Pair,
    waiting: Vec<Asker>,
}

impl LoadedBitmaps {
    fn pairs(&self) -> impl Iterator<Item = &Pair> {
        let loaded = self.loaded.iter().map(|loaded| &loaded.pair);
        loaded.chain(self.loading.iter().map(|loading| &loading.pair))
    }

    /// The chunk table of a volume changes: to be called before cores hear of it.
    pub(super) fn note_chunks(&self, export: &Arc<Volume>, base: &VolumeBase) {
        let of = self.pairs().filter(|p| Arc::ptr_eq(&p.export, export));
        of.for_each(|pair| pair.reassigned.note(base));
    }

    fn free_seat(&self, export: &Arc<Volume>) -> Option<Seat> {
        let of = self.pairs().filter(|p| Arc::ptr_eq(&p.export, export));
        Seat::free(of.map(|pair| pair.seat).collect::<Seats>())
    }
}

/// How the loading of a bitmap ended.
pub(crate) struct BitmapChange {
    export: Arc<Volume>,
    since: SnapshotId,
    result: Result<Vec<(ShardId, Baseline)>>,
}

/// Reads the image of a snapshot and turns it into baselines of `to`.
async fn load(means: Rc<Means>, pair: Pair, snapshot: Snapshot, to: Rc<VolumeBase>) -> Change {
    let attempt = async {
        failpoint::hit("snapshot.open").map_err(|e| Error::io("failpoint", e))?;
        let (_, image) = registry::read_snapshot(&*means.backend, pair.of, &snapshot).await?;
        let comparison = Comparison::new(&image.base, &to, Arc::clone(&pair.reassigned));
        let mut parts = Vec::new();
        for shard in ShardId::all() {
            parts.push((shard, comparison.shard(shard)));
            // An index may be large: others have their turns.
            glommio::yield_if_needed().await;
        }
        Ok(parts)
    };
    let what = "load the index of a snapshot";
    let result = while_answering(&*means.backend, what, attempt).await;
    Change::BitmapLoaded(Box::new(BitmapChange {
        export: pair.export,
        since: snapshot.id,
        result,
    }))
}

impl Uploader {
    /// A client named a bitmap that its core did not find loaded.
    pub(super) fn load_bitmap(&mut self, wish: BitmapWish) {
        // Until then all of the snapshot's own cut would count as changed since.
        let published = wish.export.manifest.load(Ordering::Relaxed);
        let is_early = wish.export.view.is_none() && wish.since.manifest.0 > published;
        if is_early && self.is_open(&wish.export) {
            if self.bitmaps.early.len() < EARLY_MAX {
                return self.bitmaps.early.push(wish);
            }
            let error = Error::new(ErrorKind::Busy, "too many wait for this; connect again");
            return wish.asker.answer(Err(refusal(&error)));
        }
        let BitmapWish {
            export,
            since,
            asker,
        } = wish;
        let bitmaps = &mut self.bitmaps;
        let mut loaded = bitmaps.loaded.iter();
        if loaded.any(|loaded| loaded.pair.is(&export, since.id)) {
            return asker.answer(Ok(()));
        }
        let mut loading = bitmaps.loading.iter_mut();
        if let Some(loading) = loading.find(|loading| loading.pair.is(&export, since.id)) {
            return loading.waiting.push(asker);
        }
        match self.may_load(&export, since) {
            Ok((pair, snapshot, to)) => {
                let loading = Loading {
                    pair: pair.clone(),
                    waiting: vec![asker],
                };
                self.bitmaps.loading.push(loading);
                self.spawn_change(load(Rc::clone(&self.means), pair, snapshot, to));
            }
            Err(error) => asker.answer(Err(refusal(&error))),
        }
    }

    fn may_load(
        &mut self,
        export: &Arc<Volume>,
        since: Bookmark,
    ) -> Result<(Pair, Snapshot, Rc<VolumeBase>)> {
        let (_, of) = self.find(&export.name)?;
        let snapshot = self.committed(of, &since.name)?.clone();
        if snapshot.id != since.id || self.is_doomed(of, &since.name) {
            let text = "the snapshot is being deleted";
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let busy = |text: String| Error::new(ErrorKind::Busy, text);
        if self.bitmaps.pairs().count() >= BITMAPS_MAX && !self.close_idle_bitmap() {
            let text = format!("{BITMAPS_MAX} bitmaps are in use already; disconnect from one");
            return Err(busy(text));
        }
        let seat = self.bitmaps.free_seat(export).ok_or_else(|| {
            let most = Seat::MAX;
            busy(format!("{most} bitmaps of one export are loaded already"))
        })?;
        let to = self.image_now(export).ok_or_else(|| {
            let text = "the export was closed meanwhile; connect again";
            Error::new(ErrorKind::NotFound, text)
        })?;
        let pair = Pair {
            export: Arc::clone(export),
            of,
            since,
            seat,
            reassigned: Arc::new(Reassigned::new(&to)),
        };
        Ok((pair, snapshot, to))
    }

    /// What is committed of an export, if it is still served.
    fn image_now(&self, export: &Arc<Volume>) -> Option<Rc<VolumeBase>> {
        if export.view.is_some() {
            return self.image_of_view(export);
        }
        let upload = self.volumes.get(&export.id)?;
        let is_same = Arc::ptr_eq(&upload.volume, export);
        is_same.then(|| Rc::new(upload.commit.base().clone()))
    }

    fn is_open(&self, export: &Arc<Volume>) -> bool {
        if export.view.is_some() {
            return self.image_of_view(export).is_some();
        }
        let upload = self.volumes.get(&export.id);
        upload.is_some_and(|upload| Arc::ptr_eq(&upload.volume, export))
    }

    /// The image of a snapshot was loaded, or could not be.
    pub(super) fn bitmap_loaded(&mut self, change: BitmapChange) {
        let loading = &mut self.bitmaps.loading;
        let of = |loading: &Loading| loading.pair.is(&change.export, change.since);
        let Some(at) = loading.iter().position(of) else {
            return;
        };
        let Loading { pair, waiting } = loading.swap_remove(at);
        let name = format!("{} since {}", pair.export.label(), pair.since.name);
        let result = change.result.and_then(|parts| self.keep(pair, parts));
        match &result {
            Ok(()) => tracing::info!(bitmap = name, "bitmap loaded"),
            Err(error) => tracing::warn!(bitmap = name, %error, "a bitmap cannot be loaded"),
        }
        for asker in waiting {
            asker.answer(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(refusal(error)),
            });
        }
    }

    /// Gives the baselines to the cores, and waits until they have them.
    fn keep(&mut self, pair: Pair, mut parts: Vec<(ShardId, Baseline)>) -> Result<()> {
        // Both may be gone since, the volume be opened anew, and its slot be another's.
        let is_known = self.committed(pair.of, &pair.since.name)?.id == pair.since.id;
        if !is_known || !self.is_open(&pair.export) {
            let text = "the snapshot or the volume was closed meanwhile; connect again";
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let (ack, done) = bounded(0);
        let cores = self.cores.len();
        for (index, core) in self.cores.iter().enumerate() {
            let own = parts.extract_if(.., |(shard, _)| shard.core(cores) == index);
            core.send(CoreMessage::AddBaseline(Box::new(AddBaseline {
                slot: pair.export.slot,
                id: pair.export.id,
                seat: pair.seat,
                parts: own.collect(),
                ack: ack.clone(),
            })));
        }
        drop(ack);
        // Cores answer within a turn; the channel closes when all have.
        let _ = done.recv();
        let bitmap = Arc::new(Bitmap::new(pair.since.clone(), pair.seat));
        pair.export.bitmaps.add(Arc::clone(&bitmap));
        self.bitmaps.loaded.push(Loaded {
            pair,
            bitmap,
            idle_since_ms: None,
        });
        Ok(())
    }

    /// Loads what could not be loaded before, and gives up the bitmaps that nobody wanted for a
    /// while.
    pub(super) fn tend_bitmaps(&mut self, now_ms: u64) {
        for wish in std::mem::take(&mut self.bitmaps.early) {
            self.load_bitmap(wish);
        }
        self.drop_bitmaps(|loaded| {
            if loaded.bitmap.take_wanted() {
                loaded.idle_since_ms = None;
                return false;
            }
            let since_ms = *loaded.idle_since_ms.get_or_insert(now_ms);
            now_ms >= since_ms + IDLE_MS && loaded.bitmap.close_unless_wanted()
        });
    }

    /// Gives up one that nobody uses to make room for another; false if there is none.
    fn close_idle_bitmap(&mut self) -> bool {
        let mut is_done = false;
        self.drop_bitmaps(|loaded| {
            let closes = !is_done && loaded.bitmap.close_unless_used();
            is_done |= closes;
            closes
        });
        is_done
    }

    /// The export of that slot is served no more, or anew: whoever uses a bitmap of it is cut off.
    pub(super) fn forget_bitmaps_of(&mut self, slot: VolumeSlot) {
        self.drop_bitmaps(|loaded| {
            let is_of = loaded.pair.export.slot == slot;
            if is_of {
                loaded.bitmap.close();
            }
            is_of
        });
    }

    /// A snapshot is about to be deleted: refused, and said by whom, while a bitmap since it is in
    /// use.
    pub(super) fn free_of_bitmaps(&mut self, of: VolumeId, snapshot: &SnapshotName) -> Result<()> {
        let busy = |text: String| Err(Error::new(ErrorKind::Busy, text));
        let name = format!("{}@{snapshot}", self.volumes[&of].volume.name);
        let is_since = |pair: &Pair| pair.of == of && pair.since.name == *snapshot;
        if self.bitmaps.loading.iter().any(|l| is_since(&l.pair)) {
            return busy(format!("what has changed since {name} is being loaded"));
        }
        let mut in_use = Vec::new();
        self.drop_bitmaps(|loaded| {
            let closes = is_since(&loaded.pair) && loaded.bitmap.close_unless_used();
            if is_since(&loaded.pair) && !closes {
                in_use.extend(loaded.bitmap.peers());
            }
            closes
        });
        match in_use.is_empty() {
            true => Ok(()),
            false => busy(used_by(
                &format!("what has changed since {name} is asked"),
                &in_use,
            )),
        }
    }

    /// Gives up those that are closed, of which `is_closed` tells.
    fn drop_bitmaps(&mut self, is_closed: impl FnMut(&mut Loaded) -> bool) {
        let loaded = &mut self.bitmaps.loaded;
        let closed: Vec<Loaded> = loaded.extract_if(.., is_closed).collect();
        for Loaded { pair, .. } in closed {
            pair.export.bitmaps.remove(pair.since.id);
            for core in &self.cores {
                core.send(CoreMessage::RemoveBaseline {
                    slot: pair.export.slot,
                    id: pair.export.id,
                    seat: pair.seat,
                });
            }
            let (export, since) = (pair.export.label(), &pair.since.name);
            tracing::info!(%export, %since, "bitmap given up");
        }
    }
}
