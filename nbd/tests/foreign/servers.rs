//! Our client side against servers that others wrote.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use taipan_nbd::protocol::{command, option_reply};
use taipan_nbd::{
    ClientEnd, ClientError, ClientExport, ClientHandshake, Errno, Goal, RequestHeader,
    SIMPLE_REPLY_BYTES, SimpleReply, TransmissionFlags,
};

use crate::server::{SIZE, Server};

impl Server {
    fn nbdkit() -> Option<Self> {
        Self::start("nbdkit", &["-f", "-U", "s", "memory", "8M"])
    }

    fn nbdkit_oldest_handshake() -> Option<Self> {
        Self::start(
            "nbdkit",
            &["-f", "-U", "s", "--mask-handshake=0", "memory", "8M"],
        )
    }

    fn qemu_nbd() -> Option<Self> {
        // It wants an absolute path, and is started inside the directory.
        let socket = ["-f", "raw", "-t", "-e", "0", "-k", "/proc/self/cwd/s"];
        let export = ["-x", "vol0", "-D", "a volume", "image"];
        Self::start("qemu-nbd", &[&socket[..], &export].concat())
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("a server that listens");
        let limit = Some(Duration::from_secs(30));
        stream.set_read_timeout(limit).expect("a limit");
        stream
    }
}

/// Runs a handshake over a socket.
fn shake(stream: &mut UnixStream, goal: Goal) -> Result<ClientEnd, ClientError> {
    let mut client = ClientHandshake::new(goal)?;
    loop {
        let mut piece = [0; 100];
        let len = stream.read(&mut piece).expect("an answer in time");
        assert!(len > 0, "the server has closed");
        let mut out = Vec::new();
        let advance = client.advance(&piece[..len], &mut out)?;
        assert_eq!(
            advance.consumed, len,
            "a server does not speak first after the handshake"
        );
        stream.write_all(&out).expect("a server that listens");
        if let Some(end) = advance.end {
            return Ok(end);
        }
    }
}

fn go(stream: &mut UnixStream, name: &str) -> ClientExport {
    match shake(stream, Goal::Go(name.to_owned())) {
        Ok(ClientEnd::Transmission(export)) => export,
        other => panic!("{other:?}"),
    }
}

/// Sends a request and reads its reply; for a READ with the data.
fn ask(stream: &mut UnixStream, request: RequestHeader, payload: &[u8]) -> Result<Vec<u8>, Errno> {
    stream.write_all(&request.encode()).expect("sent");
    stream.write_all(payload).expect("sent");
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    stream.read_exact(&mut bytes).expect("a reply");
    let reply = SimpleReply::parse(&bytes).expect("a simple reply");
    assert_eq!(reply.cookie, request.cookie);
    if let Some(errno) = reply.errno {
        return Err(errno);
    }
    let len = if request.command == command::READ {
        request.length
    } else {
        0
    };
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data).expect("the data");
    Ok(data)
}

/// Writes, reads back, zeroes, and is refused what lies beyond the end.
fn exercise(stream: &mut UnixStream) {
    let data: Vec<u8> = (0..70_000_u32)
        .map(|index| (index * 7 % 251) as u8)
        .collect();
    let len = data.len() as u32;
    assert_eq!(
        ask(stream, RequestHeader::write(1, 512, len).with_fua(), &data),
        Ok(vec![])
    );
    assert_eq!(ask(stream, RequestHeader::read(2, 512, len), &[]), Ok(data));
    assert_eq!(
        ask(stream, RequestHeader::write_zeroes(3, 0, 4096), &[]),
        Ok(vec![])
    );
    assert_eq!(
        ask(stream, RequestHeader::read(4, 0, 4096), &[]),
        Ok(vec![0; 4096])
    );
    assert_eq!(
        ask(stream, RequestHeader::trim(5, 0, 8192), &[]),
        Ok(vec![])
    );
    assert_eq!(ask(stream, RequestHeader::flush(6), &[]), Ok(vec![]));
    assert_eq!(
        ask(stream, RequestHeader::read(7, SIZE, 512), &[]),
        Err(Errno::Inval)
    );
    let goodbye = RequestHeader::disconnect().encode();
    stream.write_all(&goodbye).expect("sent");
    let end = stream.read(&mut [0]).expect("no reply to a goodbye");
    assert_eq!(end, 0);
}

#[test]
fn nbdkit_serves_our_client() {
    let Some(server) = Server::nbdkit() else {
        return;
    };
    let mut stream = server.connect();
    let export = go(&mut stream, "");
    assert_eq!(export.size, SIZE);
    assert!(
        export.flags.contains(TransmissionFlags::SEND_FUA),
        "{:?}",
        export.flags
    );
    exercise(&mut stream);
}

#[test]
fn a_server_without_fixed_newstyle_serves_our_client() {
    let Some(server) = Server::nbdkit_oldest_handshake() else {
        return;
    };
    let mut stream = server.connect();
    assert_eq!(go(&mut stream, "").size, SIZE);
    exercise(&mut stream);
    let listed = shake(&mut server.connect(), Goal::List);
    assert_eq!(listed, Err(ClientError::OldServer));
}

#[test]
fn qemu_nbd_serves_our_client() {
    let Some(server) = Server::qemu_nbd() else {
        return;
    };
    let mut stream = server.connect();
    let export = go(&mut stream, "vol0");
    assert_eq!(export.size, SIZE);
    assert_eq!(export.canonical_name.as_deref(), Some("vol0"));
    assert_eq!(export.description.as_deref(), Some("a volume"));
    let sizes = export.block_sizes.expect("qemu tells block sizes");
    assert_eq!(sizes.maximum_payload, 32 << 20);
    exercise(&mut stream);
}

#[test]
fn qemu_nbd_describes_lists_and_refuses() {
    let Some(server) = Server::qemu_nbd() else {
        return;
    };
    let described = shake(&mut server.connect(), Goal::Info("vol0".to_owned()));
    assert!(matches!(
        described,
        Ok(ClientEnd::Described(ClientExport { size: SIZE, .. }))
    ));
    let Ok(ClientEnd::Listed(exports)) = shake(&mut server.connect(), Goal::List) else {
        panic!("no list");
    };
    let names: Vec<_> = exports.iter().map(|export| export.name.as_str()).collect();
    assert_eq!(names, ["vol0"]);
    let refused = shake(&mut server.connect(), Goal::Go("nobody".to_owned()));
    let Err(ClientError::Refused { code, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(code, option_reply::ERR_UNKNOWN);
}
