//! Writers that stamp every block, and the oracle over what they wrote: which of their writes an
//! image holds, whether those are a cut, and whether anything that was promised is missing.
//!
//! One clock counts every request sent and every answer received on all connections. A cut holds no
//! write while it lacks one that had been answered before that write was sent.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use taipan_nbd::protocol::command;

use super::Dice;
use super::client::NbdClient;

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;
const CONNECTIONS: u64 = 4;
/// Requests that a connection keeps in flight.
const IN_FLIGHT: usize = 8;
/// Most blocks of one write: over all shards and more.
const WRITE_BLOCKS_MAX: u64 = 24;
/// Bytes of a stamp: block, time sent, last FLUSH answered before, one's complement of the time.
const STAMP: usize = 32;
/// What a block holds that was never written.
const NEVER: u64 = 0;

/// One write to one block.
#[derive(Clone, Copy, Debug)]
struct Version {
    sent: u64,
    /// [`u64::MAX`] if it never was.
    answered: u64,
}

/// All that was written, and what was promised about it.
pub(crate) struct Ledger {
    clock: Arc<AtomicU64>,
    /// Per block, in the order of writing; the first one is what the image began with.
    history: Vec<Vec<Version>>,
    /// Whatever was answered before this moment is flushed.
    flushed: u64,
}

/// An image as it was found: the time at which the write in each block was sent.
pub(crate) struct Found(Vec<u64>);

/// What one connection did.
#[derive(Default)]
struct Part {
    writes: Vec<(u64, Version)>,
    flushed: u64,
}

/// Writers under way.
pub(crate) struct Writers {
    threads: Vec<JoinHandle<Part>>,
    answers: Arc<AtomicU64>,
}

impl Writers {
    /// How many of their requests were done.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::SeqCst)
    }
}

impl Ledger {
    /// Of a volume whose first `blocks` blocks were never written.
    pub(crate) fn new(blocks: u64) -> Self {
        let never = Version {
            sent: NEVER,
            answered: NEVER,
        };
        Self {
            clock: Arc::new(AtomicU64::new(1)),
            history: vec![vec![never]; blocks as usize],
            flushed: 0,
        }
    }

    /// Starts writers on several connections to `vol0`. They go on until the server fails them.
    pub(crate) fn start_writers(&self, socket: &Path, dice: &mut Dice) -> Writers {
        let share = self.history.len() as u64 / CONNECTIONS;
        let answers = Arc::new(AtomicU64::new(0));
        let start = |place| {
            let mut writer = Writer {
                clock: Arc::clone(&self.clock),
                answers: Arc::clone(&answers),
                socket: socket.to_owned(),
                first: place * share,
                blocks: share,
                dice: dice.fork(),
                in_flight: HashMap::new(),
                busy: vec![false; share as usize],
                part: Part::default(),
            };
            std::thread::spawn(move || {
                // The end of the connection is the end of the work.
                let end = writer.run();
                eprintln!("writer {place} ended: {:?}", end.err());
                writer.finish()
            })
        };
        Writers {
            threads: (0..CONNECTIONS).map(start).collect(),
            answers,
        }
    }

    /// Waits for the writers and takes in what they did. Gives how many answers they had.
    pub(crate) fn join(&mut self, writers: Writers) -> u64 {
        for thread in writers.threads {
            let part = thread.join().expect("a writer");
            for (block, version) in part.writes {
                self.history[block as usize].push(version);
            }
            self.flushed = self.flushed.max(part.flushed);
        }
        writers.answers.load(Ordering::SeqCst)
    }

    /// The time now: what is sent later is above it.
    pub(crate) fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// True if anything that was sent after `moment` was answered.
    pub(crate) fn answered_later(&self, moment: u64) -> bool {
        let mut versions = self.history.iter().flatten();
        versions.any(|version| version.answered != u64::MAX && version.sent > moment)
    }

    /// Reads the whole image; fails if a block is torn or holds another one's stamp.
    pub(crate) fn read(&self, client: &mut NbdClient) -> Found {
        let mut found = Vec::with_capacity(self.history.len());
        let step = 256;
        for first in (0..self.history.len() as u64).step_by(step as usize) {
            let blocks = step.min(self.history.len() as u64 - first);
            let data = client
                .read(first * BLOCK, (blocks * BLOCK) as u32)
                .expect("the connection holds")
                .unwrap_or_else(|errno| panic!("block {first} cannot be read: {errno:?}"));
            for (place, bytes) in data.chunks_exact(BLOCK as usize).enumerate() {
                found.push(sent_of(first + place as u64, bytes));
            }
        }
        Found(found)
    }

    /// Where the content of each block stands in the block's history.
    fn places(&self, found: &Found) -> Vec<usize> {
        let place = |(block, sent): (usize, &u64)| {
            let history = &self.history[block];
            let place = history.iter().position(|version| version.sent == *sent);
            place.unwrap_or_else(|| panic!("block {block} holds {sent}, not of {history:?}"))
        };
        found.0.iter().enumerate().map(place).collect()
    }

    /// Fails if a write that was answered before `moment` is neither there nor overwritten.
    fn check_present(&self, found: &Found, moment: u64, what: &str) {
        for (block, place) in self.places(found).into_iter().enumerate() {
            let history = &self.history[block];
            if let Some(missing) = history.get(place + 1)
                && missing.answered < moment
            {
                panic!(
                    "block {block} holds {:?}, but {missing:?} was {what} (before {moment})",
                    history[place]
                );
            }
        }
    }

    /// Fails unless the image is a cut: it lacks nothing that was answered before anything that it
    /// holds was sent.
    pub(crate) fn check_cut(&self, found: &Found) {
        let newest = found.newest();
        self.check_present(found, newest, "answered before the newest write was sent");
    }

