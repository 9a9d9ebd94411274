//! Requests that wait because their volume has limits (`iops`, `bandwidth`). They wait in the
//! receive buffer, so a connection has one turn at most, and all of a volume take turns.

use taipan_nbd::{Command, Op};

use super::requests::CACHE_BYTES_MAX;
use super::{Connection, Phase, Surroundings};
use crate::throttle::Turn;

/// How far the next request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Toll {
    /// It was not looked at, or there are no limits.
    #[default]
    Unknown,
    /// It has its turn later.
    Waits { turn: Turn, since_ns: u64 },
    /// It may begin whenever the rest of it is there.
    Paid,
}

impl Connection {
    /// Whether the limits of the volume let a request begin now.
    #[inline]
    pub(super) fn may_begin(&mut self, command: &Command, around: &Surroundings<'_>) -> bool {
        let Phase::Transmission(session) = &self.phase else {
            return false;
        };
        if self.toll == Toll::Unknown && !session.volume.throttle.is_on() {
            return true;
        }
        self.await_turn(command, around.now_ns)
    }

    fn await_turn(&mut self, command: &Command, now_ns: u64) -> bool {
        let (Some(volume), Some(bytes)) = (self.volume(), bytes_of(command)) else {
            return true;
        };
        let throttle = &volume.throttle;
        let (turn, since_ns) = match self.toll {
            Toll::Paid => return true,
            Toll::Waits { turn, since_ns } if throttle.stands(&turn) => (turn, since_ns),
            // Under other limits it counts anew.
            Toll::Waits { since_ns, .. } => (throttle.take(bytes, now_ns), since_ns),
            Toll::Unknown => (throttle.take(bytes, now_ns), now_ns),
        };
        if turn.at_ns > now_ns {
            self.toll = Toll::Waits { turn, since_ns };
            return false;
        }
        if since_ns < now_ns {
            throttle.delayed(now_ns - since_ns);
        }
        self.toll = Toll::Paid;
        true
    }

    /// When a request that waits for that has its turn, unless the limits change.
    #[inline]
    pub fn turn_ns(&self) -> Option<u64> {
        match self.toll {
            Toll::Waits { turn, .. } => Some(turn.at_ns),
            Toll::Unknown | Toll::Paid => None,
        }
    }
}

/// What counts as bytes of a request; `None`: it has no limits.
fn bytes_of(command: &Command) -> Option<u64> {
    Some(match command {
        Command::Read { len, .. } | Command::Op(Op::Write { len, .. }) => u64::from(*len),
        Command::Op(Op::Cache { len, .. }) => (*len).min(CACHE_BYTES_MAX),
        Command::Op(Op::Trim { .. } | Op::Zero { .. }) => 0,
        Command::Status(_) | Command::StatusPayload { .. } => 0,
        Command::Op(Op::Flush | Op::Disconnect | Op::Read { .. }) => return None,
    })
}
