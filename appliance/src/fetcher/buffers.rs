//! Memory of answers, used again: a fresh buffer costs a page fault for every page, which is more
//! than all copying into and out of it.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers below this are the allocator's business.
const BYTES_MIN: usize = 64 << 10;
/// Larger buffers are not kept.
const BYTES_MAX: usize = 1 << 20;
/// Buffers kept, at most.
const SPARE_MAX: usize = 16;

/// Buffers that came back.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// A buffer of so many bytes. What is in it says nothing: all of it is to be written.
    pub(super) fn take(&self, len: usize) -> Blocks {
        if !(BYTES_MIN..=BYTES_MAX).contains(&len) {
            return Blocks {
                bytes: vec![0; len],
                home: None,
            };
        }
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut bytes = spare.unwrap_or_default();
        bytes.resize(len, 0);
        let home = Some(self.clone());
        Blocks { bytes, home }
    }

    fn give_back(&self, bytes: Vec<u8>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(bytes);
        }
    }
}

/// Blocks one after the other.
#[derive(Debug)]
pub struct Blocks {
    bytes: Vec<u8>,
    home: Option<Buffers>,
}

impl Blocks {
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Deref for Blocks {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.give_back(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_come_back_and_have_the_length_asked_for() {
        let buffers = Buffers::default();
        let kept = || buffers.0.lock().unwrap().len();
        let first = buffers.take(BYTES_MAX);
        let at = first.as_ptr();
        drop(first);
        assert_eq!(kept(), 1);
        let again = buffers.take(BYTES_MIN + 1);
        assert_eq!((again.as_ptr(), again.len()), (at, BYTES_MIN + 1));
        drop((again, buffers.take(4096), buffers.take(BYTES_MAX + 1)));
        assert_eq!(kept(), 1, "small and huge ones are not kept");
        let many: Vec<_> = (0..2 * SPARE_MAX)
            .map(|_| buffers.take(BYTES_MIN))
            .collect();
        drop(many);
        assert_eq!(kept(), SPARE_MAX);
    }
}
