//! Decodes `volumes/last-sweep`: when orphans were swept last.

use serde_json::json;
use taipan_engine::timestamp::UnixMs;

use super::{Decoded, Subject};
use crate::failure::{Exit, Failure, Outcome};
use crate::table::Fields;

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let bytes = subject.read_all()?;
    let Some(swept_at) = time_in(&bytes) else {
        let what = format!(
            "{} is damaged: it is no time; the daemon lets an interval between sweeps begin anew",
            subject.path.display()
        );
        return Err(Failure::new(Exit::Damaged, what));
    };
    let mut fields = Fields::default();
    fields.add("swept at", swept_at.to_string());
    Ok(Decoded {
        kind: "time of the last sweep of orphans",
        json: json!({ "swept_at_ms": swept_at.0 }),
        fields,
        tables: Vec::new(),
        damage: Vec::new(),
    })
}

fn time_in(bytes: &[u8]) -> Option<UnixMs> {
    let seconds: u64 = std::str::from_utf8(bytes).ok()?.trim().parse().ok()?;
    Some(UnixMs(seconds.checked_mul(1000)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_seconds_as_text() {
        assert_eq!(time_in(b"1795300304\n"), Some(UnixMs(1_795_300_304_000)));
        for broken in [&b""[..], b"soon", b"-1", b"\xff", b"99999999999999999999"] {
            assert_eq!(time_in(broken), None);
        }
        assert_eq!(time_in(u64::MAX.to_string().as_bytes()), None);
    }
}
