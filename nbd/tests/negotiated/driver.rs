//! A server of one volume in memory, without sockets: bytes in, bytes out. What an embedding
//! program does with the machines, in small.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use taipan_nbd::protocol::{context, state};
use taipan_nbd::{
    Command, Errno, ExportDirectory, ExportInfo, Features, HandshakeEnd, HandshakeLimits,
    LookupError, Op, ReadReply, ReplyTo, Request, Selected, ServerHandshake, Session, StatusChunk,
    StatusQuery,
};
use tempfile::TempDir;

/// Unit of holes and changes.
pub(crate) const BLOCK: u64 = 4096;
/// The changed blocks of the volume.
pub(crate) const CHANGED: &str = "qemu:dirty-bitmap:since-mon";
/// What the volume has.
pub(crate) const CONTEXTS: [&str; 2] = [context::BASE_ALLOCATION, CHANGED];

/// A volume that knows which blocks are zeros and which were written.
pub(crate) struct Volume {
    pub(crate) info: ExportInfo,
    pub(crate) content: Vec<u8>,
    pub(crate) changed: Vec<bool>,
}

impl Volume {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            info: ExportInfo::new("v", size),
            content: vec![0; size as usize],
            changed: vec![false; size.div_ceil(BLOCK) as usize],
        }
    }

    fn block(&self, index: u64) -> &[u8] {
        let start = (index * BLOCK) as usize;
        let end = self.content.len().min(start + BLOCK as usize);
        &self.content[start..end]
    }

    /// The status of a block in a context.
    pub(crate) fn state(&self, name: &str, index: u64) -> u32 {
        let zero = self.block(index).iter().all(|byte| *byte == 0);
        match name {
            context::BASE_ALLOCATION if zero => state::HOLE | state::ZERO,
            CHANGED if self.changed[index as usize] => state::DIRTY,
            _ => 0,
        }
    }

    fn fill(&mut self, offset: u64, len: u64, write: impl FnOnce(&mut [u8])) {
        if len > 0 {
            let blocks = offset / BLOCK..=(offset + len - 1) / BLOCK;
            blocks.for_each(|block| self.changed[block as usize] = true);
        }
        write(&mut self.content[offset as usize..(offset + len) as usize]);
    }

    /// Content in runs of data and holes, or in one piece.
    fn read(&self, mut reply: ReadReply, range: (u64, u64), one_piece: bool, out: &mut Vec<u8>) {
        let (mut at, end) = range;
        let is_hole = |at: u64| self.state(context::BASE_ALLOCATION, at / BLOCK) != 0;
        while at < end {
            let hole = !one_piece && is_hole(at);
            let mut stop = (at / BLOCK + 1) * BLOCK;
            while stop < end && (one_piece || is_hole(stop) == hole) {
                stop += BLOCK;
            }
            let stop = stop.min(end);
            let run = (stop - at) as u32;
            if hole {
                out.extend_from_slice(reply.hole(run).expect("a run").as_bytes());
            } else {
                out.extend_from_slice(reply.data(run, true).expect("a run").as_bytes());
                out.extend_from_slice(&self.content[at as usize..stop as usize]);
            }
            at = stop;
        }
        if let Some(head) = reply.finish().expect("all was sent") {
            out.extend_from_slice(head.as_bytes());
        }
    }

    fn status(&self, session: &Session, query: &StatusQuery, to: ReplyTo, out: &mut Vec<u8>) {
        let wanted = session.contexts().iter();
        let wanted: Vec<_> = wanted
            .filter(|context| query.contexts.contains(context.id))
            .collect();
        for (index, context) in wanted.iter().enumerate() {
            let mut chunk = StatusChunk::new(to, query, context.id, &self.info, out);
            let mut at = query.offset;
            while chunk.push(
                (at / BLOCK + 1) * BLOCK - at,
                self.state(&context.name, at / BLOCK),
            ) {
                at = (at / BLOCK + 1) * BLOCK;
            }
            chunk.finish(index + 1 == wanted.len()).expect("an extent");
        }
    }
}

struct Directory(ExportInfo);

impl ExportDirectory for Directory {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        visit("v", "");
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        match name {
            "v" => Ok(self.0.clone()),
            _ => Err(LookupError::Unknown),
        }
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        self.find(name)?;
        CONTEXTS.into_iter().for_each(visit);
        Ok(())
    }
}

/// One connection to a volume.
pub(crate) struct Driver {
    handshake: ServerHandshake,
    selected: Option<Selected>,
    pending: Vec<u8>,
    volume: Arc<Mutex<Volume>>,
}

impl Driver {
    pub(crate) fn new(volume: Arc<Mutex<Volume>>, features: Features) -> Self {
        Self {
            handshake: ServerHandshake::with_features(HandshakeLimits::DEFAULT, features),
            selected: None,
            pending: Vec::new(),
            volume,
        }
    }

    pub(crate) fn greeting(&self) -> [u8; 18] {
        self.handshake.greeting()
    }

    /// What was negotiated, once requests may come.
    pub(crate) fn session(&self) -> Option<&Session> {
        self.selected.as_ref().map(|selected| &selected.session)
    }

