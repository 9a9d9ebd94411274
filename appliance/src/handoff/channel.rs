//! The socket between two daemons: frames, and descriptors that come with them.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use taipan_engine::error::{Error, ErrorKind, Result};

use super::format::{HEADER_BYTES, Header, Message};

/// One conversation.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
}

impl Channel {
    /// Over a connected socket.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Whether the other side is the same user; nobody else may have the clients' data.
    pub(super) fn is_same_user(&self) -> bool {
        let peer = sockopt::socket_peercred(&self.socket);
        peer.is_ok_and(|peer| peer.uid == rustix::process::geteuid())
    }

    /// Waits at most so long for a message, or for room to send one.
    pub(super) fn patience(&self, limit: Duration) -> Result<()> {
        let set = self.socket.set_read_timeout(Some(limit));
        set.and_then(|()| self.socket.set_write_timeout(Some(limit)))
            .map_err(|e| Error::io("preparing a hand-off", e))
    }

    /// Sends a message, with a descriptor if one belongs to it.
    pub(super) fn send(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
        let frame = message.encode();
        let sent = match descriptor {
            Some(descriptor) => self.send_with(&frame[..HEADER_BYTES], descriptor),
            None => Ok(0),
        };
        sent.and_then(|sent| (&self.socket).write_all(&frame[sent..]))
            .map_err(|e| Error::io("sending a message of the hand-off", e))
    }

    fn send_with(&self, header: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(fits, "the space is for one descriptor");
        let parts = [IoSlice::new(header)];
        let flags = SendFlags::NOSIGNAL;
        Ok(sendmsg(&self.socket, &parts, &mut ancillary, flags)?)
    }

    /// Receives a message and what came with it. An end of the stream is an error of the kind
    /// `NotFound`: the other side has ended.
    pub(super) fn receive(&self) -> Result<(Message, Option<OwnedFd>)> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                Error::new(ErrorKind::NotFound, "the other daemon has ended")
            }
            _ => Error::io("waiting for the other daemon", e),
        };
        let (header, descriptor) = self.receive_header().map_err(failed)?;
        let refuse = |bad| Error::invalid(format!("the other daemon sent {bad}"));
        let header = Header::decode(&header).map_err(refuse)?;
        let mut body = Vec::new();
        (&self.socket)
            .take(header.body_len() as u64)
            .read_to_end(&mut body)
            .map_err(failed)?;
        if body.len() < header.body_len() {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let message = Message::decode(&header, &body).map_err(refuse)?;
        Ok((message, descriptor))
    }

    fn receive_header(&self) -> io::Result<([u8; HEADER_BYTES], Option<OwnedFd>)> {
        let (mut header, mut filled) = ([0; HEADER_BYTES], 0);
        let mut descriptor = None;
        while filled < HEADER_BYTES {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut header[filled..])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(self.socket.as_fd(), &mut parts, &mut ancillary, flags) {
                Err(rustix::io::Errno::INTR) => continue,
                received => received?.bytes,
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
                    descriptor = descriptor.or_else(|| descriptors.next());
                }
            }
            if received == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += received;
        }
        Ok((header, descriptor))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::super::format::{Begun, Passed};
    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().unwrap();
        (Channel::new(one), Channel::new(other))
    }

    #[test]
    fn messages_come_in_order_each_with_its_own_descriptor() {
        let (one, other) = pair();
        assert!(one.is_same_user());
        let sent: Vec<_> = (0..3).map(|_| UnixDatagram::pair().unwrap()).collect();
        let passed = |core: u16| Passed {
            core,
            read_only: false,
            age_ms: 0,
            size_bytes: 0,
            tally: [0; 4],
            export: String::new(),
            peer: String::new(),
            agreement: taipan_nbd::Agreement::default(),
            begun: Begun::Nothing,
            input: Vec::new(),
            // More than a socket holds.
            output: vec![7; 1 << 20],
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (index, (here, _)) in sent.iter().enumerate() {
                    let message = Message::Connection(Box::new(passed(index as u16)));
                    one.send(&message, Some(here.as_fd())).unwrap();
                    one.send(&Message::Switch, None).unwrap();
                }
            });
            for (index, (_, there)) in sent.iter().enumerate() {
                let (message, socket) = other.receive().unwrap();
                let Message::Connection(received) = message else {
                    panic!("{message:?}")
                };
                assert_eq!(*received, passed(index as u16));
                let socket = UnixDatagram::from(socket.expect("a descriptor"));
                socket.send(&[index as u8]).unwrap();
                let mut byte = [0];
                there.recv(&mut byte).unwrap();
                assert_eq!(usize::from(byte[0]), index);
                let (message, none) = other.receive().unwrap();
                assert_eq!((message, none.is_none()), (Message::Switch, true));
            }
        });
    }

    #[test]
    fn an_end_is_told_from_silence_and_from_nonsense() {
        let (one, other) = pair();
        other.patience(Duration::from_millis(1)).unwrap();
        assert_eq!(other.receive().unwrap_err().kind(), ErrorKind::Io);
        (&one.socket).write_all(&[1; HEADER_BYTES]).unwrap();
        assert_eq!(other.receive().unwrap_err().kind(), ErrorKind::Invalid);
        drop(one);
        assert_eq!(other.receive().unwrap_err().kind(), ErrorKind::NotFound);
    }
}
