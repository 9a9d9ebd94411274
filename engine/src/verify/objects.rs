//! One chunk in the backend: whether it is there, as long as it should be, and what it should be.

use std::collections::BTreeSet;

use super::Severity;
use crate::backend::Backend;
use crate::block::BlockSize;
use crate::chunk::{ChunkRef, ChunkView, verify_slot};
use crate::error::{Error, ErrorKind, Result};

/// What is wrong with a chunk.
#[derive(Clone, Debug)]
pub(super) struct Bad {
    pub(super) severity: Severity,
    pub(super) what: String,
    /// Slots that cannot be read; all of them if `None`.
    slots: Option<BTreeSet<u32>>,
}

impl Bad {
    /// Whether the block in that slot is lost.
    pub(super) fn affects(&self, slot: u32) -> bool {
        self.slots
            .as_ref()
            .is_none_or(|slots| slots.contains(&slot))
    }

    fn whole(severity: Severity, what: impl Into<String>) -> Self {
        Self {
            severity,
            what: what.into(),
            slots: None,
        }
    }
}

/// Looks at a chunk; `None` if nothing is wrong with it. An error means that the backend did not
/// answer.
pub(super) async fn check_chunk(
    backend: &dyn Backend,
    reference: &ChunkRef,
    block_size: BlockSize,
    deep: bool,
) -> Result<Option<Bad>> {
    let key = reference.key.object();
    if !deep {
        return Ok(match backend.head(&key).await? {
            None => Some(missing()),
            Some(bytes) => wrong_length(bytes, reference),
        });
    }
    let first = look_into(backend, reference, block_size).await?;
    match first {
        // It may have been damaged on its way here alone.
        Some(_) => look_into(backend, reference, block_size).await,
        None => Ok(None),
    }
}

/// Reads a chunk and checks all of it.
async fn look_into(
    backend: &dyn Backend,
    reference: &ChunkRef,
    block_size: BlockSize,
) -> Result<Option<Bad>> {
    match backend.get(&reference.key.object()).await {
        Ok(body) => Ok(wrong_length(body.len() as u64, reference)
            .or_else(|| check_body(&body, reference, block_size))),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Ok(Some(missing())),
            ErrorKind::Corrupt => Ok(Some(Bad::whole(Severity::Corrupt, error.to_string()))),
            _ => Err(error),
        },
    }
}

fn missing() -> Bad {
    Bad::whole(Severity::Lost, "it is missing")
}

fn wrong_length(bytes: u64, reference: &ChunkRef) -> Option<Bad> {
    let what = format!("it has {bytes} bytes instead of {}", reference.bytes);
    (bytes != reference.bytes).then(|| Bad::whole(Severity::Corrupt, what))
}

fn check_body(body: &[u8], reference: &ChunkRef, block_size: BlockSize) -> Option<Bad> {
    let view = ChunkView::parse(body).and_then(|view| match view.is(reference) {
        true => Ok(view),
        false => Err(Error::corrupt("its head is that of another chunk")),
    });
    let view = match view {
        Ok(view) => view,
        Err(error) => {
            let what = format!("its head is damaged: {error}");
            return Some(Bad::whole(Severity::Corrupt, what));
        }
    };
    let is_bad = |(block, slot): &(_, u32)| {
        let range = reference.slot_range(block_size, *slot, 1);
        let slot = &body[range.start as usize..range.end as usize];
        verify_slot(slot, block_size, *block).is_err()
    };
    let slots: BTreeSet<u32> = view.blocks().filter(is_bad).map(|(_, slot)| slot).collect();
    (!slots.is_empty()).then(|| Bad {
        severity: Severity::Corrupt,
        what: format!("{} of its blocks fail their CRC", slots.len()),
        slots: Some(slots),
    })
}