    /// Fails if a flushed write is missing.
    pub(crate) fn check_flushed(&self, found: &Found) {
        self.check_present(found, self.flushed, "flushed");
    }

    /// Fails if an answered write is missing.
    pub(crate) fn check_answered(&self, found: &Found) {
        self.check_present(found, u64::MAX, "answered");
    }

    /// From now on the volume is what was found, and the bucket has all of it.
    pub(crate) fn settle(&mut self, found: &Found) {
        for (history, &sent) in self.history.iter_mut().zip(&found.0) {
            *history = vec![Version { sent, answered: 0 }];
        }
        self.flushed = 0;
    }

    /// From now on the volume is what was found, but the bucket may have something older.
    pub(crate) fn settle_locally(&mut self, found: &Found) {
        let places = self.places(found);
        let now = self.clock.fetch_add(1, Ordering::SeqCst);
        for (history, place) in self.history.iter_mut().zip(places) {
            history.truncate(place + 1);
            // What was read is as good as answered.
            let last = &mut history[place];
            last.answered = last.answered.min(now);
        }
    }

    /// Versions that the image lacks, answered ones only.
    pub(crate) fn missing(&self, found: &Found) -> usize {
        let places = self.places(found);
        let later = |(history, place): (&Vec<Version>, usize)| {
            let later = history[place + 1..].iter();
            later.filter(|version| version.answered != u64::MAX).count()
        };
        self.history.iter().zip(places).map(later).sum()
    }
}

impl Found {
    /// The time at which the newest write in the image was sent.
    pub(crate) fn newest(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(NEVER)
    }
}

fn stamp(block: u64, sent: u64, flushed: u64) -> [u8; STAMP] {
    let mut stamp = [0; STAMP];
    let words = [block, sent, flushed, !sent];
    for (place, word) in stamp.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    stamp
}

/// When the write of this content was sent.
fn sent_of(block: u64, bytes: &[u8]) -> u64 {
    if bytes.iter().all(|&byte| byte == 0) {
        return NEVER;
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let wanted = stamp(block, word(8), word(16));
    let whole = bytes.chunks_exact(STAMP).all(|part| part == wanted);
    assert!(
        whole,
        "block {block} is torn or another one's: {:?}…",
        &bytes[..STAMP]
    );
    word(8)
}

/// A request in flight.
enum Sent {
    /// A write: when it was sent, its first block and their number.
    Write(u64, u64, u64),
    /// A FLUSH: when it was sent.
    Flush(u64),
}

/// One connection, which alone writes its blocks.
struct Writer {
    clock: Arc<AtomicU64>,
    answers: Arc<AtomicU64>,
    socket: PathBuf,
    first: u64,
    blocks: u64,
    dice: Dice,
    in_flight: HashMap<u64, Sent>,
    /// A block has at most one write in flight, as the order of two would be anybody's guess.
    busy: Vec<bool>,
    part: Part,
}

impl Writer {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn run(&mut self) -> std::io::Result<()> {
        let mut client = NbdClient::connect(&self.socket, "vol0")?;
        loop {
            while self.in_flight.len() < IN_FLIGHT {
                self.send(&mut client)?;
            }
            let answer = client.receive()?;
            let now = self.tick();
            let sent = self.in_flight.remove(&answer.cookie);
            let sent = sent.expect("an answer to a request of ours");
            if let Some(errno) = answer.errno {
                self.unanswered(&sent);
                return Err(std::io::Error::other(format!("{errno:?}")));
            }
            self.answers.fetch_add(1, Ordering::SeqCst);
            match sent {
                Sent::Flush(at) => self.part.flushed = self.part.flushed.max(at),
                Sent::Write(at, first, blocks) => self.note(at, first, blocks, now),
            }
        }
    }

    fn send(&mut self, client: &mut NbdClient) -> std::io::Result<()> {
        if self.dice.below(12) == 0 {
            let now = self.tick();
            let cookie = client.send(command::FLUSH, 0, 0, 0, &[])?;
            self.in_flight.insert(cookie, Sent::Flush(now));
            return Ok(());
        }
        let (from, blocks) = loop {
            let from = self.dice.below(self.blocks);
            let blocks = 1 + self.dice.below(WRITE_BLOCKS_MAX.min(self.blocks - from));
            let place = from as usize..(from + blocks) as usize;
            if !self.busy[place.clone()].contains(&true) {
                self.busy[place].fill(true);
                break (from, blocks);
            }
        };
        let (now, first) = (self.tick(), self.first + from);
        let mut data = Vec::with_capacity((blocks * BLOCK) as usize);
        for block in first..first + blocks {
            let stamp = stamp(block, now, self.part.flushed);
            data.extend(stamp.iter().cycle().take(BLOCK as usize));
        }
        match client.send_write(first * BLOCK, &data) {
            Ok(cookie) => {
                self.in_flight
                    .insert(cookie, Sent::Write(now, first, blocks));
                Ok(())
            }
            Err(error) => {
                // Part of it may have arrived, and with it the request.
                self.note(now, first, blocks, u64::MAX);
                Err(error)
            }
        }
    }

    fn note(&mut self, sent: u64, first: u64, blocks: u64, answered: u64) {
        for block in first..first + blocks {
            self.busy[(block - self.first) as usize] = false;
            self.part.writes.push((block, Version { sent, answered }));
        }
    }

    fn unanswered(&mut self, sent: &Sent) {
        if let Sent::Write(at, first, blocks) = *sent {
            self.note(at, first, blocks, u64::MAX);
        }
    }

    fn finish(mut self) -> Part {
        let left: Vec<Sent> = self.in_flight.drain().map(|(_, sent)| sent).collect();
        for sent in &left {
            self.unanswered(sent);
        }
        self.part
    }
}
