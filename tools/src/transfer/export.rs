//! Copies a volume into a file, device or stream.

use std::time::Instant;

use indicatif::ProgressBar;

use crate::cli::{Export, Target};
use crate::failure::Outcome;
use crate::output::{Form, note};
use crate::transfer::session::Session;
use crate::transfer::sink::Sink;
use crate::transfer::{PIECE_BYTES, Report, progress};

/// Runs the command.
pub(crate) fn export(target: &Target, args: &Export) -> Outcome<()> {
    let started = Instant::now();
    let mut session = Session::open(&target.nbd_socket(), &args.volume)?;
    let size_bytes = session.size_bytes();
    let mut sink = Sink::open(&args.file, size_bytes, args.force)?;
    let to_stream = sink.is_ordered();
    let bar = progress(&args.pace, Some(size_bytes));
    copy(
        &mut session,
        &mut sink,
        usize::from(args.pace.requests),
        &bar,
    )?;
    let data_bytes = sink.data_bytes();
    sink.finish()?;
    session.close();
    bar.finish_and_clear();

    let file = args.file.display().to_string();
    let report = Report::new(&args.volume, file, size_bytes, data_bytes, started);
    let human = |r: &Report| {
        let (file, volume, amounts) = (&r.file, &r.volume, r.amounts());
        format!("exported volume \"{volume}\" to {file}: {amounts}\n")
    };
    // Standard output may be the copy itself.
    if !to_stream {
        return target.form().print(&report, human);
    }
    match target.form() {
        Form::Human => note(human(&report).trim_end()),
        Form::Json => note(&serde_json::json!(report).to_string()),
    }
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
