//! Memory of large bodies, used again: fresh memory costs a page fault for every page, which is
//! more than copying a body into it.

use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

/// Smaller bodies are the allocator's business.
pub const LARGE_BYTES: usize = 256 << 10;
/// The memory of larger ones is not kept.
const BYTES_MAX: usize = 8 << 20;

/// Memory that held bodies. It is free when the body is dropped. No more is taken than bodies are
/// alive at once.
#[derive(Debug)]
pub struct Bodies {
    kept: Mutex<Vec<BytesMut>>,
    kept_max: usize,
}

impl Bodies {
    /// Keeps the memory of at most so many bodies, alive or not.
    pub fn new(kept_max: usize) -> Self {
        let kept = Mutex::default();
        Self { kept, kept_max }
    }

    /// Empty memory for a body of so many bytes.
    pub fn take(&self, len: usize) -> BytesMut {
        if !(LARGE_BYTES..=BYTES_MAX).contains(&len) {
            return BytesMut::with_capacity(len);
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let free = kept.iter_mut().position(|memory| memory.try_reclaim(len));
        match free {
            Some(index) => kept.remove(index),
            None => BytesMut::with_capacity(len),
        }
    }

    /// The body that was read into `memory`, which is kept for another one.
    pub fn freeze(&self, mut memory: BytesMut) -> Bytes {
        let body = memory.split().freeze();
        if (LARGE_BYTES..=BYTES_MAX).contains(&body.len()) {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            // The oldest is the least likely to be held by anyone still; if it is, it is let go.
            if kept.len() >= self.kept_max {
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

    const KEPT_MAX: usize = 4;

    fn read(bodies: &Bodies, len: usize, fill: u8) -> Bytes {
        let mut memory = bodies.take(len);
        memory.resize(len, fill);
        bodies.freeze(memory)
    }

    #[test]
    fn memory_is_used_again_only_when_its_body_is_gone() {
        let bodies = Bodies::new(KEPT_MAX);
        let first = read(&bodies, LARGE_BYTES, 1);
        let at = first.as_ptr();
        let second = read(&bodies, LARGE_BYTES, 2);
        assert_ne!(second.as_ptr(), at, "the first one is held");
        assert!(first.iter().all(|byte| *byte == 1));
        drop(first);
        let third = read(&bodies, LARGE_BYTES, 3);
        assert_eq!(third.as_ptr(), at);
        assert!(second.iter().all(|byte| *byte == 2));
        assert!(third.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn few_are_kept_and_small_or_huge_ones_are_not() {
        let bodies = Bodies::new(KEPT_MAX);
        let held: Vec<_> = (0..9)
            .map(|fill| read(&bodies, LARGE_BYTES, fill))
            .collect();
        assert_eq!(bodies.kept.lock().unwrap().len(), KEPT_MAX);
        for (fill, body) in held.iter().enumerate() {
            assert!(body.iter().all(|byte| usize::from(*byte) == fill));
        }
        let none = Bodies::new(KEPT_MAX);
        read(&none, LARGE_BYTES - 1, 0);
        read(&none, BYTES_MAX + 1, 0);
        assert!(none.kept.lock().unwrap().is_empty());
    }
}
