//! Collects the messages of a handshake out of pieces of any size.

/// Holds the beginning of a message until the rest has come. A message that lies whole in one piece
/// is never copied; memory grows with the bytes received, not with a length that a peer claims.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    held: Vec<u8>,
    /// The held bytes were handed out and go at the next call.
    spent: bool,
}

impl Framer {
    /// The next `need` bytes, taken from what is held and then from `input`, which is shortened by
    /// what was taken. `None`: all of `input` is held now and more is needed.
    ///
    /// `need` must stay the same until a message was handed out.
    pub(crate) fn take<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
        need: usize,
    ) -> Option<&'a [u8]> {
        if self.spent {
            self.spent = false;
            self.held.clear();
        }
        if self.held.is_empty()
            && let Some((message, rest)) = input.split_at_checked(need)
        {
            *input = rest;
            return Some(message);
        }
        debug_assert!(
            self.held.len() <= need,
            "a message was asked for with two lengths"
        );
        let missing = need.saturating_sub(self.held.len());
        let (piece, rest) = input.split_at(missing.min(input.len()));
        self.held.extend_from_slice(piece);
        *input = rest;
        if piece.len() < missing {
            return None;
        }
        self.spent = true;
        Some(&self.held)
    }

    /// Bytes of an unfinished message.
    pub(crate) fn held_bytes(&self) -> usize {
        if self.spent { 0 } else { self.held.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_message_is_taken_from_the_input_itself() {
        let mut framer = Framer::default();
        let mut input = &b"abcdef"[..];
        assert_eq!(framer.take(&mut input, 4), Some(&b"abcd"[..]));
        assert_eq!(framer.held.capacity(), 0, "copied");
        assert_eq!(framer.take(&mut input, 0), Some(&b""[..]));
        assert_eq!(framer.take(&mut input, 3), None);
        assert!(input.is_empty());
    }

    #[test]
    fn pieces_become_the_message_and_the_next_one_starts_clean() {
        let mut framer = Framer::default();
        for byte in b"abc" {
            let mut input = std::slice::from_ref(byte);
            assert_eq!(framer.take(&mut input, 4), None);
        }
        let mut input = &b"dXYZ"[..];
        assert_eq!(framer.take(&mut input, 4), Some(&b"abcd"[..]));
        assert_eq!(input, b"XYZ");
        assert_eq!(framer.take(&mut input, 2), Some(&b"XY"[..]));
        assert_eq!(framer.take(&mut input, 2), None);
        let mut input = &b"!"[..];
        assert_eq!(framer.take(&mut input, 2), Some(&b"Z!"[..]));
    }
}
