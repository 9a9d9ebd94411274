//! Which volumes a backend holds: names, creation, takeover for writing, settings, deletion.
//!
//! Every function is safe to repeat with the same arguments after an error: a request whose
//! response was lost is recognised by its volume id or writer token. Rules and record formats:
//! `docs/internals/manifest.md`.

mod clones;
mod deletion;
mod entry;
mod flatten;
mod groups;
mod history;
mod images;
mod kept_point;
mod local;
mod names;
mod open;
mod pins;
pub mod quarantine;
mod replayed;
mod rollback;
mod sealed_list;
mod snapshots;
mod stored_index;
mod sweep;

use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{VolumeId, WriterToken};
use crate::manifest::{Manifest, ManifestKind};
use crate::timestamp::UnixMs;
use crate::volume::{VolumeName, VolumeSettings};

pub use clones::{
    CloneLayout, CloneName, NewClone, clones_of, create_clone, create_clone_from, release_dead_pins,
};
pub use deletion::{Freed, Freeing, deleted_volumes, finish_deletion, mark_again};
pub use flatten::{is_clone, release_clone, snapshots_in_need};
pub use groups::{GroupEntry, GroupVerdict, settle_group};
pub use history::{
    Appended, History, append, read_head, read_history, read_history_at, read_manifest,
    read_manifest_bytes,
};
pub use images::{ChangedRange, Image, changed_ranges, read_images};
pub use kept_point::{prepare_kept_point, put_kept_point};
pub use local::{Intent, LAST_SWEEP_FILE, LocalHead, LocalHeads, QuarantineRange, RecordFate};
pub use names::{Listing, NameEntry, NamedVolume, list_volumes, resolve_name};
pub use open::{
    OpenedVolume, Opening, begin_serving, first_epoch, open_for_writing, open_own, open_unverified,
};
pub use pins::{PinChange, PinEntry, PinLog, close_pins, pin, read_pins, release_pin};
pub use replayed::replayed_overlays;
pub use rollback::{RollbackWish, prepare_rollback, put_rollback};
pub use snapshots::{delete_snapshot, find_image, read_blocks, read_kept, read_snapshot};
pub use sweep::{Sweep, SweepSum};

/// Identity of a volume about to be created; repeating a creation with the same seed is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSeed {
    /// The new volume's id.
    pub id: VolumeId,
    /// Token of the creator.
    pub token: WriterToken,
}

impl VolumeSeed {
    /// A seed never used before.
    pub fn random() -> Result<Self> {
        Ok(Self {
            id: VolumeId(random_u64()?),
            token: WriterToken(random_u64()?),
        })
    }
}

/// A random number from the operating system.
pub fn random_u64() -> Result<u64> {
    getrandom::u64().map_err(|e| Error::new(ErrorKind::Io, "reading random bytes").with_source(e))
}

