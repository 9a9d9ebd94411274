//! One job of a run: opens its connections, drives its threads, reads back what it wrote.

use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use glommio::{LocalExecutorBuilder, Placement};
use taipan_engine::size;

use crate::file_target::FileTarget;
use crate::glommio_file::GlommioFile;
use crate::glommio_nbd::GlommioNbd;
use crate::inspect::{self, Opened, area, inspect};
use crate::interruption;
use crate::job::{Content, Ending, Pace, drive};
use crate::job_file::NamedJob;
use crate::ledger::{Findings, JobState, Ledger, State};
use crate::nbd_session::Shape;
use crate::nbd_target::NbdTarget;
use crate::options::JobOptions;
use crate::outcome::Interval;
use crate::tally::{Live, Tally};
use crate::target::Target;
use crate::timeline::{Recorded, Recorder, Timeline};
use crate::uri::Address;
use crate::workload::{Op, Spec, Workload};

/// Requests with which written blocks are read back.
const READ_BACK_BYTES: u32 = 256 << 10;

/// What verified runs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checking {
    /// Nothing.
    Off,
    /// Reads of blocks that an earlier run may have written.
    Strangers,
    /// Stamped writes, read back afterwards.
    ReadBack,
    /// Only the reading back, of what an earlier run wrote.
    Earlier,
}

/// A job whose target was looked at.
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) options: JobOptions,
    pub(crate) spec: Spec,
    state: Option<State>,
    checking: Checking,
    request_bytes_max: u32,
    /// One of each thread, until they start.
    opened: Vec<Opened>,
}

/// A job that was measured.
#[derive(Default)]
pub(crate) struct Measured {
    pub(crate) tally: Option<Tally>,
    pub(crate) cpu: Duration,
    pub(crate) elapsed: Duration,
    pub(crate) errors: Vec<String>,
    pub(crate) verified: Option<Findings>,
    pub(crate) intervals: Vec<Interval>,
    states: Vec<JobState>,
    ledgers: Vec<Ledger>,
}

/// What one thread brings home.
struct Brought {
    ending: Ending,
    recorded: Recorded,
    content: Content,
}

/// When the threads of all jobs of a group begin, and what stops them.
#[derive(Clone, Copy)]
pub(crate) struct Begin<'a> {
    pub(crate) start: Instant,
    pub(crate) stop: &'a AtomicBool,
}

impl Measured {
    /// A job that came to nothing.
    pub(crate) fn failed(error: &anyhow::Error) -> Self {
        Self {
            errors: vec![format!("{error:#}")],
            ..Self::default()
        }
    }
}

/// Refuses what cannot be verified.
pub(crate) fn checking(options: &JobOptions) -> Result<Checking> {
    let from_state = options.verify_only && options.state.is_some();
    Ok(match (options.verify.is_some(), options.verify_only) {
        (false, false) => {
            ensure!(options.state.is_none(), "--state needs --verify");
            Checking::Off
        }
        (_, true) => {
            ensure!(
                from_state || options.rw.writes(),
                "--verify-only repeats the options of the run that wrote"
            );
            ensure!(
                from_state || options.runtime.is_none(),
                "how far a run with --runtime came is in its --state FILE"
            );
            Checking::Earlier
        }
        (true, false) if options.rw.writes() => Checking::ReadBack,
        (true, false) if !options.rw.moves_data() => {
            bail!("there is nothing to verify after a trim")
        }
        (true, false) => Checking::Strangers,
    })
}

impl Section {
    /// Looks at the target and opens all connections.
    pub(crate) fn prepare(job: NamedJob) -> Result<Self> {
        let NamedJob { name, options } = job;
        let state = match (&options.state, options.verify_only) {
            (Some(path), true) => Some(State::load(path)?),
            _ => None,
        };
        let checking = checking(&options)?;
        let asked = match &state {
            Some(state) => state.spec.clone(),
            None => options.spec(0),
        };
        let writes = asked.rw.writes() && checking != Checking::Earlier;
        let (abilities, first) = inspect(&options, &asked, writes)?;
        let spec = match &state {
            Some(_) => asked,
            None => options.spec(area(&options, &abilities)?),
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
            spec.request_bytes.max <= abilities.request_bytes_max || !spec.rw.moves_data(),
            "requests of {} are larger than the server takes ({})",
            spec.request_bytes,
            size::human(abilities.request_bytes_max.into())
        );
        let mut opened = vec![first];
        for _ in 1..spec.jobs {
            let changes = spec.rw.writes() || !spec.rw.moves_data();
            opened.push(inspect::open(&options, changes)?);
        }
        Ok(Self {
            name,
            spec,
            state,
            checking,
            request_bytes_max: abilities.request_bytes_max,
            opened,
            options,
        })
    }

