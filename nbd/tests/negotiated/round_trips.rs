//! Our client and our server, with every style of headers, against a model.

use std::sync::{Arc, Mutex};

use taipan_nbd::protocol::{command, command_flag, context, state};
use taipan_nbd::{Errno, Features, HeaderStyle, StatusExtent, Wishes};

use crate::driver::{BLOCK, CHANGED, CONTEXTS, Driver, Volume};
use crate::session::{Client, DF, ONE, Outcome, Wire};
use crate::splitmix::SplitMix;

const SIZE: u64 = 64 * BLOCK + 512;

/// Passes bytes to a driver and back in pieces of random sizes.
struct InMemory {
    driver: Driver,
    to_client: Vec<u8>,
    random: SplitMix,
}

impl InMemory {
    fn new(driver: Driver, seed: u64) -> Self {
        let to_client = driver.greeting().to_vec();
        Self {
            driver,
            to_client,
            random: SplitMix(seed),
        }
    }

    fn piece(&mut self, left: usize) -> usize {
        left.min(1 + self.random.below(3000) as usize)
    }
}

impl Wire for InMemory {
    fn send(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = self.piece(rest.len());
            assert!(
                self.driver.feed(&rest[..piece], &mut self.to_client),
                "the server closed"
            );
            rest = &rest[piece..];
        }
    }

    fn receive(&mut self) -> Vec<u8> {
        assert!(!self.to_client.is_empty(), "the server owes an answer");
        let piece = self.piece(self.to_client.len());
        self.to_client.drain(..piece).collect()
    }
}

fn connect(style: HeaderStyle, seed: u64) -> (Client<InMemory>, Arc<Mutex<Volume>>) {
    let volume = Arc::new(Mutex::new(Volume::new(SIZE)));
    let driver = Driver::new(Arc::clone(&volume), Features::ALL);
    let chunks = style != HeaderStyle::Simple;
    let wishes = Wishes {
        extended_headers: style == HeaderStyle::Extended,
        structured_replies: style == HeaderStyle::Structured,
        contexts: CONTEXTS.map(str::to_owned).to_vec(),
        ..Wishes::default()
    };
    let client = Client::connect(InMemory::new(driver, seed), "v", wishes);
    assert_eq!(client.export.headers, style);
    assert_eq!(client.export.contexts.len(), if chunks { 2 } else { 0 });
    let session = client.wire.driver.session().expect("requests may come");
    assert_eq!(session.headers(), style);
    (client, volume)
}

/// A range, mostly inside the volume.
fn range(random: &mut SplitMix) -> (u64, u64) {
    let offset = random.below(SIZE + 1);
    let longest = if random.once_in(4) { SIZE } else { 9000 };
    let len = random.below(longest);
    match random.below(20) {
        0 => (offset, len),
        1 => (u64::MAX - random.below(3), len),
        2 => (SIZE, random.below(2)),
        _ => (offset, len.min(SIZE - offset)),
    }
}

fn fits((offset, len): (u64, u64)) -> bool {
    offset <= SIZE && len <= SIZE - offset
}

fn expect_error(outcome: Result<Outcome, Errno>, errno: Errno, what: &str) {
    assert_eq!(outcome.map(|_| ()), Err(errno), "{what}");
}

/// One random request, and whether the answer is the model's.
fn step(client: &mut Client<InMemory>, volume: &Mutex<Volume>, random: &mut SplitMix) {
    let (offset, len) = range(random);
    let inside = fits((offset, len));
    let chunks = client.export.headers != HeaderStyle::Simple;
    let model = |from: u64, len: u64| {
        let volume = volume.lock().expect("no panic");
        volume.content[from as usize..(from + len) as usize].to_vec()
    };
    match random.below(6) {
        0 | 1 => {
            let df = random.once_in(3) && chunks;
            let outcome = client.read(if df { DF } else { 0 }, offset, len);
            if !inside {
                return expect_error(outcome, Errno::Inval, "a read outside");
            }
            let outcome = outcome.expect("a read inside");
            assert!(outcome.content == model(offset, len), "{offset}+{len}");
            assert!(!df || outcome.holes == 0 || outcome.holes == len);
        }
        2 => {
            let data = random.bytes(len as usize);
            let outcome = client.write(offset, &data);
            if !inside {
                return expect_error(outcome, Errno::NoSpc, "a write outside");
            }
            outcome.expect("a write inside");
            assert!(model(offset, len) == data, "{offset}+{len}");
        }
        3 => {
            let (command, beyond) = match random.below(2) {
                0 => (command::TRIM, Errno::Inval),
                _ => (command::WRITE_ZEROES, Errno::NoSpc),
            };
            let outcome = client.ask(command, 0, (offset, len), &[]);
            if !inside {
                return expect_error(outcome, beyond, "zeros outside");
            }
            outcome.expect("zeros inside");
            assert!(model(offset, len).iter().all(|byte| *byte == 0));
        }
        4 => {
            let fast = command_flag::FAST_ZERO;
            let zeroes = client.ask(command::WRITE_ZEROES, fast, (0, 1), &[]);
            expect_error(zeroes, Errno::NotSup, "fast zeros");
            client.ask(command::FLUSH, 0, (0, 0), &[]).expect("a flush");
        }
        _ if !chunks => expect_error(client.status(0, 0, 1), Errno::Inval, "no contexts"),
        _ => status_step(client, volume, random, (offset, len)),
    }
}

