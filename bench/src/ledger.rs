//! What every block of a job's part must hold, and the state file that carries it to a later run.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::stamp::{GRAIN_BYTES_MIN, Mismatch, Stamper};
use crate::workload::{Kind, Op, Spec, Workload};

/// Largest verified block in bytes; larger requests hold several.
const GRAIN_BYTES_MAX: u32 = 4096;
/// Most blocks of one job that are kept track of (4 bytes each).
const BLOCKS_MAX: u64 = 1 << 28;
/// Most mismatches that are described one by one.
const SAMPLES_MAX: usize = 10;

/// The verified block for requests of these bytes: their greatest common divisor with 4 KiB.
pub(crate) fn grain_bytes(request_bytes_min: u32) -> Result<u32> {
    let grain = 1
        << request_bytes_min
            .trailing_zeros()
            .min(GRAIN_BYTES_MAX.trailing_zeros());
    ensure!(
        grain >= GRAIN_BYTES_MIN,
        "--verify needs request sizes that are multiples of {GRAIN_BYTES_MIN} bytes"
    );
    Ok(grain)
}

/// Result of checking blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// Blocks compared with what they must hold.
    pub(crate) blocks_checked: u64,
    /// Of these, blocks that hold something else.
    pub(crate) blocks_bad: u64,
    /// The first of these, described.
    pub(crate) samples: Vec<String>,
    /// Whether some of what was to be read back was not.
    pub(crate) cut_short: bool,
}

impl Findings {
    /// Adds the findings of another job.
    pub(crate) fn merge(&mut self, other: Self) {
        self.blocks_checked += other.blocks_checked;
        self.blocks_bad += other.blocks_bad;
        self.samples.extend(other.samples);
        self.samples.truncate(SAMPLES_MAX);
        self.cut_short |= other.cut_short;
    }

    fn bad(&mut self, sample: impl FnOnce() -> String) {
        self.blocks_bad += 1;
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(sample());
        }
    }
}

/// What the blocks of one job's part must hold. Requests that overlap are never in flight together,
/// so that at most one write of a block is unanswered, and it is the last.
pub(crate) struct Ledger {
    stamper: Stamper,
    start: u64,
    grain: u64,
    /// Sequence number + 1 of the last answered write; 0 for none.
    answered: Vec<u32>,
    /// Blocks of unanswered writes with their sequence numbers, sorted.
    unanswered: Vec<(u64, u32)>,
    /// Blocks without an answered write hold zeros or any stamp of the right place.
    strangers: bool,
    findings: Findings,
}

impl Ledger {
    /// The empty ledger of job `job`. With `strangers` blocks that this run has not written are
    /// checked as well: they hold zeros or a stamp of the same seed.
    pub(crate) fn new(spec: &Spec, job: u32, strangers: bool) -> Result<Self> {
        let grain = u64::from(grain_bytes(spec.request_bytes.min)?);
        let blocks = spec.job_bytes() / grain;
        ensure!(
            blocks <= BLOCKS_MAX,
            "--verify keeps track of at most {BLOCKS_MAX} blocks a job"
        );
        Ok(Self {
            stamper: Stamper::new(spec.seed),
            start: Workload::new(spec, job, false).start(),
            grain,
            answered: vec![0; blocks as usize],
            unanswered: Vec::new(),
            strangers,
            findings: Findings::default(),
        })
    }

    /// The ledger after job `job` of an earlier run: all of it, or as `state` tells.
    pub(crate) fn replay(spec: &Spec, job: u32, state: Option<&JobState>) -> Result<Self> {
        let mut ledger = Self::new(spec, job, false)?;
        let issued = state.map_or(u64::MAX, |s| s.issued);
        let ops = Workload::new(spec, job, state.is_some()).take(issued.try_into()?);
        for op in ops.filter(|op| op.kind == Kind::Write) {
            if state.is_some_and(|s| s.unanswered.binary_search(&op.sequence).is_ok()) {
                ledger.unanswered(&op);
            } else {
                ledger.answered(&op);
            }
        }
        Ok(ledger)
    }

    fn blocks(&self, op: &Op) -> std::ops::Range<usize> {
        let first = ((op.offset - self.start) / self.grain) as usize;
        first..first + (u64::from(op.len) / self.grain) as usize
    }

