//! Decides which of the batches found count.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::block::PAGE_BYTES;
use crate::identity::{BatchNum, Epoch, Incarnation, Lsn};

use super::super::format::{BatchHeader, HEADER_PAGES, LogHead, get_u32};
use super::super::media::ReadMedia;
use super::super::record::{CRC_BYTES, Content, Records};
use super::damage::{ProblemKind, Problems};
use super::scan::{Candidate, Candidates};
use super::{RecoveredBatch, TornTail};

/// What counts, and the greatest numbers of what was seen.
pub(super) struct Accepted {
    pub(super) head: LogHead,
    pub(super) batches: Vec<RecoveredBatch>,
    pub(super) next_batch: BatchNum,
    pub(super) chain: u32,
    pub(super) last_lsn: Lsn,
    pub(super) max_lsn: Lsn,
    pub(super) max_epoch: Epoch,
    pub(super) last_generation: u64,
    pub(super) torn: Option<TornTail>,
}

/// Why a batch does not count.
enum Refused {
    BrokenChain,
    Records,
    /// Header without its table, or payload without its CRCs: a torn write.
    Torn,
}

/// Accepts batches from the first that is not released on, without gaps. Everything up to the
/// greatest `durable_through` seen, or `floor`, must be there.
pub(super) fn accept(
    file: &dyn ReadMedia,
    head: &LogHead,
    found: Candidates,
    floor: BatchNum,
    problems: &mut Problems,
) -> Accepted {
    let seen = Seen::of(head, &found, floor);
    let mut by_number: BTreeMap<BatchNum, Vec<Candidate>> = BTreeMap::new();
    let mut chain = 0;
    let mut last_lsn = Lsn(0);
    for candidate in found.into_values() {
        let header = &candidate.header;
        if seen.is_void(header.incarnation, header.number) {
            continue;
        }
        if header.number < seen.released_before {
            // Not needed, but its successor names its CRC, and its LSNs are used.
            if header.number.next() == seen.released_before {
                chain = header.content_crc;
            }
            last_lsn = last_lsn.max(greatest(&candidate).0);
            continue;
        }
        by_number.entry(header.number).or_default().push(candidate);
    }
    for copies in by_number.values_mut() {
        copies.sort_by_key(|c| std::cmp::Reverse((c.header.incarnation, c.header.generation)));
    }
    let mut walk = Walk {
        file,
        durable: seen.durable_through,
        chain: None,
        generation: 0,
        last_lsn,
        batches: Vec::new(),
        problems,
    };
    let (next_batch, torn) = walk.run(&by_number, seen.released_before);
    Accepted {
        head: *head,
        next_batch,
        chain: walk.chain.unwrap_or(chain),
        last_lsn: walk.last_lsn,
        max_lsn: seen.max_lsn,
        max_epoch: seen.max_epoch,
        last_generation: seen.last_generation,
        torn,
        batches: walk.batches,
    }
}

/// Greatest numbers over all that was seen, whether it counts or not.
struct Seen {
    durable_through: BatchNum,
    released_before: BatchNum,
    max_lsn: Lsn,
    max_epoch: Epoch,
    last_generation: u64,
    /// For each incarnation the first batch of any newer one: batches from there on are void.
    void_from: BTreeMap<Incarnation, BatchNum>,
}

impl Seen {
    fn of(head: &LogHead, found: &Candidates, floor: BatchNum) -> Self {
        let mut seen = Self {
            durable_through: head.durable_through.max(floor),
            released_before: head.released_before,
            max_lsn: Lsn(0),
            max_epoch: Epoch(0),
            last_generation: 0,
            void_from: BTreeMap::new(),
        };
        let mut firsts = BTreeMap::from([(head.incarnation, head.first)]);
        for candidate in found.values() {
            let header = &candidate.header;
            seen.durable_through = seen.durable_through.max(header.durable_through);
            seen.released_before = seen.released_before.max(header.released_before);
            seen.last_generation = seen.last_generation.max(header.generation);
            firsts.entry(header.incarnation).or_insert(header.first);
            let (lsn, epoch) = greatest(candidate);
            seen.max_lsn = seen.max_lsn.max(lsn);
            seen.max_epoch = seen.max_epoch.max(epoch);
        }
        let mut newer_first = BatchNum(u64::MAX);
        for (incarnation, first) in firsts.into_iter().rev() {
            seen.void_from.insert(incarnation, newer_first);
            newer_first = newer_first.min(first);
        }
        seen
    }

    fn is_void(&self, incarnation: Incarnation, number: BatchNum) -> bool {
        self.void_from
            .get(&incarnation)
            .is_some_and(|from| number >= *from)
    }
}

/// Greatest LSN and epoch of a batch.
fn greatest(candidate: &Candidate) -> (Lsn, Epoch) {
    let table = candidate.table.as_deref().unwrap_or_default();
    Records::new(candidate.header.number, table, candidate.header.records)
        .filter_map(Result::ok)
        .fold((Lsn(0), Epoch(0)), |(lsn, epoch), record| {
            (lsn.max(record.lsn), epoch.max(record.epoch))
        })
}

struct Walk<'a, 'p> {
    file: &'a dyn ReadMedia,
    durable: BatchNum,
    /// Content CRC of the batch before, if that counts.
    chain: Option<u32>,
    /// Segment generation of the batch before.
    generation: u64,
    last_lsn: Lsn,
    batches: Vec<RecoveredBatch>,
    problems: &'p mut Problems,
}

