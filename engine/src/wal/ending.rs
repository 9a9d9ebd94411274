//! The end of a log in order: its last log head says that nothing follows, so that the next start
//! need not look for what a torn write might have left, and what it would read of each batch is
//! noted (`docs/internals/recovery.md`).

use crate::block::PAGE_BYTES;
use crate::identity::{BatchNum, Epoch, Lsn};

use super::format::{BatchHeader, FIXED_BYTES, LogEnd, TABLE_START};
use super::headers::{noted_bytes, noted_bytes_max};
use super::log::ShardLog;
use super::place::Place;
use super::replay::Recovered;
use super::write::Health;

/// Greatest numbers that anything in the file has, whether it counts or not.
#[derive(Debug)]
pub(super) struct Used {
    next_lsn: Lsn,
    max_epoch: Epoch,
}

impl Used {
    /// What was used before this writer.
    pub(super) fn by(recovered: &Recovered) -> Self {
        Self {
            next_lsn: recovered.next_lsn,
            max_epoch: recovered.max_epoch,
        }
    }

    /// A record with this stamp is appended.
    #[inline]
    pub(super) fn note_epoch(&mut self, epoch: Epoch) {
        self.max_epoch = self.max_epoch.max(epoch);
    }
}

impl ShardLog {
    /// Ends the log if everything in it is durable: from then on appends are refused, and a log
    /// head is queued that says where it ends. False if it cannot end now; nothing is changed then.
    pub fn end(&mut self) -> bool {
        let at_rest = !self.has_open()
            && self.durable_through() == self.last()
            && self.health() == Health::Good;
        if at_rest && !self.writer.has_ended() {
            self.writer.end();
        }
        at_rest
    }

    /// Whether the log head that tells of the end is still to become durable.
    pub fn is_ending(&self) -> bool {
        self.writer.has_ended() && self.writer.is_head_pending() && self.failed().is_none()
    }

    /// Writes the headers of all batches that are not released into `out`, which is empty: the next
    /// start, if it finds them, need not read them one by one. False, and nothing is written, if
    /// the log has not ended or its batches have too large ones.
    pub fn note_headers(&self, out: &mut Vec<u8>) -> bool {
        let mut number = self.released_before();
        let mut whole = self.writer.has_ended();
        while whole && number <= self.last() {
            whole = self.note_header(number, out);
            number = number.next();
        }
        let bytes_max = noted_bytes_max(self.config.segments, self.config.segment_bytes);
        whole &= out.len() as u64 <= bytes_max;
        if !whole {
            out.clear();
        }
        whole
    }

    fn note_header(&self, number: BatchNum, out: &mut Vec<u8>) -> bool {
        if let Some((header, page)) = self.header_in_memory(number) {
            out.extend_from_slice(&page[..noted_bytes(&header) as usize]);
            return true;
        }
        let Some((header, table)) = self.headers.find(number) else {
            return false;
        };
        let start = out.len();
        out.resize(start + FIXED_BYTES, 0);
        header.encode(&mut out[start..]);
        out.extend_from_slice(table);
        true
    }

    /// Keeps the header of a batch that is about to leave memory, if it is not released.
    pub(super) fn keep_header(&mut self, number: BatchNum) {
        if number < self.released_before() {
            return;
        }
        let kept = self.header_in_memory(number).map(|(header, page)| {
            let end = TABLE_START + header.table_bytes as usize;
            (header, page[TABLE_START..end].into())
        });
        if let Some((header, table)) = kept {
            self.headers.keep(header, table);
        }
    }

    fn header_in_memory(&self, batch: BatchNum) -> Option<(BatchHeader, &[u8])> {
        let page = self.memory(Place { batch, page: 0 }, PAGE_BYTES)?;
        Some((BatchHeader::decode(page)?, page))
    }

    /// What a log head says of the end.
    pub(super) fn log_end(&self) -> LogEnd {
        LogEnd {
            next_lsn: self.used.next_lsn.max(self.last_lsn.next()),
            last_lsn: self.last_lsn,
            max_epoch: self.used.max_epoch,
            last_generation: self.segments.last_generation(),
            chain: self.chain,
        }
    }
}
