//! Many connections, most of which send reads and take no replies, or stop in the midst of a
//! request: the others all go on, memory stays bounded, and a stop does not wait for the slow ones.

use std::time::Duration;

use taipan_nbd::protocol::command;

use crate::harness::client::NbdClient;
use crate::harness::daemon::{Daemon, Rig};
use crate::harness::{MIB, pattern, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
/// `limits.request_bytes_total`.
const TOTAL_BYTES: u64 = 64 * MIB;
/// What one connection may hold beside that: half a receive buffer, and a small request.
const CONNECTION_BYTES: u64 = 512 << 10;
/// Clients that read what they asked for, so many requests at a time.
const BUSY: usize = 8;
const READS: u64 = 200;
const DEPTH: u64 = 16;
const READ_BYTES: u32 = 16 << 10;
/// Bytes of the volume that hold data.
const DATA: u64 = 32 * MIB;

/// Reads of one client, so many at a time, each checked against what is at its place.
fn read_all(client: &mut NbdClient, seed: u64, content: &[Vec<u8>]) {
    let place = |index: u64| (index * 7 + seed * 131) % (DATA / MIB);
    let send = |client: &mut NbdClient, index| {
        let offset = place(index) * MIB;
        client
            .send(command::READ, 0, offset, READ_BYTES, &[])
            .unwrap()
    };
    let first = send(client, 0);
    (1..DEPTH).for_each(|index| {
        send(client, index);
    });
    for answered in 0..READS {
        let answer = client.receive().unwrap();
        assert_eq!(answer.errno, None);
        let index = answer.cookie - first;
        let expected = &content[place(index) as usize];
        assert!(
            answer.data == expected[..READ_BYTES as usize],
            "read {index}"
        );
        if answered + DEPTH < READS {
            send(client, answered + DEPTH);
        }
    }
}

/// Asks for 16 MiB and reads nothing.
fn slow(daemon: &Daemon) -> NbdClient {
    let mut client = daemon.client("vol0");
    for piece in 0..64 {
        let offset = piece % 32 * MIB;
        client
            .send(command::READ, 0, offset, 256 << 10, &[])
            .unwrap();
    }
    client
}

/// Sends the half of a large write.
fn dripping(daemon: &Daemon) -> NbdClient {
    let mut client = daemon.client("vol0");
    client.set_write_limit(LIMIT);
    client
        .send(command::WRITE, 0, 512 * MIB, 256 << 10, &[1; 128 << 10])
        .unwrap();
    client
}

#[test]
fn others_go_on_and_memory_is_bounded() {
    let connections = match std::env::var_os("TAIPAN_ROUNDS") {
        Some(_) => 500,
        None => 100,
    };
    let limit = |name| format!("--set=limits.request_bytes_{name}={TOTAL_BYTES}");
    let limits = [limit("total"), limit("per_connection")];
    let flags = [limits[0].as_str(), limits[1].as_str()];
    let rig = Rig::new(&["vol0:1GiB"]).with_flags(&flags);
    let daemon = rig.start();
    let mut writer = daemon.client("vol0");
    let content: Vec<_> = (0..DATA / MIB)
        .map(|place| pattern(place, 1, MIB as usize))
        .collect();
    for (place, data) in content.iter().enumerate() {
        assert_eq!(writer.write(place as u64 * MIB, data).unwrap(), None);
    }
    let mut busy: Vec<_> = (0..BUSY).map(|_| daemon.client("vol0")).collect();
    let before = daemon.resident_bytes();

    let slow: Vec<_> = (0..connections / 2).map(|_| slow(&daemon)).collect();
    let dripping: Vec<_> = (0..connections / 10).map(|_| dripping(&daemon)).collect();
    let rest = connections - 1 - BUSY - slow.len() - dripping.len();
    let idle: Vec<_> = (0..rest).map(|_| daemon.client("vol0")).collect();
    wait_until("all of them alone", LIMIT, || {
        daemon.status()["connections"] == connections
    });
    std::thread::scope(|scope| {
        for (seed, client) in busy.iter_mut().enumerate() {
            let content = &content;
            scope.spawn(move || read_all(client, seed as u64, content));
        }
    });
    // Larger than what is left, and than a piece of a write.
    let whole = writer.read(0, 16 * MIB as u32).unwrap().unwrap();
    assert!(whole == content[..16].concat());
    assert_eq!(writer.write(0, &whole).unwrap(), None);
    assert_eq!(writer.flush().unwrap(), None);

    let grown = daemon.resident_bytes().saturating_sub(before);
    let bound = TOTAL_BYTES + 16 * MIB + (slow.len() + dripping.len()) as u64 * CONNECTION_BYTES;
    println!("{} MiB more resident, at most {}", grown / MIB, bound / MIB);
    assert!(grown < bound, "{grown} bytes, at most {bound}");
    daemon.stop();
    drop((slow, dripping, idle));
}
