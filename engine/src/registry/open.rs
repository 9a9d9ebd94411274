//! Opening a volume for writing: the takeover that fences every earlier writer.

use super::history::{Appended, History, append, read_history};
use super::local::{LocalHead, LocalHeads};
use super::random_u64;
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Epoch, Generation, ManifestNum, VolumeId, WriterToken};
use crate::index::rebuild::{Rebuilt, rebuild};
use crate::manifest::{Manifest, ManifestKind};

/// Lost races after which a takeover gives up for now.
const RACES_MAX: usize = 8;

/// A volume opened for writing.
#[derive(Clone, Debug)]
pub struct OpenedVolume {
    /// The manifests from which the index is rebuilt; the last one is our own opening (after
    /// [`open_unverified`], the last one of ours that is known).
    pub history: History,
    /// The record as saved; [`LocalHead::fate`] judges each WAL record. It still says whether the
    /// volume was closed in order: [`begin_serving`] comes before the first answer.
    pub local: LocalHead,
    /// Whether it was closed in order before. If not and the host crashed, answered writes that
    /// were not yet flushed may be lost.
    pub was_clean: bool,
}

/// What [`open_own`] found.
#[derive(Clone, Debug)]
pub enum Opening {
    /// It is ours and open for writing under the next generation.
    Opened(Box<OpenedVolume>),
    /// Another writer owns it: its newest manifest. Nothing was written anywhere.
    Elsewhere(Box<Manifest>),
}

/// Whose volumes an opening takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Only those that this appliance owns, or that nobody ever opened.
    Own,
    /// Any: a deliberate takeover.
    Any,
}

/// Opens a volume for writing under the next generation, whoever owned it. `stamped_through` is the
/// greatest epoch that this appliance ever stamped (of all volumes, those found in the WAL
/// included).
///
/// The intent is durable locally before the takeover is tried, so that a lost response is
/// recognised after a crash. To be repeated after an error. `NotFound` if the volume was deleted.
pub async fn open_for_writing(
    backend: &dyn Backend,
    heads: &LocalHeads,
    id: VolumeId,
    stamped_through: Epoch,
) -> Result<OpenedVolume> {
    match open(backend, heads, id, stamped_through, Reach::Any).await? {
        Opening::Opened(opened) => Ok(*opened),
        Opening::Elsewhere(_) => unreachable!("a deliberate takeover takes any volume"),
    }
}

/// Opens a volume for writing like [`open_for_writing`], but only if this appliance owns it (its
/// head is our own, one of our unresolved intents', or what such an intent meant to follow) or if
/// nobody ever opened it. Another writer's volume is never taken back.
pub async fn open_own(
    backend: &dyn Backend,
    heads: &LocalHeads,
    id: VolumeId,
    stamped_through: Epoch,
) -> Result<Opening> {
    open(backend, heads, id, stamped_through, Reach::Own).await
}

/// Epochs left out after [`open_unverified`]: more than a process ever ends beyond its first, or
/// beyond those of its records that a crash leaves. A commit of the process before may have been
/// stored without our knowing, with records of later stamps than any that survived; new ones must
/// not look as if they were in it.
const UNVERIFIED_GAP: u64 = 1 << 32;

/// The epoch that stamps the first new records of a start: above all that was stamped here and
/// above every verdict. `served` are the volumes that it opened: [`LocalHead::begins_above`] (or
/// the head's epoch, if that is greater), and whether [`open_unverified`] opened it.
pub fn first_epoch(
    served: impl IntoIterator<Item = (Epoch, bool)>,
    stamped_through: Epoch,
) -> Epoch {
    let (mut above, mut unverified) = (stamped_through, false);
    for (used, is_unverified) in served {
        above = above.max(used);
        unverified |= is_unverified;
    }
    let gap = if unverified { UNVERIFIED_GAP } else { 0 };
    Epoch(above.next().0 + gap)
}

