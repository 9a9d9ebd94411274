//! One connection over a socket pair, served by a whole data core as the daemon's loop does it.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use taipan_appliance::connection::{
    Allowance, Buffers, Connection, ConnectionId, ConnectionLimits, Flushed, HandshakePace,
    Outcome, Surroundings,
};
use taipan_appliance::directory::{Directory, Volume};
use taipan_appliance::metrics::{CoreCounters, VolumeCounters};
use taipan_engine::core::Core;
use taipan_engine::registry::LocalHead;
use taipan_engine::volume::{VolumeName, VolumeSettings};
use taipan_nbd::{
    ClientEnd, ClientHandshake, Goal, HeaderStyle, ReplyKind, ReplyReader, RequestHeader, Wishes,
};

use super::{BLOCK, PLACES, SLOT, SOURCE, VOLUME, WRITTEN, carry_on, core, core_write, place};

/// Requests that the client sends before it takes their replies, as QEMU's at most.
const DEPTH: u64 = 16;
/// More than the replies of so many requests.
const REPLIES_BYTES: usize = 128 << 10;
const NAME: &str = "vol0";
const LIMITS: ConnectionLimits = ConnectionLimits {
    requests_max: 256,
    bytes_max: 32 << 20,
    handshake_ms: 60_000,
};

/// READs of blocks in memory.
pub(super) fn reads(rounds: u64) -> Result<()> {
    let mut rig = Rig::connected()?;
    core_write(&mut rig.core, WRITTEN)?;
    // As it is a moment after the last write; a barrier may begin before the last batch is written.
    for _ in 0..2 {
        rig.core.make_durable();
        carry_on(&mut rig.core);
    }
    ensure!(rig.core.is_quiet(), "the core still has work");
    rig.requests(rounds, |rig, cookie| {
        let offset = place(cookie % WRITTEN) * BLOCK as u64;
        rig.ask(RequestHeader::read(cookie, offset, BLOCK as u32), &[])
    })
}

/// WRITEs, each of one block.
pub(super) fn writes(rounds: u64) -> Result<()> {
    let mut rig = Rig::connected()?;
    rig.requests(rounds, |rig, cookie| {
        let offset = place(cookie) * BLOCK as u64;
        let header = RequestHeader::write(cookie, offset, BLOCK as u32);
        rig.ask(header, &SOURCE)
    })
}

/// Both ends of a connection, and the core.
struct Rig {
    core: Core,
    directory: Directory,
    counters: CoreCounters,
    volume_counters: Arc<VolumeCounters>,
    connection: Connection,
    buffers: Buffers,
    handshakes: HandshakePace,
    client: UnixStream,
    replies: Vec<u8>,
}

impl Rig {
    /// A client with QEMU's wishes, in transmission.
    fn connected() -> Result<Self> {
        let mut rig = Self::fresh()?;
        let wishes = Wishes {
            structured_replies: true,
            ..Wishes::default()
        };
        let mut handshake = ClientHandshake::with_wishes(Goal::Go(NAME.to_owned()), wishes)?;
        loop {
            let said = rig.replies()?;
            ensure!(said > 0, "the server says nothing");
            let mut out = Vec::new();
            let advance = handshake.advance(&rig.replies[..said], &mut out)?;
            rig.client.write_all(&out)?;
            if let Some(ClientEnd::Transmission(export)) = advance.end {
                ensure!(
                    export.headers == HeaderStyle::Structured,
                    "no structured replies"
                );
                return Ok(rig);
            }
        }
    }

    fn fresh() -> Result<Self> {
        let settings = VolumeSettings::with_size(PLACES * BLOCK as u64);
        let local = LocalHead::named(VOLUME, VolumeName::parse(NAME)?, settings);
        let directory = Directory::default();
        directory.insert(Arc::new(Volume::serving(SLOT, &local, true)));
        let (server, client) = UnixStream::pair().context("cannot make a pair of sockets")?;
        client.set_nonblocking(true)?;
        let id = ConnectionId {
            index: 0,
            generation: 0,
        };
        let allowance = Allowance::new(1 << 30);
        let peer = "client".to_owned();
        Ok(Self {
            core: core()?,
            directory,
            counters: CoreCounters::default(),
            volume_counters: Arc::default(),
            connection: Connection::new(id, server.into(), peer, u64::MAX, allowance, None),
            buffers: Buffers::default(),
            handshakes: HandshakePace::default(),
            client,
            replies: vec![0; REPLIES_BYTES],
        })
    }

    /// Sends so many requests, some at once, and takes their replies.
    fn requests(
        &mut self,
        count: u64,
        mut ask: impl FnMut(&mut Self, u64) -> Result<()>,
    ) -> Result<()> {
        let mut reader = ReplyReader::new(HeaderStyle::Structured, BLOCK as u32 + 8);
        for first in (0..count).step_by(DEPTH as usize) {
            let asked = first..count.min(first + DEPTH);
            for cookie in asked.clone() {
                ask(self, cookie)?;
            }
            let bytes = self.replies()?;
            let mut input = &self.replies[..bytes];
            for cookie in asked {
                let (header, _) = reader.next(&mut input)?.context("a reply is missing")?;
                ensure!(header.cookie == cookie, "a reply to {}", header.cookie);
                match header.kind {
                    ReplyKind::Simple(None) | ReplyKind::Chunk { done: true, .. } => {}
                    other => bail!("an unexpected reply: {other:?}"),
                }
            }
            ensure!(input.is_empty(), "more was answered than asked");
        }
        Ok(())
    }

    fn ask(&mut self, header: RequestHeader, payload: &[u8]) -> Result<()> {
        let header = header.encode();
        let slices = [IoSlice::new(&header), IoSlice::new(payload)];
        let sent = self.client.write_vectored(&slices)?;
        ensure!(sent == header.len() + payload.len(), "the socket is full");
        Ok(())
    }

    /// Lets the server work until it waits, and takes what it says.
    fn replies(&mut self) -> Result<usize> {
        self.connection.notice(false);
        while self.turn()? == Outcome::Ready {}
        match self.client.read(&mut self.replies) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error).context("cannot receive"),
        }
    }

    /// What a turn of the daemon's loop does for its only connection.
    fn turn(&mut self) -> Result<Outcome> {
        let mut outcome = self.with(Connection::turn);
        if outcome == Outcome::Joining {
            outcome = self.with(Connection::join);
        }
        for done in carry_on(&mut self.core) {
            let (_, request) = ConnectionId::of_ticket(done.ticket);
            self.with(|connection, around| connection.done(request, &done, around));
        }
        ensure!(
            outcome != Outcome::Closed,
            "the server closes the connection"
        );
        let flushed = self.connection.flush_output();
        self.connection.rest(&mut self.buffers);
        ensure!(flushed == Flushed::All, "the socket is full");
        Ok(outcome)
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut Connection, &mut Surroundings<'_>) -> T) -> T {
        let volume_counters = &self.volume_counters;
        let mut around = Surroundings {
            core: &mut self.core,
            directory: &self.directory,
            counters: &self.counters,
            now_ns: 0,
            volume_counters: &|_| Arc::clone(volume_counters),
            limits: LIMITS,
            maps_left: &mut 1,
            buffers: &mut self.buffers,
            handshakes: &mut self.handshakes,
        };
        self.connection.equip(around.buffers);
        let worked = work(&mut self.connection, &mut around);
        self.connection.rest(around.buffers);
        worked
    }
}
