//! Copies a file, device or stream into a volume.

use std::time::Instant;

use indicatif::ProgressBar;
use taipan_engine::size::human;
use taipan_engine::volume::{SIZE_GRAIN_BYTES, VolumeName};
use taipan_nbd::TransmissionFlags;

use crate::cli::{Import, Target};
use crate::control::Control;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::note;
use crate::transfer::session::Session;
use crate::transfer::source::{Source, Stretch};
use crate::transfer::sparse::{GRAIN_BYTES, runs};
use crate::transfer::{PIECE_BYTES, Report, progress};
use crate::volume::request;

/// Most zeros of one request: few requests for a large hole, and yet progress to be seen.
const ZEROS_BYTES_MAX: u64 = 256 << 20;

/// Runs the command.
pub(crate) fn import(target: &Target, args: &Import) -> Outcome<()> {
    if args.apply {
        return super::incremental::apply(target, args);
    }
    let started = Instant::now();
    let source = Source::open(&args.file)?;
    if source.len() == Some(0) {
        let what = format!("cannot import {}: it is empty", source.name());
        return Err(Failure::new(Exit::Usage, what));
    }
    warn_of_formats(&source);
    if args.create {
        create(target, args, &source)?;
    }
    let copied = open_and_copy(target, args, source).map_err(|failure| {
        let volume = &args.volume;
        let state = if args.create {
            "was created and holds part of the data: delete it, or import again without --create"
        } else {
            "may hold part of the data: import again"
        };
        match failure {
            Refusal::Before(failure) if !args.create => failure,
            Refusal::Before(failure) | Refusal::Within(failure) => Failure::new(
                failure.exit,
                format!("{failure}. Volume \"{volume}\" {state}"),
            ),
        }
    })?;
    let file = args.file.display().to_string();
    let report = Report::new(&args.volume, file, copied.bytes, copied.data_bytes, started);
    target.form().print(&report, |r| {
        let (file, volume, amounts) = (&r.file, &r.volume, r.amounts());
        let rest = match copied.rest_bytes {
            0 => String::new(),
            rest => format!("; the last {} of it are as they were", human(rest)),
        };
        format!("imported {file} into volume \"{volume}\": {amounts}{rest}\n")
    })
}

/// Whether the volume was touched when the copy failed.
enum Refusal {
    Before(Failure),
    Within(Failure),
}

/// How far a copy came.
struct Copied {
    bytes: u64,
    data_bytes: u64,
    /// Bytes of the volume behind the end of the source that were left alone.
    rest_bytes: u64,
}

fn create(target: &Target, args: &Import, source: &Source) -> Outcome<()> {
    let len = source.len();
    let size_bytes = match (args.size, len) {
        (Some(size), Some(len)) if size.0 < len => {
            return Err(too_large(source, len, &args.volume, size.0));
        }
        (Some(size), _) => size.0,
        (None, Some(len)) => len.next_multiple_of(SIZE_GRAIN_BYTES),
        (None, None) => {
            let what = "the size of the input is not known beforehand: give --size for the volume";
            return Err(Failure::new(Exit::Usage, what));
        }
    };
    let request = request(args.volume.clone(), size_bytes);
    request.settings().map_err(|e| {
        let what = format!("volume \"{}\" cannot be created: {e}", args.volume);
        Failure::new(Exit::Usage, what)
    })?;
    Control::new(target.control_socket())?
        .create(&request)
        .map(drop)
}

fn open_and_copy(target: &Target, args: &Import, source: Source) -> Result<Copied, Refusal> {
    let session =
        Session::open(&target.nbd_server(), args.volume.as_str()).map_err(Refusal::Before)?;
    let size_bytes = session.size_bytes();
    if session.offers(TransmissionFlags::READ_ONLY) {
        let what = format!(
            "cannot import into volume \"{}\": it is read-only",
            args.volume
        );
        return Err(Refusal::Before(Failure::new(Exit::Conflict, what)));
    }
    if let Some(len) = source.len()
        && len > size_bytes
    {
        let failure = too_large(&source, len, &args.volume, size_bytes);
        return Err(Refusal::Before(failure));
    }
    let bar = progress(&args.pace, source.len());
    let mut copy = Copy::new(session, bar, args);
    let bytes = copy.run(source, args).map_err(Refusal::Within)?;
    let data_bytes = copy.data_bytes;
    copy.close();
    Ok(Copied {
        bytes,
        data_bytes,
        rest_bytes: if args.create || args.zero_rest {
            0
        } else {
            size_bytes.saturating_sub(bytes)
        },
    })
}

fn too_large(source: &Source, len: u64, volume: &VolumeName, size_bytes: u64) -> Failure {
    let what = format!(
        "cannot import {}: it has {len} bytes ({}), volume \"{volume}\" {size_bytes} ({})",
        source.name(),
        human(len),
        human(size_bytes)
    );
    Failure::new(Exit::Usage, what)
}

