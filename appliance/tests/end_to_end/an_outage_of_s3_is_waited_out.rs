//! S3 goes away under load, for longer than the log has room, or is slow and faulty: clients see no
//! error, at worst they wait, and everything goes on by itself.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taipan_nbd::protocol::command;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;
use crate::harness::s3::{FakeS3, SeaweedFs};
use crate::harness::{MIB, pattern, wait_until};

const LIMIT: Duration = Duration::from_secs(300);
/// How soon everything must go on again after an outage.
const RECOVERY: Duration = Duration::from_secs(120);

/// Seconds of the outage: 60 in the long run.
fn outage() -> u64 {
    if std::env::var_os("TAIPAN_ROUNDS").is_some() {
        60
    } else {
        20
    }
}

fn backend_state(daemon: &Daemon) -> String {
    match &daemon.status()["backend"]["state"] {
        Value::String(state) => state.clone(),
        other => panic!("backend state: {other}"),
    }
}

fn fio(daemon: &Daemon, rig: &Rig, seconds: u64) -> Program {
    // 2 MiB per second, so that the job outlasts the outage and fits into the log.
    Program::new("fio", LIMIT)
        .within(&rig.path(""))
        .args("--name=outage --ioengine=nbd --rw=randwrite --bs=4k --iodepth=16 --fsync=32")
        .args("--verify=crc32c --verify_fatal=1 --randseed=2718 --rate=2m")
        .arg(format!("--size={}m", 2 * seconds))
        .arg(format!("--uri={}", daemon.uri("vol0")))
}

