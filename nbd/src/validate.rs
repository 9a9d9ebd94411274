//! The one place that decides which request is served and which errno the others get.

use crate::errno::Errno;
use crate::export::{ExportInfo, PAYLOAD_BYTES_ACCEPTED, TransmissionFlags};
use crate::protocol::{command, command_flag};
use crate::request::RequestHeader;
use crate::wide_request::Request;

/// A request that may be served. Ranges lie inside the export; a length of zero is to be answered
/// with success and no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Bring the range nearer; advisory.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Finish all requests, send their replies, close. No reply to this one.
    Disconnect,
    /// Make durable what was answered before, on any connection.
    Flush,
    /// Send the content of the range.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`PAYLOAD_BYTES_ACCEPTED`].
        len: u32,
    },
    /// Give the range up; it reads as zeros afterwards, or as before.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Durable before the reply.
        fua: bool,
    },
    /// Store the payload, `len` bytes that follow the header.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`PAYLOAD_BYTES_ACCEPTED`].
        len: u32,
        /// Durable before the reply.
        fua: bool,
    },
    /// Make the range read as zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Durable before the reply.
        fua: bool,
        /// Later writes to the range must not fail for want of space.
        no_hole: bool,
        /// Answer [`Errno::NotSup`], nothing changed, unless this is faster than writing.
        fast: bool,
    },
}

/// A request that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What to answer, unless `close`.
    pub errno: Errno,
    /// Bytes of payload that follow the header and must be thrown away before the next one is read.
    pub payload: u32,
    /// Close at once, without a reply: more payload follows than anybody should throw away.
    pub close: bool,
}

/// Decides on a request by the protocol's rules alone: command, flags, permission, range, in this
/// order. Nothing of the payload is looked at.
#[inline]
pub fn validate(header: &RequestHeader, export: &ExportInfo) -> Result<Op, Refusal> {
    match decide(&Request::from(*header), export) {
        Ok(op) => Ok(op),
        Err(errno) => {
            let payload = header.payload_len();
            let close = payload > PAYLOAD_BYTES_ACCEPTED;
            Err(Refusal {
                errno,
                payload: if close { 0 } else { payload },
                close,
            })
        }
    }
}

/// The decision for the plain protocol, whatever the width of the length on the wire.
#[inline]
pub(crate) fn decide(request: &Request, export: &ExportInfo) -> Result<Op, Errno> {
    let Request {
        flags,
        offset,
        length: len,
        ..
    } = *request;
    let fua = flags & command_flag::FUA != 0;
    match request.command {
        command::READ => {
            check_flags(flags, command_flag::FUA, export)?;
            check_range(offset, len, export, Errno::Inval)?;
            let len = check_payload(len)?;
            Ok(Op::Read { offset, len })
        }
        command::WRITE => {
            check_flags(flags, command_flag::FUA, export)?;
            check_writable(export)?;
            check_range(offset, len, export, Errno::NoSpc)?;
            let len = check_payload(len)?;
            Ok(Op::Write { offset, len, fua })
        }
        command::DISC => Ok(Op::Disconnect),
        command::FLUSH => {
            check_offered(export, TransmissionFlags::SEND_FLUSH)?;
            check_flags(flags, command_flag::FUA, export)?;
            Ok(Op::Flush)
        }
        command::TRIM => {
            check_offered(export, TransmissionFlags::SEND_TRIM)?;
            check_flags(flags, command_flag::FUA, export)?;
            check_writable(export)?;
            check_range(offset, len, export, Errno::Inval)?;
            Ok(Op::Trim { offset, len, fua })
        }
        command::CACHE => {
            check_offered(export, TransmissionFlags::SEND_CACHE)?;
            check_flags(flags, command_flag::FUA, export)?;
            check_range(offset, len, export, Errno::Inval)?;
            Ok(Op::Cache { offset, len })
        }
        command::WRITE_ZEROES => {
            let legal = command_flag::FUA | command_flag::NO_HOLE | command_flag::FAST_ZERO;
            check_offered(export, TransmissionFlags::SEND_WRITE_ZEROES)?;
            check_flags(flags, legal, export)?;
            check_writable(export)?;
            check_range(offset, len, export, Errno::NoSpc)?;
            let no_hole = flags & command_flag::NO_HOLE != 0;
            let fast = flags & command_flag::FAST_ZERO != 0;
            Ok(Op::Zero {
                offset,
                len,
                fua,
                no_hole,
                fast,
            })
        }
        _ => Err(Errno::Inval),
    }
}

/// FUA is legal on every command once it is offered, because clients send it on every command;
/// what is not offered, and a flag on the wrong command, is EINVAL.
#[inline]
pub(crate) fn check_flags(flags: u16, legal: u16, export: &ExportInfo) -> Result<(), Errno> {
    if flags == 0 {
        return Ok(());
    }
    let mut legal = legal;
    if !export.features.contains(TransmissionFlags::SEND_FUA) {
        legal &= !command_flag::FUA;
    }
    if !export.features.contains(TransmissionFlags::SEND_FAST_ZERO) {
        legal &= !command_flag::FAST_ZERO;
    }
    if flags & !legal == 0 {
        Ok(())
    } else {
        Err(Errno::Inval)
    }
}

#[inline]
fn check_offered(export: &ExportInfo, feature: TransmissionFlags) -> Result<(), Errno> {
    if export.features.contains(feature) {
        Ok(())
    } else {
        Err(Errno::Inval)
    }
}

#[inline]
fn check_writable(export: &ExportInfo) -> Result<(), Errno> {
    if export.read_only {
        Err(Errno::Perm)
    } else {
        Ok(())
    }
}

/// The range must lie inside the export (else `beyond`; no sum that could overflow) and on the grid
/// of the minimum block size.
#[inline]
pub(crate) fn check_range(
    offset: u64,
    len: u64,
    export: &ExportInfo,
    beyond: Errno,
) -> Result<(), Errno> {
    if offset > export.size || len > export.size - offset {
        return Err(beyond);
    }
    let grid = u64::from(export.min_block.saturating_sub(1));
    if (offset | len) & grid != 0 {
        Err(Errno::Inval)
    } else {
        Ok(())
    }
}

#[inline]
fn check_payload(length: u64) -> Result<u32, Errno> {
    match u32::try_from(length) {
        Ok(length) if length <= PAYLOAD_BYTES_ACCEPTED => Ok(length),
        _ => Err(Errno::Inval),
    }
}

#[cfg(test)]
mod tests;
