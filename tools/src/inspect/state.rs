//! Decodes `wal/state`: identity, sizes and writer count of a WAL.

use serde_json::json;
use taipan_engine::size::human;
use taipan_engine::wal::state::WalState;

use super::{Decoded, Subject};
use crate::failure::{Exit, Failure, Outcome};
use crate::table::Fields;

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let Some(state) = WalState::decode(&subject.read_all()?) else {
        let what = format!(
            "{} is damaged: it is the state of a WAL, but fails its CRC32C, length or version",
            subject.path.display()
        );
        return Err(Failure::new(Exit::Damaged, what));
    };
    let mut fields = Fields::default();
    fields
        .add("WAL", state.wal.to_string())
        .add("last writer", format!("incarnation {}", state.incarnation))
        .add(
            "every shard",
            format!(
                "{} segments of {}",
                state.segments,
                human(state.segment_bytes)
            ),
        );
    Ok(Decoded {
        kind: "state of a WAL",
        json: json!({
            "wal": state.wal.to_string(),
            "incarnation": state.incarnation,
            "segments": state.segments,
            "segment_bytes": state.segment_bytes,
        }),
        fields,
        tables: Vec::new(),
        damage: Vec::new(),
    })
}
