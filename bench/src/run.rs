//! One run: checks what is asked against the target, starts the jobs, reads back, reports.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use taipan_engine::size;
use taipan_nbd::{ClientExport, HeaderStyle, TransmissionFlags};

use crate::cli::RunArgs;
use crate::connection::Connection;
use crate::file_target::{self, Access, FileTarget};
use crate::job::{Content, Ending, Pace, drive};
use crate::ledger::{Findings, JobState, Ledger, State};
use crate::nbd_target::NbdTarget;
use crate::progress::{Progress, watch};
use crate::report::Report;
use crate::tally::{Live, Tally, process_cpu};
use crate::uri::Address;
use crate::workload::{Op, RequestBytes, Spec, Workload};

/// Requests with which written blocks are read back.
const READ_BACK_BYTES: u32 = 256 << 10;

/// An opened target of one job.
enum Opened {
    Nbd((OwnedFd, HeaderStyle)),
    File(Arc<File>),
}

/// What a target can take.
struct Abilities {
    bytes: u64,
    request_bytes_max: u32,
}

/// What verified runs do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checking {
    /// Nothing.
    Off,
    /// Reads of blocks that an earlier run may have written.
    Strangers,
    /// Stamped writes, read back afterwards.
    ReadBack,
    /// Only the reading back, of what an earlier run wrote.
    Earlier,
}

/// Everything the threads of a run share.
struct Plan<'a> {
    args: &'a RunArgs,
    spec: Spec,
    state: Option<State>,
    checking: Checking,
    request_bytes_max: u32,
    progress: Progress,
}

/// What one job brings home.
struct Brought {
    ending: Ending,
    tally: Tally,
    content: Content,
}

/// Runs what `args` ask for.
pub(crate) fn run(args: &RunArgs) -> Result<Report> {
    let state = match (&args.state, args.verify_only) {
        (Some(path), true) => Some(State::load(path)?),
        _ => None,
    };
    let checking = checking(args)?;
    let spec = match &state {
        Some(state) => state.spec.clone(),
        None => args.spec(0),
    };
    let (abilities, first) = inspect(args, &spec, checking)?;
    let spec = match &state {
        Some(_) => spec,
        None => args.spec(area(args, &abilities)?),
    };
    spec.validate()?;
    ensure!(
        spec.offset
            .checked_add(spec.size)
            .is_some_and(|end| end <= abilities.bytes),
        "the area ends behind the target's {}",
        size::human(abilities.bytes)
    );
    ensure!(
        spec.request_bytes.max <= abilities.request_bytes_max || spec.rw.trims(),
        "requests of {} are larger than the server takes ({})",
        spec.request_bytes,
        size::human(abilities.request_bytes_max.into())
    );
    let request_bytes_max = abilities.request_bytes_max;
    let progress = Progress::new(args.progress);
    let plan = Plan {
        args,
        spec,
        state,
        checking,
        request_bytes_max,
        progress,
    };
    plan.execute(first)
}

fn checking(args: &RunArgs) -> Result<Checking> {
    let from_state = args.verify_only && args.state.is_some();
    Ok(match (args.verify.is_some(), args.verify_only) {
        (false, false) => {
            ensure!(args.state.is_none(), "--state needs --verify");
            Checking::Off
        }
        (_, true) => {
            ensure!(
                from_state || args.rw.writes(),
                "--verify-only repeats the options of the run that wrote"
            );
            ensure!(
                from_state || args.runtime.is_none(),
                "how far a run with --runtime came is in its --state FILE"
            );
            Checking::Earlier
        }
        (true, false) if args.rw.writes() => Checking::ReadBack,
        (true, false) if args.rw.trims() => bail!("there is nothing to verify after a trim"),
        (true, false) => Checking::Strangers,
    })
}

/// Opens the target once, to see what it can do.
fn inspect(args: &RunArgs, spec: &Spec, checking: Checking) -> Result<(Abilities, Opened)> {
    let writes = spec.rw.writes() && checking != Checking::Earlier;
    let trims = spec.rw.trims();
    match &args.target {
        Address::File(path) => {
            ensure!(!trims, "trim of a file is not supported");
            let access = match (writes, args.size) {
                (true, Some(_)) => Access::Create,
                (true, None) => Access::Write,
                (false, _) => Access::Read,
            };
            let (file, bytes) = file_target::open(path, access)?;
            let bytes = lay_out(args, path, bytes, writes)?;
            let request_bytes_max = crate::workload::REQUEST_BYTES_MAX;
            Ok((
                Abilities {
                    bytes,
                    request_bytes_max,
                },
                Opened::File(Arc::new(file)),
            ))
        }
        address => {
            let Connection { socket, export } = Connection::open(address, args.replies)?;
            let sizes = export.block_sizes;
            let max = sizes.map_or(32 << 20, |s| s.maximum_payload);
            check_flags(args, &export, writes, trims)?;
            if let Some(sizes) = sizes {
                check_alignment(&spec.request_bytes, spec.offset, sizes.minimum)?;
            }
            Ok((
                Abilities {
                    bytes: export.size,
                    request_bytes_max: max,
                },
                Opened::Nbd((socket, export.headers)),
            ))
        }
    }
}

