//! `taipan-bench hot-path`: one hot path of the product so many times, for a tool that counts
//! instructions. `bench/instructions` compares the counts with those that are recorded.

mod connection;

use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use taipan_engine::arena::Arena;
use taipan_engine::block::{BlockSize, LocalBlock, ShardId};
use taipan_engine::checksum::crc32c;
use taipan_engine::core::{Core, Done, EpochClock, Io, Origin, Progress, Ticket, WritePolicy};
use taipan_engine::identity::{BatchNum, Epoch, Incarnation, Lsn, VolumeId};
use taipan_engine::index::{Overlay, ShardBase};
use taipan_engine::shard::{Found, Shard, VolumeSlot};
use taipan_engine::volume::VolumeSettings;
use taipan_engine::wal::{BootId, LogConfig, LogIdentity, Recovered, ShardLog, WalId};
use taipan_nbd::{ExportInfo, HeaderStyle, Request, RequestHeader, Session, simple_reply};

const BLOCK: usize = 4096;
/// Blocks of the volume that are written, in an order without order.
const PLACES: u64 = 1 << 16;
const SPREAD: u64 = 40_503;
/// Blocks of one batch.
const BATCH_BLOCKS: u64 = 16;
/// Blocks that reads look for.
const WRITTEN: u64 = 4096;
const WAL_BYTES: u64 = 1 << 30;
const MEMORY_BYTES: usize = 128 << 20;
/// Each shard of a whole data core has so much.
const CORE_WAL_BYTES: u64 = 512 << 20;
const CORE_MEMORY_BYTES: usize = 32 << 20;
/// Requests of a data core between two of its turns.
const CORE_TURN: u64 = 4;
const SLOT: VolumeSlot = VolumeSlot(0);
const VOLUME: VolumeId = VolumeId(1);
/// What is written.
static SOURCE: [u8; BLOCK] = [0x5A; BLOCK];

/// Options of `taipan-bench hot-path`.
#[derive(Debug, Args)]
pub(crate) struct HotPathArgs {
    /// The path
    #[arg(value_enum)]
    path: HotPath,

    /// How many times
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    rounds: u64,
}

/// What is done for a request, in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HotPath {
    /// A request of the wire becomes a command
    Request,
    /// A block goes to batch memory, the table of its batch and the index
    Write,
    /// A block is looked up in the index and copied behind a reply's header
    Read,
    /// CRC32C of a block
    Crc,
    /// A batch of one record is framed, closed, handed out for writing and made durable
    Batch,
    /// A data core answers a read whose block it has in memory, with a copy
    CoreRead,
    /// A data core tells where a block in memory is, to be sent from there
    CoreResident,
    /// A data core answers a write; after four of them it starts what is to be written
    CoreWrite,
    /// A data core answers a write and a FLUSH, with the batch and the barrier that this takes
    CoreFlush,
    /// A read of a block in memory, from one end of a connection to the other and back, with what
    /// the client does and without what the kernel does
    ConnectionRead,
    /// A write on the same way
    ConnectionWrite,
}

/// Runs the path.
pub(crate) fn run(args: &HotPathArgs) -> Result<()> {
    let rounds = args.rounds;
    match args.path {
        HotPath::Request => requests(rounds),
        HotPath::Write => {
            let mut shard = shard()?;
            write(&mut shard, rounds)?;
            black_box(shard.index_bytes());
        }
        HotPath::Read => read(rounds)?,
        HotPath::Crc => {
            for _ in 0..rounds {
                black_box(crc32c(black_box(&SOURCE)));
            }
        }
        HotPath::Batch => {
            let mut shard = shard()?;
            for round in 0..rounds {
                append(&mut shard, round)?;
                make_durable(&mut shard);
            }
        }
        HotPath::CoreRead => core_read(rounds)?,
        HotPath::CoreResident => core_resident(rounds)?,
        HotPath::CoreWrite => core_write(&mut core()?, rounds)?,
        HotPath::CoreFlush => core_flush(rounds)?,
        HotPath::ConnectionRead => connection::reads(rounds)?,
        HotPath::ConnectionWrite => connection::writes(rounds)?,
    }
    Ok(())
}

fn requests(rounds: u64) {
    let export = ExportInfo::new("vol0", 1 << 40);
    let session = Session::default();
    for round in 0..rounds {
        let offset = place(round) * BLOCK as u64;
        let header = match round % 2 {
            0 => RequestHeader::read(round, offset, BLOCK as u32),
            _ => RequestHeader::write(round, offset, BLOCK as u32),
        };
        let bytes = black_box(header.encode());
        let request = Request::parse(HeaderStyle::Simple, &bytes);
        let request = request.ok().flatten().expect("the request is whole");
        black_box(session.validate(&request, &export).is_ok());
    }
}

fn shard() -> Result<Shard> {
    let id = ShardId::all().next().context("there are shards")?;
    let mut shard = bare_shard(id, WAL_BYTES, MEMORY_BYTES)?;
    let (overlay, base) = (Overlay::new(), ShardBase::new());
    shard.add_volume(SLOT, VOLUME, BlockSize::MIN, overlay, base);
    Ok(shard)
}

/// A shard that serves no volume yet.
fn bare_shard(id: ShardId, wal_bytes: u64, memory_bytes: usize) -> Result<Shard> {
    let identity = LogIdentity {
        wal: WalId(1),
        shard: id,
        incarnation: Incarnation(1),
        boot: BootId([1; 16]),
    };
    let config = LogConfig::for_wal(wal_bytes, memory_bytes)?;
    let arena = Arena::anonymous(config.arena_bytes)?;
    let blank = Recovered::blank(&identity, &config);
    let log = ShardLog::resume(identity, config, arena, &blank)?;
    Ok(Shard::new(id, log, Lsn(1)))
}