    /// Takes in bytes of the client. `false`: close the connection once `out` was sent.
    pub(crate) fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        self.pending.extend_from_slice(input);
        while self.selected.is_none() && !self.pending.is_empty() {
            let info = self.volume.lock().expect("no panic").info.clone();
            let advance = self.handshake.advance(&self.pending, out, &Directory(info));
            let Ok(advance) = advance else { return false };
            self.pending.drain(..advance.consumed);
            match advance.end {
                None => {}
                Some(HandshakeEnd::Aborted) => return false,
                Some(HandshakeEnd::Transmission(selected)) => self.selected = Some(selected),
            }
        }
        let Some(selected) = self.selected.clone() else {
            return true;
        };
        loop {
            match self.request(&selected, out) {
                Progress::Answered => {}
                Progress::NeedsMore => return true,
                Progress::Over => return false,
            }
        }
    }

    /// Answers the request at the front of what is pending.
    fn request(&mut self, selected: &Selected, out: &mut Vec<u8>) -> Progress {
        let Selected { info, session, .. } = selected;
        let style = session.headers();
        let Ok(request) = Request::parse(style, &self.pending) else {
            return Progress::Over;
        };
        let Some(request) = request else {
            return Progress::NeedsMore;
        };
        let to = ReplyTo::new(style, &request);
        let verdict = session.validate(&request, info);
        let payload = match verdict {
            Ok(_) => request.payload_len(style) as usize,
            Err(refusal) if refusal.close => return Progress::Over,
            Err(refusal) => refusal.payload as usize,
        };
        let header = style.request_bytes();
        if self.pending.len() < header + payload {
            return Progress::NeedsMore;
        }
        let message: Vec<u8> = self.pending.drain(..header + payload).collect();
        let payload = &message[header..];
        let mut volume = self.volume.lock().expect("no panic");
        match verdict {
            Ok(Command::Op(Op::Disconnect)) => return Progress::Over,
            Ok(command) => {
                if let Err(errno) = answer(&mut volume, session, command, to, payload, out) {
                    to.error(errno, "not to be had", out);
                }
            }
            Err(refusal) => to.error(refusal.errno, "refused", out),
        }
        Progress::Answered
    }
}

enum Progress {
    Answered,
    NeedsMore,
    Over,
}

fn answer(
    volume: &mut Volume,
    session: &Session,
    command: Command,
    to: ReplyTo,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Errno> {
    match command {
        Command::Read { offset, len, df } => {
            let one_piece = df || !session.headers().has_chunks();
            let reply = ReadReply::new(to, offset, len, df);
            volume.read(reply, (offset, offset + u64::from(len)), one_piece, out);
            return Ok(());
        }
        Command::Status(query) => {
            volume.status(session, &query, to, out);
            return Ok(());
        }
        Command::StatusPayload { offset, one, .. } => {
            let query = session.status_payload(offset, one, payload, &volume.info)?;
            volume.status(session, &query, to, out);
            return Ok(());
        }
        // A plain fill is a slow zero, so the honest answer to a fast one is no.
        Command::Op(Op::Zero { fast: true, .. }) => return Err(Errno::NotSup),
        Command::Op(Op::Trim { offset, len, .. } | Op::Zero { offset, len, .. }) => {
            volume.fill(offset, len, |range| range.fill(0));
        }
        Command::Op(Op::Write { offset, len, .. }) => {
            volume.fill(offset, u64::from(len), |range| {
                range.copy_from_slice(payload);
            });
        }
        Command::Op(_) => {}
    }
    out.extend_from_slice(to.success().as_bytes());
    Ok(())
}

/// How much of each client's stream is kept for the corpus.
const RECORDED_BYTES_MAX: usize = 2048;

/// Keeps the beginning of a client's stream in the directory that `TAIPAN_CORPUS` names, if any.
fn record(name: &str, stream: &[u8]) {
    if let Some(directory) = std::env::var_os("TAIPAN_CORPUS") {
        let path = std::path::Path::new(&directory).join(name);
        std::fs::write(path, stream).expect("a directory for the corpus");
    }
}

/// Serves the volume on a socket until the process ends; gives the socket. `name` is that of the
/// client in the corpus.
pub(crate) fn serve(name: &'static str, volume: Volume, features: Features) -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a temporary directory");
    let socket = directory.path().join("nbd.sock");
    let listener = UnixListener::bind(&socket).expect("a socket in it");
    let volume = Arc::new(Mutex::new(volume));
    thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("a connection");
            let mut driver = Driver::new(Arc::clone(&volume), features);
            thread::spawn(move || {
                let mut out = driver.greeting().to_vec();
                let mut open = true;
                let mut piece = vec![0; 64 << 10];
                let mut recorded = Vec::new();
                // Clients leave in every way; none of them is an error here.
                while stream.write_all(&out).is_ok() && open {
                    out.clear();
                    match stream.read(&mut piece) {
                        Ok(len) if len > 0 => {
                            let room = RECORDED_BYTES_MAX - recorded.len();
                            recorded.extend_from_slice(&piece[..len.min(room)]);
                            open = driver.feed(&piece[..len], &mut out);
                        }
                        _ => break,
                    }
                }
                record(&format!("{name}-{index}"), &recorded);
            });
        }
    });
    (directory, socket)
}
