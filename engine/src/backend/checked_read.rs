//! Reading what says of itself whether it is right. A bit may flip on the way here, so wrong bytes
//! are asked for once more before they count as damage of the object.

use bytes::Bytes;

use super::Backend;
use crate::error::{ErrorKind, Result};
use crate::object::ObjectKey;

/// So often an object is read at most.
const READS_MAX: u32 = 2;

/// Which bytes of an object are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Portion {
    /// All.
    Whole,
    /// So many from an offset on.
    Range(u64, u64),
}

/// Reads from `backend` and gives what `parse` makes of it. Where that finds the bytes wrong
/// ([`ErrorKind::Corrupt`]) they are counted and read once more, by a request of its own.
pub(crate) async fn read_checked<T>(
    backend: &dyn Backend,
    key: &ObjectKey,
    portion: Portion,
    parse: impl Fn(&Bytes) -> Result<T>,
) -> Result<T> {
    let mut reads = 0;
    loop {
        reads += 1;
        let bytes = match portion {
            Portion::Whole => backend.get(key).await?,
            Portion::Range(offset, len) => backend.get_range(key, offset, len).await?,
        };
        match parse(&bytes) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                backend.note_mismatch();
                let is_last = reads == READS_MAX;
                tracing::warn!(object = %key, %error, again = !is_last, "wrong bytes were read");
                if is_last {
                    return Err(error);
                }
            }
            parsed => return parsed,
        }
    }
}
