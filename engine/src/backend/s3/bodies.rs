//! Memory of large bodies, used again: fresh memory costs a page fault for every page, which is
//! more than copying a body into it.

use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

/// Smaller bodies are the allocator's business.
pub(super) const BYTES_MIN: usize = 256 << 10;
/// The memory of larger ones is not kept.
const BYTES_MAX: usize = 8 << 20;
/// Bodies whose memory is kept, at most: those that the memory cache holds of what was read ahead, of
/// 4 MiB each, those under way and some more. No more is taken than bodies are alive at once.
const KEPT_MAX: usize = 24;

/// Memory that held bodies. It is free when the body is dropped.
#[derive(Default)]
pub(super) struct Bodies(Mutex<Vec<BytesMut>>);

impl Bodies {
    /// Empty memory for a body of so many bytes.
    pub(super) fn take(&self, len: usize) -> BytesMut {
        if !(BYTES_MIN..=BYTES_MAX).contains(&len) {
            return BytesMut::with_capacity(len);
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = kept.iter_mut().position(|memory| memory.try_reclaim(len));
        match free {
            Some(index) => kept.swap_remove(index),
            None => BytesMut::with_capacity(len),
        }
    }

    /// The body that was read into `memory`, which is kept for another one.
    pub(super) fn freeze(&self, mut memory: BytesMut) -> Bytes {
        let body = memory.split().freeze();
        if (BYTES_MIN..=BYTES_MAX).contains(&body.len()) {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // The oldest is the least likely to be held by anyone still; if it is, it is let go.
            if kept.len() >= KEPT_MAX {
                kept.remove(0);
            }
            kept.push(memory);
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bodies: &Bodies, len: usize, fill: u8) -> Bytes {
        let mut memory = bodies.take(len);
        memory.resize(len, fill);
        bodies.freeze(memory)
    }

    #[test]
    fn memory_is_used_again_only_when_its_body_is_gone() {
        let bodies = Bodies::default();
        let first = read(&bodies, BYTES_MIN, 1);
        let at = first.as_ptr();
        let second = read(&bodies, BYTES_MIN, 2);
        assert_ne!(second.as_ptr(), at, "the first one is held");
        assert!(first.iter().all(|byte| *byte == 1));
        drop(first);
        let third = read(&bodies, BYTES_MIN, 3);
        assert_eq!(third.as_ptr(), at);
        assert!(second.iter().all(|byte| *byte == 2));
        assert!(third.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn few_are_kept_and_small_or_huge_ones_are_not() {
        let bodies = Bodies::default();
        let held: Vec<_> = (0..9).map(|fill| read(&bodies, BYTES_MIN, fill)).collect();
        assert_eq!(bodies.0.lock().unwrap().len(), KEPT_MAX);
        for (fill, body) in held.iter().enumerate() {
            assert!(body.iter().all(|byte| usize::from(*byte) == fill));
        }
        let none = Bodies::default();
        read(&none, BYTES_MIN - 1, 0);
        read(&none, BYTES_MAX + 1, 0);
        assert!(none.0.lock().unwrap().is_empty());
    }
}
