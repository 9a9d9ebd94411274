//! Reads that are sent from where their blocks are.

use std::net::Shutdown;

use super::super::in_place::WAITING_READS_MAX;
use super::throttled::SECOND;
use super::*;

const LEN: usize = 200_000;
const OFFSET: u64 = 3 * BLOCK + 100;

/// The bytes of the volume at `offset`, no block of them like another.
fn pattern(offset: u64, len: usize) -> Vec<u8> {
    let bytes = (offset..).take(len);
    bytes.map(|at| ((at >> 9) as u8 | 1) ^ at as u8).collect()
}

impl Rig {
    fn filled(wishes: Wishes) -> Self {
        let mut rig = Self::connect(wishes);
        let content = pattern(OFFSET, LEN);
        let header = rig.header(command::WRITE, 0, (OFFSET, LEN as u64));
        rig.send(&[&header[..], &content].concat());
        rig
    }

    /// Requests answered, and bytes read.
    fn answered(&self) -> [u64; 2] {
        let Phase::Transmission(session) = &self.connection.phase else {
            panic!("not in transmission");
        };
        let [requests, _, read_bytes, _] = session.tally.counts();
        [requests, read_bytes]
    }

    /// How many of the requests are answered as one run.
    fn run(&mut self, asked: &[u8]) -> usize {
        self.client.write_all(asked).unwrap();
        self.with(|connection, around| {
            connection.notice(false);
            connection.receive(around);
            connection.answer_run(REQUESTS_PER_TURN, around)
        })
    }

    fn sent_in_place(&self) -> usize {
        self.connection.sent_in_place
    }
}

#[test]
fn a_long_read_of_memory_is_sent_in_the_turn_that_takes_it() {
    let mut rig = Rig::filled(Wishes::default());
    let read = rig.header(command::READ, 0, (OFFSET, LEN as u64));
    rig.client.write_all(&read).unwrap();
    rig.turn();
    assert_eq!(rig.sent_in_place(), LEN + 16);
    let expected = [&simple_reply(None, 77)[..], &pattern(OFFSET, LEN)].concat();
    assert_eq!(rig.received(), expected);
    let counted = rig.core.counters().memory_blocks;
    assert_eq!(counted, (LEN as u64 + 100).div_ceil(BLOCK));
}

/// A client that asked for what is in memory more often than its socket takes, and has taken
/// nothing; bytes that wait for it.
fn full_of_long_reads(wishes: Wishes, reads: usize) -> (Rig, usize) {
    let mut rig = Rig::filled(wishes);
    sockopt::set_socket_send_buffer_size(&rig.connection.socket, 64 << 10).unwrap();
    let read = rig.header(command::READ, 0, (OFFSET, LEN as u64));
    rig.client.write_all(&read.repeat(reads)).unwrap();
    while !rig.connection.unread {
        rig.turn();
        rig.flush();
    }
    let waiting = rig.connection.output.len();
    (rig, waiting)
}

#[test]
fn long_reads_of_memory_wait_until_the_socket_has_room() {
    const READS: usize = 9;
    for extended in [false, true] {
        let (mut rig, waiting) = full_of_long_reads(wishes(extended), READS);
        assert!((1..LEN + 64).contains(&waiting), "{waiting} bytes");
        assert_eq!(rig.turn(), Outcome::Waiting);
        assert_eq!(rig.connection.output.len(), waiting, "no further is copied");
        let reply = Rig::filled(wishes(extended)).ask(command::READ, 0, (OFFSET, LEN as u64), &[]);
        let (mut taken, mut piece) = (Vec::new(), vec![0; 16 << 10]);
        while taken.len() < READS * reply.len() {
            let n = rig.client.read(&mut piece).unwrap();
            taken.extend_from_slice(&piece[..n]);
            rig.flush();
            rig.turn();
            assert!(rig.connection.output.len() < LEN + 64);
        }
        assert_eq!(taken, reply.repeat(READS));
        assert_eq!(rig.answered(), [1 + READS as u64, (READS * LEN) as u64]);
    }
}

#[test]
fn long_reads_do_not_wait_before_a_client_that_sends_anything_else() {
    let (mut rig, waiting) = full_of_long_reads(Wishes::default(), 9);
    let write = rig.header(command::WRITE, 0, (0, 1 << 20));
    // Of a header that is not whole nothing is known.
    rig.client.write_all(&write[..9]).unwrap();
    rig.turn();
    assert_eq!(rig.connection.output.len(), waiting);
    rig.client.write_all(&write[9..]).unwrap();
    while rig.turn() == Outcome::Ready {}
    assert_eq!(rig.answered(), [1 + 9, 9 * LEN as u64], "and a write");
}

#[test]
fn a_long_read_that_had_to_wait_for_limits_does_not_wait_for_room() {
    let mut rig = Rig::filled(Wishes::default());
    rig.limit(1, 0);
    rig.now_ns = 50 * SECOND;
    while rig.connection.turn_ns().is_none() {
        rig.ask(command::READ, 0, (OFFSET, LEN as u64), &[]);
    }
    rig.connection.unread = true;
    rig.now_ns += 10 * SECOND;
    rig.turn();
    assert_eq!(rig.connection.turn_ns(), None);
    assert_eq!(rig.connection.output.len(), LEN + 16);
}

