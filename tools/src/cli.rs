//! The command line: what can be asked, and how values in it are read.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use taipan_engine::size::ByteSize;
use taipan_engine::snapshot::{QualifiedImage, SnapshotName};
use taipan_engine::volume::{Ack, Durability, OnLostCache, VolumeName};

use crate::connection::ConnectionCommand;
use crate::flatten::Flatten;
use crate::history::{Wanted, wanted};
use crate::nbd_server::NbdServer;
use crate::output::Form;
use crate::snapshot::SnapshotCommand;
use crate::verify::Verify;
use crate::warm::Warm;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, \
4 refused in the present state (exists, in use, read-only, fenced), 5 no daemon answers, \
6 stored data is damaged.";

/// The operator's command of the Taipan storage appliance.
#[derive(Debug, Parser)]
#[command(name = "taipan", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which appliance is meant, and the form of the output.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// Data directory of the appliance, in which its sockets are.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "./taipan-data"
    )]
    pub(crate) data: PathBuf,
    /// Control socket [default: DIR/control.sock].
    #[arg(long, global = true, value_name = "PATH")]
    control: Option<PathBuf>,
    /// NBD server for import and export: its socket, or nbds://HOST[:PORT]?tls-certificates=DIR
    /// [default: DIR/nbd.sock].
    #[arg(long, global = true, value_name = "PATH|URI")]
    nbd: Option<NbdServer>,
    /// Print JSON (errors too, on standard error).
    #[arg(long, global = true)]
    json: bool,
}

