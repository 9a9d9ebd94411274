//! Our client against servers that others wrote.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use taipan_nbd::protocol::command;
use taipan_nbd::{HeaderStyle, Wishes};

use crate::server::{SIZE, Server};
use crate::session::{Client, DF, ONE, Wire};

impl Wire for UnixStream {
    fn send(&mut self, bytes: &[u8]) {
        self.write_all(bytes).expect("a server that listens");
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut piece = vec![0; 10_000];
        let len = self.read(&mut piece).expect("an answer in time");
        assert!(len > 0, "the server has closed");
        piece.truncate(len);
        piece
    }
}

fn connect(server: &Server, wishes: Wishes) -> Client<UnixStream> {
    let stream = UnixStream::connect(server.socket()).expect("a server that listens");
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).expect("a limit");
    Client::connect(stream, "v", wishes)
}

fn wishes(extended_headers: bool) -> Wishes {
    Wishes {
        extended_headers,
        structured_replies: true,
        contexts: vec!["base:allocation".to_owned()],
        ..Wishes::default()
    }
}

/// Writes, reads and asks for the status of what both servers hold in the same way.
fn use_it(client: &mut Client<UnixStream>) {
    client.write(1 << 20, &[7; 65536]).expect("a write");
    let read = client.read(0, (1 << 20) - 4096, 8192).expect("a read");
    assert!(read.content[..4096].iter().all(|byte| *byte == 0));
    assert!(read.content[4096..].iter().all(|byte| *byte == 7));
    let whole = client.read(DF, (1 << 20) - 4096, 8192).expect("a read");
    assert_eq!((whole.holes, whole.content), (0, read.content));
    let status = client.status(0, 0, SIZE).expect("a status").status;
    let extents = &status["base:allocation"];
    assert_eq!(extents[0].status, 3, "{extents:?}");
    assert_eq!(extents[1].status, 0, "{extents:?}");
    let one = client.status(ONE, 0, SIZE).expect("a status").status;
    assert_eq!(one["base:allocation"][..], extents[..1]);
    client.read(0, SIZE, 1).expect_err("a read beyond the end");
    client
        .status(0, SIZE - 1, 2)
        .expect_err("a status beyond the end");
    let zeroes = (0, SIZE);
    client
        .ask(command::WRITE_ZEROES, 0, zeroes, &[])
        .expect("zeros");
    client.ask(command::FLUSH, 0, (0, 0), &[]).expect("a flush");
    let empty = client.read(0, 0, 1 << 20).expect("a read");
    assert!(empty.content.iter().all(|byte| *byte == 0));
}

#[test]
fn qemu_nbd_serves_our_client_in_both_styles() {
    let socket = ["-f", "raw", "-t", "-e", "0", "-k", "/proc/self/cwd/s"];
    let export = ["-x", "v", "image"];
    let Some(server) = Server::start("qemu-nbd", &[&socket[..], &export].concat()) else {
        return;
    };
    for (extended, style) in [
        (true, HeaderStyle::Extended),
        (false, HeaderStyle::Structured),
    ] {
        let mut client = connect(&server, wishes(extended));
        assert_eq!(client.export.headers, style);
        assert_eq!(client.export.contexts.len(), 1);
        use_it(&mut client);
        if extended {
            let id = client.export.contexts[0].id;
            let some = client.status_of(&[id], 0, 0, SIZE).expect("by payload");
            assert_eq!(some.status.len(), 1);
        }
    }
}

#[test]
fn nbdkit_serves_our_client_with_structured_replies() {
    let Some(server) = Server::start("nbdkit", &["-f", "-U", "s", "memory", "8M"]) else {
        return;
    };
    let mut client = connect(&server, wishes(true));
    assert_eq!(client.export.headers, HeaderStyle::Structured);
    use_it(&mut client);
}