/// Creates a volume: its first manifest, then its name. The volume exists once the name does.
/// `AlreadyExists` if the name is another volume's.
pub async fn create_volume(
    backend: &dyn Backend,
    seed: VolumeSeed,
    name: &VolumeName,
    settings: &VolumeSettings,
) -> Result<Manifest> {
    settings.validate()?;
    let first = Manifest::first(seed.id, name.clone(), settings.clone(), seed.token);
    let entry = match free_entry(backend, name, seed.id).await? {
        Free::Bound => {
            let stored = read_manifest(backend, seed.id, first.number).await?;
            return match stored.origin {
                None => Ok(stored),
                // The same creator began it as a clone.
                Some(_) => Err(name_taken(name)),
            };
        }
        Free::At(number) => number,
    };
    match append(backend, &first).await? {
        Appended::Ours(stored) if *stored == first => {}
        _ => {
            let message = format!("volume id {} is in use; try again with another", seed.id);
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
    }
    match names::bind(backend, name, entry, Some(seed.id)).await? {
        bound if bound.volume == Some(seed.id) => Ok(first),
        _ => {
            // Nobody can have seen it: it never had a name. What is left behind harms nobody.
            let _ = backend.delete(&first.object()).await;
            Err(name_taken(name))
        }
    }
}

/// Changes settings (grows the volume) as the volume's writer. The caller owns `head`; no commit
/// of its own may run at the same time. To be repeated after an error with the same arguments,
/// `now` among them, which is what a clock says. Returns the new head.
pub async fn configure(
    backend: &dyn Backend,
    head: &Manifest,
    settings: &VolumeSettings,
    now: UnixMs,
) -> Result<Manifest> {
    settings.validate()?;
    if settings.size_bytes < head.settings.size_bytes {
        return Err(Error::invalid(format!(
            "a volume of {} bytes cannot shrink to {}",
            head.settings.size_bytes, settings.size_bytes
        ))
        .with_volume(head.volume));
    }
    if settings.block_size_bytes != head.settings.block_size_bytes {
        let message = "the block size of a volume cannot change";
        return Err(Error::invalid(message).with_volume(head.volume));
    }
    let mut next = head.successor(ManifestKind::Configured);
    next.configure(settings.clone(), now);
    append_own(backend, &next).await
}

/// Grows a volume to `size_bytes`; see [`configure`].
pub async fn grow(backend: &dyn Backend, head: &Manifest, size_bytes: u64) -> Result<Manifest> {
    let settings = VolumeSettings {
        size_bytes,
        ..head.settings.clone()
    };
    configure(backend, head, &settings, UnixMs(0)).await
}

/// Deletes a volume as its writer: tombstone first, then what it pinned and its name are free. Its
/// objects are freed after that: [`Freeing`]. To be repeated after an error, also with the
/// tombstone as `head`. Returns the tombstone.
pub async fn delete_volume(backend: &dyn Backend, head: &Manifest) -> Result<Manifest> {
    let tombstone = match head.kind {
        ManifestKind::Tombstone => head.clone(),
        _ => append_own(backend, &head.successor(ManifestKind::Tombstone)).await?,
    };
    finish_deletion(backend, &tombstone).await?;
    Ok(tombstone)
}

/// Appends a manifest that must be stored exactly so.
async fn append_own(backend: &dyn Backend, next: &Manifest) -> Result<Manifest> {
    match append(backend, next).await? {
        Appended::Ours(stored) if *stored == *next => Ok(*stored),
        Appended::Ours(stored) => Err(Error::new(
            ErrorKind::Transient,
            format!(
                "manifest {} was a commit of our own; try again",
                stored.number
            ),
        )
        .with_volume(next.volume)),
        Appended::Foreign(other) => Err(fenced_by(&other)),
    }
}

fn fenced_by(other: &Manifest) -> Error {
    let message = format!(
        "another writer (generation {}) wrote manifest {}; this one must stop",
        other.generation, other.number
    );
    Error::new(ErrorKind::Fenced, message).with_volume(other.volume)
}

fn name_taken(name: &VolumeName) -> Error {
    let message = format!("a volume named {:?} exists already", name.as_str());
    Error::new(ErrorKind::AlreadyExists, message)
}

enum Free {
    /// The name is this volume's already.
    Bound,
    /// This entry of the name's log is the next one.
    At(u64),
}

/// Where `volume` can be entered under `name`; finishes a deletion that stopped half way.
async fn free_entry(backend: &dyn Backend, name: &VolumeName, volume: VolumeId) -> Result<Free> {
    let Some(entry) = names::latest(backend, name).await? else {
        return Ok(Free::At(1));
    };
    let Some(holder) = entry.volume else {
        return Ok(Free::At(entry.number + 1));
    };
    if holder == volume {
        return Ok(Free::Bound);
    }
    let head = read_head(backend, holder, None).await?;
    if head.kind != ManifestKind::Tombstone {
        return Err(name_taken(name));
    }
    deletion::let_go(backend, &head).await?;
    let released = names::bind(backend, name, entry.number + 1, None).await?;
    match released.volume {
        None => Ok(Free::At(released.number + 1)),
        Some(_) => Err(name_taken(name)),
    }
}

/// Enters that `name` is free, unless it is no longer `volume`'s.
async fn release_name(backend: &dyn Backend, name: &VolumeName, volume: VolumeId) -> Result<()> {
    match names::latest(backend, name).await? {
        Some(entry) if entry.volume == Some(volume) => {
            // Whatever takes that number instead ends our binding just as well.
            names::bind(backend, name, entry.number + 1, None).await?;
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
