//! Rollback: a new manifest with the image of a snapshot or of a point in time, as a checkpoint of
//! its own.
//!
//! Nothing of the volume is written meanwhile. The manifest's epoch is above every stamp given to
//! it, so that no record of before is ever replayed over it. Rules: `docs/internals/snapshots.md`.

use hashbrown::HashMap;

use super::history::read_history;
use super::stored_index::IndexDraft;
use super::{append_own, fenced_by, read_kept};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::failpoint::pass;
use crate::identity::Epoch;
use crate::index::VolumeBase;
use crate::index::part::RootPart;
use crate::index::rebuild::{Rebuilt, rebuild};
use crate::manifest::{Manifest, ManifestKind};
use crate::mutation::{Mutation, is_in};
use crate::object::{IndexKey, SealedRef};
use crate::snapshot::{Keepers, KeptImage, last_sequence};
use crate::timestamp::UnixMs;

/// About how many bytes one index part takes.
const PART_BYTES: usize = 8 << 20;

/// Where to a volume is taken back.
#[derive(Clone, Debug)]
pub struct RollbackWish {
    /// The image that it takes.
    pub to: KeptImage,
    /// Above every stamp given to the volume's records.
    pub epoch: Epoch,
    /// What the clock says; no safety lies in it.
    pub now: UnixMs,
    /// Names the index parts, and is used once.
    pub seed: u64,
}

/// Makes the manifest that takes the volume of `head` back to an earlier image, and stores its
/// index: nothing is changed until it is [put](put_rollback). `Fenced` if `head` is not the newest
/// manifest.
pub async fn prepare_rollback(
    backend: &dyn Backend,
    head: &Manifest,
    wish: &RollbackWish,
) -> Result<Manifest> {
    let history = read_history(backend, head.volume, Some(head.number)).await?;
    if history.head() != head {
        return Err(fenced_by(history.head()));
    }
    let present = rebuild(backend, &history.manifests).await?;
    if !is_kept(&present, &wish.to) {
        let text = format!("the volume does not keep {}", wish.to);
        return Err(Error::invalid(text).with_volume(head.volume));
    }
    let (_, past) = read_kept(backend, head.volume, &wish.to).await?;
    let mut next = head.successor(ManifestKind::RolledBack);
    next.epoch = wish.epoch;
    if let Some(moment) = &mut next.moment {
        moment.committed = wish.now;
    }
    let base = merged(head, past.base, &present)?;
    let (condemned, retained) = parts_left(&present, &next);
    next.condemned = condemned;
    let pending = present.condemned.keys().copied();
    let mut points = present.points.clone();
    points.follow(&next)?;
    let root = RootPart {
        parts: Vec::new(),
        condemned: pending.chain(next.condemned.iter().copied()).collect(),
        retained,
        snapshots: present.snapshots.iter().cloned().collect(),
        points,
    };
    let draft = IndexDraft {
        volume: head.volume,
        generation: head.generation,
        after: sequence_used(head, &present),
        seed: [wish.seed, head.token.0],
        manifest: next.number,
        root,
        part_bytes: PART_BYTES,
    };
    let parts = draft.store(backend, &base, "rollback.index").await?;
    next.checkpoint = parts.last().copied();
    Ok(next)
}

/// Whether the volume still has that image.
fn is_kept(present: &Rebuilt, image: &KeptImage) -> bool {
    match image {
        KeptImage::Snapshot(snapshot) => present.snapshots.by_id(snapshot.id) == Some(snapshot),
        KeptImage::Point(point) => {
            let since = present.points.since();
            since.is_some_and(|since| since <= point.manifest)
        }
    }
}

/// Puts the manifest of a rollback as the volume's writer: from here on the volume is what the
/// image was. To be repeated after an error. Returns the new head.
pub async fn put_rollback(backend: &dyn Backend, next: &Manifest) -> Result<Manifest> {
    pass("rollback.put")?;
    append_own(backend, next).await
}

/// The image of the past, with all chunks that the volume has now: those that it does not name are
/// idle, and freed or kept for snapshots as any other.
fn merged(head: &Manifest, mut past: VolumeBase, present: &Rebuilt) -> Result<VolumeBase> {
    past.forget_idle();
    let named = past.chunks().map(|(_, entry)| entry.reference);
    let named: HashMap<_, _> = named.map(|chunk| (chunk.key, chunk)).collect();
    let own = present.base.chunks().map(|(_, entry)| entry.reference);
    let own = own.filter(|chunk| chunk.key.volume == head.volume);
    let own: HashMap<_, _> = own.map(|chunk| (chunk.key, chunk)).collect();
    for (key, chunk) in &named {
        // Of a parent's chunks the pin says that they are there.
        let is_given_up = key.volume == head.volume && own.get(key) != Some(chunk);
        if is_given_up && !is_in(Mutation::CondemnedIsNamedAgain) {
            let text = format!("the image names chunk {key}, which the volume gave up");
            return Err(Error::corrupt(text).with_volume(head.volume));
        }
    }
    let mut idle: Vec<_> = own
        .into_values()
        .filter(|chunk| !named.contains_key(&chunk.key))
        .collect();
    // The same in every attempt.
    idle.sort_unstable_by_key(|chunk| chunk.key);
    for chunk in idle {
        past.add_chunk(chunk);
    }
    Ok(past)
}

/// The index parts that the new checkpoint replaces: those that nobody needs, which it condemns,
/// and those that snapshots or points need, with the manifest that replaced each.
fn parts_left(
    present: &Rebuilt,
    next: &Manifest,
) -> (
    Vec<SealedRef>,
    Vec<(IndexKey, crate::identity::ManifestNum)>,
) {
    let keepers = Keepers::of(&present.snapshots, next);
    let mut condemned = Vec::new();
    let mut retained: Vec<_> = present
        .retained
        .iter()
        .filter_map(|(object, since)| match object {
            SealedRef::Index(key) => Some((*key, *since)),
            SealedRef::Chunk(_) => None,
        })
        .collect();
    let own = present.parts.iter().map(|part| part.key);
    for key in own.filter(|key| key.volume == next.volume) {
        let object = SealedRef::Index(key);
        match keepers.need(&object, next.number) {
            true => retained.push((key, next.number)),
            false => condemned.push(object),
        }
    }
    (condemned, retained)
}

/// The greatest sequence that the writer's generation is known to have used.
fn sequence_used(head: &Manifest, present: &Rebuilt) -> u64 {
    let chunks = present.base.chunks().map(|(_, entry)| entry.reference.key);
    let parts = present.parts.iter().map(|part| SealedRef::Index(part.key));
    let others = present.condemned.keys().chain(present.retained.keys());
    let all = chunks
        .map(SealedRef::Chunk)
        .chain(parts)
        .chain(others.copied());
    let generation = head.generation;
    let taken = present
        .snapshots
        .iter()
        .filter(|s| s.generation == generation);
    let taken = taken.map(|s| s.sequence).max().unwrap_or(0);
    last_sequence(all, generation).max(taken)
}
