//! Clients ask where the data is: the maps that libnbd and QEMU print are what was written, before
//! and after it went to chunks, and copies carry data alone.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;
use crate::harness::{pattern, wait_until};

const LIMIT: Duration = Duration::from_secs(120);
const SIZE: u64 = 8 << 30;
const MIB: u64 = 1 << 20;
/// `base:allocation`: a hole that reads as zeros.
const HOLE: u64 = 3;

/// Start, length and type of each extent, as libnbd prints them, neighbours of one type joined.
fn nbdinfo_map(daemon: &Daemon, context: &str) -> Vec<(u64, u64, u64)> {
    let printed = Program::new("nbdinfo", LIMIT)
        .arg("--json")
        .arg(format!("--map={context}"))
        .arg(daemon.uri("vol0"))
        .succeed();
    let map: Vec<Value> = serde_json::from_str(&printed).expect("a map in JSON");
    let mut joined: Vec<(u64, u64, u64)> = Vec::new();
    for extent in &map {
        let number = |name: &str| extent[name].as_u64().expect("a number");
        let (at, len, kind) = (number("offset"), number("length"), number("type"));
        match joined.last_mut() {
            Some(last) if last.2 == kind && last.0 + last.1 == at => last.1 += len,
            _ => joined.push((at, len, kind)),
        }
    }
    joined
}

/// Start and length of the data that QEMU sees.
fn qemu_data(uri: &str) -> Vec<(u64, u64)> {
    let printed = Program::new("qemu-img", LIMIT)
        .args("map -f raw --output=json")
        .arg(uri)
        .succeed();
    let map: Vec<Value> = serde_json::from_str(&printed).expect("a map in JSON");
    let data = map.iter().filter(|extent| extent["data"] == true);
    let number = |extent: &Value, name: &str| extent[name].as_u64().expect("a number");
    data.map(|e| (number(e, "start"), number(e, "length")))
        .collect()
}

/// All maps say that these ranges are data, and that the log or the backend has it (`stored`).
fn check_maps(daemon: &Daemon, data: &[(u64, u64)], stored: u64) {
    assert_eq!(qemu_data(&daemon.uri("vol0")), data);
    assert_eq!(qemu_data(&daemon.tcp_uri("vol0")), data);
    let typed = |wanted: u64, map: Vec<(u64, u64, u64)>| -> Vec<(u64, u64)> {
        let of_type = map.into_iter().filter(|extent| extent.2 == wanted);
        of_type.map(|(at, len, _)| (at, len)).collect()
    };
    let allocation = nbdinfo_map(daemon, "base:allocation");
    assert!(allocation.iter().all(|e| e.2 == 0 || e.2 == HOLE));
    assert_eq!(allocation.iter().map(|e| e.1).sum::<u64>(), SIZE);
    assert_eq!(typed(0, allocation), data);
    assert_eq!(typed(1, nbdinfo_map(daemon, "qemu:allocation-depth")), data);
    let durability = nbdinfo_map(daemon, "taipan:durability");
    let covered = |at: u64| durability.iter().find(|e| (e.0..e.0 + e.1).contains(&at));
    for (at, len) in data {
        let told = covered(*at).expect("the map covers the volume");
        assert!(
            told.2 == stored && told.0 + told.1 >= at + len,
            "{durability:?}"
        );
    }
}

/// What a read would not find in memory: start, length and where it is.
fn outside_memory(daemon: &Daemon) -> Vec<(u64, u64, u64)> {
    let mut residency = nbdinfo_map(daemon, "taipan:residency");
    residency.retain(|extent| extent.2 != 2);
    residency
}

#[test]
fn clients_see_the_map() {
    let rig = Rig::new(&["vol0:8GiB"]).with_flags(&["--set=commit.interval_seconds=600"]);
    let daemon = rig.start();
    check_maps(&daemon, &[], 1);
    Program::new("qemu-io", LIMIT)
        .args("-f raw -c")
        .arg("write -P 7 1M 64k")
        .arg("-c")
        .arg("write -P 8 5G 4k")
        .arg("-c")
        .arg("discard 1028k 8k")
        .arg("-c")
        .arg("write -z -u 1060k 4k")
        .arg("-c")
        .arg("flush")
        .arg(daemon.uri("vol0"))
        .succeed();
    let kib = |first: u64, end: u64| (first << 10, (end - first) << 10);
    let data = [
        kib(1024, 1028),
        kib(1036, 1060),
        kib(1064, 1088),
        (5 << 30, 4096),
    ];
    check_maps(&daemon, &data, 1);
    let residency = nbdinfo_map(&daemon, "taipan:residency");
    assert_eq!(residency, [(0, SIZE, 2)], "all is in memory");
    daemon.taipan().arg("drain").succeed();
    check_maps(&daemon, &data, 2);
    daemon.stop();
    let daemon = rig.start_with(&["--set=chunk_cache=64MiB"], "");
    check_maps(&daemon, &data, 2);
    assert_eq!(outside_memory(&daemon), data.map(|(at, len)| (at, len, 0)));
    daemon.taipan().args("volume warm vol0 --wait").succeed();
    // A block can be found in the file once it is written there.
    let warm = data.map(|(at, len)| (at, len, 1));
    wait_until("the chunk cache has it", LIMIT, || {
        outside_memory(&daemon) == warm
    });
    daemon.stop();
    let daemon = rig.start_with(&["--set=chunk_cache=64MiB"], "");
    let cold = data.map(|(at, len)| (at, len, 0));
    assert_eq!(outside_memory(&daemon), cold, "the cache begins empty");
    let listed = Program::new("qemu-nbd", LIMIT)
        .args("-L -k")
        .arg(daemon.socket())
        .succeed();
    for text in [
        "transaction size: 64-bit",
        "base:allocation",
        "taipan:residency",
    ] {
        assert!(listed.contains(text), "{listed}");
    }
    daemon.stop();
}

/// Bytes of READs that succeeded.
fn bytes_read(daemon: &Daemon) -> u64 {
    let text = daemon.metrics_text();
    let of_reads =
        |line: &&str| line.starts_with("taipan_request_bytes") && line.contains("kind=\"read\"");
    let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
    text.lines().filter(of_reads).filter_map(value).sum::<f64>() as u64
}

#[test]
fn a_sparse_copy_carries_data_alone() {
    let rig = Rig::new(&["vol0:8GiB"]);
    let daemon = rig.start();
    let (source, copy) = (rig.path("source"), rig.path("copy"));
    let file = File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    for place in [0, 3, 4095, 8191] {
        let data = pattern(place, 1, MIB as usize);
        file.write_all_at(&data, place * MIB).unwrap();
    }
    Program::new("nbdcopy", LIMIT)
        .arg("--flush")
        .arg(&source)
        .arg(daemon.uri("vol0"))
        .succeed();
    Program::new("nbdcopy", LIMIT)
        .arg(daemon.uri("vol0"))
        .arg(&copy)
        .succeed();
    Program::new("cmp", LIMIT).arg(&source).arg(&copy).succeed();
    let stored = fs::metadata(&copy).unwrap().blocks() * 512;
    assert!(stored < 64 * MIB, "the copy holds {stored} bytes");
    let read = bytes_read(&daemon);
    assert!(
        (4 * MIB..64 * MIB).contains(&read),
        "{read} bytes were read"
    );
    daemon.stop();
}