/// Other formats than raw are copied as they are; that is rarely what was meant.
fn warn_of_formats(source: &Source) {
    const FORMATS: [(&[u8], &str); 4] = [
        (b"QFI\xfb", "qcow2"),
        (b"KDMV", "VMDK"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
    ];
    let mut start = [0; 8];
    let count = source.start(&mut start);
    let found = FORMATS.iter().find(|(m, _)| start[..count].starts_with(m));
    if let Some((_, format)) = found {
        note(&format!(
            "note: {} looks like a {format} image and is copied byte for byte; to import the disk \
             in it, convert it first: qemu-img convert -O raw",
            source.name()
        ));
    }
}

/// A copy that is running.
pub(super) struct Copy {
    session: Session,
    bar: ProgressBar,
    /// Most unanswered requests.
    window: usize,
    /// The volume is new and reads as zeros.
    skip_zeros: bool,
    /// Zeros that were found and not yet sent.
    zeros_at: u64,
    zeros_len: u64,
    data_bytes: u64,
}

impl Copy {
    /// A copy into the volume of the session.
    pub(super) fn new(session: Session, bar: ProgressBar, args: &Import) -> Self {
        Self {
            session,
            bar,
            window: usize::from(args.pace.requests),
            skip_zeros: args.create,
            zeros_at: 0,
            zeros_len: 0,
            data_bytes: 0,
        }
    }

    /// Copies everything and makes it durable; returns the length of the source.
    fn run(&mut self, mut source: Source, args: &Import) -> Outcome<u64> {
        let size_bytes = self.session.size_bytes();
        let piece = PIECE_BYTES.min(self.session.payload_bytes_max());
        // A server with a larger grain than the piece takes a grain at a time.
        let grain = self.session.grain_bytes();
        let mut buffer = vec![0; (piece / grain * grain).max(grain)];
        let mut at = 0;
        loop {
            match source.next(at, grain as u64, &mut buffer)? {
                Stretch::End => break,
                Stretch::Hole(len) => {
                    self.zeros(at, len)?;
                    at += len;
                }
                Stretch::Data(count) => {
                    if size_bytes - at < count as u64 {
                        let volume = &args.volume;
                        let what = format!(
                            "{} is longer than volume \"{volume}\" of {size_bytes} bytes ({})",
                            source.name(),
                            human(size_bytes)
                        );
                        return Err(Failure::new(Exit::Usage, what));
                    }
                    let padded = self.pad(&mut buffer, at, count);
                    self.data(at, &buffer[..padded])?;
                    at += count as u64;
                }
            }
            self.bar.set_position(at);
        }
        if args.zero_rest && !self.skip_zeros {
            let from = at.next_multiple_of(grain as u64);
            self.zeros(from, size_bytes.saturating_sub(from))?;
        }
        self.complete()?;
        // Padding of the last grain is no data of the source.
        self.data_bytes = self.data_bytes.min(at);
        Ok(at)
    }

    /// The end of the source need not be on the server's grid; zeros fill the last grain.
    fn pad(&self, buffer: &mut [u8], at: u64, count: usize) -> usize {
        let padded = count.next_multiple_of(self.session.grain_bytes());
        debug_assert!(at.is_multiple_of(self.session.grain_bytes() as u64));
        buffer[count..padded].fill(0);
        padded
    }

    /// Sends what was noted and makes everything durable.
    pub(super) fn complete(&mut self) -> Outcome<()> {
        self.send_zeros()?;
        self.session.flush()
    }

    /// Ends the connection.
    pub(super) fn close(self) {
        self.bar.finish_and_clear();
        self.session.close();
    }

    /// Copies a piece of at most the server's largest payload; its zeros stay holes.
    pub(super) fn data(&mut self, at: u64, data: &[u8]) -> Outcome<()> {
        let grain = GRAIN_BYTES.max(self.session.grain_bytes());
        for run in runs(data, grain) {
            let run_at = at + run.range.start as u64;
            if run.zero {
                self.zeros(run_at, run.range.len() as u64)?;
            } else {
                self.send_zeros()?;
                self.make_room()?;
                self.data_bytes += run.range.len() as u64;
                self.session.write(run_at, &data[run.range])?;
            }
        }
        Ok(())
    }

    /// Notes zeros; neighbours become one request.
    pub(super) fn zeros(&mut self, at: u64, len: u64) -> Outcome<()> {
        if self.zeros_len > 0 && self.zeros_at + self.zeros_len == at {
            self.zeros_len += len;
            return Ok(());
        }
        self.send_zeros()?;
        (self.zeros_at, self.zeros_len) = (at, len);
        Ok(())
    }

    fn send_zeros(&mut self) -> Outcome<()> {
        let end = self.zeros_at + std::mem::take(&mut self.zeros_len);
        if self.skip_zeros {
            return Ok(());
        }
        // A hole at the end of a file need not end on the server's grid either.
        let grain = self.session.grain_bytes() as u64;
        let end = end.next_multiple_of(grain).min(self.session.size_bytes());
        let by_request = self.session.offers(TransmissionFlags::SEND_WRITE_ZEROES);
        let step = if by_request {
            ZEROS_BYTES_MAX
        } else {
            PIECE_BYTES
                .min(self.session.payload_bytes_max())
                .max(grain as usize) as u64
        };
        while self.zeros_at < end {
            let len = step.min(end - self.zeros_at);
            self.make_room()?;
            if by_request {
                self.session.write_zeroes(self.zeros_at, len)?;
            } else {
                self.session.write(self.zeros_at, &vec![0; len as usize])?;
            }
            self.zeros_at += len;
        }
        Ok(())
    }

    /// Waits for answers until one more request may be sent.
    fn make_room(&mut self) -> Outcome<()> {
        while self.session.in_flight() >= self.window {
            self.session.receive()?;
        }
        Ok(())
    }
}
