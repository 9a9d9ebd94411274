//! Incremental backups: what changed in a volume since a snapshot, into a file and from there into
//! a volume that has the rest already.

mod apply;
mod feed;

use std::io::{self, Write};
use std::time::Instant;

use futures::executor::block_on;
use serde::Serialize;
use taipan_engine::api::{ImagePoint, VolumeChanges};
use taipan_engine::identity::ManifestNum;
use taipan_engine::increment::{Change, IncrementHeader, IncrementSum, IncrementWriter, Point};
use taipan_engine::registry::read_images;
use taipan_engine::size::human;
use taipan_engine::snapshot::{ImageName, SnapshotName};
use taipan_engine::volume::VolumeName;

use crate::backend;
use crate::cli::{Export, Source, Target};
use crate::control::Control;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::human_seconds;
use crate::transfer::progress;
use crate::transfer::session::{Piece, Session};
use crate::transfer::sink::Sink;

pub(super) use apply::apply;
use feed::Remote;

/// What was written or applied; also its JSON output.
#[derive(Debug, Serialize)]
struct Report {
    volume: String,
    file: String,
    since: SnapshotName,
    /// None: the last committed cut of its moment.
    to: Option<SnapshotName>,
    #[serde(flatten)]
    sum: IncrementSum,
    seconds: f64,
}

impl Report {
    /// `from snapshot "a" to snapshot "b": 1 MiB data, 4 KiB zeros in 0.2 s`.
    fn amounts(&self) -> String {
        let to = match &self.to {
            Some(to) => format!("snapshot \"{to}\""),
            None => "the last committed cut".to_owned(),
        };
        let (data, zeros) = (human(self.sum.data_bytes), human(self.sum.zero_bytes));
        let (since, seconds) = (&self.since, human_seconds(self.seconds));
        format!("from snapshot \"{since}\" to {to}: {data} data, {zeros} zeros in {seconds}")
    }
}

/// What an export wrote.
struct Written {
    changes: VolumeChanges,
    sum: IncrementSum,
    /// Not into a file.
    to_stream: bool,
}

/// Runs `export --since`.
pub(super) fn export(target: &Target, args: &Export, since: &SnapshotName) -> Outcome<()> {
    let started = Instant::now();
    let written = match &args.backend {
        Some(url) => from_backend(target, args, since, url)?,
        None => from_daemon(target, args, since)?,
    };
    let report = Report {
        volume: written.changes.volume.to_string(),
        file: args.file.display().to_string(),
        since: since.clone(),
        to: written.changes.to.snapshot,
        sum: written.sum,
        seconds: started.elapsed().as_secs_f64(),
    };
    let to_stream = written.to_stream;
    let human = |r: &Report| {
        let (volume, file, amounts) = (&r.volume, &r.file, r.amounts());
        format!("exported what changed in volume \"{volume}\" to {file}, {amounts}\n")
    };
    // Standard output may be the backup itself.
    if !to_stream {
        return target.form().print(&report, human);
    }
    target.form().note(&report, human);
    Ok(())
}

/// The volume, and the snapshot up to which.
fn named(args: &Export) -> Outcome<(&VolumeName, Option<&SnapshotName>)> {
    match &args.source {
        Source::Volume(volume) => Ok((volume, None)),
        Source::Image(of) => match &of.image {
            ImageName::Snapshot(snapshot) => Ok((&of.volume, Some(snapshot))),
            ImageName::Point(_) => {
                let what = "an incremental backup ends at a snapshot, not at a point in time";
                Err(Failure::new(Exit::Usage, what))
            }
        },
    }
}

/// The later image's blocks come over NBD; so it is one that stays.
fn from_daemon(target: &Target, args: &Export, since: &SnapshotName) -> Outcome<Written> {
    let (volume, Some(to)) = named(args)? else {
        let what = "name the snapshot up to which, VOLUME@SNAPSHOT, or read the last committed cut \
                    from the backend itself: --backend URL";
        return Err(Failure::new(Exit::Usage, what));
    };
    let control = Control::new(target.control_socket())?;
    let changes = control.changes(volume, since, Some(to))?;
    let name = format!("{volume}@{to}");
    let session = Session::open(&target.nbd_server(), &name)?;
    if session.size_bytes() != changes.to.size_bytes {
        let what = format!("{name} is not what it was a moment ago");
        return Err(Failure::new(Exit::Conflict, what));
    }
    let mut remote = Remote::new(session, &changes, usize::from(args.pace.requests));
    let written = write(changes, args, || remote.next())?;
    remote.close();
    Ok(written)
}

fn from_backend(
    target: &Target,
    args: &Export,
    since: &SnapshotName,
    url: &str,
) -> Outcome<Written> {
    let (volume, to) = named(args)?;
    let backend = backend::open(target, url)?;
    let images = block_on(read_images(&*backend, volume, since, to));
    let (from, to) = images.map_err(|error| backend::not_found_in(&*backend, error))?;
    let changes = VolumeChanges::between(&from, &to, usize::MAX)?;
    let window = usize::from(args.pace.requests);
    let mut stored = Box::pin(feed::stored(&*backend, &to, &changes, window));
    write(changes.clone(), args, || feed::next(&mut stored, &to))
}

fn point(image: &ImagePoint) -> Point {
    Point {
        snapshot: image.id.zip(image.snapshot.clone()),
        manifest: ManifestNum(image.manifest),
        size_bytes: image.size_bytes,
    }
}

/// Writes the whole file; `next` gives the changes in order.
fn write(
    changes: VolumeChanges,
    args: &Export,
    mut next: impl FnMut() -> Outcome<Option<Change>>,
) -> Outcome<Written> {
    let header = IncrementHeader {
        volume: changes.id,
        name: changes.volume.clone(),
        from: point(&changes.from),
        to: point(&changes.to),
    };
    let mut sink = Sink::open(&args.file, 0, args.force)?;
    let to_stream = sink.is_ordered();
    let bar = progress(&args.pace, Some(changes.data_bytes + changes.zero_bytes));
    let mut out = SinkWriter {
        sink: &mut sink,
        at: 0,
        failure: None,
    };
    let mut writer = match IncrementWriter::new(&mut out, &header) {
        Ok(writer) => writer,
        Err(error) => return Err(Failure::io("cannot write the backup", &error)),
    };
    while let Some(change) = next()? {
        if let Err(error) = writer.add(&change) {
            return Err(out.failed(&error));
        }
        bar.inc(match &change {
            Change::Data { data, .. } => data.len() as u64,
            Change::Zeros { len, .. } => *len,
        });
    }
    let sum = match writer.finish() {
        Ok((_, sum)) => sum,
        Err(error) => return Err(out.failed(&error)),
    };
    sink.finish()?;
    bar.finish_and_clear();
    Ok(Written {
        changes,
        sum,
        to_stream,
    })
}

/// A sink to which bytes are written one after the other.
struct SinkWriter<'a> {
    sink: &'a mut Sink,
    at: u64,
    /// Why the sink took no more.
    failure: Option<Failure>,
}

impl SinkWriter<'_> {
    fn failed(&mut self, error: &io::Error) -> Failure {
        let failure = self.failure.take();
        failure.unwrap_or_else(|| Failure::io("cannot write the backup", error))
    }
}

impl Write for SinkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (offset, data) = (self.at, bytes.to_vec());
        match self.sink.take(Piece { offset, data }) {
            Ok(_) => {
                self.at += bytes.len() as u64;
                Ok(bytes.len())
            }
            Err(failure) => {
                self.failure = Some(failure);
                Err(io::Error::other("the sink takes no more"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
