//! `taipan-bench null-server`: an NBD server that stores nothing and answers at once. What a client
//! reaches with it is the client's own ceiling.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, bail};
use clap::Args;
use taipan_engine::size::ByteSize;
use taipan_nbd::{
    ExportDirectory, ExportInfo, HandshakeEnd, HandshakeLimits, LookupError, Op, REQUEST_BYTES,
    RequestHeader, SIMPLE_REPLY_BYTES, ServerHandshake, simple_reply, validate,
};

/// Bytes received at once.
const INPUT_BYTES: usize = 256 << 10;
/// Replies sent in one call, at most.
const SLICES_MAX: usize = 512;
/// Longest read that is answered.
const READ_BYTES_MAX: usize = 32 << 20;

/// Options of `taipan-bench null-server`.
#[derive(Debug, Args)]
pub(crate) struct NullServerArgs {
    /// Unix socket to listen on
    #[arg(long, value_name = "PATH", required_unless_present = "listen")]
    socket: Option<PathBuf>,

    /// TCP address to listen on
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "socket")]
    listen: Option<SocketAddr>,

    /// Size that the export claims
    #[arg(long, default_value = "4GiB")]
    size: ByteSize,
}

/// Every name leads to the one export.
#[derive(Clone)]
struct Directory(ExportInfo);

impl ExportDirectory for Directory {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        visit(&self.0.canonical_name, &self.0.description);
        Ok(())
    }

    fn find(&self, _: &str) -> Result<ExportInfo, LookupError> {
        Ok(self.0.clone())
    }
}

/// Serves until the process is ended.
pub(crate) fn serve(args: &NullServerArgs) -> Result<()> {
    let directory = Directory(ExportInfo::new("null", args.size.0));
    if let Some(address) = args.listen {
        let listener =
            TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        for stream in listener.incoming() {
            let stream = stream.context("accepting a connection")?;
            stream.set_nodelay(true)?;
            admit(stream, &directory);
        }
    } else if let Some(path) = &args.socket {
        let listener =
            UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
        for stream in listener.incoming() {
            admit(stream.context("accepting a connection")?, &directory);
        }
    }
    Ok(())
}

fn admit(stream: impl Read + Write + Send + 'static, directory: &Directory) {
    let directory = directory.clone();
    thread::spawn(move || {
        // A client that goes away without a word is what most do.
        if let Err(error) = Connection::new(stream).serve(&directory) {
            eprintln!("connection: {error:#}");
        }
    });
}

struct Connection<S> {
    stream: S,
    input: Vec<u8>,
    filled: usize,
    /// Bytes of a payload that are still to be thrown away.
    payload: usize,
    /// Replies with the length of the data behind each.
    replies: Vec<([u8; SIMPLE_REPLY_BYTES], usize)>,
    data: Vec<u8>,
}

impl<S: Read + Write> Connection<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            input: vec![0; INPUT_BYTES],
            filled: 0,
            payload: 0,
            replies: Vec::new(),
            data: Vec::new(),
        }
    }

    fn serve(mut self, directory: &Directory) -> Result<()> {
        let Some(export) = self.shake_hands(directory)? else {
            return Ok(());
        };
        loop {
            let len = self.stream.read(&mut self.input[self.filled..])?;
            if len == 0 {
                return Ok(());
            }
            self.filled += len;
            let goodbye = self.take_requests(&export)?;
            self.answer()?;
            if goodbye {
                return Ok(());
            }
        }
    }

    fn shake_hands(&mut self, directory: &Directory) -> Result<Option<ExportInfo>> {
        let mut handshake = ServerHandshake::new(HandshakeLimits::DEFAULT);
        self.stream.write_all(&handshake.greeting())?;
        let mut out = Vec::new();
        let mut byte = [0];
        loop {
            // Byte by byte, so that no request behind the handshake is taken.
            if self.stream.read(&mut byte)? == 0 {
                return Ok(None);
            }
            let advance = handshake.advance(&byte, &mut out, directory)?;
            self.stream.write_all(&out)?;
            out.clear();
            match advance.end {
                Some(HandshakeEnd::Transmission(selected)) => return Ok(Some(selected.info)),
                Some(_) => return Ok(None),
                None => {}
            }
        }
    }

    /// Takes all whole requests out of what was received; whether the client leaves.
    fn take_requests(&mut self, export: &ExportInfo) -> Result<bool> {
        let mut at = 0;
        let mut goodbye = false;
        loop {
            let thrown = self.payload.min(self.filled - at);
            at += thrown;
            self.payload -= thrown;
            let Some(head) = self.input[at..self.filled].first_chunk::<REQUEST_BYTES>() else {
                break;
            };
            let header = RequestHeader::parse(head).context("reading a request")?;
            at += REQUEST_BYTES;
            self.payload = header.payload_len() as usize;
            let (errno, data) = match validate(&header, export) {
                Ok(Op::Disconnect) => {
                    goodbye = true;
                    break;
                }
                Ok(Op::Read { len, .. }) if len as usize > READ_BYTES_MAX => {
                    bail!("a read of {len} bytes")
                }
                Ok(Op::Read { len, .. }) => (None, len as usize),
                Ok(_) => (None, 0),
                Err(refusal) => (Some(refusal.errno), 0),
            };
            self.replies
                .push((simple_reply(errno, header.cookie), data));
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(goodbye)
    }

    fn answer(&mut self) -> Result<()> {
        let longest = self.replies.iter().map(|(_, data)| *data).max();
        if longest.unwrap_or(0) > self.data.len() {
            self.data.resize(longest.unwrap_or(0), 0);
        }
        for replies in self.replies.chunks(SLICES_MAX / 2) {
            let slices = replies
                .iter()
                .flat_map(|(head, data)| [&head[..], &self.data[..*data]]);
            let mut slices: Vec<_> = slices.map(IoSlice::new).collect();
            let mut left = &mut slices[..];
            // Empty slices at the front would look like the end of the stream.
            IoSlice::advance_slices(&mut left, 0);
            while !left.is_empty() {
                let sent = self
                    .stream
                    .write_vectored(left)
                    .context("sending replies")?;
                IoSlice::advance_slices(&mut left, sent);
            }
        }
        self.replies.clear();
        Ok(())
    }
}
