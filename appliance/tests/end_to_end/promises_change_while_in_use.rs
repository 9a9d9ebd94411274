//! What a volume promises about the bucket is changed while a client is connected: FLUSH waits for
//! the bucket from then on, writes wait when it lacks too much or for too long, commits come
//! sooner.
//! And what an operator asks for at once: a commit, a warm-up.

use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::FakeS3;
use crate::harness::{MIB, pattern, wait_until};

const LIMIT: Duration = Duration::from_secs(180);
/// The daemon itself commits nothing within the test.
const NEVER: &str = "--set=commit.interval_seconds=3600";

fn rig(server: &FakeS3) -> Rig {
    Rig::new(&["vol0:1GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&[NEVER])
}

fn set(daemon: &Daemon, what: &str) {
    let line = format!("volume set vol0 {what}");
    daemon.taipan().args(&line).succeed();
}

fn data(place: u64) -> Vec<u8> {
    pattern(place, 7, MIB as usize)
}

fn check(daemon: &Daemon, places: std::ops::Range<u64>) {
    let mut client = daemon.client("vol0");
    for place in places {
        let found = client.read(place * MIB, MIB as u32).unwrap().unwrap();
        assert!(found == data(place), "MiB {place}");
    }
}

/// Requests that had to wait because the bucket lacks too much.
fn waited(daemon: &Daemon) -> f64 {
    daemon.metric("taipan_parked_total{reason=\"backend\"}")
}

/// Writes behind the limit wait until the server is back; reads do not.
fn waits_and_goes_on(daemon: &Daemon, server: &FakeS3, place: u64) {
    let before = waited(daemon);
    let socket = daemon.socket();
    let writer = std::thread::spawn(move || {
        let mut client = crate::harness::client::NbdClient::connect(&socket, "vol0").unwrap();
        (place..place + 4).for_each(|place| {
            assert_eq!(client.write(place * MIB, &data(place)).unwrap(), None);
        });
    });
    wait_until("a write to wait for the bucket", LIMIT, || {
        waited(daemon) > before
    });
    check(daemon, 0..1);
    assert!(!writer.is_finished(), "it went on beyond the limit");
    server.heal();
    writer.join().unwrap();
    check(daemon, place..place + 4);
}

#[test]
fn a_flush_waits_for_the_bucket_once_it_is_told_to() {
    let server = FakeS3::start();
    let mut rig = rig(&server);
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    set(&daemon, "--durability remote");
    assert_eq!(client.write(0, &data(0)).unwrap(), None);
    assert_eq!(client.flush().unwrap(), None);
    assert_eq!(client.write_durably(MIB, &data(1)).unwrap(), None);
    daemon.kill();
    rig.lose_machine();

    // Of the volume and its settings nothing is known but what the bucket has.
    rig.forget_volumes();
    let daemon = rig.start();
    assert_eq!(daemon.volume("vol0")["durability"], "remote");
    check(&daemon, 0..2);
    set(&daemon, "--durability local");
    server.go_down();
    let mut client = daemon.client("vol0");
    assert_eq!(client.write_durably(2 * MIB, &data(2)).unwrap(), None);
    daemon.kill();
}

#[test]
fn writes_wait_while_the_bucket_lacks_more_or_for_longer_than_it_may() {
    let server = FakeS3::start();
    let rig = rig(&server);
    let daemon = rig.start();
    assert_eq!(daemon.client("vol0").write(0, &data(0)).unwrap(), None);
    set(&daemon, "--rpo-bytes 2MiB");
    server.go_down();
    waits_and_goes_on(&daemon, &server, 4);

    set(&daemon, "--rpo-bytes 0 --rpo-seconds 2");
    // Nothing is too old when the next write comes.
    daemon.taipan().args("volume commit vol0").succeed();
    server.go_down();
    assert_eq!(daemon.client("vol0").write(MIB, &data(1)).unwrap(), None);
    wait_until("the bucket to be behind for too long", LIMIT, || {
        daemon.metric("taipan_volume_risk_seconds") > 2.0
    });
    waits_and_goes_on(&daemon, &server, 8);

    set(&daemon, "--rpo-seconds 0 --commit-interval-seconds 1");
    let manifest = || daemon.volume("vol0")["manifest"].as_u64();
    let before = manifest();
    assert_eq!(
        daemon.client("vol0").write(2 * MIB, &data(2)).unwrap(),
        None
    );
    wait_until("a commit by the volume's own interval", LIMIT, || {
        manifest() > before
    });
    daemon.stop();
}

#[test]
fn a_commit_and_a_warm_up_are_done_when_they_are_asked_for() {
    let server = FakeS3::start();
    let mut rig = rig(&server);
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    for place in 0..16 {
        assert_eq!(client.write(place * MIB, &data(place)).unwrap(), None);
    }
    daemon.taipan().args("volume commit vol0").succeed();
    assert_eq!(daemon.volume("vol0")["upload"]["risk_bytes"], 0);
    daemon.kill();
    rig.lose_machine();

    rig.forget_volumes();
    let daemon = rig.start();
    let told = daemon.taipan().args("volume warm vol0 --wait").succeed();
    assert!(told.contains("4096 blocks read"), "{told}");
    server.reset_stats();
    check(&daemon, 0..16);
    let of_chunks = server.requests_for("/chunks/");
    assert!(of_chunks.is_empty(), "for what was warmed: {of_chunks:?}");
    daemon.stop();
}