#[test]
fn long_reads_that_wait_are_answered_to_a_client_that_sends_no_more() {
    for noticed in [false, true] {
        let (mut rig, waiting) = full_of_long_reads(Wishes::default(), 9);
        rig.turn();
        assert_eq!(rig.connection.output.len(), waiting);
        rig.client.shutdown(Shutdown::Write).unwrap();
        rig.connection.notice(noticed);
        while rig.turn() == Outcome::Ready {}
        assert!(rig.connection.finishing, "the end was received");
        assert_eq!(rig.answered(), [1 + 9, 9 * LEN as u64], "and a write");
        let (mut taken, mut piece) = (0, vec![0; 16 << 10]);
        while taken < 9 * (LEN + 16) {
            taken += rig.client.read(&mut piece).unwrap();
            rig.flush();
        }
    }
}

#[test]
fn more_long_reads_than_are_looked_at_do_not_wait() {
    let reads = WAITING_READS_MAX + 9;
    let (mut rig, waiting) = full_of_long_reads(Wishes::default(), reads);
    while rig.turn() == Outcome::Ready {}
    assert!(rig.connection.output.len() > waiting + LEN);
    let left = rig.connection.input.bytes().len();
    let header = rig.header(command::READ, 0, (OFFSET, LEN as u64)).len();
    assert_eq!(left, WAITING_READS_MAX * header);
}

#[test]
fn short_reads_of_memory_go_together_in_the_turn_that_takes_them() {
    let mut rig = Rig::filled(Wishes::default());
    let blocks = rig.core.counters().memory_blocks;
    let (mut asked, mut expected) = (Vec::new(), Vec::new());
    for (offset, len) in [
        (OFFSET, 600),
        (3 * BLOCK + 4000, 4096),
        (OFFSET + 9, 60_000),
    ] {
        asked.extend(rig.header(command::READ, 0, (offset, len as u64)));
        expected.extend(simple_reply(None, 77));
        expected.extend(pattern(offset, len));
    }
    // In no place: it ends the run.
    asked.extend(rig.header(command::READ, 0, (BLOCK, 7)));
    assert_eq!(rig.run(&asked), 3);
    assert_eq!(rig.sent_in_place(), expected.len());
    expected.extend([&simple_reply(None, 77)[..], &[0; 7]].concat());
    assert_eq!(rig.received(), expected);
    assert_eq!(rig.core.counters().memory_blocks - blocks, 1 + 2 + 15);
    // The first was the write.
    assert_eq!(rig.answered(), [1 + 4, 600 + 4096 + 60_000 + 7]);
}

#[test]
fn a_refused_request_behind_a_run_is_answered_whatever_its_place() {
    for reads in 0..2 * REQUESTS_PER_TURN {
        let mut rig = Rig::filled(Wishes::default());
        let read = rig.header(command::READ, 0, (OFFSET, 9));
        let beyond = rig.header(command::READ, 0, (SIZE, 1));
        let asked = [&read.repeat(reads)[..], &beyond].concat();
        rig.client.write_all(&asked).unwrap();
        let reply = [&simple_reply(None, 77)[..], &pattern(OFFSET, 9)].concat();
        let refusal = simple_reply(Some(Errno::Inval), 77);
        assert_eq!(
            rig.received(),
            [&reply.repeat(reads)[..], &refusal].concat()
        );
    }
}

#[test]
fn a_run_is_no_longer_than_what_a_connection_may_always_hold() {
    let mut rig = Rig::filled(Wishes::default());
    let read = rig.header(command::READ, 0, (OFFSET, 60_000));
    assert_eq!(rig.run(&read.repeat(4)), 2);
    let expected = [&simple_reply(None, 77)[..], &pattern(OFFSET, 60_000)].concat();
    assert_eq!(rig.received(), expected.repeat(4));
    rig.connection.unread = true;
    assert_eq!(rig.run(&read), 0, "the socket is known to be full");
}

#[test]
fn a_short_read_of_zeros_among_others_goes_as_a_hole() {
    for extended in [false, true] {
        let mut rig = Rig::filled(wishes(extended));
        let zeros = (4 * BLOCK, BLOCK);
        let written = rig.chunks(command::WRITE, 0, zeros, &[0; BLOCK as usize]);
        assert_eq!(written, [Seen::Success]);
        let seen = rig.chunks(command::READ, 0, zeros, &[]);
        assert_eq!(seen, [Seen::Hole(zeros.0, BLOCK as u32)]);
        let seen = rig.chunks(command::READ, command_flag::DF, zeros, &[]);
        assert_eq!(seen, [Seen::Data(zeros.0, BLOCK as usize, 0)]);
        let ranges = [(OFFSET, 600), (6 * BLOCK, 9000), zeros, (7 * BLOCK, 5)];
        let alone = ranges.map(|range| rig.ask(command::READ, 0, range, &[]));
        let together = ranges.map(|range| rig.header(command::READ, 0, range));
        assert_eq!(rig.run(&together.concat()), 2, "the zeros end it");
        assert_eq!(rig.received(), alone.concat());
    }
}

