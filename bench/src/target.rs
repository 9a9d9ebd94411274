//! The seam between the load loop and what is loaded: an NBD connection or a file.

use std::fmt;
use std::io;
use std::time::Duration;

use anyhow::Result;
use taipan_nbd::Errno;

use crate::workload::Op;

/// Something that takes requests in numbered slots and answers them in any order.
pub(crate) trait Target {
    /// Memory of a free slot: the payload to write, or what an answered read returned.
    fn buffer(&mut self, slot: usize) -> &mut [u8];

    /// Queues a request in a free slot; a write takes the front of the slot's buffer.
    fn submit(&mut self, slot: usize, op: &Op) -> Result<()>;

    /// Sends what is queued, waits for an answer for at most `patience` and appends all there are.
    /// Targets without an executor never wait elsewhere than in system calls.
    async fn turn(&mut self, patience: Duration, answers: &mut Vec<Answer>) -> Result<()>;

    /// Says goodbye; every request has been answered.
    async fn finish(&mut self) -> Result<()>;
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Slot of the request, free again.
    pub(crate) slot: usize,
    /// Success, or why not.
    pub(crate) outcome: Result<(), Refused>,
}

/// A request that was answered with an error.
#[derive(Debug)]
pub(crate) enum Refused {
    /// An error of the NBD protocol.
    Nbd(Errno),
    /// An error of the operating system.
    Os(io::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nbd(errno) => write!(f, "the server answered {errno}"),
            Self::Os(error) => error.fmt(f),
        }
    }
}
