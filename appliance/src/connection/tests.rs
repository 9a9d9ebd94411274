//! A connection over a socket pair and a core in memory, in every style of headers.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use taipan_engine::arena::Arena;
use taipan_engine::block::ShardId;
use taipan_engine::core::{EpochClock, WritePolicy};
use taipan_engine::identity::{Epoch, Incarnation, Lsn, VolumeId};
use taipan_engine::index::{Overlay, ShardBase};
use taipan_engine::registry::LocalHead;
use taipan_engine::shard::{Shard, VolumeSlot};
use taipan_engine::volume::{VolumeName, VolumeSettings};
use taipan_engine::wal::{BootId, LogConfig, LogIdentity, Recovered, ShardLog, WalId};
use taipan_nbd::protocol::{command, command_flag, state};
use taipan_nbd::{
    Chunk, ClientEnd, ClientExport, ClientHandshake, Errno, Goal, HeaderStyle, ReplyKind,
    ReplyReader, Request, Wishes, simple_reply, status_payload,
};

use super::*;

mod foreign;
mod handed;
mod in_place;
mod lookup;
mod payload;
mod slow;
mod throttled;
mod tls;

const SIZE: u64 = 1 << 40;
const BLOCK: u64 = 4096;
const HOLE: u64 = (state::HOLE | state::ZERO) as u64;

fn shard(id: ShardId) -> Shard {
    let identity = LogIdentity {
        wal: WalId(1),
        shard: id,
        incarnation: Incarnation(1),
        boot: BootId([1; 16]),
    };
    let config = LogConfig {
        arena_bytes: 400 << 10,
        undurable_bytes_max: 160 << 10,
        batch_payload_max: 64 << 10,
        segment_bytes: 160 << 10,
        segments: 8,
        reserve_segments: 3,
    };
    let arena = Arena::anonymous(config.arena_bytes).unwrap();
    let blank = Recovered::blank(&identity, &config);
    let log = ShardLog::resume(identity, config, arena, &blank).unwrap();
    Shard::new(id, log, Lsn(1))
}

/// A core with one empty volume of so many bytes, and the directory that names it.
fn core_and_directory(size: u64) -> (Core, Directory) {
    let clock = Arc::new(EpochClock::new(Epoch(1)));
    let shards = ShardId::all().map(shard).collect();
    let mut core = Core::new(0, 1, clock, shards, WritePolicy::default());
    let settings = VolumeSettings::with_size(size);
    let (slot, id) = (VolumeSlot(0), VolumeId(7));
    let parts = ShardId::all().map(|id| (id, Overlay::new(), ShardBase::default()));
    core.add_volume(slot, id, &settings, false, Epoch(0), parts.collect());
    let local = LocalHead::named(id, VolumeName::parse("vol0").unwrap(), settings);
    let directory = Directory::default();
    directory.insert(Arc::new(Volume::serving(slot, &local, true)));
    (core, directory)
}

/// Both ends of a connection in transmission.
struct Rig {
    core: Core,
    directory: Directory,
    counters: CoreCounters,
    volume_counters: Arc<VolumeCounters>,
    connection: Connection,
    client: UnixStream,
    export: Option<ClientExport>,
    maps_per_turn: u32,
    limits: ConnectionLimits,
    buffers: Buffers,
    handshakes: HandshakePace,
    now_ns: u64,
}

impl Rig {
    /// A client that has connected and said nothing.
    fn fresh() -> Self {
        Self::fresh_sharing(&Allowance::new(1 << 30))
    }

    fn fresh_sharing(allowance: &Arc<Allowance>) -> Self {
        Self::fresh_with(allowance, None)
    }

    fn fresh_with(allowance: &Arc<Allowance>, tls: Option<Arc<TlsService>>) -> Self {
        let (core, directory) = core_and_directory(SIZE);
        let (server, client) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let id = ConnectionId {
            index: 0,
            generation: 0,
        };
        let allowance = Arc::clone(allowance);
        Self {
            core,
            directory,
            counters: CoreCounters::default(),
            volume_counters: Arc::default(),
            connection: Connection::new(id, server.into(), "test".into(), u64::MAX, allowance, tls),
            client,
            export: None,
            maps_per_turn: 100,
            limits: ConnectionLimits {
                requests_max: 100,
                bytes_max: 1 << 20,
                handshake_ms: 1000,
            },
            buffers: Buffers::default(),
            handshakes: HandshakePace::default(),
            now_ns: 0,
        }
    }