fn status_step(
    client: &mut Client<InMemory>,
    volume: &Mutex<Volume>,
    random: &mut SplitMix,
    (offset, len): (u64, u64),
) {
    let one = random.once_in(3);
    let flags = if one { ONE } else { 0 };
    let contexts = client.export.contexts.clone();
    let some = client.export.headers == HeaderStyle::Extended && random.once_in(2);
    let (outcome, asked) = if some {
        let context = &contexts[random.below(2) as usize];
        let outcome = client.status_of(&[context.id], flags, offset, len);
        (outcome, vec![context.name.clone()])
    } else {
        let names = contexts.iter().map(|context| context.name.clone());
        (client.status(flags, offset, len), names.collect())
    };
    if len == 0 || !fits((offset, len)) {
        return expect_error(outcome, Errno::Inval, "the status of nothing or outside");
    }
    let outcome = outcome.expect("a status inside");
    assert_eq!(outcome.status.keys().len(), asked.len());
    let volume = volume.lock().expect("no panic");
    for name in asked {
        let mut at = offset;
        let mut last = None;
        for StatusExtent { len, status } in &outcome.status[&name] {
            assert_ne!(last, Some(*status), "neighbours that were not merged");
            last = Some(*status);
            assert!(*len <= SIZE - at, "past the end of the export");
            for block in at / BLOCK..=(at + len - 1) / BLOCK {
                assert_eq!(
                    u64::from(volume.state(&name, block)),
                    *status,
                    "{name} {block}"
                );
            }
            at += len;
        }
        assert!(one || at >= offset + len, "less than was asked for");
    }
}

#[test]
fn random_sessions_agree_with_the_model_in_every_style() {
    for style in [
        HeaderStyle::Simple,
        HeaderStyle::Structured,
        HeaderStyle::Extended,
    ] {
        for seed in 0..6 {
            let (mut client, volume) = connect(style, seed);
            let mut random = SplitMix(1000 + seed);
            for _ in 0..150 {
                step(&mut client, &volume, &mut random);
            }
        }
    }
}

#[test]
fn a_read_of_a_sparse_range_carries_its_data_only() {
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let (mut client, _) = connect(style, 1);
        client.write(8 * BLOCK, &[7; 4096]).expect("a write");
        let outcome = client.read(0, 0, 32 * BLOCK).expect("a read");
        assert_eq!(outcome.holes, 31 * BLOCK, "{style:?}");
        assert_eq!(outcome.content[8 * BLOCK as usize], 7);
        let whole = client.read(DF, 0, 32 * BLOCK).expect("a read in one piece");
        assert_eq!((whole.holes, whole.content), (0, outcome.content));
    }
}

#[test]
fn changes_and_holes_are_two_contexts_of_one_range() {
    let (mut client, _) = connect(HeaderStyle::Extended, 2);
    client.write(2 * BLOCK, &[1; 4096]).expect("a write");
    let zeroes = (4 * BLOCK, BLOCK);
    client
        .ask(command::WRITE_ZEROES, 0, zeroes, &[])
        .expect("zeros");
    let status = client.status(0, 0, SIZE).expect("a status").status;
    let extents = |name: &str| -> Vec<(u64, u64)> {
        let extents = status[name].iter();
        extents
            .map(|extent| (extent.len / BLOCK, extent.status))
            .collect()
    };
    let hole = u64::from(state::HOLE | state::ZERO);
    let base = vec![(2, hole), (1, 0), (61, hole)];
    assert_eq!(extents(context::BASE_ALLOCATION), base);
    assert_eq!(extents(CHANGED), [(2, 0), (1, 1), (1, 0), (1, 1), (59, 0)]);
}

#[test]
fn contexts_in_a_payload_must_be_selected_ones() {
    let (mut client, _) = connect(HeaderStyle::Extended, 3);
    for ids in [&[1_u32, 1][..], &[3], &[0], &[]] {
        let outcome = client.status_of(ids, 0, 0, 4096);
        expect_error(outcome, Errno::Inval, "ids that were not selected");
    }
    client.status_of(&[2, 1], 0, 0, 4096).expect("both");
}
