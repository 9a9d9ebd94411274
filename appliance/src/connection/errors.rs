//! Which error a client is sent, and why: the one place where failures meet the protocol. The table
//! for people is in `docs/operations/errors.md`.

use taipan_engine::core::Failure;
use taipan_nbd::protocol::{command, command_flag};
use taipan_nbd::{Errno, ReplyTo, Request};

use super::Session;
use crate::metrics::RequestKind;

/// Why a request is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The engine failed at it.
    Engine(Failure),
    /// It breaks a rule of the protocol or of the export, which gives the errno.
    Refused(Errno),
    /// It is beyond the end, which is EINVAL where nothing is written.
    Beyond,
}

impl Cause {
    /// Why `errno` refuses a request to an export of so many bytes.
    pub(super) fn of_refusal(request: &Request, errno: Errno, size: u64) -> Self {
        let Request { offset, length, .. } = *request;
        let is_beyond = offset > size || length > size - offset;
        let has_range = request.flags & command_flag::PAYLOAD_LEN == 0
            && matches!(
                request.command,
                command::READ | command::TRIM | command::CACHE | command::BLOCK_STATUS
            );
        match errno {
            Errno::Inval if has_range && is_beyond => Self::Beyond,
            errno => Self::Refused(errno),
        }
    }

    /// What the client is sent.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::Engine(Failure::Io) => Errno::Io,
            Self::Engine(Failure::NoSpace) => Errno::NoSpc,
            Self::Engine(Failure::ReadOnly) => Errno::Perm,
            Self::Engine(Failure::Gone) => Errno::Shutdown,
            Self::Refused(errno) => errno,
            Self::Beyond => Errno::Inval,
        }
    }

    /// What people are told, in the reply (if it has room for text) and in the log.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Engine(Failure::Io) => "the log or the backend failed, or no good copy is left",
            Self::Engine(Failure::NoSpace) => "the local log is full and the backend takes nothing",
            Self::Engine(Failure::ReadOnly) => "the volume may only be read",
            Self::Engine(Failure::Gone) => "the volume is not served here any more",
            Self::Refused(Errno::Perm) => "the export is read-only",
            Self::Refused(Errno::NoSpc) | Self::Beyond => "beyond the end of the export",
            Self::Refused(Errno::NotSup) => "only whole blocks are zeroed fast",
            Self::Refused(Errno::Overflow) => "too long for one piece",
            Self::Refused(_) => "the request breaks a rule of the protocol or of the export",
        }
    }

    /// Appends the reply.
    pub(super) fn answer(self, to: ReplyTo, out: &mut Vec<u8>) {
        to.error(self.errno(), self.text(), out);
    }
}

/// A request that is answered with an error.
pub(super) struct Failed {
    /// `None`: no such command.
    pub(super) kind: Option<RequestKind>,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) cause: Cause,
}

impl Failed {
    /// A request that breaks a rule.
    pub(super) fn refused(request: &Request, errno: Errno, size: u64) -> Self {
        Self {
            kind: kind_of(request.command),
            offset: request.offset,
            len: request.length,
            cause: Cause::of_refusal(request, errno, size),
        }
    }
}

impl Session {
    /// Counts a request that is answered with an error, and says so in the log, once in a while.
    pub(super) fn failed(&mut self, failed: &Failed, peer: &str, now_ns: u64) {
        if failed.cause == Cause::Refused(Errno::NotSup) {
            // A client that tries FAST_ZERO wants to know, and that is all.
            return;
        }
        self.tally.failed();
        if let Some(kind) = failed.kind {
            self.counters.failed(kind);
        }
        let Some(unsaid) = self.failures.note(failed.cause, now_ns) else {
            return;
        };
        tracing::warn!(
            volume = self.volume.label(),
            peer,
            request = failed.kind.map_or("unknown", RequestKind::name),
            offset = failed.offset,
            len = failed.len,
            errno = failed.cause.errno().name(),
            cause = failed.cause.text(),
            unsaid,
            "request failed"
        );
    }
}

fn kind_of(number: u16) -> Option<RequestKind> {
    Some(match number {
        command::READ => RequestKind::Read,
        command::WRITE => RequestKind::Write,
        command::FLUSH => RequestKind::Flush,
        command::TRIM => RequestKind::Trim,
        command::CACHE => RequestKind::Cache,
        command::WRITE_ZEROES => RequestKind::Zero,
        command::BLOCK_STATUS => RequestKind::Status,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = include_str!("../../../docs/operations/errors.md");

    /// The rows of the table for people: errno, and what stands in the log.
    fn rows() -> Vec<(&'static str, &'static str)> {
        let cells = |line: &'static str| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            Some((cells.next()?, cells.next()?.trim_matches('`')))
        };
        let rows = TABLE.lines().filter(|line| line.starts_with("| E"));
        rows.map(|line| cells(line).expect("two cells")).collect()
    }

    #[test]
    fn what_is_beyond_the_end_is_said_to_be() {
        let cause = |command, flags, offset, length| {
            let request = Request {
                flags,
                command,
                cookie: 1,
                offset,
                length,
            };
            Cause::of_refusal(&request, Errno::Inval, 1000)
        };
        let rule = Cause::Refused(Errno::Inval);
        let rows = [
            (cause(command::READ, 0, 999, 2), Cause::Beyond),
            (cause(command::TRIM, 0, u64::MAX, 1), Cause::Beyond),
            (cause(command::CACHE, 0, 0, u64::MAX), Cause::Beyond),
            (cause(command::BLOCK_STATUS, 0, 1001, 0), Cause::Beyond),
            (cause(command::READ, 64, 998, 2), rule),
            (cause(command::FLUSH, 64, 2000, 2), rule),
            (cause(99, 0, 2000, 2), rule),
        ];
        for (number, (told, expected)) in rows.into_iter().enumerate() {
            assert_eq!(told, expected, "{number}");
        }
    }

    #[test]
    fn the_table_for_people_has_each_cause_with_its_errno_and_no_other() {
        let failures = [
            Failure::Io,
            Failure::NoSpace,
            Failure::ReadOnly,
            Failure::Gone,
        ];
        // What `taipan_nbd` refuses with; ENOMEM, ESHUTDOWN and EIO are not among them.
        let refusals = [
            Errno::Perm,
            Errno::Inval,
            Errno::NoSpc,
            Errno::Overflow,
            Errno::NotSup,
        ];
        let causes = failures.map(Cause::Engine).into_iter();
        let causes = causes
            .chain(refusals.map(Cause::Refused))
            .chain([Cause::Beyond]);
        let mut sent: Vec<_> = causes.map(|c| (c.errno().name(), c.text())).collect();
        let mut told = rows();
        sent.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, sent);
    }
}
