//! What a replay reports when durable data is missing: positions, not guesses.

use std::fmt;

use crate::block::ShardId;
use crate::error::{Error, ErrorKind};
use crate::identity::BatchNum;

/// Problems kept; more are only counted.
const PROBLEMS_MAX: usize = 16;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where in the WAL file, if at a place.
    pub file_offset: Option<u64>,
    /// What.
    pub kind: ProblemKind,
}

/// Kinds of damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// Neither log head can be believed.
    NoHead,
    /// The file is not as long as its head says.
    Length {
        /// What the head says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The device failed to read.
    Unreadable {
        /// Its message.
        error: String,
    },
    /// Batches that were durable are not there.
    Missing {
        /// The first.
        first: BatchNum,
        /// The last.
        last: BatchNum,
    },
    /// A durable batch does not follow from the one before.
    BrokenChain {
        /// The batch.
        batch: BatchNum,
    },
    /// A durable batch's records do not parse.
    Records {
        /// The batch.
        batch: BatchNum,
    },
    /// Something was written by a later writer than the one that starts now.
    FromTheFuture {
        /// Its incarnation.
        incarnation: u64,
    },
    /// The region of a killed process is unusable.
    Region {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ProblemKind::NoHead => write!(f, "neither log head is whole")?,
            ProblemKind::Length { expected, found } => {
                write!(f, "the file has {found} bytes instead of {expected}")?;
            }
            ProblemKind::Unreadable { error } => write!(f, "read error: {error}")?,
            ProblemKind::Missing { first, last } if first == last => {
                write!(f, "batch {first} was durable and is missing or unreadable")?;
            }
            ProblemKind::Missing { first, last } => {
                write!(
                    f,
                    "batches {first} to {last} were durable and are missing or unreadable"
                )?;
            }
            ProblemKind::BrokenChain { batch } => {
                write!(f, "batch {batch} does not continue the one before")?;
            }
            ProblemKind::Records { batch } => write!(f, "batch {batch} has impossible records")?,
            ProblemKind::FromTheFuture { incarnation } => {
                write!(
                    f,
                    "written by incarnation {incarnation}, which wal/state does not know"
                )?;
            }
            ProblemKind::Region { why } => write!(f, "shared-memory region: {why}")?,
        }
        match self.file_offset {
            Some(offset) => write!(f, " (byte {offset})"),
            None => Ok(()),
        }
    }
}

/// Why a shard cannot be replayed.
#[derive(Debug)]
pub struct Damage {
    /// The shard.
    pub shard: ShardId,
    /// What is wrong, at most 16 items.
    pub problems: Vec<Problem>,
    /// Further problems.
    pub more: usize,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the WAL of shard {} is damaged: ", self.shard)?;
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                write!(f, "; ")?;
            }
            write!(f, "{problem}")?;
        }
        if self.more > 0 {
            write!(f, "; and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Damage {}

impl From<Damage> for Error {
    fn from(damage: Damage) -> Self {
        let read_error = |p: &Problem| matches!(p.kind, ProblemKind::Unreadable { .. });
        let only_io = damage.problems.iter().all(read_error);
        let kind = if only_io {
            ErrorKind::Io
        } else {
            ErrorKind::Corrupt
        };
        Self::new(kind, format!("{damage}; nothing was changed")).with_shard(damage.shard)
    }
}

/// Collects problems.
pub(super) struct Problems {
    damage: Damage,
}

impl Problems {
    pub(super) fn new(shard: ShardId) -> Self {
        Self {
            damage: Damage {
                shard,
                problems: Vec::new(),
                more: 0,
            },
        }
    }

    pub(super) fn add(&mut self, file_offset: Option<u64>, kind: ProblemKind) {
        let problem = Problem { file_offset, kind };
        if self.damage.problems.contains(&problem) {
            return;
        }
        if self.damage.problems.len() < PROBLEMS_MAX {
            self.damage.problems.push(problem);
        } else {
            self.damage.more += 1;
        }
    }

    pub(super) fn any(&self) -> bool {
        !self.damage.problems.is_empty()
    }

    pub(super) fn into_damage(self) -> Damage {
        self.damage
    }
}
