//! An NBD server over a unix socket or TCP that keeps one export in memory and can be told to go
//! wrong.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use taipan_nbd::{
    Errno, ExportDirectory, ExportInfo, HandshakeEnd, HandshakeLimits, LookupError, Op,
    REQUEST_BYTES, RequestHeader, ServerHandshake, simple_reply, validate,
};

/// What goes wrong, and at which request (counted from 0 over all connections).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// A write is answered and not stored.
    LoseWrite(u64),
    /// A write is stored with one bit wrong.
    FlipBit(u64),
    /// A write is stored one block further on.
    Misplace(u64),
    /// A request is refused.
    Refuse(u64, Errno),
    /// The connection is closed; the request is not answered but stored when `stored`.
    Close { at: u64, stored: bool },
    /// The request is never answered.
    Silence(u64),
    /// The answer names a request that is not in flight.
    WrongCookie(u64),
    /// The request is answered when the fault is taken away.
    Hold(u64),
    /// Connections from the number `first` on are closed once `after` requests have come.
    TurnAway { first: u64, after: u64 },
}

/// Counts of what the server has seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) fua_writes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) trims: AtomicU64,
}

/// A running server.
pub(crate) struct MemoryServer {
    pub(crate) seen: Arc<Seen>,
    disk: Arc<Mutex<Vec<u8>>>,
    fault: Arc<Mutex<Fault>>,
    uri: String,
    _dir: tempfile::TempDir,
}

struct Directory(ExportInfo);

impl ExportDirectory for Directory {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        visit(&self.0.canonical_name, &self.0.description);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        if name == self.0.canonical_name {
            Ok(self.0.clone())
        } else {
            Err(LookupError::Unknown)
        }
    }
}

impl MemoryServer {
    /// Serves export `vol0` as `change` has it, of `size` zero bytes, over a unix socket.
    pub(crate) fn start(size: usize, change: impl FnOnce(&mut ExportInfo)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let uri = format!("nbd+unix:///vol0?socket={}", socket.display());
        let (server, host) = Self::new(size, change, uri, dir);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                host.admit(stream);
            }
        });
        server
    }

    /// The same over TCP.
    pub(crate) fn start_tcp(size: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("nbd://{}/vol0", listener.local_addr().unwrap());
        let (server, host) = Self::new(size, |_| {}, uri, tempfile::tempdir().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                host.admit(stream);
            }
        });
        server
    }

    fn new(
        size: usize,
        change: impl FnOnce(&mut ExportInfo),
        uri: String,
        dir: tempfile::TempDir,
    ) -> (Self, Host) {
        let mut info = ExportInfo::new("vol0", size as u64);
        change(&mut info);
        let host = Host {
            info,
            seen: Arc::default(),
            disk: Arc::new(Mutex::new(vec![0; size])),
            fault: Arc::new(Mutex::new(Fault::None)),
        };
        let server = Self {
            seen: host.seen.clone(),
            disk: host.disk.clone(),
            fault: host.fault.clone(),
            uri,
            _dir: dir,
        };
        (server, host)
    }

    /// Address of the export.
    pub(crate) fn uri(&self) -> String {
        self.uri.clone()
    }

    /// Lets something go wrong, counted from now on.
    pub(crate) fn inject(&self, fault: Fault) {
        self.seen.requests.store(0, Ordering::SeqCst);
        *self.fault.lock().unwrap() = fault;
    }

    /// Changes the content behind the clients' backs.
    pub(crate) fn edit(&self, change: impl FnOnce(&mut [u8])) {
        change(&mut self.disk.lock().unwrap());
    }
}

/// What all connections share.
struct Host {
    info: ExportInfo,
    seen: Arc<Seen>,
    disk: Arc<Mutex<Vec<u8>>>,
    fault: Arc<Mutex<Fault>>,
}

impl Host {
    fn admit(&self, stream: impl Read + Write + Send + 'static) {
        let session = Session {
            stream,
            directory: Directory(self.info.clone()),
            seen: self.seen.clone(),
            disk: self.disk.clone(),
            fault: self.fault.clone(),
        };
        thread::spawn(move || session.serve());
    }
}

struct Session<S> {
    stream: S,
    directory: Directory,
    seen: Arc<Seen>,
    disk: Arc<Mutex<Vec<u8>>>,
    fault: Arc<Mutex<Fault>>,
}

