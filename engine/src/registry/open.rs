//! Opening a volume for writing: the takeover that fences every earlier writer.

use super::history::{Appended, History, append, read_history};
use super::local::{LocalHead, LocalHeads};
use super::random_u64;
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Epoch, ManifestNum, VolumeId, WriterToken};
use crate::manifest::ManifestKind;

/// Lost races after which a takeover gives up for now.
const RACES_MAX: usize = 8;

/// A volume opened for writing.
#[derive(Clone, Debug)]
pub struct OpenedVolume {
    /// The manifests from which the index is rebuilt; the last one is our own opening.
    pub history: History,
    /// The record as saved; [`LocalHead::fate`] judges each WAL record.
    pub local: LocalHead,
    /// Whether it was closed in order before. If not and the host crashed, answered writes that
    /// were not yet flushed may be lost.
    pub was_clean: bool,
}

/// Opens a volume for writing under the next generation. `stamped_through` is the greatest epoch
/// that this appliance ever stamped (of all volumes, those found in the WAL included).
///
/// The intent is durable locally before the takeover is tried, so that a lost response is
/// recognised after a crash. To be repeated after an error. `NotFound` if the volume was deleted.
pub async fn open_for_writing(
    backend: &dyn Backend,
    heads: &LocalHeads,
    id: VolumeId,
    stamped_through: Epoch,
) -> Result<OpenedVolume> {
    let mut local = heads.load(id)?;
    let known = local.as_ref().map(|local| local.head);
    let mut hint = known.filter(|head| head.0 > 0);
    for _ in 0..RACES_MAX {
        let mut history = read_history(backend, id, hint).await?;
        let head = history.head();
        refuse_unusable(head.kind, head.number, hint, id)?;
        let token = WriterToken(random_u64()?);
        let mut record = local.unwrap_or_else(|| LocalHead::unknown(head));
        record.intend(head, token, stamped_through);
        heads.save(&record)?;
        match append(backend, &head.opened_by(token)).await? {
            Appended::Ours(opened) => {
                let was_clean = record.clean;
                record.advance(&opened);
                record.clean = false;
                heads.save(&record)?;
                history.manifests.push(*opened);
                return Ok(OpenedVolume {
                    history,
                    local: record,
                    was_clean,
                });
            }
            Appended::Foreign(other) => hint = Some(other.number),
        }
        local = Some(record);
    }
    let message = format!("other writers took the volume {RACES_MAX} times meanwhile; try again");
    Err(Error::new(ErrorKind::Transient, message).with_volume(id))
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
