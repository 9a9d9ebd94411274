//! The receive buffer of a connection: one allocation, compacted when its end comes near.

/// Bytes received and not yet consumed.
pub(super) struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            buffer: vec![0; capacity],
            start: 0,
            end: 0,
        }
    }

    /// Most bytes that can ever be waiting.
    pub(super) fn capacity(&self) -> usize {
        self.buffer.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.end - self.start == self.buffer.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
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
    pub(super) fn room(&mut self) -> &mut [u8] {
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
    use super::Input;

    #[test]
    fn bytes_come_out_as_they_went_in_over_many_turns() {
        let mut input = Input::new(64);
        let (mut next_in, mut next_out) = (0u8, 0u8);
        for turn in 0..500usize {
            let room = input.room();
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
        }
        assert!(next_out != next_in || input.bytes().is_empty());
    }
}