impl Target {
    /// Path of the control socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.control
            .clone()
            .unwrap_or_else(|| self.data.join("control.sock"))
    }

    /// The NBD server.
    pub(crate) fn nbd_server(&self) -> NbdServer {
        let own = || NbdServer::at(self.data.join("nbd.sock"));
        self.nbd.clone().unwrap_or_else(own)
    }

    /// Form of the output.
    pub(crate) fn form(&self) -> Form {
        if self.json { Form::Json } else { Form::Human }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, list, show, grow, set up and delete volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Take, list, show and delete snapshots of volumes.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// List NBD connections, and close one.
    #[command(subcommand)]
    Connection(ConnectionCommand),
    /// Create a volume as a clone of a snapshot: with its content and settings, at once, sharing
    /// what is stored. Both sides go their own ways from there. A point in time becomes a snapshot
    /// for that, `point-N`.
    Clone {
        /// The snapshot, or point in time.
        #[arg(value_name = "VOLUME@SNAPSHOT|@@N|@@TIME")]
        of: QualifiedImage,
        /// Name of the new volume.
        #[arg(value_parser = volume_name)]
        name: VolumeName,
    },
    /// Take a volume back to a snapshot or a point in time: what was written since is gone, unless
    /// a later snapshot or point has it. Refused while clients are connected. Snapshots, points and
    /// clones stay.
    Rollback {
        /// Name of the volume.
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
        /// Name of the snapshot; or a point in time: a time such as 2026-11-21T20:00:00Z, for the
        /// last point at or before it, or @N (see `taipan volume history`).
        #[arg(value_name = "SNAPSHOT|TIME", value_parser = wanted)]
        to: Wanted,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Copy a file or device (or standard input, `-`) into a volume.
    Import(Import),
    /// Copy a volume into a file or device (or to standard output, `-`).
    Export(Export),
    /// Show what changed in a volume between two snapshots, or since one, without reading data.
    Diff(Diff),
    /// Decode a file of the appliance: WAL, chunk, manifest, index, head record, memory region.
    Inspect(Inspect),
    /// Check that everything the backend should hold of volumes and their snapshots is there and
    /// whole; needs no daemon and no local state.
    Verify(Verify),
    /// Try what a backend can do; needs no daemon.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Show how the appliance is doing.
    Status,
    /// Pack everything that is in the WAL into the backend, and wait for it.
    Drain,
}

/// What to do with backends.
#[derive(Debug, Subcommand)]
pub(crate) enum BackendCommand {
    /// Try conditional writes, checksums, ranges and lists on scratch objects, and remove them.
    Probe {
        /// The backend, such as s3://bucket/prefix?endpoint=https://host; the keys come from
        /// credentials_file, the systemd credential s3 or the environment, never from here.
        url: String,
    },
}

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume; it reads as zeros.
    Create(Create),
    /// List all volumes.
    List,
    /// Show one volume.
    Show {
        /// Name of the volume.
        #[arg(value_parser = volume_name)]
        name: VolumeName,
    },
    /// Grow a volume. Connected clients see the new size when they reconnect.
    Resize(Resize),
    /// Change settings of a volume.
    Set(Set),
    /// List the points in time that a volume can be taken back to, oldest first (see `volume set
    /// --pitr-window-seconds`). Each is read as the export VOLUME@@N.
    History {
        /// Name of the volume.
        #[arg(value_parser = volume_name)]
        name: VolumeName,
    },
    /// Commit everything answered so far to the backend, and wait for it.
    #[command(visible_alias = "flush")]
    Commit {
        /// Name of the volume.
        #[arg(value_parser = volume_name)]
        name: VolumeName,
        /// What this always does; for those who expect `flush --remote`.
        #[arg(long, hide = true)]
        remote: bool,
        /// No progress on standard error.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Read a volume's blocks into the appliance's caches, in the background.
    Warm(Warm),
    /// Take a volume over from another appliance, which is fenced by that: what it answered and did
    /// not commit to the backend before stays behind there, in quarantine.
    Takeover {
        /// Name of the volume.
        #[arg(value_parser = volume_name)]
        name: VolumeName,
    },
    /// Make a clone independent of the volume that it was cloned from: what it shares is copied in
    /// the background, at the pace of compaction, and then the parent's snapshot, or the parent,
    /// can be deleted. The clone is in use meanwhile.
    Flatten(Flatten),
    /// Delete what is stored under a volume and named by nothing: leftovers of crashes. The daemon
    /// does that by itself once a month; this lists all objects of the volume.
    Sweep {
        /// Name of the volume.
        #[arg(value_parser = volume_name)]
        name: VolumeName,
        /// Only tell what would be deleted.
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete a volume and all its data, for good. Refused while clients are connected. Its objects
    /// are freed in the background (see `taipan status`).
    Delete {
        /// Name of the volume.
        #[arg(value_parser = volume_name)]
        name: VolumeName,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        /// If it has clones: first they take over what they need (see `volume flatten`), then its
        /// snapshots go with it. To be repeated if it is interrupted.
        #[arg(long)]
        promote: bool,
        /// No progress on standard error.
        #[arg(long, short)]
        quiet: bool,
    },
}

/// Arguments of `volume create`.
#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Name: up to 255 bytes of UTF-8; `/` separates parts, as in `tenant/volume`.
    #[arg(value_parser = volume_name)]
    pub(crate) name: VolumeName,
    /// Size, such as 10GiB; a multiple of 512 bytes.
    #[arg(long)]
    pub(crate) size: ByteSize,
    #[command(flatten)]
    pub(crate) layout: Layout,
    #[command(flatten)]
    pub(crate) changeable: Changeable,
}

/// Settings that are fixed when a volume is created.
#[derive(Args, Debug)]
pub(crate) struct Layout {
    /// Unit of checksums and packing: 4KiB (the default), 8KiB … 64KiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) block_size: Option<ByteSize>,
    /// Most payload of one object in the backend: 1MiB … 64MiB, by default 4MiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) chunk_size: Option<ByteSize>,
}

/// Settings that can be changed later.
#[derive(Args, Debug)]
pub(crate) struct Changeable {
    /// When writes are answered: from memory that outlives the daemon (FLUSH makes them survive a
    /// power cut), or when durable.
    #[arg(long, value_name = "WHEN", value_parser = ack())]
    pub(crate) ack: Option<Ack>,
    /// What to do when a power cut took answered but unflushed writes.
    #[arg(long, value_name = "ACTION", value_parser = on_lost_cache())]
    pub(crate) on_lost_cache: Option<OnLostCache>,
    /// What FLUSH waits for: the local disk, or the bucket.
    #[arg(long, value_name = "WHERE", value_parser = durability())]
    pub(crate) durability: Option<Durability>,
    /// New writes wait while the bucket lacks one older than this; 0: no limit.
    #[arg(long, value_name = "N")]
    pub(crate) rpo_seconds: Option<u64>,
    /// New writes wait while the bucket lacks more than this, at least 1MiB; 0: no limit.
    #[arg(long, value_name = "SIZE")]
    pub(crate) rpo_bytes: Option<ByteSize>,
    /// A change is committed to the bucket after so long; 0: as the daemon is configured.
    #[arg(long, value_name = "N")]
    pub(crate) commit_interval_seconds: Option<u64>,
    /// Commits that only the interval makes due wait while more requests than this were made in an
    /// hour; 0: no budget.
    #[arg(long, value_name = "N")]
    pub(crate) requests_per_hour: Option<u64>,
    /// Requests of clients that begin in a second, FLUSH aside; 0: no limit.
    #[arg(long, value_name = "N")]
    pub(crate) iops: Option<u64>,
    /// Bytes that clients read and write in a second, together, at least 64KiB; 0: no limit.
    #[arg(long, value_name = "SIZE")]
    pub(crate) bandwidth: Option<ByteSize>,
    /// So many seconds of both are saved up by an idle volume; 0: one second.
    #[arg(long, value_name = "N")]
    pub(crate) burst_seconds: Option<u64>,
    /// For how long each committed cut is kept as a point in time to go back to, up to 31 days; 0:
    /// not at all.
    #[arg(long, value_name = "N")]
    pub(crate) pitr_window_seconds: Option<u64>,
}

/// Arguments of `volume resize`.
#[derive(Args, Debug)]
pub(crate) struct Resize {
    /// Name of the volume.
    #[arg(value_parser = volume_name)]
    pub(crate) name: VolumeName,
    /// New size, such as 20GiB; a multiple of 512 bytes, not below the present size.
    #[arg(required_unless_present = "size")]
    new_size: Option<ByteSize>,
    /// The same as an option.
    #[arg(long, conflicts_with = "new_size")]
    size: Option<ByteSize>,
}

impl Resize {
    /// The new size in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        // Clap has seen to it that one of the two is there.
        self.new_size.or(self.size).unwrap_or_default().0
    }
}

