//! The load loop of one job: keeps requests in flight, times their answers, checks their content.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::interruption;
use crate::ledger::{JobState, Ledger};
use crate::random::SplitMix64;
use crate::target::{Answer, Target};
use crate::timeline::Recorder;
use crate::workload::{Kind, Op};

/// Longest wait for answers before the loop looks at its clock and the stop flag.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);
/// Longest wait for an answer after the interruption of a run.
const INTERRUPTED_MAX: Duration = Duration::from_secs(2);
/// Bytes at the front of every unverified write that differ from write to write.
const SCRAMBLED_BYTES: usize = 16;

/// The FLUSH behind everything; it has no place in the workload's order.
const END_FLUSH: Op = Op {
    kind: Kind::Flush,
    offset: 0,
    len: 0,
    sequence: u32::MAX,
};

/// When to stop and how fast to go.
#[derive(Clone, Copy)]
pub(crate) struct Pace<'a> {
    /// Start of the measurement.
    pub(crate) start: Instant,
    /// No request is sent after this.
    pub(crate) deadline: Option<Instant>,
    /// Most requests and bytes per second of this job; latencies then count from the moment a
    /// request was due.
    pub(crate) rate_iops: Option<f64>,
    pub(crate) rate_bytes: Option<f64>,
    /// Whether a FLUSH follows the answers to all other requests.
    pub(crate) end_flush: bool,
    /// A request unanswered for so long ends the run.
    pub(crate) reply_timeout: Duration,
    /// Set by the first job that fails; the others end as well.
    pub(crate) stop: &'a AtomicBool,
}

/// How a job ended.
pub(crate) struct Ending {
    /// Requests sent and those of them without an answer.
    pub(crate) state: JobState,
    /// The first error.
    pub(crate) error: Option<String>,
}

impl Ending {
    /// A job whose target could not be opened; the others end as well.
    pub(crate) fn unopened(error: &anyhow::Error, stop: &AtomicBool) -> Self {
        stop.store(true, Ordering::Relaxed);
        Self {
            state: JobState::default(),
            error: Some(format!("{error:#}")),
        }
    }
}

/// What writes hold and reads must return.
pub(crate) enum Content {
    /// Anything; reads are not looked at.
    Any,
    /// Stamped blocks.
    Verified(Ledger),
}

struct InFlight {
    op: Op,
    since: Instant,
}

/// A job under way.
struct Job<'a, 'r, T> {
    target: &'a mut T,
    content: &'a mut Content,
    recorder: &'a mut Recorder<'r>,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    state: JobState,
    issued_bytes: u64,
    error: Option<String>,
}

/// Runs `source` against `target` with `depth` requests in flight.
pub(crate) async fn drive<T: Target>(
    target: &mut T,
    source: impl Iterator<Item = Op>,
    depth: usize,
    content: &mut Content,
    recorder: &mut Recorder<'_>,
    pace: Pace<'_>,
) -> Ending {
    if matches!(content, Content::Any) {
        for slot in 0..depth {
            SplitMix64::of(&[slot as u64]).fill(target.buffer(slot));
        }
    }
    let job = Job {
        target,
        content,
        recorder,
        in_flight: (0..depth).map(|_| None).collect(),
        free: (0..depth).rev().collect(),
        state: JobState::default(),
        issued_bytes: 0,
        error: None,
    };
    job.run(source, pace).await
}

impl<T: Target> Job<'_, '_, T> {
    async fn run(mut self, mut source: impl Iterator<Item = Op>, pace: Pace<'_>) -> Ending {
        if let Err(error) = self.turns(&mut source, pace).await {
            self.fail(format!("{error:#}"));
        }
        if self.error.is_some() {
            pace.stop.store(true, Ordering::Relaxed);
        }
        for InFlight { op, .. } in self.in_flight.into_iter().flatten() {
            self.state.unanswered.push(op.sequence);
            if let (Content::Verified(ledger), Kind::Write) = (&mut *self.content, op.kind) {
                ledger.unanswered(&op);
            }
        }
        self.state.unanswered.sort_unstable();
        Ending {
            state: self.state,
            error: self.error,
        }
    }

    async fn turns(&mut self, source: &mut impl Iterator<Item = Op>, pace: Pace<'_>) -> Result<()> {
        let mut answers: Vec<Answer> = Vec::with_capacity(self.in_flight.len());
        let mut held: Option<Op> = None;
        let mut ending = false;
        let mut end_flush = pace.end_flush;
        let mut now = Instant::now();
        let mut interrupted: Option<Instant> = None;
        loop {
            if interruption::asked() {
                interrupted.get_or_insert_with(Instant::now);
            }
            ending |= pace.deadline.is_some_and(|d| now >= d)
                || self.error.is_some()
                || interrupted.is_some()
                || pace.stop.load(Ordering::Relaxed);
            let mut patience = PATIENCE;
            while !ending && let Some(&slot) = self.free.last() {
                let due = self.due(pace, now);
                if due > now {
                    patience = patience.min(due - now);
                    break;
                }
                let Some(op) = held.take().or_else(|| source.next()) else {
                    ending = true;
                    break;
                };
                if self.conflicts(&op) {
                    held = Some(op);
                    break;
                }
                self.submit(slot, op, due)?;
                self.state.issued += 1;
                self.issued_bytes += u64::from(op.len);
            }
            if ending && self.free.len() == self.in_flight.len() {
                if !end_flush || self.error.is_some() {
                    return self.target.finish().await;
                }
                end_flush = false;
                let slot = *self.free.last().expect("all slots are free");
                self.submit(slot, END_FLUSH, now)?;
            }
            self.target.turn(patience, &mut answers).await?;
            now = Instant::now();
            self.recorder.tick(now);
            let silent = answers.is_empty();
            for answer in answers.drain(..) {
                self.answered(&answer, now);
            }
            if silent {
                self.look_for_overdue(now, pace.reply_timeout)?;
            }
            if let Some(at) = interrupted {
                self.look_for_late(now, at)?;
            }
        }
    }

