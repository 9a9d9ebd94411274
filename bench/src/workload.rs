//! What is asked for and in which order: a pure function of the specification and the seed.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use taipan_engine::size;

use crate::pattern::{Distribution, RequestBytes, Rw};
use crate::places::Places;
use crate::random::SplitMix64;

/// Everything that decides the order and place of requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Kind of workload.
    pub(crate) rw: Rw,
    /// Share of reads in `rw` and `randrw`, in percent.
    pub(crate) read_percent: u8,
    /// Request sizes.
    pub(crate) request_bytes: RequestBytes,
    /// First byte of the area.
    pub(crate) offset: u64,
    /// Bytes of the area; every job has an equal and separate part of it.
    pub(crate) size: u64,
    /// Number of jobs.
    pub(crate) jobs: u32,
    /// A FLUSH after so many writes; 0 for none.
    pub(crate) fsync: u32,
    /// Which places random requests prefer.
    #[serde(default)]
    pub(crate) distribution: Distribution,
    /// Seed of order, offsets and sizes.
    pub(crate) seed: u64,
}

impl Spec {
    /// Bytes of each job's part.
    pub(crate) fn job_bytes(&self) -> u64 {
        let min = u64::from(self.request_bytes.min);
        self.size / u64::from(self.jobs) / min * min
    }

    /// Refuses what cannot be run.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.job_bytes() < u64::from(self.request_bytes.max) {
            bail!(
                "the area of {} is too small for {} job(s) with requests of {}",
                size::human(self.size),
                self.jobs,
                self.request_bytes
            );
        }
        ensure!(self.read_percent <= 100, "--rwmixread is a percentage");
        ensure!(
            self.fsync == 0 || self.rw.writes(),
            "--fsync needs a workload that writes"
        );
        ensure!(
            self.distribution == Distribution::Random || !self.rw.sequential(),
            "--random-distribution needs a random workload"
        );
        Ok(())
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Trim,
    Zeroes,
    Flush,
}

impl Kind {
    /// All kinds, in the order of reports.
    pub(crate) const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::Trim,
        Self::Zeroes,
        Self::Flush,
    ];

    /// Name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Trim => "trim",
            Self::Zeroes => "zeroes",
            Self::Flush => "flush",
        }
    }
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    /// What to do.
    pub(crate) kind: Kind,
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes; 0 for a flush.
    pub(crate) len: u32,
    /// Place in the job's order of requests, from 0.
    pub(crate) sequence: u32,
}

impl Op {
    /// Whether two requests touch a common byte.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.offset + u64::from(other.len)
            && other.offset < self.offset + u64::from(self.len)
    }
}

/// The requests of one job, in order.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    spec: Spec,
    random: SplitMix64,
    places: Places,
    start: u64,
    bytes: u64,
    position: u64,
    moved_bytes: u64,
    writes_since_flush: u32,
    sequence: u32,
    endless: bool,
}

impl Workload {
    /// The requests of job `job`: as many as move its part's bytes once, or without end.
    pub(crate) fn new(spec: &Spec, job: u32, endless: bool) -> Self {
        let bytes = spec.job_bytes();
        Self {
            spec: spec.clone(),
            random: SplitMix64::of(&[spec.seed, job.into()]),
            places: Places::new(
                &spec.distribution,
                (bytes / u64::from(spec.request_bytes.min)).max(1),
            ),
            start: spec.offset + bytes * u64::from(job),
            bytes,
            position: 0,
            moved_bytes: 0,
            writes_since_flush: 0,
            sequence: 0,
            endless,
        }
    }

    /// First byte of this job's part.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    fn pick_kind(&mut self) -> Kind {
        match self.spec.rw {
            Rw::Read | Rw::RandRead => Kind::Read,
            Rw::Write | Rw::RandWrite => Kind::Write,
            Rw::Trim | Rw::RandTrim => Kind::Trim,
            Rw::Zeroes | Rw::RandZeroes => Kind::Zeroes,
            Rw::Mixed | Rw::SequentialMixed => {
                if self.random.below(100) < u64::from(self.spec.read_percent) {
                    Kind::Read
                } else {
                    Kind::Write
                }
            }
        }
    }

    fn number(&mut self) -> Option<u32> {
        let sequence = self.sequence;
        // The largest number is kept out of use so that "number + 1" fits the ledger.
        self.sequence = sequence.checked_add(1)?;
        (self.sequence != u32::MAX).then_some(sequence)
    }
}

