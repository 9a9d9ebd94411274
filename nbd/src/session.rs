//! What one client and the server agreed on beyond the plain protocol.

use crate::codec::Cursor;
use crate::command::{Command, StatusQuery};
use crate::errno::Errno;
use crate::export::{ExportInfo, PAYLOAD_BYTES_ACCEPTED, TransmissionFlags};
use crate::protocol::{command, command_flag};
use crate::request::REQUEST_BYTES;
use crate::validate::{Op, Refusal, check_flags, check_range, decide};
use crate::wide_request::{EXTENDED_REQUEST_BYTES, Request};

/// Most metadata contexts that one session can select.
pub const CONTEXTS_MAX: usize = 64;

/// Length of the effect, before the context ids, in the payload of a BLOCK_STATUS.
const STATUS_PAYLOAD_LENGTH_BYTES: u64 = 8;

/// Which headers requests and replies have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeaderStyle {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests; READ and BLOCK_STATUS are answered in chunks.
    Structured,
    /// Requests and replies of 32 bytes with 64-bit lengths, every reply in chunks.
    Extended,
}

impl HeaderStyle {
    /// Bytes of a request header.
    #[inline]
    pub const fn request_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => REQUEST_BYTES,
            Self::Extended => EXTENDED_REQUEST_BYTES,
        }
    }

    /// Are replies made of chunks?
    #[inline]
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Self::Simple)
    }
}

/// A metadata context that a client selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContext {
    /// What stands for the context in requests and replies of this session: 1 to
    /// [`CONTEXTS_MAX`] from this crate's server, anything from another.
    pub id: u32,
    /// Namespace, colon, leaf.
    pub name: String,
}

/// A set of the contexts of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextIds(u64);

impl ContextIds {
    /// Takes `id` in; `false` when it is out of range or was in already.
    fn insert(&mut self, id: u32) -> bool {
        let bit = bit(id);
        let is_new = bit & !self.0 != 0;
        self.0 |= bit;
        is_new
    }

    /// Is the context in?
    #[inline]
    pub const fn contains(self, id: u32) -> bool {
        bit(id) & self.0 != 0
    }

    /// How many are in.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Is none in?
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// 0 for an id that this crate does not give out.
const fn bit(id: u32) -> u64 {
    match id {
        1..=64 => 1 << (id - 1),
        _ => 0,
    }
}

/// The result of a negotiation. The default is the plain protocol: simple replies, no contexts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    headers: HeaderStyle,
    contexts: Vec<MetaContext>,
    block_status_payload: bool,
    df_bytes_max: u32,
}

/// What a [`Session`] consists of, for a server that hands it to another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Which headers requests and replies have.
    pub headers: HeaderStyle,
    /// The contexts in the order in which they were selected.
    pub contexts: Vec<MetaContext>,
    /// BLOCK_STATUS may name contexts, where the rest allows it.
    pub block_status_payload: bool,
    /// Longest READ with the DF flag, in bytes.
    pub df_bytes_max: u32,
}

impl Session {
    /// What was agreed on.
    pub fn agreement(&self) -> Agreement {
        Agreement {
            headers: self.headers,
            contexts: self.contexts.clone(),
            block_status_payload: self.block_status_payload,
            df_bytes_max: self.df_bytes_max,
        }
    }

    /// Goes on with what another server of this kind agreed on; `None` if none can have: contexts
    /// without chunks, ids out of range or twice.
    pub fn resume(agreement: Agreement) -> Option<Self> {
        let contexts = &agreement.contexts;
        let mut ids = ContextIds::default();
        let legal = contexts.iter().all(|context| ids.insert(context.id));
        if !legal || !contexts.is_empty() && !agreement.headers.has_chunks() {
            return None;
        }
        Some(Self::new(
            agreement.headers,
            agreement.contexts,
            agreement.block_status_payload,
            agreement.df_bytes_max,
        ))
    }

    pub(crate) fn new(
        headers: HeaderStyle,
        contexts: Vec<MetaContext>,
        block_status_payload: bool,
        df_bytes_max: u32,
    ) -> Self {
        debug_assert!(contexts.len() <= CONTEXTS_MAX);
        Self {
            headers,
            contexts,
            block_status_payload,
            df_bytes_max,
        }
    }

    /// Which headers requests and replies have.
    #[inline]
    pub const fn headers(&self) -> HeaderStyle {
        self.headers
    }

    /// The contexts that BLOCK_STATUS reports, in the order in which they were selected.
    pub fn contexts(&self) -> &[MetaContext] {
        &self.contexts
    }

