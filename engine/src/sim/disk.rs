//! One simulated WAL file on a device with a volatile cache.
//!
//! A write that has ended is in the cache: reads see it, power loss may take any of its 512-byte
//! sectors. It is durable when a barrier issued after its end has ended, or at once with `dsync`.

use std::collections::BTreeSet;
use std::io;

use super::dice::Dice;
use crate::block::PAGE_BYTES;
use crate::wal::ReadMedia;

/// The grain at which a write can be torn.
const SECTOR: usize = 512;
static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

#[derive(Debug)]
struct Write {
    id: u64,
    offset: usize,
    bytes: Vec<u8>,
    dsync: bool,
    /// In the cache; else still under way.
    ended: bool,
    /// Sectors that the device no longer holds: failed, dropped, or overtaken for good.
    gone: BTreeSet<usize>,
}

/// What a power loss did to writes that were not durable.
#[derive(Debug, Default)]
pub(super) struct Loss {
    /// Writes of which some sectors were kept and some lost.
    pub(super) torn: u64,
    /// Some write was lost in part while a later one was kept whole.
    pub(super) later_kept: bool,
}

/// The file.
#[derive(Debug)]
pub(super) struct WalFile {
    durable: Vec<u8>,
    /// Not durable, in the order in which they ended, those under way last.
    writes: Vec<Write>,
    next_id: u64,
}