    /// When the next request is to be sent.
    fn due(&self, pace: Pace<'_>, now: Instant) -> Instant {
        let after = |count: u64, rate: f64| Duration::from_secs_f64(count as f64 / rate);
        let requests = pace.rate_iops.map(|rate| after(self.state.issued, rate));
        let bytes = pace.rate_bytes.map(|rate| after(self.issued_bytes, rate));
        // Without a rate both are absent.
        requests.max(bytes).map_or(now, |due| pace.start + due)
    }

    /// Verified requests that overlap are not in flight together: their order would be open.
    fn conflicts(&self, op: &Op) -> bool {
        matches!(self.content, Content::Verified(_))
            && self
                .in_flight
                .iter()
                .flatten()
                .any(|other| other.op.overlaps(op))
    }

    fn submit(&mut self, slot: usize, op: Op, since: Instant) -> Result<()> {
        if op.kind == Kind::Write {
            let payload = &mut self.target.buffer(slot)[..op.len as usize];
            match self.content {
                Content::Verified(ledger) => ledger.stamp(&op, payload),
                Content::Any => scramble(&op, payload),
            }
        }
        self.target.submit(slot, &op)?;
        self.free.pop();
        self.in_flight[slot] = Some(InFlight { op, since });
        Ok(())
    }

    fn answered(&mut self, answer: &Answer, now: Instant) {
        let slot = answer.slot;
        let InFlight { op, since } = self.in_flight[slot].take().expect("only busy slots answer");
        self.free.push(slot);
        if let Err(refused) = &answer.outcome {
            self.state.unanswered.push(op.sequence);
            if let (Content::Verified(ledger), Kind::Write) = (&mut *self.content, op.kind) {
                ledger.unanswered(&op);
            }
            self.fail(format!("{}: {refused}", describe(&op)));
            return;
        }
        self.recorder
            .record(op.kind, op.len, now.saturating_duration_since(since));
        if let Content::Verified(ledger) = self.content {
            match op.kind {
                Kind::Read => ledger.check(&op, &self.target.buffer(slot)[..op.len as usize]),
                Kind::Write => ledger.answered(&op),
                Kind::Trim | Kind::Zeroes | Kind::Flush => {}
            }
        }
    }

    fn look_for_overdue(&self, now: Instant, timeout: Duration) -> Result<()> {
        let Some(InFlight { op, since }) = self.oldest() else {
            return Ok(());
        };
        ensure!(
            now.saturating_duration_since(*since) <= timeout,
            "{}: no answer for {} s",
            describe(op),
            timeout.as_secs_f64()
        );
        Ok(())
    }

    /// With an interruption the patience begins anew, and is short.
    fn look_for_late(&self, now: Instant, interrupted: Instant) -> Result<()> {
        let Some(InFlight { op, since }) = self.oldest() else {
            return Ok(());
        };
        ensure!(
            now.saturating_duration_since(interrupted.max(*since)) <= INTERRUPTED_MAX,
            "{}: no answer for {} s after the interruption",
            describe(op),
            INTERRUPTED_MAX.as_secs_f64()
        );
        Ok(())
    }

    fn oldest(&self) -> Option<&InFlight> {
        self.in_flight.iter().flatten().min_by_key(|f| f.since)
    }

    fn fail(&mut self, error: String) {
        self.error.get_or_insert(error);
    }
}

fn describe(op: &Op) -> String {
    match op.kind {
        Kind::Flush => "FLUSH".to_owned(),
        kind => {
            let name = kind.name().to_uppercase();
            format!("{name} of {} bytes at byte {}", op.len, op.offset)
        }
    }
}

/// Makes no two writes equal, at next to no cost.
fn scramble(op: &Op, payload: &mut [u8]) {
    let mut mark = [0; SCRAMBLED_BYTES];
    mark[..8].copy_from_slice(&op.offset.to_le_bytes());
    mark[8..].copy_from_slice(
        &u64::from(op.sequence)
            .wrapping_mul(0x9e37_79b9)
            .to_le_bytes(),
    );
    let len = payload.len().min(SCRAMBLED_BYTES);
    payload[..len].copy_from_slice(&mark[..len]);
}
