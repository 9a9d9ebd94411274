//! What other threads send to a data core, and how they reach it.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam_channel::{Receiver, Sender, unbounded};
use taipan_engine::api::{ConnectionInfo, ShardStatus};
use taipan_engine::arena::ArenaSlice;
use taipan_engine::block::ShardId;
use taipan_engine::core::{Committed, Failure, OpKey, PeerMessage};
use taipan_engine::extents::Seat;
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::index::{Baseline, Overlay, ShardBase};
use taipan_engine::shard::VolumeSlot;
use taipan_engine::volume::VolumeSettings;
use taipan_nbd::LookupError;

use crate::connection::ConnectionId;
use crate::doorbell::Doorbell;
use crate::fetcher::Blocks;
use crate::handoff::Handed;

/// What operators ask about the connections of a core.
pub enum RosterRequest {
    /// List them.
    List(Sender<Vec<ConnectionInfo>>),
    /// Close one; answered with whether there was one of that name.
    Kick {
        /// Its name.
        id: ConnectionId,
        /// Who wants to know.
        reply: Sender<bool>,
    },
}

/// A step of a hand-off.
pub enum Step {
    /// Read no more requests, answer what is in flight, make it durable, and give the connections
    /// in the state that they are in then; or say why that cannot be now.
    Park(Sender<Result<Vec<Handed>, String>>),
    /// There was no hand-off: serve on.
    Unpark,
    /// The parked connections are another process's: forget them, then drop the sender.
    Release(Sender<()>),
    /// A connection of the daemon before.
    Resume(Handed),
}

/// A message to a data core.
pub enum CoreMessage {
    /// A connection to serve.
    Accepted {
        /// The socket, non-blocking.
        socket: OwnedFd,
        /// Who it is, for the log.
        peer: String,
    },
    /// What another data core said in one of its turns, in order.
    Peers {
        /// Which core.
        from: usize,
        /// What it said.
        messages: Vec<PeerMessage>,
    },
    /// Close the dead connections of a volume before a new one starts (DESIGN §4.8), then answer
    /// [`CoreMessage::DeadClosed`].
    CloseDead {
        /// Who asks.
        from: usize,
        /// The volume.
        slot: VolumeSlot,
        /// The asker's connection.
        connection: u64,
        /// Its client's address, if it has one: half-open connections from there are closed too.
        address: Option<IpAddr>,
    },
    /// The answer to [`CoreMessage::CloseDead`].
    DeadClosed {
        /// The asker's connection.
        connection: u64,
    },
    /// Blocks from the backend, verified, or why there are none.
    Fetched {
        /// The core's operation.
        op: OpKey,
        /// The wanted blocks one after the other.
        blocks: Result<Blocks, Failure>,
        /// Checksums that did not match on the way.
        mismatches: u64,
    },
    /// The snapshot or bitmap that a connection's client named is open, or why it is not.
    ViewOpened {
        /// The connection.
        connection: u64,
        /// Refused: what the client is told.
        result: Result<(), LookupError>,
    },
    /// Look at the epoch: a cut is wanted.
    Seal,
    /// A cut of a volume is committed.
    Committed(Committed),
    /// The backend has no room, or has again.
    BackendFull(bool),
    /// Serve a volume. Acknowledged by dropping `ack`.
    AddVolume(Box<AddVolume>),
    /// Stop serving a volume and close its connections.
    RemoveVolume {
        /// Its slot.
        slot: VolumeSlot,
        /// It was deleted: its records in the WAL need not be kept. Else it is opened anew.
        is_deleted: bool,
        /// Dropped when done.
        ack: Sender<()>,
    },
    /// Keep an earlier image of a volume to compare it with. Acknowledged by dropping `ack`.
    AddBaseline(Box<AddBaseline>),
    /// Give up an earlier image of a volume: nobody asks about it any more.
    RemoveBaseline {
        /// The volume's slot.
        slot: VolumeSlot,
        /// Its identity.
        id: VolumeId,
        /// What the image is called.
        seat: Seat,
    },
    /// Change a volume's settings.
    Configure {
        /// Its slot.
        slot: VolumeSlot,
        /// The new ones.
        settings: VolumeSettings,
        /// Refuse writes.
        read_only: bool,
    },
    /// Everything of a volume stamped up to this epoch is in the bucket.
    Covered {
        /// Its slot.
        slot: VolumeSlot,
        /// Its identity.
        id: VolumeId,
        /// The epoch.
        through: Epoch,
    },
    /// Report the state of the shards.
    Report(Sender<CoreReport>),
    /// An operator asks about the connections.
    Roster(RosterRequest),
    /// Another writer owns the volume: refuse its writes and close its connections.
    FenceVolume {
        /// Its slot.
        slot: VolumeSlot,
    },
    /// Batch memory of a shard of this core that is cleared: the ring may hold on to its pages.
    Pin(ArenaSlice),
    /// A volume that is not served here: its records in the WAL need not be kept.
    ForgetVolume {
        /// Its identity.
        id: VolumeId,
    },
    /// Answer what is in flight, make it durable, close the sockets, accept no more; then drop the
    /// sender.
    Quiesce(Sender<()>),
    /// A step of a hand-off.
    HandOff(Step),
    /// End the loop.
    Stop,
}

