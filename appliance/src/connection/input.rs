//! The receive buffer of a connection: one allocation, compacted when its end comes near, and lent
//! only as long as bytes are in it.

use super::buffers::Buffers;

/// So little is copied out of a whole buffer at once: a few requests, or a part of one.
const REST_BYTES_MAX: usize = 4 << 10;
/// More than this is not copied out of a whole buffer to free it while more may come.
const STOWED_BYTES_MAX: usize = 64 << 10;

/// Bytes received and not yet consumed.
pub(super) struct Input {
    /// As long as the capacity; or shorter, if bytes wait for long; or empty, if there are none.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    capacity: usize,
}

impl Input {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            capacity,
        }
    }

    /// Most bytes that can ever be waiting.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that can be received before any are consumed.
    pub(super) fn room_left(&self) -> usize {
        self.capacity - (self.end - self.start)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Bytes of memory in use.
    pub(super) fn held(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// Gives the buffer back if nothing is in it, or next to nothing.
    pub(super) fn rest(&mut self, buffers: &mut Buffers) {
        let bytes = self.end - self.start;
        let is_whole = self.buffer.len() == self.capacity;
        if bytes == 0 || is_whole && bytes <= REST_BYTES_MAX {
            self.replace(self.bytes().to_vec(), buffers);
        }
    }

    /// Bytes have waited for a while: they are put into a buffer of their size if that is small, or
    /// if no more bytes are there to come (`quiet`).
    pub(super) fn stow(&mut self, quiet: bool, buffers: &mut Buffers) {
        let bytes = self.end - self.start;
        let is_small = bytes <= self.capacity / 2 && (quiet || bytes <= STOWED_BYTES_MAX);
        if self.buffer.len() == self.capacity && is_small {
            self.replace(self.bytes().to_vec(), buffers);
        }
    }

    fn replace(&mut self, buffer: Vec<u8>, buffers: &mut Buffers) {
        let bytes = self.end - self.start;
        let old = std::mem::replace(&mut self.buffer, buffer);
        (self.start, self.end) = (0, bytes);
        if old.len() == self.capacity {
            buffers.give_input(old);
        }
    }

    /// Begins with bytes that another process received.
    pub(super) fn put(&mut self, bytes: Vec<u8>) {
        (self.start, self.end) = (0, bytes.len());
        self.buffer = bytes;
    }

    pub(super) fn consume(&mut self, n: usize) {
        assert!(
            n <= self.end - self.start,
            "consumed more than was received"
        );
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room to receive into; empty only if the buffer is full of unconsumed bytes.
    pub(super) fn room(&mut self, buffers: &mut Buffers) -> &mut [u8] {
        if self.buffer.len() < self.capacity {
            let mut whole = buffers.input(self.capacity);
            whole[..self.end - self.start].copy_from_slice(self.bytes());
            self.replace(whole, buffers);
        }
        if self.start > 0 && self.buffer.len() - self.end < self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    pub(super) fn filled(&mut self, n: usize) {
        self.end += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_over_many_turns() {
        let (mut input, mut buffers) = (Input::new(64), Buffers::default());
        let (mut next_in, mut next_out) = (0u8, 0u8);
        for turn in 0..500usize {
            let room = input.room(&mut buffers);
            let n = room.len().min(1 + turn % 23);
            for byte in &mut room[..n] {
                *byte = next_in;
                next_in = next_in.wrapping_add(1);
            }
            input.filled(n);
            let take = input.bytes().len().min(1 + turn % 19);
            for byte in &input.bytes()[..take] {
                assert_eq!(*byte, next_out);
                next_out = next_out.wrapping_add(1);
            }
            input.consume(take);
            match turn % 5 {
                0 => input.stow(turn % 2 == 0, &mut buffers),
                1 => input.rest(&mut buffers),
                _ => {}
            }
        }
        assert!(next_out != next_in || input.bytes().is_empty());
    }

    #[test]
    fn memory_is_held_only_for_what_is_in_it() {
        let (mut input, mut buffers) = (Input::new(20_000), Buffers::default());
        assert_eq!(input.held(), 0);
        input.room(&mut buffers)[..14_000].fill(7);
        input.filled(14_000);
        input.rest(&mut buffers);
        input.consume(2000);
        input.stow(true, &mut buffers);
        assert_eq!(input.held(), 20_000, "there is no half to free");
        input.consume(4000);
        input.stow(true, &mut buffers);
        assert_eq!((input.held(), input.bytes()), (8000, &[7; 8000][..]));
        assert_eq!(input.room_left(), 12_000);
        assert_eq!(input.room(&mut buffers).len(), 12_000);
        input.consume(6000);
        input.rest(&mut buffers);
        assert_eq!((input.held(), input.bytes()), (2000, &[7; 2000][..]));
        input.consume(2000);
        input.rest(&mut buffers);
        assert_eq!(input.held(), 0);
    }
}
