//! `taipan import --apply`: brings a volume from one snapshot of another to the next.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::time::Instant;

use taipan_engine::error::Error;
use taipan_engine::increment::{Change, IncrementHeader, IncrementReader, IncrementSum, Point};
use taipan_engine::size::human;
use taipan_nbd::TransmissionFlags;

use super::Report;
use crate::cli::{Import, Target};
use crate::failure::{Exit, Failure, Outcome};
use crate::transfer::import::Copy;
use crate::transfer::session::Session;
use crate::transfer::{PIECE_BYTES, progress};

/// Reads ahead in steps of this: a record's data and its head.
const BUFFER_BYTES: usize = 1 << 20;

type Input = BufReader<Box<dyn Read>>;

/// Runs the command.
pub(crate) fn apply(target: &Target, args: &Import) -> Outcome<()> {
    let started = Instant::now();
    if is_file(args) {
        // Nothing of a damaged file is applied.
        let mut whole = open(args)?;
        while next(&mut whole, args)?.is_some() {}
    }
    let mut reader = open(args)?;
    let session = Session::open(&target.nbd_server(), args.volume.as_str())?;
    check(&session, reader.header(), args)?;
    let header = reader.header().clone();
    let sum = run(session, &mut reader, args).map_err(|failure| {
        let volume = &args.volume;
        let state = "may hold part of the changes: apply them again";
        let text = format!("{failure}. Volume \"{volume}\" {state}");
        Failure::new(failure.exit, text)
    })?;
    let name = |point: Point| point.snapshot.map(|(_, name)| name);
    let report = Report {
        volume: args.volume.to_string(),
        file: args.file.display().to_string(),
        since: name(header.from).expect("the reader has checked that"),
        to: name(header.to),
        sum,
        seconds: started.elapsed().as_secs_f64(),
    };
    target.form().print(&report, |r| {
        let (volume, file, amounts) = (&r.volume, &r.file, r.amounts());
        format!("applied {file} to volume \"{volume}\", {amounts}\n")
    })
}

fn is_file(args: &Import) -> bool {
    std::fs::metadata(&args.file).is_ok_and(|meta| meta.is_file())
}

fn open(args: &Import) -> Outcome<IncrementReader<Input>> {
    let name = args.file.display();
    let from: Box<dyn Read> = if args.file.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        let file = File::open(&args.file);
        Box::new(file.map_err(|e| Failure::io(format!("cannot open {name}"), &e))?)
    };
    let from = BufReader::with_capacity(BUFFER_BYTES, from);
    IncrementReader::new(from).map_err(|error| unreadable(args, error))
}

fn next(reader: &mut IncrementReader<Input>, args: &Import) -> Outcome<Option<Change>> {
    let change = reader.next_change();
    change.map_err(|error| unreadable(args, error))
}

fn unreadable(args: &Import, error: Error) -> Failure {
    let what = format!("cannot apply {}: {error}", args.file.display());
    Failure::new(Failure::from(error).exit, what)
}

/// Refuses what cannot be right, before anything is written.
fn check(session: &Session, header: &IncrementHeader, args: &Import) -> Outcome<()> {
    let refuse = |why: String| {
        let volume = &args.volume;
        let what = format!("cannot apply changes to volume \"{volume}\": {why}");
        Err(Failure::new(Exit::Conflict, what))
    };
    if session.offers(TransmissionFlags::READ_ONLY) {
        return refuse("it is read-only".to_owned());
    }
    let (has, before, after) = (
        session.size_bytes(),
        header.from.size_bytes,
        header.to.size_bytes,
    );
    match has {
        _ if has == after => Ok(()),
        _ if has == before => refuse(format!(
            "it was resized to {} ({after} bytes) meanwhile; do that first: taipan volume resize",
            human(after)
        )),
        _ => refuse(format!(
            "it has {has} bytes, the volume of which they are had {before}: it is no copy of that"
        )),
    }
}

/// Applies everything and makes it durable.
fn run(
    session: Session,
    reader: &mut IncrementReader<Input>,
    args: &Import,
) -> Outcome<IncrementSum> {
    let grain = session.grain_bytes();
    let piece = PIECE_BYTES.min(session.payload_bytes_max());
    let piece = (piece / grain * grain).max(grain);
    let mut copy = Copy::new(session, progress(&args.pace, None), args);
    while let Some(change) = next(reader, args)? {
        let (offset, len) = match &change {
            Change::Data { offset, data } => (*offset, data.len() as u64),
            Change::Zeros { offset, len } => (*offset, *len),
        };
        if (offset | len) & (grain as u64 - 1) != 0 {
            let why = format!("a change at byte {offset} is not on the server's grid of {grain}");
            return Err(Failure::new(Exit::Failed, why));
        }
        match change {
            Change::Data { data, .. } => {
                for (at, data) in (offset..).step_by(piece).zip(data.chunks(piece)) {
                    copy.data(at, data)?;
                }
            }
            Change::Zeros { .. } => copy.zeros(offset, len)?,
        }
    }
    copy.complete()?;
    copy.close();
    Ok(reader.sum())
}