#[test]
fn short_reads_wait_for_their_turn_where_the_volume_has_limits() {
    let mut rig = Rig::filled(Wishes::default());
    rig.limit(2, 0);
    rig.now_ns = 50_000_000_000;
    let read = rig.header(command::READ, 0, (OFFSET, 10));
    rig.client.write_all(&read.repeat(6)).unwrap();
    let reply = [&simple_reply(None, 77)[..], &pattern(OFFSET, 10)].concat();
    assert_eq!(rig.received(), reply.repeat(3), "the burst, and one");
}

#[test]
fn replies_stay_in_order_and_whole_whatever_the_client_takes() {
    let mut rig = Rig::filled(Wishes::default());
    let mut expected = Vec::new();
    let mut asked = Vec::new();
    // Short ones go together, long ones alone; one in a hole is copied and waits for the next.
    const LENGTHS: [usize; 16] = [
        600, LEN, 70_000, 4096, 9000, 5, LEN, 65_536, 1, 30_000, 40_000, 50_000, 8, LEN, 2, LEN,
    ];
    for (nth, len) in LENGTHS.iter().enumerate() {
        let offset = OFFSET + (nth as u64 * 37).min((LEN - len) as u64);
        asked.extend(rig.header(command::READ, 0, (offset, *len as u64)));
        expected.extend(simple_reply(None, 77));
        expected.extend(pattern(offset, *len));
        if nth % 5 == 4 {
            asked.extend(rig.header(command::READ, 0, (0, 512)));
            expected.extend([&simple_reply(None, 77)[..], &[0; 512]].concat());
        }
    }
    rig.client.write_all(&asked).unwrap();
    let (mut got, mut in_place, mut partly) = (Vec::new(), 0, 0);
    let mut piece = [0; 50_000];
    for _ in 0..100 {
        rig.turn();
        in_place += rig.sent_in_place();
        partly += u32::from(rig.sent_in_place() > 0 && rig.connection.has_output());
        if let Ok(n) = rig.client.read(&mut piece) {
            got.extend_from_slice(&piece[..n]);
        }
        rig.flush();
    }
    got.extend(rig.received());
    assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
    assert!(in_place >= 2 * LEN, "{in_place} bytes of it in place");
    assert!(partly > 0, "the socket always took all of it");
}

#[test]
fn a_hole_in_a_long_read_goes_as_a_hole() {
    for extended in [false, true] {
        let mut rig = Rig::filled(wishes(extended));
        let whole = [Seen::Data(OFFSET, LEN, pattern(OFFSET, 1)[0])];
        let read = |rig: &mut Rig| rig.chunks(command::READ, 0, (OFFSET, LEN as u64), &[]);
        assert_eq!(read(&mut rig), whole);
        let hole = (8 * BLOCK, 10 * BLOCK);
        let zero = |rig: &mut Rig| rig.chunks(command::WRITE, 0, hole, &[0; 10 * BLOCK as usize]);
        assert_eq!(zero(&mut rig), [Seen::Success]);
        let seen = read(&mut rig);
        assert_eq!(seen[1], Seen::Hole(hole.0, hole.1 as u32));
        assert_eq!(seen.len(), 3);
    }
}

#[test]
fn zeros_within_a_large_block_go_as_a_hole() {
    const LARGE: u64 = 64 << 10;
    let settings = VolumeSettings {
        block_size_bytes: LARGE as u32,
        ..VolumeSettings::with_size(SIZE)
    };
    let mut large = Rig::connect(wishes(true));
    large.core.detach_volume(VolumeSlot(0));
    let parts = ShardId::all().map(|id| (id, Overlay::new(), ShardBase::default()));
    let parts = parts.collect();
    let (slot, id) = (VolumeSlot(0), VolumeId(7));
    large
        .core
        .add_volume(slot, id, &settings, false, Epoch(0), parts);
    let mut content = pattern(0, 3 * LARGE as usize);
    content[LARGE as usize..][..32 << 10].fill(0);
    let header = large.header(command::WRITE, 0, (0, 3 * LARGE));
    large.send(&[&header[..], &content].concat());
    let seen = large.chunks(command::READ, 0, (0, 3 * LARGE), &[]);
    assert_eq!(seen[1], Seen::Hole(LARGE, 32 << 10));
}

#[test]
fn who_has_gone_gets_nothing_and_what_waits_is_cancelled() {
    let mut rig = Rig::filled(Wishes::default());
    // A flush waits for the disk, which does nothing here.
    let flush = rig.header(command::FLUSH, 0, (0, 0));
    let read = rig.header(command::READ, 0, (OFFSET, LEN as u64));
    rig.client.write_all(&[flush, read].concat()).unwrap();
    let (gone, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut rig.client, gone));
    rig.turn();
    assert!(rig.connection.is_broken());
    assert!(rig.connection.finishing, "what it asked for is cancelled");
    assert_eq!(rig.sent_in_place(), 0);
}