impl Iterator for Workload {
    type Item = Op;

    fn next(&mut self) -> Option<Op> {
        let fsync = self.spec.fsync;
        if fsync != 0 && self.writes_since_flush == fsync {
            self.writes_since_flush = 0;
            let sequence = self.number()?;
            return Some(Op {
                kind: Kind::Flush,
                offset: 0,
                len: 0,
                sequence,
            });
        }
        if !self.endless && self.moved_bytes >= self.bytes {
            return None;
        }
        let kind = self.pick_kind();
        let mut len = self.spec.request_bytes.pick(&mut self.random);
        let at = if self.spec.rw.sequential() {
            let at = self.position;
            len = len.min(self.bytes - at);
            self.position = if at + len == self.bytes { 0 } else { at + len };
            at
        } else {
            let min = u64::from(self.spec.request_bytes.min);
            let count = (self.bytes - len) / min + 1;
            min * self.places.pick(&mut self.random, count)
        };
        self.moved_bytes += len;
        if kind == Kind::Write {
            self.writes_since_flush += 1;
        }
        let sequence = self.number()?;
        Some(Op {
            kind,
            offset: self.start + at,
            len: len as u32,
            sequence,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn spec(rw: Rw) -> Spec {
        Spec {
            rw,
            read_percent: 30,
            request_bytes: "4KiB-16KiB".parse().unwrap(),
            offset: 1 << 20,
            size: 1 << 20,
            jobs: 3,
            fsync: 0,
            distribution: Distribution::Random,
            seed: 7,
        }
    }

    #[test]
    fn requests_stay_inside_their_jobs_part_and_on_the_grain() {
        for rw in Rw::value_variants() {
            let spec = spec(*rw);
            for job in 0..3 {
                let bytes = spec.job_bytes();
                let start = spec.offset + u64::from(job) * bytes;
                let ops: Vec<_> = Workload::new(&spec, job, false).collect();
                let moved: u64 = ops.iter().map(|op| u64::from(op.len)).sum();
                assert!((bytes..bytes + 16384).contains(&moved), "{rw}: {moved}");
                for (i, op) in ops.iter().enumerate() {
                    assert_eq!(op.sequence as usize, i);
                    assert_eq!((op.offset % 4096, op.len % 4096), (0, 0), "{rw}");
                    assert!(op.offset >= start && op.offset + u64::from(op.len) <= start + bytes);
                }
            }
        }
    }

    #[test]
    fn a_sequential_job_covers_its_part_once_and_then_begins_again() {
        let spec = spec(Rw::Write);
        let mut at = spec.offset;
        for op in Workload::new(&spec, 0, false) {
            assert_eq!(op.offset, at);
            at += u64::from(op.len);
        }
        assert_eq!(at, spec.offset + spec.job_bytes());
        let again = Workload::new(&spec, 0, true).nth(10_000).unwrap();
        assert!(again.offset < spec.offset + spec.job_bytes());
    }

    #[test]
    fn the_order_depends_on_the_seed_and_on_nothing_else() {
        let first: Vec<_> = Workload::new(&spec(Rw::Mixed), 1, true).take(500).collect();
        let again: Vec<_> = Workload::new(&spec(Rw::Mixed), 1, true).take(500).collect();
        assert_eq!(first, again);
        let other = Spec {
            seed: 8,
            ..spec(Rw::Mixed)
        };
        assert_ne!(
            first,
            Workload::new(&other, 1, true).take(500).collect::<Vec<_>>()
        );
        let reads = first.iter().filter(|op| op.kind == Kind::Read).count();
        assert!(
            (100..200).contains(&reads),
            "{reads} of 500 are reads at 30 %"
        );
    }

    #[test]
    fn a_flush_follows_every_nth_write() {
        let spec = Spec {
            fsync: 4,
            ..spec(Rw::RandWrite)
        };
        let ops: Vec<_> = Workload::new(&spec, 0, true).take(50).collect();
        for (i, op) in ops.iter().enumerate() {
            assert_eq!(op.kind == Kind::Flush, i % 5 == 4, "request {i}");
        }
    }
}