/// Arguments of `volume set`.
#[derive(Args, Debug)]
#[group(id = "settings")]
pub(crate) struct Set {
    /// Name of the volume.
    #[arg(value_parser = volume_name)]
    pub(crate) name: VolumeName,
    #[command(flatten)]
    pub(crate) changeable: Changeable,
}

/// Arguments of `import`.
#[derive(Args, Debug)]
pub(crate) struct Import {
    /// File or block device to copy; `-` is standard input.
    pub(crate) file: PathBuf,
    /// Volume to copy into.
    #[arg(value_parser = volume_name)]
    pub(crate) volume: VolumeName,
    /// Create the volume first, as large as the file (or `--size`).
    #[arg(long)]
    pub(crate) create: bool,
    /// Size of the volume to create.
    #[arg(long, requires = "create")]
    pub(crate) size: Option<ByteSize>,
    /// Zero the rest of a volume that is larger than the file; else the rest stays as it is.
    #[arg(long)]
    pub(crate) zero_rest: bool,
    /// The file is an incremental backup (of `export --since`): bring the volume, which must be as
    /// that snapshot is, to where the backup ends.
    #[arg(long, conflicts_with_all = ["create", "zero_rest"])]
    pub(crate) apply: bool,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

/// Arguments of `export`.
#[derive(Args, Debug)]
pub(crate) struct Export {
    /// Volume, VOLUME@SNAPSHOT, or point in time VOLUME@@N or VOLUME@@TIME to copy.
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    pub(crate) source: Source,
    /// File or block device to write; `-` is standard output. A file appears under this name only
    /// when it is complete.
    pub(crate) file: PathBuf,
    /// Replace a file that exists.
    #[arg(long)]
    pub(crate) force: bool,
    /// Only what changed since this snapshot, for `import --apply`: up to @SNAPSHOT, or with
    /// --backend else to the volume's last committed cut.
    #[arg(long, value_name = "SNAPSHOT", value_parser = snapshot_name)]
    pub(crate) since: Option<SnapshotName>,
    /// Read a snapshot, or what changed, from this backend, without the daemon: `dir:` is
    /// DIR/objects, or such as s3://bucket/prefix?endpoint=https://host; keys as for `backend
    /// probe`.
    #[arg(long, value_name = "URL")]
    pub(crate) backend: Option<String>,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

/// Arguments of `diff`.
#[derive(Args, Debug)]
pub(crate) struct Diff {
    /// Name of the volume.
    #[arg(value_parser = volume_name)]
    pub(crate) volume: VolumeName,
    /// The snapshot from which on.
    #[arg(value_parser = snapshot_name)]
    pub(crate) from: SnapshotName,
    /// The snapshot up to which; else the volume's last committed cut (see `volume commit`).
    #[arg(value_parser = snapshot_name)]
    pub(crate) to: Option<SnapshotName>,
    /// Read the index from this backend, without the daemon: `dir:` is DIR/objects, or such as
    /// s3://bucket/prefix?endpoint=https://host; keys as for `backend probe`.
    #[arg(long, value_name = "URL")]
    pub(crate) backend: Option<String>,
}

/// What an export copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Volume(VolumeName),
    Image(QualifiedImage),
}

impl FromStr for Source {
    type Err = taipan_engine::error::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.contains('@') {
            true => text.parse().map(Self::Image),
            false => VolumeName::parse(text).map(Self::Volume),
        }
    }
}