/// Opens a volume of ours from local copies, while the backend cannot be reached: under its old
/// generation, to be verified by its first commit. Nothing is written but the local record, if the
/// copies are further than it. With the index.
pub async fn open_unverified(
    copies: &dyn Backend,
    heads: &LocalHeads,
    mut local: LocalHead,
) -> Result<(OpenedVolume, Rebuilt)> {
    let refuse = |why: &str| Err(Error::new(ErrorKind::Transient, why).with_volume(local.id));
    if local.head.0 == 0 {
        return refuse("this appliance does not own it, as far as its record says");
    }
    let history = match read_history(copies, local.id, Some(local.head)).await {
        Ok(history) => history,
        Err(error) => {
            let text = "there are no whole local copies of its metadata";
            let error = Error::new(ErrorKind::Transient, text).with_source(error);
            return Err(error.with_volume(local.id));
        }
    };
    let head = history.head();
    if !local.is_own(head) || head.kind == ManifestKind::Tombstone {
        return refuse("another appliance owned it when the backend was last asked");
    }
    let rebuilt = rebuild(copies, &history.manifests).await?;
    if head.number > local.head {
        // Stored, and its copy durable, before the process ended. Takeovers without an answer stay
        // remembered.
        let intents = std::mem::take(&mut local.intents);
        local.advance(head);
        local.intents = intents;
        heads.save(&local)?;
    }
    let was_clean = local.clean;
    let opened = OpenedVolume {
        history,
        local,
        was_clean,
    };
    Ok((opened, rebuilt))
}

/// Notes durably that from here on answers may be given that only the WAL or memory holds. Once the
/// memory that outlives the process is there, before the first answer. New records are stamped with
/// `first` or later.
pub fn begin_serving(heads: &LocalHeads, local: &mut LocalHead, first: Epoch) -> Result<()> {
    local.clean = false;
    local.stamped_from = local.stamped_from.max(first);
    heads.save(local)
}

async fn open(
    backend: &dyn Backend,
    heads: &LocalHeads,
    id: VolumeId,
    stamped_through: Epoch,
    reach: Reach,
) -> Result<Opening> {
    let mut local = heads.load(id)?;
    let known = local.as_ref().map(|local| local.head);
    let mut hint = known.filter(|head| head.0 > 0);
    for _ in 0..RACES_MAX {
        let mut history = read_history(backend, id, hint).await?;
        let head = history.head();
        refuse_unusable(head.kind, head.number, hint, id)?;
        if reach == Reach::Own && !may_open(local.as_ref(), head) {
            return Ok(Opening::Elsewhere(Box::new(head.clone())));
        }
        let token = WriterToken(random_u64()?);
        let mut record = local.unwrap_or_else(|| LocalHead::unknown(head));
        record.intend(head, token, stamped_through);
        heads.save(&record)?;
        match append(backend, &head.opened_by(token)).await? {
            Appended::Ours(opened) => {
                let was_clean = record.clean;
                record.advance(&opened);
                heads.save(&record)?;
                history.manifests.push(*opened);
                return Ok(Opening::Opened(Box::new(OpenedVolume {
                    history,
                    local: record,
                    was_clean,
                })));
            }
            Appended::Foreign(other) => hint = Some(other.number),
        }
        local = Some(record);
    }
    let message = format!("other writers took the volume {RACES_MAX} times meanwhile; try again");
    Err(Error::new(ErrorKind::Transient, message).with_volume(id))
}

/// Whether `head` is nobody's yet, or continues what this appliance wrote.
fn may_open(local: Option<&LocalHead>, head: &Manifest) -> bool {
    head.generation == Generation(0) || local.is_some_and(|local| local.is_own(head))
}

fn refuse_unusable(
    kind: ManifestKind,
    head: ManifestNum,
    hint: Option<ManifestNum>,
    id: VolumeId,
) -> Result<()> {
    if kind == ManifestKind::Tombstone {
        let message = "the volume was deleted";
        return Err(Error::new(ErrorKind::NotFound, message).with_volume(id));
    }
    assert!(
        hint.is_none_or(|hint| head >= hint),
        "the head is behind its hint"
    );
    Ok(())
}