/// The only data core, with a volume.
fn core() -> Result<Core> {
    let shard = |id| bare_shard(id, CORE_WAL_BYTES, CORE_MEMORY_BYTES);
    let shards = ShardId::all().map(shard).collect::<Result<_>>()?;
    let clock = Arc::new(EpochClock::new(Epoch(1)));
    let mut core = Core::new(0, 1, clock, shards, WritePolicy::default());
    let parts = ShardId::all().map(|id| (id, Overlay::new(), ShardBase::new()));
    let settings = VolumeSettings::with_size(PLACES * BLOCK as u64);
    core.add_volume(SLOT, VOLUME, &settings, false, Epoch(0), parts.collect());
    core.make_durable();
    carry_on(&mut core);
    Ok(core)
}

/// Lets a core work on a disk that takes no time; the requests that it has answered.
fn carry_on(core: &mut Core) -> Vec<Done> {
    loop {
        core.pump();
        let started: Vec<_> = core.effects.io.drain(..).collect();
        if started.is_empty() {
            return core.effects.done.drain(..).collect();
        }
        for io in started {
            let (Io::WalWrite { op, .. } | Io::WalRead { op, .. } | Io::Barrier { op, .. }) = io;
            core.io_done(op, Ok(()), &[]);
        }
    }
}

fn origin(round: u64) -> Origin {
    Origin::Client(Ticket(round))
}

fn ask_to_write(core: &mut Core, round: u64) -> Result<()> {
    let offset = place(round) * BLOCK as u64;
    let progress = core.write(origin(round), SLOT, offset, black_box(&SOURCE), false);
    ensure!(matches!(progress, Progress::Done), "a write waits");
    Ok(())
}

fn core_write(core: &mut Core, rounds: u64) -> Result<()> {
    for round in 0..rounds {
        ask_to_write(core, round)?;
        if round % CORE_TURN == CORE_TURN - 1 {
            carry_on(core);
        }
    }
    Ok(())
}

fn core_flush(rounds: u64) -> Result<()> {
    let mut core = core()?;
    for round in 0..rounds {
        ask_to_write(&mut core, round)?;
        let progress = core.flush(origin(round), SLOT);
        ensure!(matches!(progress, Progress::Pending(_)), "nothing to flush");
        ensure!(carry_on(&mut core).len() == 1, "the FLUSH was not answered");
    }
    Ok(())
}

fn core_read(rounds: u64) -> Result<()> {
    let mut core = core()?;
    core_write(&mut core, WRITTEN)?;
    let mut out = Vec::with_capacity(BLOCK);
    for round in 0..rounds {
        out.clear();
        let offset = place(round % WRITTEN) * BLOCK as u64;
        let progress = core.read(origin(round), SLOT, offset, BLOCK as u64, &mut out);
        ensure!(
            matches!(progress, Progress::Done),
            "a block is not in memory"
        );
        black_box(&out);
        if round % CORE_TURN == CORE_TURN - 1 {
            carry_on(&mut core);
        }
    }
    Ok(())
}

fn core_resident(rounds: u64) -> Result<()> {
    let mut core = core()?;
    core_write(&mut core, WRITTEN)?;
    for round in 0..rounds {
        let mut pieces = Vec::with_capacity(1);
        let offset = place(round % WRITTEN) * BLOCK as u64;
        let is_resident = core.resident(SLOT, (offset, BLOCK as u64), &mut pieces);
        ensure!(is_resident, "a block is not in memory");
        black_box(&pieces);
        core.count_resident(1);
    }
    Ok(())
}

fn place(round: u64) -> u64 {
    round.wrapping_mul(SPREAD) % PLACES
}

/// One block. Its checksum is a path of its own.
fn append(shard: &mut Shard, round: u64) -> Result<BatchNum> {
    let fill = |_, block: &mut [u8]| {
        block.copy_from_slice(black_box(&SOURCE));
        round as u32
    };
    let written = shard.write_run(SLOT, Epoch(1), LocalBlock(place(round)), 1, fill);
    written.map_err(|shortage| anyhow::anyhow!("the log has no room: {shortage:?}"))
}

fn make_durable(shard: &mut Shard) {
    let log = shard.log_mut();
    log.close();
    while let Some(write) = log.start_write(true) {
        black_box(log.write_bytes(&write));
        log.write_finished(&write, Ok(()));
    }
}

fn write(shard: &mut Shard, rounds: u64) -> Result<()> {
    for round in 0..rounds {
        append(shard, round)?;
        if round % BATCH_BLOCKS == BATCH_BLOCKS - 1 {
            make_durable(shard);
        }
    }
    Ok(())
}

fn read(rounds: u64) -> Result<()> {
    let mut shard = shard()?;
    write(&mut shard, WRITTEN)?;
    let mut out = Vec::with_capacity(2 * BLOCK);
    for round in 0..rounds {
        out.clear();
        let found = shard.find(SLOT, LocalBlock(place(round % WRITTEN)));
        let Some(Found::Memory(block)) = found else {
            anyhow::bail!("block {} is not in memory", place(round % WRITTEN));
        };
        out.extend_from_slice(&simple_reply(None, round));
        out.extend_from_slice(block);
        black_box(&out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_runs_as_often_as_it_is_asked_to() {
        for &path in HotPath::value_variants() {
            for rounds in [1, 2000] {
                run(&HotPathArgs { path, rounds }).unwrap();
            }
        }
        run(&HotPathArgs {
            path: HotPath::Write,
            rounds: 20_000,
        })
        .unwrap();
    }
}
