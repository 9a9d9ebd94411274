//! Numbers, texts and bytes of a frame's body.

use super::BadFrame;

/// Appends fields.
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins behind so many bytes that are filled in later.
    pub(super) fn after(bytes: usize) -> Self {
        Self {
            bytes: vec![0; bytes],
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Bytes behind their number.
    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.bytes.extend_from_slice(value);
    }

    pub(super) fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }
}

/// Takes fields; whatever is not there is [`BadFrame::Content`].
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], BadFrame> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(BadFrame::Content)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadFrame> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(BadFrame::Content)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, BadFrame> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn flag(&mut self) -> Result<bool, BadFrame> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadFrame::Content),
        }
    }

    pub(super) fn u16(&mut self) -> Result<u16, BadFrame> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, BadFrame> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, BadFrame> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], BadFrame> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    pub(super) fn text(&mut self) -> Result<String, BadFrame> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| BadFrame::Content)?;
        Ok(text.to_owned())
    }

    /// Nothing may be left over.
    pub(super) fn end(self) -> Result<(), BadFrame> {
        match self.rest {
            [] => Ok(()),
            _ => Err(BadFrame::Content),
        }
    }
}
