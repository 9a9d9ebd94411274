//! Big-endian reading and writing: fixed fields of known arrays, and a cursor over untrusted bytes.

/// The big-endian `u16` at `at`, for fixed headers: panics when `bytes` is too short.
#[inline]
pub(crate) fn be_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// The big-endian `u32` at `at`, for fixed headers: panics when `bytes` is too short.
#[inline]
pub(crate) fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// The big-endian `u64` at `at`, for fixed headers: panics when `bytes` is too short.
#[inline]
pub(crate) fn be_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

#[inline]
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

/// Reads an untrusted message from its front; every step says `None` when too little is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| be_u16(bytes, 0))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| be_u32(bytes, 0))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| be_u64(bytes, 0))
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(len)?;
        self.rest = tail;
        Some(head)
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(self) -> bool {
        self.rest.is_empty()
    }
}

/// A string as the protocol allows it: UTF-8, no NUL, at most 4096 bytes. `None` for all else.
pub(crate) fn string(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > crate::protocol::STRING_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// The longest prefix of `text` that may go on the wire.
pub(crate) fn clip(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    &text[..text.floor_char_boundary(crate::protocol::STRING_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_fields_are_big_endian() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(be_u16(&bytes, 1), 0x0203);
        assert_eq!(be_u32(&bytes, 1), 0x0203_0405);
        assert_eq!(be_u64(&bytes, 1), 0x0203_0405_0607_0809);
    }

    #[test]
    fn a_cursor_never_reads_past_its_end() {
        let mut cursor = Cursor::new(&[0, 7, 1, 2, 3]);
        assert_eq!(cursor.u16(), Some(7));
        assert_eq!(cursor.u32(), None);
        assert_eq!(cursor.u64(), None);
        assert_eq!(cursor.take(4), None);
        assert_eq!(cursor.rest(), &[1, 2, 3], "a failed step takes nothing");
        assert_eq!(cursor.take(3), Some(&[1, 2, 3][..]));
        assert!(cursor.is_empty());
        assert_eq!(cursor.take(0), Some(&[][..]));
        assert_eq!(cursor.take(usize::MAX), None);
    }

    #[test]
    fn strings_are_short_utf8_without_nul() {
        assert_eq!(string(b""), Some(""));
        assert_eq!(string("käse/ü".as_bytes()), Some("käse/ü"));
        assert_eq!(string(b"a\0b"), None);
        assert_eq!(string(b"\xff"), None);
        assert!(string(&[b'a'; 4096]).is_some());
        assert!(string(&[b'a'; 4097]).is_none());
    }

    #[test]
    fn clipping_keeps_whole_characters() {
        let long = format!("{}ü", "a".repeat(4095));
        assert_eq!(clip(&long).len(), 4095);
        assert_eq!(clip("short"), "short");
        assert_eq!(clip("cut\0here"), "cut");
        assert!(string(clip(&long).as_bytes()).is_some());
    }
}