impl<S: Read + Write> Session<S> {
    /// Serves until the client leaves or a fault closes the connection.
    fn serve(mut self) {
        let number = self.seen.connections.fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock().unwrap();
        if let Fault::TurnAway { first, after } = fault
            && number >= first
        {
            while self.seen.requests.load(Ordering::SeqCst) < after {
                thread::sleep(Duration::from_millis(1));
            }
            return;
        }
        if let Some(export) = self.shake_hands() {
            while self.request(&export).is_some() {}
        }
    }

    fn shake_hands(&mut self) -> Option<ExportInfo> {
        let mut handshake = ServerHandshake::new(HandshakeLimits::DEFAULT);
        self.stream.write_all(&handshake.greeting()).ok()?;
        let mut byte = [0];
        let mut out = Vec::new();
        loop {
            self.stream.read_exact(&mut byte).ok()?;
            let advance = handshake.advance(&byte, &mut out, &self.directory).ok()?;
            self.stream.write_all(&out).ok()?;
            out.clear();
            match advance.end {
                Some(HandshakeEnd::Transmission(selected)) => return Some(selected.info),
                Some(HandshakeEnd::Aborted) => return None,
                None => {}
            }
        }
    }

    /// Serves one request; `None` ends the connection.
    fn request(&mut self, export: &ExportInfo) -> Option<()> {
        let mut head = [0; REQUEST_BYTES];
        self.stream.read_exact(&mut head).ok()?;
        let header = RequestHeader::parse(&head).ok()?;
        let mut payload = vec![0; header.payload_len() as usize];
        self.stream.read_exact(&mut payload).ok()?;
        let op = validate(&header, export);
        if op == Ok(Op::Disconnect) {
            return None;
        }
        let number = self.seen.requests.fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock().unwrap();
        let cookie = header.cookie;
        match fault {
            Fault::Refuse(n, errno) if n == number => {
                return self
                    .stream
                    .write_all(&simple_reply(Some(errno), cookie))
                    .ok();
            }
            Fault::Close { at, stored: false } if at == number => return None,
            Fault::Silence(n) if n == number => return Some(()),
            Fault::Hold(n) if n == number => {
                while *self.fault.lock().unwrap() == fault {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Fault::WrongCookie(n) if n == number => {
                return self.stream.write_all(&simple_reply(None, 0xdead)).ok();
            }
            _ => {}
        }
        let answer = match op {
            Ok(op) => self.carry_out(op, &mut payload, (number, fault)),
            Err(refusal) => Err(refusal.errno),
        };
        if matches!(fault, Fault::Close { at, stored: true } if at == number) {
            return None;
        }
        let mut out = simple_reply(answer.as_ref().err().copied(), cookie).to_vec();
        out.extend(answer.unwrap_or_default());
        self.stream.write_all(&out).ok()
    }

    fn carry_out(
        &self,
        op: Op,
        payload: &mut [u8],
        (number, fault): (u64, Fault),
    ) -> Result<Vec<u8>, Errno> {
        let mut disk = self.disk.lock().unwrap();
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::SeqCst);
        match op {
            Op::Read { offset, len } => {
                count(&self.seen.reads);
                return Ok(disk[offset as usize..offset as usize + len as usize].to_vec());
            }
            Op::Write { offset, len, fua } => {
                count(&self.seen.writes);
                if fua {
                    count(&self.seen.fua_writes);
                }
                let mut offset = offset as usize;
                match fault {
                    Fault::LoseWrite(n) if n == number => return Ok(Vec::new()),
                    Fault::FlipBit(n) if n == number => payload[len as usize - 1] ^= 16,
                    Fault::Misplace(n) if n == number => {
                        offset = (offset + 4096) % (disk.len() / 2)
                    }
                    _ => {}
                }
                disk[offset..offset + len as usize].copy_from_slice(payload);
            }
            Op::Trim { offset, len, .. } => {
                count(&self.seen.trims);
                disk[offset as usize..(offset + len) as usize].fill(0);
            }
            Op::Flush => {
                count(&self.seen.flushes);
            }
            _ => return Err(Errno::Inval),
        }
        Ok(Vec::new())
    }
}