    fn connect(wishes: Wishes) -> Self {
        Self::sharing(wishes, &Allowance::new(1 << 30))
    }

    /// A connection that shares its memory with others.
    fn sharing(wishes: Wishes, allowance: &Arc<Allowance>) -> Self {
        let goal = Goal::Go("vol0".to_owned());
        let mut handshake = ClientHandshake::with_wishes(goal, wishes).unwrap();
        let mut rig = Self::fresh_sharing(allowance);
        loop {
            let bytes = rig.received();
            let mut out = Vec::new();
            let advance = handshake.advance(&bytes, &mut out).unwrap();
            assert_eq!(advance.consumed, bytes.len(), "nothing comes unasked");
            rig.client.write_all(&out).unwrap();
            if let Some(ClientEnd::Transmission(export)) = advance.end {
                rig.export = Some(export);
                return rig;
            }
        }
    }

    fn export(&self) -> &ClientExport {
        self.export.as_ref().expect("the handshake is done")
    }

    fn style(&self) -> HeaderStyle {
        self.export().headers
    }

    /// What the server has to say to what it was sent.
    fn received(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..5 {
            self.turn();
            assert!(self.flush());
        }
        match self.client.read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => bytes,
            ended => panic!("the server has closed the connection: {ended:?}"),
        }
    }

    /// Sends what the socket takes; true if that was all.
    fn flush(&mut self) -> bool {
        let flushed = self.connection.flush_output();
        self.connection.rest(&mut self.buffers);
        flushed == Flushed::All
    }

    fn turn(&mut self) -> Outcome {
        self.with(|connection, around| {
            connection.notice(false);
            match connection.turn(around) {
                Outcome::Joining => connection.join(around),
                outcome => outcome,
            }
        })
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut Connection, &mut Surroundings<'_>) -> T) -> T {
        let volume_counters = &self.volume_counters;
        let mut around = Surroundings {
            core: &mut self.core,
            directory: &self.directory,
            counters: &self.counters,
            now_ns: self.now_ns,
            volume_counters: &|_| Arc::clone(volume_counters),
            limits: self.limits,
            maps_left: &mut self.maps_per_turn.clone(),
            buffers: &mut self.buffers,
            handshakes: &mut self.handshakes,
        };
        self.connection.equip(around.buffers);
        let worked = work(&mut self.connection, &mut around);
        self.connection.rest(around.buffers);
        worked
    }

    /// The disk does what it was asked for, and requests end.
    fn carry_out(&mut self) {
        self.with(|connection, around| {
            foreign::carry_out(around, &mut |_, request, done, around| {
                connection.done(request, done, around);
            });
        });
    }

    fn header(&self, command: u16, flags: u16, range: (u64, u64)) -> Vec<u8> {
        let request = Request {
            flags,
            command,
            cookie: 77,
            offset: range.0,
            length: range.1,
        };
        let mut bytes = Vec::new();
        request.append(self.style(), &mut bytes).unwrap();
        bytes
    }

    fn ask(&mut self, command: u16, flags: u16, range: (u64, u64), payload: &[u8]) -> Vec<u8> {
        let mut bytes = self.header(command, flags, range);
        bytes.extend_from_slice(payload);
        self.client.write_all(&bytes).unwrap();
        self.received()
    }

    /// The chunks of the reply, shown.
    fn chunks(&mut self, command: u16, flags: u16, range: (u64, u64), payload: &[u8]) -> Vec<Seen> {
        let bytes = self.ask(command, flags, range, payload);
        let mut reader = ReplyReader::new(self.style(), 1 << 20);
        let mut input = &bytes[..];
        let mut seen = Vec::new();
        let mut ended = false;
        while let Some((header, payload)) = reader.next(&mut input).unwrap() {
            assert!(!ended && header.cookie == 77);
            match header.kind {
                ReplyKind::Simple(None) => seen.push(Seen::Success),
                ReplyKind::Simple(Some(errno)) => panic!("a simple {errno:?}"),
                ReplyKind::Chunk { kind, done, .. } => {
                    seen.push(Seen::of(&Chunk::parse(kind, payload).unwrap()));
                    ended = done;
                }
            }
        }
        assert!(input.is_empty());
        seen
    }
}