fn check_flags(args: &RunArgs, export: &ClientExport, writes: bool, trims: bool) -> Result<()> {
    let can = |flag| export.flags.contains(flag);
    let changes = writes || trims;
    ensure!(
        !(can(TransmissionFlags::READ_ONLY) && changes),
        "the export is read-only"
    );
    ensure!(
        !trims || can(TransmissionFlags::SEND_TRIM),
        "the export offers no TRIM"
    );
    let flushes = (args.fsync > 0 || args.end_fsync) && writes;
    ensure!(
        !flushes || can(TransmissionFlags::SEND_FLUSH),
        "the export offers no FLUSH"
    );
    let fua = args.fua && writes;
    ensure!(
        !fua || can(TransmissionFlags::SEND_FUA),
        "the export offers no FUA"
    );
    let agreeing = args.numjobs > 1 && (flushes || args.verify.is_some());
    ensure!(
        !agreeing || can(TransmissionFlags::CAN_MULTI_CONN),
        "the export does not promise that its connections agree (CAN_MULTI_CONN); use --numjobs 1"
    );
    Ok(())
}

fn check_alignment(request_bytes: &RequestBytes, offset: u64, minimum: u32) -> Result<()> {
    let aligned =
        request_bytes.min.is_multiple_of(minimum) && offset.is_multiple_of(u64::from(minimum));
    ensure!(
        aligned,
        "the export takes multiples of {minimum} bytes only"
    );
    Ok(())
}

/// Makes a file long enough for the run; its size in bytes.
fn lay_out(args: &RunArgs, path: &Path, bytes: u64, writes: bool) -> Result<u64> {
    let wanted = args.offset + args.size.map_or(0, |size| size.0);
    if wanted <= bytes || !writes {
        ensure!(
            bytes > 0,
            "{} is empty; --size says how large to make it",
            path.display()
        );
        return Ok(bytes);
    }
    eprintln!(
        "laying out {} up to {}",
        path.display(),
        size::human(wanted)
    );
    file_target::lay_out(path, bytes, wanted)?;
    Ok(wanted)
}

/// Bytes of the area.
fn area(args: &RunArgs, abilities: &Abilities) -> Result<u64> {
    let rest = abilities.bytes.checked_sub(args.offset).with_context(|| {
        format!(
            "--offset lies behind the target's {}",
            size::human(abilities.bytes)
        )
    })?;
    Ok(args.size.map_or(rest, |size| size.0))
}

