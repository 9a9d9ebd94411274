//! Injected errors of the WAL's disk: one is survived by writing the undurable batches once more,
//! a persisting one fails the shard closed, visibly, and nothing is acknowledged falsely.

use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::{KIB, MIB, pattern, wait_until};

/// One block in each of the 16 shards.
const STRIPE: u64 = 64 * KIB;

const LIMIT: Duration = Duration::from_secs(60);

/// How the cause is shown to people.
const CAUSE: &str = "Input/output error";

fn write_stripes(daemon: &Daemon, stripes: std::ops::Range<u64>, version: u64) {
    let mut client = daemon.client("vol0");
    for stripe in stripes {
        let data = pattern(stripe, version, STRIPE as usize);
        assert_eq!(client.write(stripe * STRIPE, &data).unwrap(), None);
    }
    assert_eq!(client.flush().unwrap(), None);
}

fn check_stripes(daemon: &Daemon, stripes: std::ops::Range<u64>, version: u64) {
    let mut client = daemon.client("vol0");
    for stripe in stripes {
        let found = client
            .read(stripe * STRIPE, STRIPE as u32)
            .unwrap()
            .unwrap();
        assert!(
            found == pattern(stripe, version, STRIPE as usize),
            "stripe {stripe}"
        );
    }
}

fn one_error_is_survived(failpoints: &str) {
    let rig = Rig::new(&["vol0:1GiB"]);
    let daemon = rig.start_with(&[], failpoints);
    write_stripes(&daemon, 0..64, 1);
    write_stripes(&daemon, 32..96, 2);
    check_stripes(&daemon, 0..32, 1);
    for counted in ["taipan_wal_errors_total", "taipan_wal_rewrites_total"] {
        wait_until(counted, LIMIT, || daemon.metric(counted) > 0.0);
    }
    daemon.kill();
    rig.lose_memory();
    let daemon = rig.start();
    check_stripes(&daemon, 0..32, 1);
    check_stripes(&daemon, 32..96, 2);
    daemon.stop();
}

#[test]
fn a_write_error_is_survived_by_writing_again() {
    one_error_is_survived("wal.write=1*error(EIO)");
}

#[test]
fn a_flush_error_is_survived_by_writing_again() {
    one_error_is_survived("wal.barrier=1*error(EIO)");
}

fn a_persisting_error_fails_closed(failpoints: &str) {
    let rig = Rig::new(&["vol0:1GiB"]);
    let daemon = rig.start();
    write_stripes(&daemon, 0..64, 1);
    daemon.stop();

    let daemon = rig.start_with(&[], failpoints);
    let mut client = daemon.client("vol0");
    // Answered from memory or refused; the FLUSH behind it must not claim that it is durable.
    let _ = client
        .write(MIB, &pattern(MIB, 9, STRIPE as usize))
        .unwrap();
    let flushed = client.flush().unwrap();
    assert!(
        flushed.is_some(),
        "FLUSH succeeded on a WAL that cannot be written"
    );
    let written = client
        .write_durably(2 * MIB, &pattern(2 * MIB, 9, STRIPE as usize))
        .unwrap();
    assert!(
        written.is_some(),
        "a FUA write succeeded on a WAL that cannot be written"
    );
    assert!(
        client.flush().unwrap().is_some(),
        "a later FLUSH forgot the error"
    );
    // Reads go on, and what was committed or flushed before is there.
    check_stripes(&daemon, 0..8, 1);

    daemon.await_log(CAUSE, LIMIT);
    let failed = |shard: &serde_json::Value| !shard["failure"].is_null();
    wait_until("the failed shard to be shown", LIMIT, || {
        let status = daemon.status();
        let shards = status["shards"].as_array().unwrap();
        let problems = status["problems"].as_array().unwrap();
        shards.iter().any(failed) && !problems.is_empty()
    });
    let failing = |line: &str| {
        line.starts_with("taipan_shard_failed") && line.split(' ').next_back() == Some("1")
    };
    let metrics = daemon.metrics_text();
    assert!(metrics.lines().any(failing), "{metrics}");
    let printed = daemon.taipan().arg("status").succeed();
    assert!(printed.contains(CAUSE), "{printed}");
    daemon.kill();

    let daemon = rig.start();
    check_stripes(&daemon, 0..8, 1);
    let mut client = daemon.client("vol0");
    assert_eq!(
        client
            .write(MIB, &pattern(MIB, 10, STRIPE as usize))
            .unwrap(),
        None
    );
    assert_eq!(client.flush().unwrap(), None);
    daemon.stop();
}

#[test]
fn a_persisting_write_error_fails_the_shard_closed() {
    a_persisting_error_fails_closed("wal.write=error(EIO)");
}

#[test]
fn a_persisting_flush_error_fails_the_shard_closed() {
    a_persisting_error_fails_closed("wal.barrier=error(EIO)");
}