    /// Whether there is something to measure, and not only to read back.
    pub(crate) fn measures(&self) -> bool {
        self.checking != Checking::Earlier
    }

    /// Bytes that the threads move, if that ends them.
    pub(crate) fn total_bytes(&self) -> Option<u64> {
        let total = self.spec.job_bytes() * u64::from(self.spec.jobs);
        (!self.options.endless()).then_some(total)
    }

    /// When the measurement begins and when no more requests are sent.
    fn times(&self, start: Instant) -> (Instant, Option<Instant>) {
        let from = start + self.options.ramp_time.unwrap_or_default();
        (from, self.options.runtime.map(|runtime| from + runtime))
    }

    /// Takes the connections; the threads get one each.
    pub(crate) fn take_opened(&mut self) -> Vec<Opened> {
        std::mem::take(&mut self.opened)
    }

    /// Runs all threads to their ends.
    pub(crate) fn measure(
        &self,
        opened: Vec<Opened>,
        lives: &[Live],
        timeline: &Timeline<'_>,
        begin: Begin<'_>,
    ) -> Result<Measured> {
        let brought = thread::scope(|scope| {
            let thread = |(job, (opened, live))| {
                scope.spawn(move || self.thread(opened, job, live, timeline, begin))
            };
            let threads = (0..).zip(opened.into_iter().zip(lives)).map(thread);
            let threads: Vec<_> = threads.collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a job does not panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        let mut measured = Measured::default();
        for Brought {
            ending,
            recorded,
            content,
        } in brought
        {
            measured.elapsed = measured.elapsed.max(recorded.elapsed);
            measured.cpu += recorded.cpu;
            let tally = measured.tally.get_or_insert_with(Tally::new);
            tally.merge(&recorded.tally);
            measured.errors.extend(ending.error);
            measured.states.push(ending.state);
            if let Content::Verified(ledger) = content {
                measured.ledgers.push(ledger);
            }
        }
        Ok(measured)
    }

    fn thread(
        &self,
        opened: Opened,
        job: u32,
        live: &Live,
        timeline: &Timeline<'_>,
        begin: Begin<'_>,
    ) -> Result<Brought> {
        let strangers = self.checking == Checking::Strangers;
        let mut content = match self.checking {
            Checking::Off => Content::Any,
            _ => Content::Verified(Ledger::new(&self.spec, job, strangers)?),
        };
        let (measured_from, deadline) = self.times(begin.start);
        let pace = Pace {
            start: begin.start,
            deadline,
            rate_iops: self.options.rate_iops,
            rate_bytes: self.options.rate,
            end_flush: self.options.end_fsync,
            reply_timeout: self.options.timeout,
            stop: begin.stop,
        };
        let workload = Workload::new(&self.spec, job, self.options.endless());
        let bytes = if self.spec.rw.moves_data() {
            self.spec.request_bytes.max
        } else {
            0
        };
        let mut recorder = Recorder::new(timeline, live, measured_from, deadline);
        recorder.tick(Instant::now());
        let ending = self.with(opened, workload, bytes, &mut content, &mut recorder, pace);
        Ok(Brought {
            ending: ending.unwrap_or_else(|error| Ending::unopened(&error, begin.stop)),
            recorded: recorder.finish(Instant::now()),
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
        recorder: &mut Recorder<'_>,
        pace: Pace<'_>,
    ) -> Result<Ending> {
        let shape = Shape {
            slots: self.options.iodepth as usize,
            bytes_max: bytes as usize,
            fua: self.options.fua,
            keep_data: matches!(content, Content::Verified(_)),
        };
        let run = Run {
            source,
            depth: shape.slots,
            content,
            recorder,
            pace,
        };
        match opened {
            Opened::Nbd(opened) => {
                futures::executor::block_on(run.over(async { NbdTarget::new(opened, shape) }))
            }
            Opened::File(file) => futures::executor::block_on(
                run.over(async { FileTarget::new(file, shape.slots, shape.bytes_max, shape.fua) }),
            ),
            Opened::Later => {
                let executor = LocalExecutorBuilder::new(Placement::Unbound)
                    .make()
                    .map_err(std::io::Error::from)
                    .context("setting up a glommio executor")?;
                match self.options.target()? {
                    Address::File(path) => {
                        let writes = self.spec.rw.writes() && self.measures();
                        executor.run(run.over(GlommioFile::open(path, writes, shape)))
                    }
                    address => {
                        let replies = self.options.replies;
                        executor.run(run.over(GlommioNbd::open(address, replies, shape)))
                    }
                }
            }
        }
    }

    /// Stores how far the job came and checks what it wrote, and what reads returned.
    pub(crate) fn check(&self, measured: &mut Measured) -> Result<()> {
        let mut ledgers = std::mem::take(&mut measured.ledgers);
        if let (Some(path), false) = (&self.options.state, self.options.verify_only) {
            State {
                schema: State::SCHEMA,
                spec: self.spec.clone(),
                jobs: std::mem::take(&mut measured.states),
            }
            .save(path)?;
        }
        if self.checking == Checking::Off {
            return Ok(());
        }
        if self.checking == Checking::Earlier {
            ledgers = self.replayed()?;
        }
        let wanted = self.checking != Checking::Strangers;
        let read_back = measured.errors.is_empty()
            && wanted
            && (self.checking == Checking::Earlier || !interruption::asked());
        let mut findings = Findings {
            cut_short: wanted && !read_back,
            ..Findings::default()
        };
        for ledger in ledgers {
            if !read_back {
                findings.merge(ledger.into_findings());
                continue;
            }
            let opened = inspect::open(&self.options, false);
            let opened = opened.context("connecting again to read back")?;
            let (found, error) = self.read_back(opened, ledger);
            findings.merge(found);
            let error = error.map(|error| format!("reading back: {error}"));
            measured.errors.extend(error);
        }
        measured.verified = Some(findings);
        Ok(())
    }

    fn replayed(&self) -> Result<Vec<Ledger>> {
        let job = |job| {
            let state = self.state.as_ref().map(|s| &s.jobs[job as usize]);
            Ledger::replay(&self.spec, job, state)
        };
        (0..self.spec.jobs).map(job).collect()
    }

    fn read_back(&self, opened: Opened, ledger: Ledger) -> (Findings, Option<String>) {
        let stop = AtomicBool::new(false);
        let bytes = READ_BACK_BYTES.min(self.request_bytes_max);
        let ops = ledger.read_back(bytes);
        let count = ops.len() as u64;
        let start = Instant::now();
        let pace = Pace {
            start,
            deadline: None,
            rate_iops: None,
            rate_bytes: None,
            end_flush: false,
            reply_timeout: self.options.timeout,
            stop: &stop,
        };
        let mut content = Content::Verified(ledger);
        let timeline = Timeline::new(&self.name, Duration::from_secs(3600), None);
        let live = Live::default();
        let mut recorder = Recorder::new(&timeline, &live, start, None);
        let ops = ops.into_iter();
        let ending = self.with(opened, ops, bytes, &mut content, &mut recorder, pace);
        let ending = ending.unwrap_or_else(|error| Ending::unopened(&error, &stop));
        let Content::Verified(ledger) = content else {
            unreachable!("it was made just above")
        };
        let mut findings = ledger.into_findings();
        findings.cut_short = ending.error.is_some() || ending.state.issued < count;
        (findings, ending.error)
    }
}

/// What is driven over whatever target is opened.
struct Run<'a, 'r, S> {
    source: S,
    depth: usize,
    content: &'a mut Content,
    recorder: &'a mut Recorder<'r>,
    pace: Pace<'a>,
}

impl<S: Iterator<Item = Op>> Run<'_, '_, S> {
    async fn over<T: Target>(self, opening: impl Future<Output = Result<T>>) -> Result<Ending> {
        let Self {
            source,
            depth,
            content,
            recorder,
            pace,
        } = self;
        let mut target = opening.await?;
        Ok(drive(&mut target, source, depth, content, recorder, pace).await)
    }
}