    /// The flags of an export for this session: SEND_DF only with chunks, BLOCK_STATUS_PAYLOAD only
    /// with extended headers and contexts.
    pub fn transmission_flags(&self, export: &ExportInfo) -> TransmissionFlags {
        let mut flags = export.transmission_flags();
        if self.headers.has_chunks() {
            flags = flags.with(TransmissionFlags::SEND_DF);
        }
        if self.takes_status_payload() {
            flags = flags.with(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        flags
    }

    fn takes_status_payload(&self) -> bool {
        self.block_status_payload
            && self.headers == HeaderStyle::Extended
            && !self.contexts.is_empty()
    }

    /// Decides on a request as [`validate`](crate::validate) does, with all that was negotiated.
    #[inline]
    pub fn validate(&self, request: &Request, export: &ExportInfo) -> Result<Command, Refusal> {
        self.decide(request, export)
            .map_err(|errno| self.refuse(request, errno))
    }

    #[inline]
    fn decide(&self, request: &Request, export: &ExportInfo) -> Result<Command, Errno> {
        let mut plain = *request;
        match request.command {
            command::BLOCK_STATUS => return self.block_status(request, export),
            command::READ if self.headers.has_chunks() => plain.flags &= !command_flag::DF,
            command::WRITE if self.headers == HeaderStyle::Extended => {
                plain.flags &= !command_flag::PAYLOAD_LEN;
            }
            _ => {}
        }
        let df = request.flags & !plain.flags & command_flag::DF != 0;
        match decide(&plain, export)? {
            Op::Read { len, .. } if df && len > self.df_bytes_max => Err(Errno::Overflow),
            Op::Read { offset, len } => Ok(Command::Read { offset, len, df }),
            op => Ok(Command::Op(op)),
        }
    }

    fn refuse(&self, request: &Request, errno: Errno) -> Refusal {
        let payload = match u32::try_from(request.payload_len(self.headers)) {
            Ok(payload) if payload <= PAYLOAD_BYTES_ACCEPTED => Some(payload),
            _ => None,
        };
        Refusal {
            errno,
            payload: payload.unwrap_or(0),
            close: payload.is_none(),
        }
    }

    fn block_status(&self, request: &Request, export: &ExportInfo) -> Result<Command, Errno> {
        if self.contexts.is_empty() {
            return Err(Errno::Inval);
        }
        let mut legal = command_flag::REQ_ONE | command_flag::FUA;
        if self.takes_status_payload() {
            legal |= command_flag::PAYLOAD_LEN;
        }
        check_flags(request.flags, legal, export)?;
        let one = request.flags & command_flag::REQ_ONE != 0;
        let Request { offset, length, .. } = *request;
        if request.flags & command_flag::PAYLOAD_LEN == 0 {
            let contexts = self.all_contexts();
            return status_query(offset, length, one, contexts, export).map(Command::Status);
        }
        let ids_bytes = length
            .checked_sub(STATUS_PAYLOAD_LENGTH_BYTES)
            .ok_or(Errno::Inval)?;
        let ids_bytes_max = 4 * self.contexts.len() as u64;
        if ids_bytes == 0 || ids_bytes % 4 != 0 || ids_bytes > ids_bytes_max {
            return Err(Errno::Inval);
        }
        Ok(Command::StatusPayload {
            offset,
            one,
            payload: length as u32,
        })
    }

    /// Reads the payload of a [`Command::StatusPayload`]: length of the range, context ids. Ids
    /// that were not selected, and repeated ones, are EINVAL.
    pub fn status_payload(
        &self,
        offset: u64,
        one: bool,
        payload: &[u8],
        export: &ExportInfo,
    ) -> Result<StatusQuery, Errno> {
        let mut cursor = Cursor::new(payload);
        let length = cursor.u64().ok_or(Errno::Inval)?;
        let selected = self.all_contexts();
        let mut contexts = ContextIds::default();
        while !cursor.is_empty() {
            let id = cursor.u32().ok_or(Errno::Inval)?;
            if !selected.contains(id) || !contexts.insert(id) {
                return Err(Errno::Inval);
            }
        }
        if contexts.is_empty() {
            return Err(Errno::Inval);
        }
        status_query(offset, length, one, contexts, export)
    }

    fn all_contexts(&self) -> ContextIds {
        let mut all = ContextIds::default();
        for context in &self.contexts {
            all.insert(context.id);
        }
        all
    }
}

/// A range of no bytes has no status.
fn status_query(
    offset: u64,
    len: u64,
    one: bool,
    contexts: ContextIds,
    export: &ExportInfo,
) -> Result<StatusQuery, Errno> {
    if len == 0 {
        return Err(Errno::Inval);
    }
    check_range(offset, len, export, Errno::Inval)?;
    Ok(StatusQuery {
        offset,
        len,
        one,
        contexts,
    })
}

#[cfg(test)]
mod tests;
