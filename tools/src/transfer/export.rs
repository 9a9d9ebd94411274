//! Copies a volume into a file, device or stream.

use std::fmt::Display;
use std::time::Instant;

use indicatif::ProgressBar;
use taipan_engine::snapshot::ImageName;

use crate::cli::{Export, Source, Target};
use crate::failure::Outcome;
use crate::transfer::session::Session;
use crate::transfer::sink::Sink;
use crate::transfer::{PIECE_BYTES, Report, progress};

/// Runs the command.
pub(crate) fn export(target: &Target, args: &Export) -> Outcome<()> {
    if let Some(since) = &args.since {
        return super::incremental::export(target, args, since);
    }
    match &args.source {
        Source::Volume(volume) => export_over_nbd(target, args, volume),
        Source::Image(of) => match &args.backend {
            Some(url) => super::snapshot::export(target, args, of, url),
            None => export_over_nbd(target, args, of),
        },
    }
}

fn export_over_nbd(target: &Target, args: &Export, name: &impl Display) -> Outcome<()> {
    let started = Instant::now();
    let mut session = Session::open(&target.nbd_server(), &name.to_string())?;
    let size_bytes = session.size_bytes();
    let mut sink = Sink::open(&args.file, size_bytes, args.force)?;
    let bar = progress(&args.pace, Some(size_bytes));
    copy(
        &mut session,
        &mut sink,
        usize::from(args.pace.requests),
        &bar,
    )?;
    bar.finish_and_clear();
    let told = complete(target, args, (name, size_bytes), sink, started);
    session.close();
    told
}

/// Gives the copy its name, and tells what was done.
pub(super) fn complete(
    target: &Target,
    args: &Export,
    (source, size_bytes): (&impl Display, u64),
    sink: Sink,
    started: Instant,
) -> Outcome<()> {
    let (to_stream, data_bytes) = (sink.is_ordered(), sink.data_bytes());
    sink.finish()?;
    let file = args.file.display().to_string();
    let report = Report::new(source, file, size_bytes, data_bytes, started);
    let what = match &args.source {
        Source::Volume(_) => "volume",
        Source::Image(of) => match of.image {
            ImageName::Snapshot(_) => "snapshot",
            ImageName::Point(_) => "point in time",
        },
    };
    let human = |r: &Report| {
        let (file, name, amounts) = (&r.file, &r.volume, r.amounts());
        format!("exported {what} \"{name}\" to {file}: {amounts}\n")
    };
    // Standard output may be the copy itself.
    if !to_stream {
        return target.form().print(&report, human);
    }
    target.form().note(&report, human);
    Ok(())
}

/// Copies with `window` reads in flight.
fn copy(session: &mut Session, sink: &mut Sink, window: usize, bar: &ProgressBar) -> Outcome<()> {
    let size_bytes = session.size_bytes();
    let piece = PIECE_BYTES.min(session.payload_bytes_max());
    let piece = (piece / session.grain_bytes()).max(1) * session.grain_bytes();
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let (mut asked, mut done) = (0, 0);
    while done < size_bytes {
        // An ordered sink holds what comes early, so what it holds counts as in flight.
        let ahead = (window * piece) as u64;
        while asked < size_bytes
            && session.in_flight() < window
            && (!sink.is_ordered() || asked - sink.written() < ahead)
        {
            let len = (size_bytes - asked).min(piece as u64);
            let mut buffer = spare.pop().unwrap_or_default();
            buffer.resize(len as usize, 0);
            session.read(asked, buffer)?;
            asked += len;
        }
        let answer = session.receive()?;
        done += answer.data.len() as u64;
        spare.extend(sink.take(answer)?);
        bar.set_position(done);
    }
    Ok(())
}
