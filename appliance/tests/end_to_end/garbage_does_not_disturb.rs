//! Garbage on the NBD port, the fuzz corpus among it, closes its own connection at most: another
//! client goes on, and the daemon stays. Nor do connections that say nothing, or are too many.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;
use crate::harness::{pattern, wait_until};

/// Longest wait for what a server has to do by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// A fixed sequence of bytes without a pattern that a parser would know.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nbd/fuzz/corpus/server");
    let files: Vec<_> = fs::read_dir(&folder)
        .expect("the corpus of the server")
        .collect();
    assert!(!files.is_empty(), "no corpus in {folder:?}");
    files
        .into_iter()
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn garbage_closes_only_its_own_connection() {
    // The corpus knows the name vol0 and writes to it, quite properly at times.
    let rig = Rig::new(&["vol0:1GiB", "kept:1GiB"]);
    let mut daemon = rig.start();
    let mut client = daemon.client("kept");
    let data = pattern(3, 3, 65536);
    assert_eq!(client.write(0, &data).unwrap(), None);

    let mut streams = corpus();
    streams.push(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec());
    streams.extend((0..32).map(|seed| noise(seed, 1 << (seed % 17))));
    // Behind a valid start of the handshake, so that options and requests are garbage too.
    streams.extend((0..32).map(|seed| {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(b"IHAVEOPT");
        bytes.extend(noise(seed, 4096));
        bytes
    }));
    for bytes in streams {
        let mut stream = TcpStream::connect(daemon.tcp).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        // The server may close while we still send or before we read.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.take(1 << 20).read_to_end(&mut answer);
        assert!(daemon.alive(), "taipand ended");
    }
    assert_eq!(client.read(0, 65536).unwrap().unwrap(), data);
    Program::new("nbdinfo", LIMIT)
        .arg(daemon.tcp_uri("kept"))
        .succeed();
    daemon.stop();
}

fn connect(daemon: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.tcp).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

#[test]
fn surplus_connections_are_closed() {
    let rig = Rig::new(&["vol0:64MiB"]).with_flags(&[
        "--set=limits.connections_max=4",
        "--set=limits.handshake_timeout_seconds=600",
    ]);
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    // What the harness made to see whether the daemon serves is gone.
    let total = |of: &str| daemon.metric(&format!("taipan_connections_{of}_total"));
    wait_until("one open connection", LIMIT, || {
        total("accepted") - total("closed") == 1.0
    });
    let mut others: Vec<TcpStream> = (0..3).map(|_| connect(&daemon)).collect();
    let mut greeting = [0; 18];
    for stream in &mut others {
        stream.read_exact(&mut greeting).unwrap();
    }
    let surplus = connect(&daemon).read(&mut greeting);
    assert!(!matches!(surplus, Ok(1..)), "one too many was greeted");
    wait_until("one refusal", LIMIT, || total("refused") == 1.0);
    assert_eq!(client.flush().unwrap(), None);
    drop(others);
    wait_until("room for another client", LIMIT, || {
        daemon.try_client("vol0").is_ok()
    });
    daemon.stop();
}

#[test]
fn silent_connections_are_closed() {
    let flags = ["--set=limits.handshake_timeout_seconds=1"];
    let rig = Rig::new(&["vol0:64MiB"]).with_flags(&flags);
    let daemon = rig.start();
    let mut client = None;
    // Where all stand still for a second, even a client that hurries is late.
    wait_until("a client", LIMIT, || {
        client = daemon.try_client("vol0").ok();
        client.is_some()
    });
    let mut silent: Vec<TcpStream> = (0..3).map(|_| connect(&daemon)).collect();
    for stream in &mut silent {
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("it is closed");
    }
    wait_until("the failures", LIMIT, || {
        daemon.metric("taipan_handshake_failures_total") >= 3.0
    });
    // Who is through with it may be silent.
    assert_eq!(client.expect("a client").flush().unwrap(), None);
    daemon.stop();
}
