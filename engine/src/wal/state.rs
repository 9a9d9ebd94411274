//! `wal/state`: identity, sizes and writer count of a data directory's WAL. Its presence says that
//! the WAL files were created completely.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::identity::Incarnation;

use super::config::WalId;
use super::format::{get_u16, get_u32, get_u64, is_possible_geometry, put_u16, put_u32, put_u64};

/// First bytes of the file.
pub const STATE_MAGIC: [u8; 8] = *b"TAIPWALS";
/// Version of the file.
pub const STATE_VERSION: u16 = 1;
/// Bytes of the file.
pub const STATE_BYTES: usize = 64;
/// Name of the file in the WAL directory.
pub const STATE_NAME: &str = "state";

const MAGIC: usize = 0;
const VERSION_AT: usize = 8;
const SEGMENTS: usize = 12;
const WAL: usize = 16;
const INCARNATION: usize = 24;
const SEGMENT_BYTES: usize = 32;
const CRC: usize = 60;

/// What `wal/state` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalState {
    /// The WAL.
    pub wal: WalId,
    /// The last writer that started.
    pub incarnation: Incarnation,
    /// Bytes of a segment, in every shard's file.
    pub segment_bytes: u64,
    /// Segments of every shard's file.
    pub segments: u32,
}

impl WalState {
    /// The file's bytes.
    pub fn encode(&self) -> [u8; STATE_BYTES] {
        let mut out = [0; STATE_BYTES];
        out[MAGIC..MAGIC + 8].copy_from_slice(&STATE_MAGIC);
        put_u16(&mut out, VERSION_AT, STATE_VERSION);
        put_u32(&mut out, SEGMENTS, self.segments);
        put_u64(&mut out, WAL, self.wal.0);
        put_u64(&mut out, INCARNATION, self.incarnation.0);
        put_u64(&mut out, SEGMENT_BYTES, self.segment_bytes);
        let crc = crc32c::crc32c(&out[..CRC]);
        put_u32(&mut out, CRC, crc);
        out
    }

    /// Reads the file's bytes; `None` when they are not a state of this version, or no log can have
    /// the segments that they name.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let valid = bytes.len() == STATE_BYTES
            && bytes[MAGIC..MAGIC + 8] == STATE_MAGIC
            && get_u16(bytes, VERSION_AT) == STATE_VERSION
            && crc32c::crc32c(&bytes[..CRC]) == get_u32(bytes, CRC);
        let state = valid.then(|| Self {
            wal: WalId(get_u64(bytes, WAL)),
            incarnation: Incarnation(get_u64(bytes, INCARNATION)),
            segment_bytes: get_u64(bytes, SEGMENT_BYTES),
            segments: get_u32(bytes, SEGMENTS),
        })?;
        let possible = is_possible_geometry(state.segments, state.segment_bytes)
            && state.incarnation.0 < u64::MAX;
        possible.then_some(state)
    }

    /// Reads it from the WAL directory; `None` when there is no such file.
    ///
    /// # Errors
    /// `Corrupt` when the file is not a whole state: it is replaced atomically, so a crash does not
    /// explain that. `Io`.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(STATE_NAME);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened
                .and_then(|file| file.take(STATE_BYTES as u64 + 1).read_to_end(&mut bytes))
                .map_err(|e| Error::io("reading the WAL's state", e).with_path(&path))?,
        };
        let damaged = || {
            Error::corrupt("the WAL's state is damaged; restore it or move the WAL directory away")
                .with_path(&path)
        };
        Self::decode(&bytes).map(Some).ok_or_else(damaged)
    }

    /// Replaces it in the WAL directory, durably.
    ///
    /// # Errors
    /// `Full` or `Io`; the former state is still there then.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(STATE_NAME);
        let temporary = dir.join("state.new");
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&self.encode())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(dir)?.sync_all()
        });
        written.map_err(|e| Error::io("saving the WAL's state", e).with_path(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: WalState = WalState {
        wal: WalId(0x0102_0304_0506_0708),
        incarnation: Incarnation(9),
        segment_bytes: 1 << 20,
        segments: 16,
    };

    #[test]
    fn the_state_has_these_bytes() {
        let bytes = STATE.encode();
        #[rustfmt::skip]
        assert_eq!(bytes[..40], [
            b'T', b'A', b'I', b'P', b'W', b'A', b'L', b'S', 1, 0, 0, 0, 16, 0, 0, 0,
            8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 16, 0, 0, 0, 0, 0,
        ]);
        assert_eq!(WalState::decode(&bytes), Some(STATE));
        for at in 0..STATE_BYTES {
            let mut damaged = bytes;
            damaged[at] ^= 4;
            assert_eq!(WalState::decode(&damaged), None, "byte {at}");
        }
    }

    #[test]
    fn segments_that_no_log_can_have_are_refused() {
        let sized = |segments, segment_bytes| WalState {
            segments,
            segment_bytes,
            ..STATE
        };
        for bad in [
            sized(0, 1 << 20),
            sized(16, 0),
            sized(16, (1 << 20) + 512),
            sized(16, u64::MAX - 4095),
            sized(u32::MAX, 1 << 32),
            WalState {
                incarnation: Incarnation(u64::MAX),
                ..STATE
            },
        ] {
            assert_eq!(WalState::decode(&bad.encode()), None, "{bad:?}");
        }
        let most = sized((1 << 31) - 1, 1 << 32);
        assert_eq!(WalState::decode(&most.encode()), Some(most));
    }

    #[test]
    fn it_is_saved_and_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(WalState::load(dir.path()).unwrap(), None);
        STATE.save(dir.path()).unwrap();
        let later = WalState {
            incarnation: Incarnation(10),
            ..STATE
        };
        later.save(dir.path()).unwrap();
        assert_eq!(WalState::load(dir.path()).unwrap(), Some(later));
        fs::write(dir.path().join(STATE_NAME), b"short").unwrap();
        let error = WalState::load(dir.path()).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt);
    }
}