    /// Fills the payload of a write.
    pub(crate) fn stamp(&self, op: &Op, payload: &mut [u8]) {
        for (i, block) in payload.chunks_exact_mut(self.grain as usize).enumerate() {
            self.stamper
                .write(block, op.offset + i as u64 * self.grain, op.sequence);
        }
    }

    /// A write was answered.
    pub(crate) fn answered(&mut self, op: &Op) {
        let blocks = self.blocks(op);
        self.answered[blocks].fill(op.sequence + 1);
    }

    /// A write was sent but not answered: its blocks hold what it wrote or what they held before.
    pub(crate) fn unanswered(&mut self, op: &Op) {
        let blocks = self.blocks(op);
        self.unanswered
            .extend(blocks.map(|block| (block as u64, op.sequence)));
        self.unanswered.sort_unstable();
    }

    /// Compares what a read returned.
    pub(crate) fn check(&mut self, op: &Op, data: &[u8]) {
        let first = self.blocks(op).start;
        for (i, block) in data.chunks_exact(self.grain as usize).enumerate() {
            self.check_block(first + i, block);
        }
    }

    fn check_block(&mut self, index: usize, block: &[u8]) {
        let wanted = self.answered[index].checked_sub(1);
        let offset = self.start + index as u64 * self.grain;
        if wanted.is_none() && !self.strangers {
            return;
        }
        self.findings.blocks_checked += 1;
        let found = self.stamper.read(block, offset);
        if (found.is_ok() && found.ok() == wanted)
            || (wanted.is_none() && matches!(found, Ok(_) | Err(Mismatch::Zeros)))
            || found.is_ok_and(|s| self.may_hold(index as u64, s))
        {
            return;
        }
        self.findings.bad(|| {
            let wanted = wanted.map_or_else(|| "a stamp or zeros".into(), |s| format!("write {s}"));
            let found = match found {
                Ok(sequence) => format!("write {sequence}"),
                Err(mismatch) => mismatch.to_string(),
            };
            format!("block at byte {offset}: expected {wanted}, found {found}")
        });
    }

    fn may_hold(&self, block: u64, sequence: u32) -> bool {
        self.unanswered.binary_search(&(block, sequence)).is_ok()
    }

    /// Reads that cover every block with an answered write, each at most `bytes_max` long.
    pub(crate) fn read_back(&self, bytes_max: u32) -> Vec<Op> {
        let most = (u64::from(bytes_max) / self.grain).max(1) as usize;
        let mut ops = Vec::new();
        let mut at = 0;
        while at < self.answered.len() {
            let run = self.answered[at..]
                .iter()
                .take(most)
                .take_while(|&&s| s != 0)
                .count();
            if run > 0 {
                ops.push(Op {
                    kind: Kind::Read,
                    offset: self.start + at as u64 * self.grain,
                    len: (run as u64 * self.grain) as u32,
                    sequence: 0,
                });
            }
            at += run.max(1);
        }
        ops
    }

    /// What was found so far.
    pub(crate) fn into_findings(self) -> Findings {
        self.findings
    }
}

/// How far one job came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobState {
    /// Requests sent, in the order of the workload.
    pub(crate) issued: u64,
    /// Sequence numbers of those without an answer or answered with an error, sorted.
    pub(crate) unanswered: Vec<u32>,
}

/// How far a run came: enough for another process to know every block that must be there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Version of this file, [`State::SCHEMA`].
    pub(crate) schema: u32,
    /// The workload.
    pub(crate) spec: Spec,
    /// One entry a job.
    pub(crate) jobs: Vec<JobState>,
}

impl State {
    /// Version that is written and read.
    pub(crate) const SCHEMA: u32 = 1;