#[test]
fn fio_sees_no_error_and_verifies() {
    let mut server = SeaweedFs::start();
    let mut rig = Rig::new(&["vol0:1GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    rig.forget_volumes();
    let job = fio(&daemon, &rig, outage() + 8).arg("--do_verify=0");
    let writer = std::thread::spawn(move || job.run());
    std::thread::sleep(Duration::from_secs(3));
    server.stop();
    let stopped = Instant::now();
    wait_until("the outage to be reported", RECOVERY, || {
        backend_state(&daemon) == "retrying"
    });
    wait_until("bytes at risk in an outage under load", RECOVERY, || {
        daemon.metric("taipan_volume_dirty_bytes") > 0.0
    });
    std::thread::sleep(Duration::from_secs(outage()).saturating_sub(stopped.elapsed()));
    assert!(daemon.metric("taipan_backend_failing_seconds") > 0.0);
    server.start_again();
    let ended = writer.join().unwrap();
    assert!(ended.status.success(), "{ended}");
    wait_until("the backlog to drain", RECOVERY, || {
        backend_state(&daemon) == "healthy" && daemon.metric("taipan_volume_dirty_bytes") == 0.0
    });
    fio(&daemon, &rig, outage() + 8)
        .arg("--verify_only")
        .succeed();
    // What a core that was busy when it was asked has left out is counted by this one.
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();
    let daemon = rig.start();
    fio(&daemon, &rig, outage() + 8)
        .arg("--verify_only")
        .succeed();
    daemon.stop();
}

#[test]
fn writes_wait_when_the_log_is_full_and_reads_go_on() {
    let server = FakeS3::start();
    let mut rig = Rig::new(&["vol0:1GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--wal-size=128MiB", "--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    rig.forget_volumes();
    let places = 192;
    let content = |place: u64| pattern(place, 9, MIB as usize);
    let mut client = daemon.client("vol0");
    assert_eq!(client.write(0, &content(0)).unwrap(), None);
    assert_eq!(client.flush().unwrap(), None);
    server.go_down();
    let socket = daemon.socket();
    let writer = std::thread::spawn(move || {
        let mut client = crate::harness::client::NbdClient::connect(&socket, "vol0").unwrap();
        for place in 1..places {
            let data = pattern(place, 9, MIB as usize);
            // The client's own limit is the longest that a write may wait.
            assert_eq!(client.write(place * MIB, &data).unwrap(), None);
        }
        client.flush().unwrap()
    });
    wait_until("writes to wait for room in the log", RECOVERY, || {
        parked(&daemon) > 0
    });
    // They go on waiting, and nobody who reads has to.
    for _ in 0..20 {
        assert!(client.read(0, MIB as u32).unwrap().unwrap() == content(0));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!writer.is_finished(), "writes go on without room for them");
    server.heal();
    assert_eq!(writer.join().unwrap(), None);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    for place in 0..places {
        let found = client.read(place * MIB, MIB as u32).unwrap().unwrap();
        assert!(found == content(place), "MiB {place}");
    }
    daemon.stop();
}

fn parked(daemon: &Daemon) -> u64 {
    let status = daemon.status();
    let shards = status["shards"].as_array().unwrap();
    let parked = shards.iter().filter_map(|shard| shard["parked"].as_u64());
    parked.sum()
}

/// Latencies of write + FLUSH, one at a time, sorted.
fn latencies(daemon: &Daemon, seed: u64) -> Vec<Duration> {
    let mut client = daemon.client("vol0");
    let mut all = Vec::new();
    for turn in 0..2000u64 {
        let block = (turn * 7919 + seed) % 16384;
        let start = Instant::now();
        let data = pattern(block, turn, 4096);
        let write = client.send_write(block * 4096, &data).unwrap();
        assert_eq!(client.receive().unwrap().cookie, write);
        client.send(command::FLUSH, 0, 0, 0, &[]).unwrap();
        assert_eq!(client.receive().unwrap().errno, None);
        all.push(start.elapsed());
    }
    all.sort();
    all
}

#[test]
fn a_slow_and_faulty_s3_does_not_disturb_local_durability() {
    let server = FakeS3::start();
    let rig = Rig::new(&["vol0:1GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    let healthy = latencies(&daemon, 1);
    server.faults(&json!([
        { "action": { "kind": "delay", "ms": 200 } },
        { "action": { "kind": "error_before" }, "probability": 0.02 },
        { "action": { "kind": "slow_down" }, "probability": 0.01 },
        { "action": { "kind": "too_many_requests" }, "probability": 0.01 },
        { "action": { "kind": "cut_before" }, "probability": 0.005 },
        { "action": { "kind": "cut_after" }, "probability": 0.005 },
    ]));
    let faulty = latencies(&daemon, 2);
    for (what, all) in [("healthy", &healthy), ("faulty", &faulty)] {
        let (median, worst) = (all[all.len() / 2], all[all.len() * 99 / 100]);
        eprintln!("write + FLUSH, S3 {what}: median {median:?}, p99 {worst:?}");
    }
    daemon.taipan().arg("drain").succeed();
    assert_eq!(daemon.volume("vol0")["state"], "online");
    daemon.stop();
}

#[test]
fn a_server_that_hangs_is_waited_out() {
    let server = SeaweedFs::start();
    let rig = Rig::new(&["vol0:1GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    server.pause();
    for place in 0..32 {
        let data = pattern(place, 4, MIB as usize);
        assert_eq!(client.write(place * MIB, &data).unwrap(), None);
    }
    assert_eq!(client.flush().unwrap(), None);
    std::thread::sleep(Duration::from_secs(5));
    server.resume();
    wait_until("the backlog to drain", RECOVERY, || {
        daemon.metric("taipan_volume_dirty_bytes") == 0.0
    });
    for place in 0..32 {
        let found = client.read(place * MIB, MIB as u32).unwrap().unwrap();
        assert!(found == pattern(place, 4, MIB as usize), "MiB {place}");
    }
    daemon.stop();
}

#[test]
fn what_a_client_had_cached_is_read_without_s3() {
    let server = FakeS3::start();
    let mut rig = Rig::new(&["vol0:64MiB"]).with_bucket(&server.bucket());
    let daemon = rig.start();
    rig.forget_volumes();
    let data = pattern(3, 5, MIB as usize);
    assert_eq!(daemon.client("vol0").write(4 * MIB, &data).unwrap(), None);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();
    let daemon = rig.start_with(&["--set=backend_deadline_seconds=2"], "");
    wait_until("the volume to be served", RECOVERY, || {
        daemon.volume("vol0")["state"] == "online"
    });
    let mut client = daemon.client("vol0");
    // Where all stand still for two seconds the deadline passes.
    wait_until("it to be cached", RECOVERY, || {
        let asked = client.send(command::CACHE, 0, 4 * MIB, 64 << 10, &[]);
        let answer = client.receive().unwrap();
        assert_eq!(answer.cookie, asked.unwrap());
        assert!(answer.data.is_empty());
        answer.errno.is_none()
    });
    server.faults(&json!([{ "action": { "kind": "error_before" }, "verbs": ["get"] }]));
    let found = client.read(4 * MIB, 64 << 10).unwrap().unwrap();
    assert!(found == data[..64 << 10]);
    let beyond = client.read(4 * MIB + (64 << 10), 4096).unwrap();
    assert!(beyond.is_err(), "nothing else was fetched");
    server.heal();
    wait_until("what failed to be read", RECOVERY, || {
        let beyond = client.read(4 * MIB + (64 << 10), 4096).unwrap();
        beyond.is_ok_and(|found| found == data[64 << 10..][..4096])
    });
    daemon.kill();
}

/// A volume whose first MiB is in the bucket alone, and nothing that may give up soon.
fn cold(server: &FakeS3, data: &[u8]) -> (Rig, Daemon) {
    let mut rig = Rig::new(&["vol0:64MiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--set=backend_deadline_seconds=600"]);
    let daemon = rig.start();
    rig.forget_volumes();
    assert_eq!(daemon.client("vol0").write(0, data).unwrap(), None);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();
    let daemon = rig.start();
    wait_until("the volume to be served", RECOVERY, || {
        daemon.volume("vol0")["state"] == "online"
    });
    (rig, daemon)
}

#[test]
fn a_read_of_what_is_not_cached_waits_for_the_end_of_an_outage() {
    let server = FakeS3::start();
    let data = pattern(6, 5, MIB as usize);
    let (_rig, daemon) = cold(&server, &data);
    server.go_down();
    let mut reader = daemon.client("vol0");
    let read = std::thread::spawn(move || reader.read(0, MIB as u32).unwrap());
    wait_until("the read to be tried again", RECOVERY, || {
        daemon.metric("taipan_cold_read_retries_total") > 0.0
    });
    // Nobody else waits for it.
    let mut other = daemon.client("vol0");
    assert_eq!(other.write(2 * MIB, &data).unwrap(), None);
    assert!(other.read(2 * MIB, MIB as u32).unwrap().unwrap() == data);
    assert!(!read.is_finished(), "there is nowhere to read from");
    server.heal();
    assert!(read.join().unwrap().unwrap() == data);
    daemon.stop();
}

#[test]
fn a_read_goes_on_through_refusals_and_resets() {
    let server = FakeS3::start();
    let data = pattern(7, 5, MIB as usize);
    let (_rig, daemon) = cold(&server, &data);
    // More of them than one request is repeated.
    let five_times = |kind| {
        json!({ "action": { "kind": kind }, "verbs": ["get"], "contains": "/chunks/",
            "count": 5 })
    };
    let kinds = ["too_many_requests", "cut_before", "cut_after", "slow_down"];
    server.faults(&kinds.map(five_times).into());
    let mut client = daemon.client("vol0");
    assert!(client.read(0, MIB as u32).unwrap().unwrap() == data);
    assert_eq!(server.fired(), [5; 4]);
    daemon.stop();
}
