//! One NBD connection, with many requests in flight and blocking calls.
//!
//! Nothing can block for ever in a circle: at most [`IN_FLIGHT_MAX`] requests are unanswered, and
//! so many replies without data, or requests without payload, fit into a socket's buffer. So the
//! server can always go on while this side sends payload, and the other way round.

use std::collections::HashMap;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::time::Duration;

use taipan_engine::size::human;
use taipan_nbd::protocol::option_reply::ERR_UNKNOWN;
use taipan_nbd::{
    ClientEnd, ClientError, ClientHandshake, Errno, Goal, RequestHeader, SIMPLE_REPLY_BYTES,
    SimpleReply, TransmissionFlags, Wishes,
};

use crate::failure::{Exit, Failure, Outcome};
use crate::nbd_server::{NbdServer, Wire};
use crate::output::note;
use crate::transfer::sparse::GRAIN_BYTES_MAX;

/// Most unanswered requests.
pub(crate) const IN_FLIGHT_MAX: usize = 256;
/// How long the handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// After how long without an answer the person is told; requests themselves may wait for ever, as
/// an appliance may wait for its backend.
const PATIENCE: Duration = Duration::from_secs(30);
/// Large reads bypass this buffer; it saves a system call where replies come in a row.
const READ_BUFFER_BYTES: usize = 4096;

/// An open connection to one volume.
pub(crate) struct Session {
    stream: BufReader<Wire>,
    server: String,
    /// Name of the export.
    volume: String,
    size_bytes: u64,
    flags: TransmissionFlags,
    grain_bytes: usize,
    payload_bytes_max: usize,
    requests: HashMap<u64, Request>,
    next_cookie: u64,
    told_of_wait: bool,
}

/// What an unanswered request was.
struct Request {
    what: &'static str,
    offset: u64,
    len: u64,
    /// Where the data of a read goes; empty for all others.
    buffer: Vec<u8>,
}

/// The data of a read.
pub(crate) struct Piece {
    /// Its place in the volume.
    pub(crate) offset: u64,
    /// The bytes.
    pub(crate) data: Vec<u8>,
}