    /// Reads a state file.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the state file {}", path.display()))?;
        let state: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a state file of this version", path.display()))?;
        ensure!(
            state.schema == Self::SCHEMA,
            "state file of schema {}",
            state.schema
        );
        state.spec.validate()?;
        ensure!(
            state.jobs.len() == state.spec.jobs as usize,
            "state file lacks jobs"
        );
        ensure!(
            state.jobs.iter().all(|j| j.unanswered.is_sorted()),
            "state file is not sorted"
        );
        Ok(state)
    }

    /// Writes the state file.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::{Distribution, Rw};

    fn spec() -> Spec {
        Spec {
            rw: Rw::RandWrite,
            read_percent: 0,
            request_bytes: "4KiB-16KiB".parse().unwrap(),
            offset: 8192,
            size: 256 << 10,
            jobs: 1,
            fsync: 3,
            distribution: Distribution::Random,
            seed: 4,
        }
    }

    /// A disk image on which the first `issued` requests took effect, but for those in `lost`.
    fn image(spec: &Spec, issued: usize, lost: &[u32]) -> Vec<u8> {
        let ledger = Ledger::new(spec, 0, false).unwrap();
        let mut disk = vec![0; (spec.offset + spec.size) as usize];
        for op in Workload::new(spec, 0, true)
            .take(issued)
            .filter(|o| o.kind == Kind::Write)
        {
            if !lost.contains(&op.sequence) {
                let at = op.offset as usize;
                ledger.stamp(&op, &mut disk[at..at + op.len as usize]);
            }
        }
        disk
    }

    fn verify(mut ledger: Ledger, disk: &[u8]) -> Findings {
        for op in ledger.read_back(65536) {
            let at = op.offset as usize;
            ledger.check(&op, &disk[at..at + op.len as usize]);
        }
        ledger.into_findings()
    }

    #[test]
    fn a_later_run_knows_what_every_block_must_hold() {
        let spec = spec();
        let issued = Workload::new(&spec, 0, false).count();
        let findings = verify(
            Ledger::replay(&spec, 0, None).unwrap(),
            &image(&spec, issued, &[]),
        );
        assert_eq!(findings.blocks_bad, 0, "{:?}", findings.samples);
        assert!(findings.blocks_checked > 30);
        let other = Spec {
            seed: 5,
            ..spec.clone()
        };
        let findings = verify(
            Ledger::replay(&other, 0, None).unwrap(),
            &image(&spec, issued, &[]),
        );
        assert_eq!(findings.blocks_bad, findings.blocks_checked);
    }

    #[test]
    fn a_lost_answered_write_is_found_and_a_lost_unanswered_one_is_forgiven() {
        let spec = spec();
        let all: Vec<Op> = Workload::new(&spec, 0, true).take(40).collect();
        let last = all
            .iter()
            .rfind(|o| o.kind == Kind::Write)
            .unwrap()
            .sequence;
        let disk = image(&spec, 40, &[last]);
        let strict = JobState {
            issued: 40,
            unanswered: vec![],
        };
        let findings = verify(Ledger::replay(&spec, 0, Some(&strict)).unwrap(), &disk);
        assert!(findings.blocks_bad > 0);
        assert!(findings.samples[0].contains(&format!("expected write {last}")));
        let lenient = JobState {
            issued: 40,
            unanswered: vec![last],
        };
        for disk in [disk, image(&spec, 40, &[])] {
            let findings = verify(Ledger::replay(&spec, 0, Some(&lenient)).unwrap(), &disk);
            assert_eq!(findings.blocks_bad, 0, "{:?}", findings.samples);
        }
    }

    #[test]
    fn the_read_back_covers_the_written_blocks_and_no_others() {
        let spec = spec();
        let mut ledger = Ledger::new(&spec, 0, false).unwrap();
        for (offset, len) in [(8192, 4096), (8192 + 65536, 16384)] {
            ledger.answered(&Op {
                kind: Kind::Write,
                offset,
                len,
                sequence: 0,
            });
        }
        let reads: Vec<_> = ledger
            .read_back(8192)
            .iter()
            .map(|o| (o.offset, o.len))
            .collect();
        assert_eq!(reads, [(8192, 4096), (73728, 8192), (81920, 8192)]);
    }

    #[test]
    fn the_grain_divides_every_request() {
        for (request, grain) in [(4096, 4096), (512, 512), (6144, 2048), (1 << 20, 4096)] {
            assert_eq!(grain_bytes(request).unwrap(), grain);
        }
        assert!(grain_bytes(100).is_err());
    }
}
