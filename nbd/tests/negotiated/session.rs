//! A client over any way to pass bytes, which holds every reply to the rules.

use std::collections::BTreeMap;

use taipan_nbd::protocol::{command, command_flag};
use taipan_nbd::{
    Chunk, ClientAdvance, ClientEnd, ClientExport, ClientHandshake, Errno, Goal, HeaderStyle,
    ReplyKind, ReplyProgress, ReplyReader, ReplyTracker, Request, StatusExtent, Wishes,
};

/// The way to the server.
pub(crate) trait Wire {
    fn send(&mut self, bytes: &[u8]);
    /// The next bytes of the server, at least one.
    fn receive(&mut self) -> Vec<u8>;
}

/// A client in the transmission phase.
pub(crate) struct Client<W> {
    pub(crate) wire: W,
    pub(crate) export: ClientExport,
    reader: ReplyReader,
    cookie: u64,
}

/// What a request came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) content: Vec<u8>,
    pub(crate) holes: u64,
    /// Extents by the name of their context.
    pub(crate) status: BTreeMap<String, Vec<StatusExtent>>,
}

impl<W: Wire> Client<W> {
    pub(crate) fn connect(mut wire: W, name: &str, wishes: Wishes) -> Self {
        let goal = Goal::Go(name.to_owned());
        let mut shake = ClientHandshake::with_wishes(goal, wishes).expect("legal wishes");
        loop {
            let bytes = wire.receive();
            let mut out = Vec::new();
            let advance = shake.advance(&bytes, &mut out);
            let ClientAdvance { consumed, end, .. } =
                advance.expect("a server that keeps the rules");
            assert_eq!(consumed, bytes.len(), "the server spoke first");
            wire.send(&out);
            if let Some(end) = end {
                let ClientEnd::Transmission(export) = end else {
                    panic!("{end:?}")
                };
                let reader = ReplyReader::new(export.headers, 4 << 20);
                return Self {
                    wire,
                    export,
                    reader,
                    cookie: 0,
                };
            }
        }
    }

    pub(crate) fn read(&mut self, flags: u16, offset: u64, len: u64) -> Result<Outcome, Errno> {
        self.ask(command::READ, flags, (offset, len), &[])
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<Outcome, Errno> {
        self.ask(command::WRITE, 0, (offset, data.len() as u64), data)
    }

    /// The status of a range in all contexts.
    pub(crate) fn status(&mut self, flags: u16, offset: u64, len: u64) -> Result<Outcome, Errno> {
        self.ask(command::BLOCK_STATUS, flags, (offset, len), &[])
    }

    /// The status of a range in some contexts, which the payload names.
    pub(crate) fn status_of(
        &mut self,
        ids: &[u32],
        flags: u16,
        offset: u64,
        len: u64,
    ) -> Result<Outcome, Errno> {
        let payload = taipan_nbd::status_payload(len, ids);
        let mut request = Request::block_status_of(self.cookie, offset, payload.len() as u32);
        request.flags |= flags;
        self.exchange(request, &payload, len, ids)
    }

    /// Any request without a payload of its own kind.
    pub(crate) fn ask(
        &mut self,
        command: u16,
        flags: u16,
        (offset, length): (u64, u64),
        payload: &[u8],
    ) -> Result<Outcome, Errno> {
        let request = Request {
            flags,
            command,
            cookie: self.cookie,
            offset,
            length,
        };
        let ids: Vec<u32> = self
            .export
            .contexts
            .iter()
            .map(|context| context.id)
            .collect();
        self.exchange(request, payload, length, &ids)
    }

    fn exchange(
        &mut self,
        request: Request,
        payload: &[u8],
        effect_len: u64,
        ids: &[u32],
    ) -> Result<Outcome, Errno> {
        self.cookie += 1;
        let style = self.export.headers;
        let mut bytes = Vec::new();
        request
            .append(style, &mut bytes)
            .expect("a length that fits");
        bytes.extend_from_slice(payload);
        self.wire.send(&bytes);
        let mut tracker = ReplyTracker::new(style, request, effect_len, ids);
        let mut outcome = Outcome::default();
        if request.command == command::READ {
            // A refused read may be of any length; what succeeds is small here.
            outcome.content = vec![0xee; effect_len.min(8 << 20) as usize];
        }
        let mut received = Vec::new();
        loop {
            received.extend_from_slice(&self.wire.receive());
            let mut rest = &received[..];
            while let Some((header, payload)) = self.reader.next(&mut rest).expect("a reply") {
                assert_eq!(header.cookie, request.cookie, "the reply to another");
                let chunk = match header.kind {
                    ReplyKind::Simple(_) => None,
                    ReplyKind::Chunk { kind, .. } => {
                        Some(Chunk::parse(kind, payload).expect("a chunk"))
                    }
                };
                let progress = tracker.take(&header, chunk.as_ref()).expect("the rules");
                if let Some(chunk) = chunk {
                    take_in(&mut outcome, &self.export, &request, &chunk);
                }
                if let ReplyProgress::Done(result) = progress {
                    let simple_read = style == HeaderStyle::Simple
                        && request.command == command::READ
                        && result.is_ok();
                    if simple_read {
                        outcome.content = rest.to_vec();
                        while outcome.content.len() < effect_len as usize {
                            outcome.content.extend_from_slice(&self.wire.receive());
                        }
                    } else {
                        assert!(rest.is_empty(), "bytes behind the reply");
                    }
                    return result.map(|()| outcome);
                }
            }
            received.clear();
        }
    }
}

fn take_in(outcome: &mut Outcome, export: &ClientExport, request: &Request, chunk: &Chunk<'_>) {
    match chunk {
        Chunk::Data { offset, data } => {
            let at = (offset - request.offset) as usize;
            outcome.content[at..at + data.len()].copy_from_slice(data);
        }
        Chunk::Hole { offset, len } => {
            let at = (offset - request.offset) as usize;
            outcome.content[at..at + *len as usize].fill(0);
            outcome.holes += u64::from(*len);
        }
        Chunk::Status { context, extents } => {
            let found = export.contexts.iter().find(|found| found.id == *context);
            let name = found.expect("a context that was selected").name.clone();
            outcome.status.insert(name, extents.iter().collect());
        }
        Chunk::None | Chunk::Error { .. } => {}
    }
}

/// With and without the flags that cut answers short.
pub(crate) const ONE: u16 = command_flag::REQ_ONE;
/// In one piece.
pub(crate) const DF: u16 = command_flag::DF;