/// A volume for one core.
pub struct AddVolume {
    /// Its slot.
    pub slot: VolumeSlot,
    /// Its identity.
    pub id: VolumeId,
    /// Its settings.
    pub settings: VolumeSettings,
    /// Refuse writes.
    pub read_only: bool,
    /// Last committed cut.
    pub committed: Epoch,
    /// Overlay and base of each of the core's shards.
    pub parts: Vec<(ShardId, Overlay, ShardBase)>,
    /// Dropped when the volume is served.
    pub ack: Sender<()>,
}

/// An earlier image of a volume for one core.
pub struct AddBaseline {
    /// The volume's slot.
    pub slot: VolumeSlot,
    /// Its identity.
    pub id: VolumeId,
    /// What the image is called.
    pub seat: Seat,
    /// The part of each of the core's shards.
    pub parts: Vec<(ShardId, Baseline)>,
    /// Dropped when the core has it.
    pub ack: Sender<()>,
}

/// State of a core.
#[derive(Clone, Debug, Default)]
pub struct CoreReport {
    /// Its number.
    pub core: usize,
    /// Its shards.
    pub shards: Vec<ShardStatus>,
    /// Blocks of each volume that are in no committed chunk.
    pub uncommitted_blocks: Vec<(VolumeSlot, u64)>,
    /// Heap bytes of the overlays.
    pub overlay_bytes: u64,
    /// Heap bytes of the directory of batch memory as a read cache.
    pub warm_bytes: u64,
}

/// The sending side of a core's inbox. Everything in it is bounded by what its senders may have
/// outstanding: requests of connections, fetches, one cut.
#[derive(Clone)]
pub struct CoreAddress {
    sender: Sender<CoreMessage>,
    bell: Arc<Doorbell>,
    heartbeat: Arc<AtomicU64>,
}

impl CoreAddress {
    /// An inbox with its bell.
    pub fn new() -> std::io::Result<(Self, Receiver<CoreMessage>)> {
        let (sender, receiver) = unbounded();
        Ok((
            Self {
                sender,
                bell: Doorbell::new()?,
                heartbeat: Arc::default(),
            },
            receiver,
        ))
    }

    /// Sends from a thread without a ring. A core that has ended takes nothing more.
    pub fn send(&self, message: CoreMessage) {
        if self.sender.send(message).is_ok() {
            self.bell.wake();
        }
    }

    /// Puts a message in the inbox; true if the core must be woken by [`Doorbell::ring`].
    pub fn post(&self, message: CoreMessage) -> bool {
        self.sender.send(message).is_ok() && self.bell.flag().must_wake()
    }

    /// The core's bell.
    pub fn bell(&self) -> &Arc<Doorbell> {
        &self.bell
    }

    /// The core's last turn, in milliseconds on the daemon's clock.
    pub fn heartbeat(&self) -> &Arc<AtomicU64> {
        &self.heartbeat
    }
}