impl WalFile {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            durable: vec![0; bytes],
            writes: Vec::new(),
            next_id: 0,
        }
    }

    /// Puts bytes there durably, for setting up.
    pub(super) fn format(&mut self, offset: usize, bytes: &[u8]) {
        self.durable[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// A copy as a reader of the running file makes it.
    pub(super) fn copy_settled(&self) -> Self {
        let mut copy = Self::new(self.durable.len());
        self.read(0, &mut copy.durable);
        copy
    }

    /// Begins a write.
    pub(super) fn issue(&mut self, offset: u64, bytes: Vec<u8>, dsync: bool) -> u64 {
        self.next_id += 1;
        let (id, offset) = (self.next_id, offset as usize);
        assert!(
            offset + bytes.len() <= self.durable.len(),
            "a write beyond the file"
        );
        let gone = BTreeSet::new();
        self.writes.push(Write {
            id,
            offset,
            bytes,
            dsync,
            ended: false,
            gone,
        });
        id
    }

    /// Whether the bytes there were never written.
    pub(super) fn is_fresh(&self, offset: u64, len: usize) -> bool {
        let bytes = &self.durable[offset as usize..][..len];
        bytes
            .chunks(PAGE_BYTES)
            .all(|page| page == &ZEROS[..page.len()])
    }

    /// Whether a plain write of `bytes` or more waits in the cache for a barrier.
    pub(super) fn has_plain(&self, bytes: usize) -> bool {
        self.writes
            .iter()
            .any(|w| w.ended && !w.dsync && w.bytes.len() >= bytes)
    }

    /// The bytes being written.
    pub(super) fn bytes_of(&self, id: u64) -> &[u8] {
        &self
            .writes
            .iter()
            .find(|write| write.id == id)
            .expect("under way")
            .bytes
    }

    /// Ends a write well.
    pub(super) fn end(&mut self, id: u64) {
        let write = self.take(id);
        if write.dsync {
            self.settle(&write);
        } else {
            self.cache(write);
        }
    }

    /// Ends a write with an error: any sectors may have been written, none are durable.
    pub(super) fn fail(&mut self, id: u64, dice: &mut Dice) {
        let mut write = self.take(id);
        write.gone = (0..write.sectors()).filter(|_| dice.chance(500)).collect();
        self.cache(write);
    }

    /// What a barrier issued now covers.
    pub(super) fn covered(&self) -> Vec<u64> {
        self.writes
            .iter()
            .filter(|write| write.ended)
            .map(|write| write.id)
            .collect()
    }

    /// A barrier that covers these writes ended well.
    pub(super) fn flushed(&mut self, covered: &[u64]) {
        let (covered, rest): (Vec<_>, Vec<_>) = self
            .writes
            .drain(..)
            .partition(|write| covered.contains(&write.id));
        self.writes = rest;
        for write in &covered {
            self.settle(write);
        }
    }

    /// A barrier failed: of what it covered, any sector is durable or dropped, and no later barrier
    /// tells.
    pub(super) fn flush_failed(&mut self, covered: &[u64], dice: &mut Dice) {
        let (covered, rest): (Vec<_>, Vec<_>) = self
            .writes
            .drain(..)
            .partition(|write| covered.contains(&write.id));
        self.writes = rest;
        for mut write in covered {
            write.lose_some(dice);
            self.settle(&write);
        }
    }

    /// The process is gone: what the kernel had accepted is carried out.
    pub(super) fn kill(&mut self, dice: &mut Dice) {
        let (ended, flying): (Vec<_>, Vec<_>) = self.writes.drain(..).partition(|w| w.ended);
        self.writes = ended;
        for mut write in flying {
            if dice.chance(500) {
                write.ended = true;
                self.writes.push(write);
            }
        }
    }

    /// Power is gone: of what was not durable any sectors are there.
    pub(super) fn power_loss(&mut self, dice: &mut Dice) -> Loss {
        let mut loss = Loss::default();
        let mut writes: Vec<Write> = self.writes.drain(..).collect();
        writes.sort_by_key(|write| write.id);
        let mut incomplete = false;
        for write in &mut writes {
            write.lose_some(dice);
            let lost = write.gone.len();
            let whole = lost == 0;
            loss.torn += u64::from(!whole && lost < write.sectors());
            loss.later_kept |= incomplete && whole && write.bytes.len() > 4096;
            incomplete |= !whole;
            self.settle(write);
        }
        loss
    }

    /// Reads what is newest.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        let start = offset as usize;
        out.copy_from_slice(&self.durable[start..start + out.len()]);
        for write in self.writes.iter().filter(|write| write.ended) {
            for sector in (0..write.sectors()).filter(|s| !write.gone.contains(s)) {
                let at = write.offset + sector * SECTOR;
                if at >= start && at + SECTOR <= start + out.len() {
                    let bytes = &write.bytes[sector * SECTOR..][..SECTOR];
                    out[at - start..][..SECTOR].copy_from_slice(bytes);
                }
            }
        }
    }

    /// What a process that starts reads, once everything was flushed.
    pub(super) fn media(&self, unreadable: Option<u64>) -> Media<'_> {
        assert!(self.writes.is_empty(), "a replay reads what will stay");
        Media {
            bytes: &self.durable,
            unreadable,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.durable.len()
    }

    fn take(&mut self, id: u64) -> Write {
        let index = self.writes.iter().position(|w| w.id == id && !w.ended);
        self.writes.remove(index.expect("the write is under way"))
    }

    /// Keeps an ended write before those still under way.
    fn cache(&mut self, mut write: Write) {
        write.ended = true;
        let index = self
            .writes
            .iter()
            .position(|w| !w.ended)
            .unwrap_or(self.writes.len());
        self.writes.insert(index, write);
    }

    /// Makes a write durable; it wins over what was cached before.
    fn settle(&mut self, write: &Write) {
        for sector in (0..write.sectors()).filter(|s| !write.gone.contains(s)) {
            let at = write.offset + sector * SECTOR;
            let bytes = &write.bytes[sector * SECTOR..][..SECTOR];
            self.durable[at..at + SECTOR].copy_from_slice(bytes);
            for cached in self
                .writes
                .iter_mut()
                .filter(|w| w.ended && w.id < write.id)
            {
                if at >= cached.offset && at < cached.offset + cached.bytes.len() {
                    cached.gone.insert((at - cached.offset) / SECTOR);
                }
            }
        }
    }
}

impl Write {
    fn sectors(&self) -> usize {
        self.bytes.len() / SECTOR
    }

    fn lose_some(&mut self, dice: &mut Dice) {
        let sectors = self.sectors();
        match dice.below(4) {
            0 => {}
            1 => self.gone.extend(0..sectors),
            2 => {
                let kept = dice.below(sectors as u64 + 1) as usize;
                self.gone.extend(kept..sectors);
            }
            _ => self.gone.extend((0..sectors).filter(|_| dice.chance(300))),
        }
    }
}

/// A file as a replay reads it.
pub(super) struct Media<'a> {
    bytes: &'a [u8],
    /// Reads that touch this byte fail.
    unreadable: Option<u64>,
}

impl ReadMedia for Media<'_> {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if self
            .unreadable
            .is_some_and(|at| (offset..end).contains(&at))
        {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.bytes.read_at(offset, out)
    }
}