/// What a chunk says.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Success,
    Hole(u64, u32),
    /// First byte, bytes, and the first of them.
    Data(u64, usize, u8),
    Error(Errno),
    Status(u32, Vec<(u64, u64)>),
}

impl Seen {
    fn of(chunk: &Chunk<'_>) -> Self {
        match chunk {
            Chunk::None => Self::Success,
            Chunk::Hole { offset, len } => Self::Hole(*offset, *len),
            Chunk::Data { offset, data } => Self::Data(*offset, data.len(), data[0]),
            Chunk::Error { errno, text, .. } => {
                assert!(!text.is_empty());
                Self::Error(*errno)
            }
            Chunk::Status { context, extents } => {
                let extents = extents.iter().map(|extent| (extent.len, extent.status));
                Self::Status(*context, extents.collect())
            }
        }
    }
}

fn wishes(extended: bool) -> Wishes {
    Wishes {
        extended_headers: extended,
        structured_replies: true,
        contexts: CONTEXTS.map(str::to_owned).to_vec(),
        ..Wishes::default()
    }
}

#[test]
fn who_lists_gets_time_to_ask_for_each_export() {
    let mut rig = Rig::fresh();
    if let Phase::Handshake { deadline_ms, .. } = &mut rig.connection.phase {
        *deadline_ms = 1000;
    }
    assert!(rig.connection.is_overdue(1000));
    rig.received();
    let list = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 3, 0, 0, 0, 0]].concat();
    rig.client.write_all(&list).unwrap();
    rig.received();
    // There is one export.
    assert!(!rig.connection.is_overdue(1499) && rig.connection.is_overdue(1500));
}

#[test]
fn a_client_that_asks_for_nothing_gets_simple_replies() {
    let mut rig = Rig::connect(Wishes::default());
    assert_eq!(rig.style(), HeaderStyle::Simple);
    let success = simple_reply(None, 77);
    let invalid = simple_reply(Some(Errno::Inval), 77);
    let zeros = [&success[..], &[0; 600]].concat();
    assert_eq!(rig.ask(command::READ, 0, (100, 600), &[]), zeros);
    let data = [5; 600];
    assert_eq!(rig.ask(command::WRITE, 0, (100, 600), &data), success);
    let content = [&success[..], &data].concat();
    assert_eq!(rig.ask(command::READ, 0, (100, 600), &[]), content);
    assert_eq!(rig.ask(command::TRIM, 0, (0, BLOCK), &[]), success);
    assert_eq!(rig.ask(command::READ, 0, (100, 600), &[]), zeros);
    assert_eq!(rig.ask(command::READ, 0, (0, 0), &[]), success);
    assert_eq!(rig.ask(command::READ, 0, (SIZE, 1), &[]), invalid);
    assert_eq!(rig.ask(command::BLOCK_STATUS, 0, (0, BLOCK), &[]), invalid);
    let df = command_flag::DF;
    assert_eq!(rig.ask(command::READ, df, (0, BLOCK), &[]), invalid);
}

#[test]
fn reads_come_as_holes_where_there_are_only_zeros_unless_forbidden() {
    for extended in [false, true] {
        let mut rig = Rig::connect(wishes(extended));
        let of_two = (BLOCK, 2 * BLOCK);
        let read = |rig: &mut Rig, flags| rig.chunks(command::READ, flags, of_two, &[]);
        assert_eq!(read(&mut rig, 0), [Seen::Hole(BLOCK, 8192)]);
        assert_eq!(
            read(&mut rig, command_flag::DF),
            [Seen::Data(BLOCK, 8192, 0)]
        );
        let end = 3 * BLOCK - 1;
        let written = rig.chunks(command::WRITE, 0, (end, 1), &[9]);
        assert_eq!(written, [Seen::Success]);
        assert_eq!(read(&mut rig, 0), [Seen::Data(BLOCK, 8192, 0)]);
        let last = rig.chunks(command::READ, 0, (end, 1), &[]);
        assert_eq!(last, [Seen::Data(end, 1, 9)]);
        let nothing = rig.chunks(command::READ, 0, (0, 0), &[]);
        assert_eq!(nothing, [Seen::Success]);
        let beyond = rig.chunks(command::READ, 0, (SIZE - 1, 2), &[]);
        assert_eq!(beyond, [Seen::Error(Errno::Inval)]);
        let long = rig.chunks(command::READ, command_flag::DF, (0, 2 << 20), &[]);
        assert_eq!(long, [Seen::Error(Errno::Overflow)]);
    }
}