impl Session {
    /// Connects to the server and chooses the volume, or a snapshot of one.
    pub(crate) fn open(server: &NbdServer, volume: &str) -> Outcome<Self> {
        let what = format!("cannot reach volume \"{volume}\"");
        let stream = server.connect(&what)?;
        let (stream, ended) =
            shake_hands(server, stream, volume).map_err(|e| e.at(volume, server))?;
        let ClientEnd::Transmission(export) = ended else {
            let why = format!("{what}: {server}: the server ended the handshake");
            return Err(Failure::new(Exit::Failed, why));
        };
        let socket = stream.socket();
        socket
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| socket.set_write_timeout(Some(PATIENCE)))
            .map_err(|e| Failure::io(what, &e))?;
        let blocks = export.block_sizes;
        let grain_bytes = blocks.map_or(1, |b| b.minimum as usize).max(1);
        if !grain_bytes.is_power_of_two() || grain_bytes > GRAIN_BYTES_MAX {
            let why =
                format!("the server's block size of {grain_bytes} bytes is against the rules");
            return Err(Failure::new(Exit::Failed, why));
        }
        // Without block sizes 32 MiB is what every server takes.
        let payload_bytes_max = blocks.map_or(32 << 20, |b| b.maximum_payload as usize);
        Ok(Self {
            stream: BufReader::with_capacity(READ_BUFFER_BYTES, stream),
            server: server.to_string(),
            volume: volume.to_owned(),
            size_bytes: export.size,
            flags: export.flags,
            grain_bytes,
            payload_bytes_max: payload_bytes_max.max(grain_bytes),
            requests: HashMap::with_capacity(IN_FLIGHT_MAX),
            next_cookie: 0,
            told_of_wait: false,
        })
    }

    /// Size of the volume in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of which every offset and length must be a multiple, a power of two.
    pub(crate) fn grain_bytes(&self) -> usize {
        self.grain_bytes
    }

    /// Most bytes of one read or write.
    pub(crate) fn payload_bytes_max(&self) -> usize {
        self.payload_bytes_max
    }

    /// Does the server do all of this?
    pub(crate) fn offers(&self, flags: TransmissionFlags) -> bool {
        self.flags.contains(flags)
    }

    /// Unanswered requests.
    pub(crate) fn in_flight(&self) -> usize {
        self.requests.len()
    }

    /// Sends a write of `data`.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Outcome<()> {
        let header = RequestHeader::write(self.next_cookie, offset, wire_len(data.len() as u64));
        self.send("write", header, data, Vec::new())
    }

    /// Sends a request for zeros, which may become a hole; `len` fits 32 bits.
    pub(crate) fn write_zeroes(&mut self, offset: u64, len: u64) -> Outcome<()> {
        let header = RequestHeader::write_zeroes(self.next_cookie, offset, wire_len(len));
        self.send("zero", header, &[], Vec::new())
    }

    /// Sends a read of as many bytes as `buffer` has.
    pub(crate) fn read(&mut self, offset: u64, buffer: Vec<u8>) -> Outcome<()> {
        let header = RequestHeader::read(self.next_cookie, offset, wire_len(buffer.len() as u64));
        self.send("read", header, &[], buffer)
    }

    /// Waits for all answers, then makes everything durable.
    pub(crate) fn flush(&mut self) -> Outcome<()> {
        self.wait_for_all()?;
        if !self.offers(TransmissionFlags::SEND_FLUSH) {
            note("note: the server offers no FLUSH, so nothing says when the data is durable");
            return Ok(());
        }
        let header = RequestHeader::flush(self.next_cookie);
        self.send("flush", header, &[], Vec::new())?;
        self.wait_for_all()
    }

    /// Ends the connection politely. What was answered stays so; errors no longer matter.
    pub(crate) fn close(mut self) {
        let stream = self.stream.get_mut();
        let _ = stream.write_all(&RequestHeader::disconnect().encode());
        let _ = stream.end();
    }

    /// Waits until no request is unanswered; none may be a read.
    fn wait_for_all(&mut self) -> Outcome<()> {
        while self.in_flight() > 0 {
            self.receive()?;
        }
        Ok(())
    }

    /// Waits for one answer, in whatever order they come. Its data is empty unless it is a read's.
    pub(crate) fn receive(&mut self) -> Outcome<Piece> {
        let mut bytes = [0; SIMPLE_REPLY_BYTES];
        self.read_full(&mut bytes)?;
        let reply = SimpleReply::parse(&bytes)
            .map_err(|e| self.lost(&format!("the server broke the protocol: {e}")))?;
        let Some(request) = self.requests.remove(&reply.cookie) else {
            return Err(self.lost("the server answered a request that was not sent"));
        };
        if let Some(errno) = reply.errno {
            return Err(self.refused(&request, errno));
        }
        let mut data = request.buffer;
        if !data.is_empty() {
            self.read_full(&mut data)?;
        }
        let offset = request.offset;
        Ok(Piece { offset, data })
    }

    fn send(
        &mut self,
        what: &'static str,
        header: RequestHeader,
        payload: &[u8],
        buffer: Vec<u8>,
    ) -> Outcome<()> {
        assert!(self.in_flight() < IN_FLIGHT_MAX, "the caller bounds this");
        assert_eq!(header.payload_len() as usize, payload.len());
        self.next_cookie += 1;
        let request = Request {
            what,
            offset: header.offset,
            len: u64::from(header.length),
            buffer,
        };
        self.requests.insert(header.cookie, request);
        self.write_full(&header.encode(), payload)
    }

    fn write_full(&mut self, mut head: &[u8], mut payload: &[u8]) -> Outcome<()> {
        while !head.is_empty() || !payload.is_empty() {
            let slices = [IoSlice::new(head), IoSlice::new(payload)];
            match self.stream.get_mut().write_vectored(&slices) {
                Ok(0) => return Err(self.lost("the server closed it")),
                Ok(written) => {
                    let of_head = written.min(head.len());
                    head = &head[of_head..];
                    payload = &payload[written - of_head..];
                }
                Err(e) => self.interruption(&e)?,
            }
        }
        Ok(())
    }

    fn read_full(&mut self, mut out: &mut [u8]) -> Outcome<()> {
        while !out.is_empty() {
            match self.stream.read(out) {
                Ok(0) => return Err(self.lost("the server closed it")),
                Ok(count) => out = &mut out[count..],
                Err(e) => self.interruption(&e)?,
            }
        }
        Ok(())
    }

    /// Passes over what is no failure: a signal, and a wait, of which the person is told once.
    fn interruption(&mut self, error: &io::Error) -> Outcome<()> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                if !std::mem::replace(&mut self.told_of_wait, true) {
                    note(&format!(
                        "note: no answer for {} s, still waiting; `taipan status` may say why",
                        PATIENCE.as_secs()
                    ));
                }
                Ok(())
            }
            _ => Err(self.lost(&error.to_string())),
        }
    }

    fn lost(&self, why: &str) -> Failure {
        let (volume, server) = (&self.volume, &self.server);
        let what = format!("the connection to volume \"{volume}\" over {server} is lost: {why}");
        Failure::new(Exit::Failed, what)
    }

    fn refused(&self, request: &Request, errno: Errno) -> Failure {
        let hint = match errno {
            Errno::NoSpc => ": no space is left; `taipan status` shows where",
            Errno::Perm => ": the volume may only be read",
            Errno::Io => ": the storage failed; `taipan status` and taipand's log say why",
            Errno::Shutdown => ": the appliance is stopping",
            _ => "",
        };
        let exit = match errno {
            Errno::Perm => Exit::Conflict,
            _ => Exit::Failed,
        };
        let (volume, what, offset) = (&self.volume, request.what, request.offset);
        let range = match request.len {
            0 => String::new(),
            len => format!(" {} at byte {offset}", human(len)),
        };
        let text = format!("cannot {what}{range} of volume \"{volume}\": {errno}{hint}");
        Failure::new(exit, text)
    }
}

