//! An NBD client whose every message the test decides: what is sent, when answers are read, and
//! how the connection ends.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use taipan_nbd::protocol::{command, command_flag};
use taipan_nbd::{
    ClientEnd, ClientExport, ClientHandshake, Errno, Goal, RequestHeader, SIMPLE_REPLY_BYTES,
    SimpleReply,
};

/// Longest silence of the server before a read fails.
const SILENCE: Duration = Duration::from_secs(120);

/// A connection in transmission.
pub(crate) struct NbdClient {
    stream: UnixStream,
    /// What the server told about the export.
    pub(crate) export: ClientExport,
    next_cookie: u64,
    /// Bytes of data that the reply to a READ will carry.
    reads: HashMap<u64, u32>,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Of the request.
    pub(crate) cookie: u64,
    /// The failure, if it failed.
    pub(crate) errno: Option<Errno>,
    /// What a READ brought.
    pub(crate) data: Vec<u8>,
}

impl NbdClient {
    /// Connects and chooses the export.
    pub(crate) fn connect(socket: &Path, volume: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let bad = |error| io::Error::other(format!("handshake: {error:?}"));
        let mut handshake = ClientHandshake::new(Goal::Go(volume.to_owned())).map_err(bad)?;
        let mut byte = [0];
        let mut out = Vec::new();
        loop {
            // Byte by byte, so that nothing behind the handshake is taken in.
            stream.read_exact(&mut byte)?;
            let advance = handshake.advance(&byte, &mut out).map_err(bad)?;
            stream.write_all(&out)?;
            out.clear();
            if let Some(ClientEnd::Transmission(export)) = advance.end {
                return Ok(Self {
                    stream,
                    export,
                    next_cookie: 1,
                    reads: HashMap::new(),
                });
            }
        }
    }

    /// Sends a request without waiting. Gives its cookie.
    pub(crate) fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        let mut message = header.encode().to_vec();
        message.extend_from_slice(payload);
        self.stream.write_all(&message)?;
        if command == command::READ {
            self.reads.insert(cookie, length);
        }
        Ok(cookie)
    }

    /// Sends a write without waiting.
    pub(crate) fn send_write(&mut self, offset: u64, data: &[u8]) -> io::Result<u64> {
        let length = u32::try_from(data.len()).expect("a write of less than 4 GiB");
        self.send(command::WRITE, 0, offset, length, data)
    }

    /// Waits for the next answer, to whatever request.
    pub(crate) fn receive(&mut self) -> io::Result<Answer> {
        let mut header = [0; SIMPLE_REPLY_BYTES];
        self.stream.read_exact(&mut header)?;
        let reply = SimpleReply::parse(&header)
            .map_err(|error| io::Error::other(format!("reply: {error:?}")))?;
        let expected = self.reads.remove(&reply.cookie).unwrap_or(0);
        let mut data = Vec::new();
        if reply.errno.is_none() {
            data.resize(expected as usize, 0);
            self.stream.read_exact(&mut data)?;
        }
        Ok(Answer {
            cookie: reply.cookie,
            errno: reply.errno,
            data,
        })
    }

    /// Sets how long sending may take when the server does not read.
    pub(crate) fn set_write_limit(&self, limit: Duration) {
        self.stream
            .set_write_timeout(Some(limit))
            .expect("a time limit");
    }

    /// Writes and waits. For use when nothing else is in flight.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<Option<Errno>> {
        let cookie = self.send_write(offset, data)?;
        self.only(cookie).map(|answer| answer.errno)
    }

    /// Writes with FUA and waits.
    pub(crate) fn write_durably(&mut self, offset: u64, data: &[u8]) -> io::Result<Option<Errno>> {
        let length = u32::try_from(data.len()).expect("a write of less than 4 GiB");
        let cookie = self.send(command::WRITE, command_flag::FUA, offset, length, data)?;
        self.only(cookie).map(|answer| answer.errno)
    }

    /// Reads and waits.
    pub(crate) fn read(&mut self, offset: u64, length: u32) -> io::Result<Result<Vec<u8>, Errno>> {
        let cookie = self.send(command::READ, 0, offset, length, &[])?;
        let answer = self.only(cookie)?;
        Ok(answer.errno.map_or(Ok(answer.data), Err))
    }

    /// Flushes and waits.
    pub(crate) fn flush(&mut self) -> io::Result<Option<Errno>> {
        let cookie = self.send(command::FLUSH, 0, 0, 0, &[])?;
        self.only(cookie).map(|answer| answer.errno)
    }

    fn only(&mut self, cookie: u64) -> io::Result<Answer> {
        let answer = self.receive()?;
        assert_eq!(answer.cookie, cookie, "an answer to another request");
        Ok(answer)
    }
}