#[test]
fn block_status_tells_each_context_what_it_asks() {
    for extended in [false, true] {
        let mut rig = Rig::connect(wishes(extended));
        let ids: Vec<u32> = rig
            .export()
            .contexts
            .iter()
            .map(|context| context.id)
            .collect();
        let names = rig.export().contexts.iter().map(|context| &context.name);
        assert!(names.eq(CONTEXTS));
        rig.chunks(command::WRITE, 0, (2 * BLOCK, BLOCK), &[1; BLOCK as usize]);
        let range = (BLOCK, 8 * BLOCK + 7);
        let (before, at, after) = (BLOCK, BLOCK, 6 * BLOCK + 7);
        let told = rig.chunks(command::BLOCK_STATUS, 0, range, &[]);
        let remote = u64::from(state::REMOTE_DURABLE);
        let expected = [
            Seen::Status(ids[0], vec![(before, HOLE), (at, 0), (after, HOLE)]),
            Seen::Status(ids[1], vec![(before, 0), (at, 1), (after, 0)]),
            Seen::Status(ids[2], vec![(before, remote), (at, 0), (after, remote)]),
            Seen::Status(ids[3], vec![(range.1, u64::from(state::IN_MEMORY))]),
        ];
        assert_eq!(told, expected);
        let one = command_flag::REQ_ONE;
        let told = rig.chunks(command::BLOCK_STATUS, one, (2 * BLOCK, 5 * BLOCK), &[]);
        assert_eq!(told[0], Seen::Status(ids[0], vec![(BLOCK, 0)]));
        let told = rig.chunks(command::BLOCK_STATUS, 0, (SIZE, 1), &[]);
        assert_eq!(told, [Seen::Error(Errno::Inval)]);
    }
}

#[test]
fn extended_headers_carry_lengths_beyond_32_bits_and_questions_for_one_context() {
    let mut rig = Rig::connect(wishes(true));
    assert_eq!(rig.style(), HeaderStyle::Extended);
    let payload = [3; 2 * BLOCK as usize];
    rig.chunks(command::WRITE, 0, (SIZE - 2 * BLOCK, 2 * BLOCK), &payload);
    let base = rig.export().contexts[0].id;
    let question = status_payload(SIZE, &[base]);
    let ask = |rig: &mut Rig| {
        let range = (0, question.len() as u64);
        let flags = command_flag::PAYLOAD_LEN;
        rig.chunks(command::BLOCK_STATUS, flags, range, &question)
    };
    let hole = (SIZE - 2 * BLOCK, HOLE);
    let told = [Seen::Status(base, vec![hole, (2 * BLOCK, 0)])];
    assert_eq!(ask(&mut rig), told);
    let trimmed = rig.chunks(command::TRIM, 0, (0, SIZE), &[]);
    assert_eq!(trimmed, [Seen::Success]);
    assert_eq!(ask(&mut rig), [Seen::Status(base, vec![(SIZE, HOLE)])]);
    let twice = status_payload(SIZE, &[base, base]);
    let range = (0, twice.len() as u64);
    let flags = command_flag::PAYLOAD_LEN;
    let told = rig.chunks(command::BLOCK_STATUS, flags, range, &twice);
    assert_eq!(told, [Seen::Error(Errno::Inval)]);
}

#[test]
fn questions_beyond_those_of_a_turn_wait_for_the_next_one() {
    let mut rig = Rig::connect(wishes(false));
    rig.maps_per_turn = 2;
    let request = Request {
        flags: 0,
        command: command::BLOCK_STATUS,
        cookie: 77,
        offset: 0,
        length: BLOCK,
    };
    let mut three = Vec::new();
    for _ in 0..3 {
        request.append(rig.style(), &mut three).unwrap();
    }
    rig.client.write_all(&three).unwrap();
    let mut told = || {
        let outcome = rig.turn();
        assert!(rig.flush());
        let mut bytes = Vec::new();
        let _ = rig.client.read_to_end(&mut bytes);
        (outcome, bytes.len())
    };
    let (outcome, first) = told();
    assert_eq!(outcome, Outcome::Ready, "the core calls again at once");
    let (_, second) = told();
    assert!(second > 0 && first == 2 * second);
    assert_eq!(told(), (Outcome::Waiting, 0));
}
