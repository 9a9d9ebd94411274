//! A write that is parked when its connection dies never lands after the newer write that the
//! reconnected client makes to the same block.

use std::time::Duration;

use crate::harness::client::NbdClient;
use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::FakeS3;
use crate::harness::{MIB, pattern};

/// Each write is this long: one block of every shard.
const WRITE: u64 = 64 << 10;
const OLD: u64 = 1;
const NEW: u64 = 2;

/// Sends writes until so many are on their way or the server takes no more of them; then drops the
/// connection with all that is parked. Gives how many were sent.
fn write_and_vanish(daemon: &Daemon, writes: u64) -> u64 {
    let mut client = daemon.client("vol0");
    client.set_write_limit(Duration::from_secs(3));
    for place in 0..writes {
        let data = pattern(place, OLD, WRITE as usize);
        if client.send_write(place * WRITE, &data).is_err() {
            // The one that was cut off never was a request.
            return place;
        }
    }
    writes
}

/// The last of those places: the ones that are parked for sure.
fn rewrite(client: &mut NbdClient, sent: u64) -> Vec<u64> {
    let places: Vec<u64> = (0..sent).rev().take(64).collect();
    for &place in &places {
        client
            .send_write(place * WRITE, &pattern(place, NEW, WRITE as usize))
            .unwrap();
    }
    places
}

fn assert_new(client: &mut NbdClient, places: &[u64]) {
    for &place in places {
        let found = client.read(place * WRITE, WRITE as u32).unwrap().unwrap();
        assert!(
            found == pattern(place, NEW, WRITE as usize),
            "place {place} is not the new one"
        );
    }
}

fn check_now_and_after_a_kill(rig: &Rig, daemon: Daemon, mut new: NbdClient, places: &[u64]) {
    for _ in places {
        assert_eq!(new.receive().unwrap().errno, None);
    }
    assert_eq!(new.flush().unwrap(), None);
    // Whatever is still queued anywhere gets its chance to land.
    std::thread::sleep(Duration::from_secs(2));
    assert_new(&mut new, places);
    daemon.kill();
    let daemon = rig.start();
    assert_new(&mut daemon.client("vol0"), places);
    daemon.stop();
}

#[test]
fn a_write_parked_by_a_slow_disk_does_not_land_late() {
    let rig = Rig::new(&["vol0:1GiB"]).with_flags(&["--cache-size=128MiB"]);
    // Every WAL write takes so long that requests queue up, in the server and in the socket.
    let daemon = rig.start_with(&[], "wal.write=delay(5)");
    let sent = write_and_vanish(&daemon, 128 * MIB / WRITE);
    let mut new = daemon.client("vol0");
    let places = rewrite(&mut new, sent);
    check_now_and_after_a_kill(&rig, daemon, new, &places);
}

#[test]
fn a_write_parked_by_a_full_wal_does_not_land_late() {
    let server = FakeS3::start();
    let rig = Rig::new(&["vol0:2GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--cache-size=128MiB", "--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    // The backend does not answer, so that no WAL space is released.
    server.go_down();
    // More than the WAL holds.
    let sent = write_and_vanish(&daemon, 512 * MIB / WRITE);
    assert!(sent < 512 * MIB / WRITE, "nothing was parked");
    let mut new = daemon.client("vol0");
    server.heal();
    let places = rewrite(&mut new, sent);
    check_now_and_after_a_kill(&rig, daemon, new, &places);
}