impl Walk<'_, '_> {
    fn run(
        &mut self,
        by_number: &BTreeMap<BatchNum, Vec<Candidate>>,
        first: BatchNum,
    ) -> (BatchNum, Option<TornTail>) {
        let mut number = first;
        loop {
            let Some(copies) = by_number.get(&number) else {
                if number > self.durable {
                    break;
                }
                // Go on behind the gap, for a report of all that is wrong.
                let next = by_number.range(number..).next().map(|(next, _)| *next);
                let last = next.map_or(self.durable, |n| self.durable.min(BatchNum(n.0 - 1)));
                self.problems.add(
                    None,
                    ProblemKind::Missing {
                        first: number,
                        last,
                    },
                );
                self.chain = None;
                number = last.next();
                continue;
            };
            let offset = copies[0].header.file_offset;
            match self.take_one(copies) {
                Ok(()) => {}
                Err(refused) if number <= self.durable => {
                    self.refuse(number, offset, &refused);
                }
                Err(_) => break,
            }
            number = number.next();
        }
        let void = by_number
            .range(number..)
            .map(|(_, copies)| copies.len() as u64)
            .sum();
        let torn = (void > 0).then_some(TornTail {
            first: number,
            void_batches: void,
        });
        (number, torn)
    }

    fn refuse(&mut self, batch: BatchNum, file_offset: u64, refused: &Refused) {
        let kind = match refused {
            Refused::BrokenChain => ProblemKind::BrokenChain { batch },
            Refused::Records => ProblemKind::Records { batch },
            Refused::Torn => ProblemKind::Missing {
                first: batch,
                last: batch,
            },
        };
        self.problems.add(Some(file_offset), kind);
        self.chain = None;
    }

    /// Accepts one of the copies of a batch, the newest whose blocks are whole.
    fn take_one(&mut self, copies: &[Candidate]) -> Result<(), Refused> {
        let durable = copies[0].header.number <= self.durable;
        // A lone durable batch is what was durable. Of several copies any may be the torn one.
        let check = !durable || copies.len() > 1;
        let mut outcome = Err(Refused::Torn);
        for copy in copies {
            outcome = self.take(copy, check);
            if outcome.is_ok() {
                return outcome;
            }
        }
        if durable && check {
            // Then one of them rotted since; a read of the block finds that.
            outcome = copies
                .iter()
                .map(|copy| self.take(copy, false))
                .find(Result::is_ok)
                .unwrap_or(outcome);
        }
        outcome
    }

    /// Accepts the batch unless something is wrong with it.
    fn take(&mut self, candidate: &Candidate, check_payload: bool) -> Result<(), Refused> {
        let header = &candidate.header;
        let table = candidate.table.as_ref().ok_or(Refused::Torn)?;
        if header.generation < self.generation {
            // The batch before was rewritten further on and this one was to follow it there: it
            // was never durable, and batches of a segment are consecutive.
            return Err(Refused::Torn);
        }
        if self.chain.is_some_and(|crc| crc != header.previous_crc) {
            return Err(Refused::BrokenChain);
        }
        let last_lsn = self.check_records(header, table)?;
        if check_payload {
            self.check_payload(header, table)?;
        }
        self.last_lsn = last_lsn;
        self.chain = Some(header.content_crc);
        self.generation = header.generation;
        self.batches
            .push(RecoveredBatch::new(header, Arc::clone(table)));
        Ok(())
    }

    /// Parses all records; returns the last LSN.
    fn check_records(&self, header: &BatchHeader, table: &[u8]) -> Result<Lsn, Refused> {
        let mut walk = Records::new(header.number, table, header.records);
        let mut last = self.last_lsn;
        for record in walk.by_ref() {
            let record = record.map_err(|_| Refused::Records)?;
            if record.lsn <= last {
                return Err(Refused::Records);
            }
            last = record.lsn;
        }
        let whole =
            walk.table_bytes() == table.len() && walk.payload_pages() == header.payload_pages;
        whole.then_some(last).ok_or(Refused::Records)
    }

    /// Reads the blocks of a batch that nothing says was durable.
    fn check_payload(&mut self, header: &BatchHeader, table: &[u8]) -> Result<(), Refused> {
        let start = header.file_offset + u64::from(HEADER_PAGES) * PAGE_BYTES as u64;
        let mut payload = vec![0; header.payload_pages as usize * PAGE_BYTES];
        if let Err(error) = self.file.read_at(start, &mut payload) {
            self.problems.add(
                Some(start),
                ProblemKind::Unreadable {
                    error: error.to_string(),
                },
            );
            return Err(Refused::Torn);
        }
        let mut rest = payload.as_slice();
        for record in Records::new(header.number, table, header.records).flatten() {
            let Content::Data {
                block_size, crcs, ..
            } = record.content
            else {
                continue;
            };
            for crc in crcs.chunks_exact(CRC_BYTES) {
                let (block, after) = rest.split_at(block_size.bytes());
                if crc32c::crc32c(block) != get_u32(crc, 0) {
                    return Err(Refused::Torn);
                }
                rest = after;
            }
        }
        Ok(())
    }
}