impl Plan<'_> {
    fn execute(&self, first: Opened) -> Result<Report> {
        let mut opened = vec![first];
        for _ in 1..self.spec.jobs {
            opened.push(self.open()?);
        }
        let stop = AtomicBool::new(false);
        let lives: Vec<Live> = opened.iter().map(|_| Live::default()).collect();
        let mut report = Report::new(self.args, &self.spec);
        let mut brought = Vec::new();
        if self.checking != Checking::Earlier {
            let (cpu, start) = (process_cpu(), Instant::now());
            brought = self.jobs(opened, &lives, &stop, start)?;
            report.measured(start.elapsed(), process_cpu().saturating_sub(cpu));
            opened = Vec::new();
        }
        let mut ledgers = Vec::new();
        let mut states = Vec::new();
        for Brought {
            ending,
            tally,
            content,
        } in brought
        {
            report.add(&tally, ending.error);
            states.push(ending.state);
            if let Content::Verified(ledger) = content {
                ledgers.push(ledger);
            }
        }
        if let (Some(path), false) = (&self.args.state, self.args.verify_only) {
            self.save_state(path, states)?;
        }
        if self.checking == Checking::Earlier {
            ledgers = self.replayed()?;
        }
        if self.checking != Checking::Off {
            let read_back = !report.failed() && self.checking != Checking::Strangers;
            self.check(ledgers, opened, read_back, &mut report)?;
        }
        Ok(report)
    }

    fn save_state(&self, path: &Path, jobs: Vec<JobState>) -> Result<()> {
        State {
            schema: State::SCHEMA,
            spec: self.spec.clone(),
            jobs,
        }
        .save(path)
    }

    fn replayed(&self) -> Result<Vec<Ledger>> {
        let job = |job| {
            let state = self.state.as_ref().map(|s| &s.jobs[job as usize]);
            Ledger::replay(&self.spec, job, state)
        };
        (0..self.spec.jobs).map(job).collect()
    }

    fn open(&self) -> Result<Opened> {
        match &self.args.target {
            Address::File(path) => {
                let access = if self.spec.rw.writes() {
                    Access::Write
                } else {
                    Access::Read
                };
                let (file, _) = file_target::open(path, access)?;
                Ok(Opened::File(Arc::new(file)))
            }
            address => {
                let Connection { socket, export } = Connection::open(address, self.args.replies)?;
                Ok(Opened::Nbd((socket, export.headers)))
            }
        }
    }

    fn jobs(
        &self,
        opened: Vec<Opened>,
        lives: &[Live],
        stop: &AtomicBool,
        start: Instant,
    ) -> Result<Vec<Brought>> {
        let pace = Pace {
            start,
            deadline: self.args.runtime.map(|runtime| start + runtime),
            rate: self.args.rate.map(|rate| rate / f64::from(self.spec.jobs)),
            end_flush: self.args.end_fsync,
            reply_timeout: self.args.timeout,
            stop,
        };
        thread::scope(|scope| {
            let handles: Vec<_> = (0..)
                .zip(opened.into_iter().zip(lives))
                .map(|(job, (opened, live))| scope.spawn(move || self.job(opened, job, live, pace)))
                .collect();
            let endless = self.args.runtime.is_some();
            let total = (!endless).then(|| self.spec.job_bytes() * u64::from(self.spec.jobs));
            watch(&self.progress, lives, total, || {
                handles.iter().all(|h| h.is_finished())
            });
            handles
                .into_iter()
                .map(|h| h.join().expect("a job does not panic"))
                .collect()
        })
    }

    fn job(&self, opened: Opened, job: u32, live: &Live, pace: Pace<'_>) -> Result<Brought> {
        let mut content = match self.checking {
            Checking::Off => Content::Any,
            checking => Content::Verified(Ledger::new(
                &self.spec,
                job,
                checking == Checking::Strangers,
            )?),
        };
        let workload = Workload::new(&self.spec, job, self.args.runtime.is_some());
        let bytes = if self.spec.rw.trims() {
            0
        } else {
            self.spec.request_bytes.max
        };
        let mut tally = Tally::new();
        let ending = self.with(
            opened,
            workload,
            bytes,
            &mut content,
            (&mut tally, live),
            pace,
        )?;
        Ok(Brought {
            ending,
            tally,
            content,
        })
    }

    /// Drives requests from `source` over an opened target.
    fn with(
        &self,
        opened: Opened,
        source: impl Iterator<Item = Op>,
        bytes: u32,
        content: &mut Content,
        counts: (&mut Tally, &Live),
        pace: Pace<'_>,
    ) -> Result<Ending> {
        let (depth, bytes) = (self.args.iodepth as usize, bytes as usize);
        let fua = self.args.fua;
        match opened {
            Opened::Nbd(opened) => {
                let keep = matches!(content, Content::Verified(_));
                let mut target = NbdTarget::new(opened, depth, bytes, fua, keep)?;
                Ok(drive(&mut target, source, depth, content, counts, pace))
            }
            Opened::File(file) => {
                let mut target = FileTarget::new(file, depth, bytes, fua)?;
                Ok(drive(&mut target, source, depth, content, counts, pace))
            }
        }
    }

    /// Reads the written blocks back, one job after the other, and adds all findings.
    fn check(
        &self,
        ledgers: Vec<Ledger>,
        opened: Vec<Opened>,
        read_back: bool,
        report: &mut Report,
    ) -> Result<()> {
        let mut opened = opened.into_iter();
        let mut findings = Findings::default();
        for ledger in ledgers {
            if !read_back {
                findings.merge(ledger.into_findings());
                continue;
            }
            let connection = match opened.next() {
                Some(connection) => connection,
                None => self.open().context("connecting again to read back")?,
            };
            let (found, error) = self.read_back(connection, ledger)?;
            findings.merge(found);
            report.read_back(error);
        }
        report.verified(findings);
        Ok(())
    }

    fn read_back(&self, opened: Opened, ledger: Ledger) -> Result<(Findings, Option<String>)> {
        let stop = AtomicBool::new(false);
        let bytes = READ_BACK_BYTES.min(self.request_bytes_max);
        let ops = ledger.read_back(bytes);
        let pace = Pace {
            start: Instant::now(),
            deadline: None,
            rate: None,
            end_flush: false,
            reply_timeout: self.args.timeout,
            stop: &stop,
        };
        let mut content = Content::Verified(ledger);
        let (mut tally, live) = (Tally::new(), Live::default());
        let counts = (&mut tally, &live);
        let ending = self.with(opened, ops.into_iter(), bytes, &mut content, counts, pace)?;
        let Content::Verified(ledger) = content else {
            unreachable!("it was made just above")
        };
        Ok((ledger.into_findings(), ending.error))
    }
}