/// A length on the wire. Callers stay below 4 GiB by construction.
fn wire_len(len: u64) -> u32 {
    u32::try_from(len).expect("requests are bounded far below 4 GiB")
}

/// Why a handshake failed.
enum HandshakeFailure {
    Io(io::Error),
    Protocol(ClientError),
}

impl HandshakeFailure {
    fn at(self, volume: &str, server: &NbdServer) -> Failure {
        let what = format!("cannot reach volume \"{volume}\" over {server}");
        match self {
            Self::Protocol(ClientError::Refused { code, .. }) if code == ERR_UNKNOWN => {
                let (kind, shown_by) = match volume.split_once('@') {
                    Some((of, image)) if image.starts_with('@') => {
                        ("point in time", format!("volume history {of}"))
                    }
                    Some((of, _)) => ("snapshot", format!("snapshot list {of}")),
                    None => ("volume", "volume list".to_owned()),
                };
                let why = format!("{what}: there is no such {kind}; `taipan {shown_by}` shows all");
                Failure::new(Exit::NotFound, why)
            }
            Self::Protocol(error) => Failure::new(Exit::Failed, format!("{what}: {error}")),
            Self::Io(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    let limit = HANDSHAKE_TIMEOUT.as_secs();
                    let why = format!("{what}: no answer within {limit} s");
                    Failure::new(Exit::Unreachable, why)
                }
                _ => Failure::new(Exit::Unreachable, format!("{what}: {error}")),
            },
        }
    }
}

impl From<io::Error> for HandshakeFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn shake_hands(
    server: &NbdServer,
    mut stream: Wire,
    name: &str,
) -> Result<(Wire, ClientEnd), HandshakeFailure> {
    let socket = stream.socket();
    socket.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    socket.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let goal = Goal::Go(name.to_owned());
    let wishes = Wishes {
        tls: server.wants_tls(),
        ..Wishes::default()
    };
    let handshake = ClientHandshake::with_wishes(goal, wishes);
    let mut handshake = handshake.map_err(HandshakeFailure::Protocol)?;
    let (mut input, mut out) = ([0; 4096], Vec::new());
    loop {
        let count = match stream.read(&mut input) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        let advance = handshake
            .advance(&input[..count], &mut out)
            .map_err(HandshakeFailure::Protocol)?;
        stream.write_all(&out)?;
        out.clear();
        if let Some(end) = advance.end {
            if advance.consumed < count {
                let error = ClientError::Malformed("data before the first request");
                return Err(HandshakeFailure::Protocol(error));
            }
            return Ok((stream, end));
        }
        if advance.starts_tls {
            stream = server.start_tls(stream)?;
            let started = handshake.tls_started(&mut out);
            started.map_err(HandshakeFailure::Protocol)?;
            stream.write_all(&out)?;
            out.clear();
        }
    }
}
