//! A server of volumes in memory around the sans-IO machines: one thread a connection, no care for
//! speed. It keeps what clients sent, so that the fuzz entry can be fed with it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use taipan_nbd::{
    Errno, ExportDirectory, ExportInfo, HandshakeEnd, HandshakeLimits, LookupError, Op,
    REQUEST_BYTES, RequestHeader, ServerHandshake, simple_reply, validate,
};
use tempfile::TempDir;

/// How much of each client's stream is kept.
const RECORDED_BYTES_MAX: usize = 1 << 20;

/// How long clients whose process has ended may take to leave.
const LEAVING_TIME_MAX: Duration = Duration::from_secs(30);

/// A running server; it serves until the process ends.
pub(crate) struct MemoryServer {
    socket: PathBuf,
    shared: Arc<Shared>,
    _directory: TempDir,
}

struct Shared {
    volumes: BTreeMap<String, Volume>,
    recordings: Mutex<Recordings>,
    left: Condvar,
}

#[derive(Default)]
struct Recordings {
    /// Connections that still go on.
    open: usize,
    streams: Vec<Vec<u8>>,
}

struct Volume {
    info: ExportInfo,
    content: Mutex<Vec<u8>>,
}

impl MemoryServer {
    /// Serves these exports, zeros at first.
    pub(crate) fn start(exports: impl IntoIterator<Item = ExportInfo>) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let socket = directory.path().join("nbd.sock");
        let listener = UnixListener::bind(&socket).expect("a socket in it");
        let volumes = exports.into_iter().map(|info| {
            let content = Mutex::new(vec![0; info.size as usize]);
            (info.canonical_name.clone(), Volume { info, content })
        });
        let shared = Arc::new(Shared {
            volumes: volumes.collect(),
            recordings: Mutex::default(),
            left: Condvar::new(),
        });
        let server = Self {
            socket,
            shared: Arc::clone(&shared),
            _directory: directory,
        };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                let stream = stream.expect("a connection");
                shared.recordings.lock().expect("no panic").open += 1;
                thread::spawn(move || Connection::new(stream, shared).serve());
            }
        });
        server
    }

    /// Where the server listens.
    pub(crate) fn socket(&self) -> &str {
        self.socket.to_str().expect("a path of ASCII")
    }

    /// The URI of an export.
    pub(crate) fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket())
    }

    /// What each client had sent, once all have left.
    pub(crate) fn recorded(&self) -> Vec<Vec<u8>> {
        let recordings = self.shared.recordings.lock().expect("no panic");
        let (recordings, waited) = self
            .shared
            .left
            .wait_timeout_while(recordings, LEAVING_TIME_MAX, |recordings| {
                recordings.open > 0
            })
            .expect("no panic");
        assert!(
            !waited.timed_out(),
            "{} clients do not leave",
            recordings.open
        );
        recordings.streams.clone()
    }
}

impl ExportDirectory for Shared {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        for (name, volume) in &self.volumes {
            visit(name, &volume.info.description);
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        let volume = match name {
            "" => self.volumes.values().next(),
            name => self.volumes.get(name),
        };
        volume
            .map(|volume| volume.info.clone())
            .ok_or(LookupError::Unknown)
    }
}

/// The peer has gone.
struct Gone;

struct Connection {
    stream: UnixStream,
    shared: Arc<Shared>,
    /// Received and not yet used.
    pending: Vec<u8>,
    recorded: Vec<u8>,
}

impl Connection {
    fn new(stream: UnixStream, shared: Arc<Shared>) -> Self {
        Self {
            stream,
            shared,
            pending: Vec::new(),
            recorded: Vec::new(),
        }
    }

    fn serve(mut self) {
        // Clients leave in every way; none of them is an error here.
        if let Ok(Some(name)) = self.handshake() {
            let _ = self.transmission(&name);
        }
        let Self {
            recorded, shared, ..
        } = self;
        let mut recordings = shared.recordings.lock().expect("no panic");
        recordings.streams.push(recorded);
        recordings.open -= 1;
        shared.left.notify_all();
    }

    /// The canonical name of the export that was chosen, if any.
    fn handshake(&mut self) -> Result<Option<String>, Gone> {
        let mut handshake = ServerHandshake::new(HandshakeLimits::DEFAULT);
        let shared = Arc::clone(&self.shared);
        self.send(&handshake.greeting())?;
        loop {
            while self.pending.is_empty() {
                self.receive()?;
            }
            let mut out = Vec::new();
            let advance = handshake.advance(&self.pending, &mut out, &*shared);
            self.send(&out)?;
            let advance = advance.unwrap_or_else(|error| panic!("no client of ours: {error}"));
            self.pending.drain(..advance.consumed);
            match advance.end {
                None => {}
                Some(HandshakeEnd::Aborted) => return Ok(None),
                Some(HandshakeEnd::Transmission(selected)) => {
                    return Ok(Some(selected.info.canonical_name));
                }
            }
        }
    }

    fn transmission(&mut self, name: &str) -> Result<(), Gone> {
        let shared = Arc::clone(&self.shared);
        let Volume { info, content } = &shared.volumes[name];
        loop {
            let bytes = self.take(REQUEST_BYTES)?;
            let bytes = bytes.first_chunk().expect("as many as asked for");
            let header = RequestHeader::parse(bytes).expect("a request of a good client");
            let op = match validate(&header, info) {
                Ok(op) => op,
                Err(refusal) if refusal.close => return Err(Gone),
                Err(refusal) => {
                    self.take(refusal.payload as usize)?;
                    self.send(&simple_reply(Some(refusal.errno), header.cookie))?;
                    continue;
                }
            };
            if op == Op::Disconnect {
                return Ok(());
            }
            let payload = self.take(header.payload_len() as usize)?;
            let mut content = content.lock().expect("no panic");
            let mut reply = simple_reply(None, header.cookie).to_vec();
            match op {
                Op::Cache { .. } | Op::Disconnect | Op::Flush => {}
                Op::Read { offset, len } => {
                    reply.extend_from_slice(&content[range(offset, u64::from(len))]);
                }
                Op::Trim { offset, len, .. } => content[range(offset, len)].fill(0),
                Op::Write { offset, len, .. } => {
                    content[range(offset, u64::from(len))].copy_from_slice(&payload);
                }
                // A plain fill is a slow zero, so the honest answer to a fast one is no.
                Op::Zero { fast: true, .. } => {
                    reply = simple_reply(Some(Errno::NotSup), header.cookie).to_vec();
                }
                Op::Zero { offset, len, .. } => content[range(offset, len)].fill(0),
            }
            drop(content);
            self.send(&reply)?;
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.stream.write_all(bytes).map_err(|_| Gone)
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>, Gone> {
        while self.pending.len() < len {
            self.receive()?;
        }
        let rest = self.pending.split_off(len);
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    fn receive(&mut self) -> Result<(), Gone> {
        let mut piece = [0; 64 << 10];
        let len = loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Gone),
                Ok(len) => break len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        };
        self.pending.extend_from_slice(&piece[..len]);
        let room = RECORDED_BYTES_MAX.saturating_sub(self.recorded.len());
        self.recorded.extend_from_slice(&piece[..len.min(room)]);
        Ok(())
    }
}

fn range(offset: u64, len: u64) -> Range<usize> {
    offset as usize..(offset + len) as usize
}