/// How a copy runs.
#[derive(Args, Debug)]
pub(crate) struct Pace {
    /// Requests in flight.
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) requests: u16,
    /// No progress bar.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// File to decode; what it is shows in its first bytes.
    pub(crate) path: PathBuf,
    /// Show every record, extent and entry, not only the first few.
    #[arg(long, short)]
    pub(crate) all: bool,
}

/// Reads a volume name; the refusal says which rule it breaks.
pub(crate) fn volume_name(text: &str) -> Result<VolumeName, taipan_engine::error::Error> {
    VolumeName::parse(text)
}

/// Reads the name of a snapshot without its volume.
pub(crate) fn snapshot_name(text: &str) -> Result<SnapshotName, taipan_engine::error::Error> {
    SnapshotName::parse(text)
}

/// Reads `memory` or `durable`.
fn ack() -> impl TypedValueParser<Value = Ack> {
    PossibleValuesParser::new(["memory", "durable"]).map(|text| match text.as_str() {
        "durable" => Ack::Durable,
        _ => Ack::Memory,
    })
}

/// Reads `local` or `remote`.
fn durability() -> impl TypedValueParser<Value = Durability> {
    PossibleValuesParser::new(["local", "remote"]).map(|text| match text.as_str() {
        "remote" => Durability::Remote,
        _ => Durability::Local,
    })
}

/// Reads `continue`, `read-only` (or `read_only`, as in JSON) or `refuse`.
fn on_lost_cache() -> impl TypedValueParser<Value = OnLostCache> {
    use clap::builder::PossibleValue;
    PossibleValuesParser::new([
        PossibleValue::new("continue"),
        PossibleValue::new("read-only").alias("read_only"),
        PossibleValue::new("refuse"),
    ])
    .map(|text| match text.as_str() {
        "continue" => OnLostCache::Continue,
        "refuse" => OnLostCache::Refuse,
        _ => OnLostCache::ReadOnly,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, String> {
        Cli::try_parse_from(line.split(' ')).map_err(|e| e.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn creation_reads_sizes_and_settings() {
        let line = "taipan volume create tenant/a --size 10GiB --block-size 64KiB \
                    --ack durable --on-lost-cache read_only --json";
        let cli = parse(line).unwrap();
        assert_eq!(cli.target.form(), Form::Json);
        let Command::Volume(VolumeCommand::Create(create)) = cli.command else {
            panic!("not a creation");
        };
        assert_eq!(create.name.as_str(), "tenant/a");
        assert_eq!(create.size, ByteSize(10 << 30));
        assert_eq!(create.layout.block_size, Some(ByteSize(65536)));
        assert_eq!(create.layout.chunk_size, None);
        assert_eq!(create.changeable.ack, Some(Ack::Durable));
        assert_eq!(create.changeable.on_lost_cache, Some(OnLostCache::ReadOnly));
    }

    #[test]
    fn bad_values_are_refused_with_the_reason() {
        for (line, why) in [
            ("taipan volume show a@b", "separates a snapshot"),
            ("taipan volume show a//b", "empty part"),
            ("taipan volume create a --size 10GB", "ambiguous"),
            ("taipan volume create a", "--size"),
            ("taipan volume resize a", "NEW_SIZE"),
            ("taipan volume create a --size 1GiB --ack never", "durable"),
            ("taipan import f v --size 1GiB", "--create"),
            ("taipan export v f --requests 0", "1..=256"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn resize_takes_the_size_either_way() {
        for line in [
            "taipan volume resize a 2GiB",
            "taipan volume resize a --size 2GiB",
        ] {
            let Command::Volume(VolumeCommand::Resize(resize)) = parse(line).unwrap().command
            else {
                panic!("not a resize");
            };
            assert_eq!(resize.size_bytes(), 2 << 30);
        }
    }

    #[test]
    fn sockets_are_in_the_data_directory_unless_named() {
        let cli = parse("taipan --data /d --nbd /n status").unwrap();
        assert_eq!(
            cli.target.control_socket(),
            PathBuf::from("/d/control.sock")
        );
        assert_eq!(cli.target.nbd_server(), NbdServer::at("/n".into()));
        let cli = parse("taipan --data /d status").unwrap();
        let own = NbdServer::at("/d/nbd.sock".into());
        assert_eq!(cli.target.nbd_server(), own);
    }
}
