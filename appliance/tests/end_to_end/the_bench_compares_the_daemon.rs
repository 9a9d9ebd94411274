//! `taipan-bench compare` starts the daemon in every way that its lines ask for: as it is, without
//! commits, over TCP, with idle volumes beside, and with one and two data cores.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::harness::built;
use crate::harness::program::Program;

const LIMIT: Duration = Duration::from_secs(300);

/// Which targets measured a line over unix sockets.
fn targets_of(suite: &str, line: &str) -> BTreeSet<String> {
    targets_over("unix", suite, line)
}

fn targets_over(transport: &str, suite: &str, line: &str) -> BTreeSet<String> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let json = dir.path().join("found.json");
    Program::new(built("taipan-bench"), LIMIT)
        .args("compare --rounds 1 --seconds 0.3 --wal-size 256MiB --idle-volumes 2")
        .args("--only taipand --transport")
        .arg(transport)
        .arg("--suite")
        .arg(suite)
        .arg("--lines")
        .arg(line)
        .arg("--dir")
        .arg(dir.path())
        .arg("--json")
        .arg(&json)
        .succeed();
    let found = fs::read_to_string(&json).expect("a report");
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found["left"], Value::Array(Vec::new()), "all were measured");
    let samples = found["samples"].as_array().expect("samples");
    let target = |sample: &Value| {
        assert_eq!(sample["line"], line);
        let cpu = sample["data_core_us_per_request"].as_f64();
        assert!(cpu.is_some_and(|us| us > 0.0), "{sample}");
        sample["target"].as_str().expect("a name").to_owned()
    };
    samples.iter().map(target).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn data_on_disk_is_read_from_the_log_and_from_chunks() {
    let from_disk =
        |what: &str| targets_of("kvm", &format!("randread 4k d32 from disk only: {what}"));
    assert_eq!(from_disk("the WAL"), names(["taipand, commits off"]));
    assert_eq!(from_disk("committed chunks"), names(["taipand"]));
}

#[test]
fn tcp_is_measured_like_unix_sockets() {
    let found = targets_over("tcp", "kvm", "randwrite 4k d16");
    assert_eq!(found, names(["taipand"]));
}

#[test]
fn idle_volumes_stand_beside_none() {
    let found = targets_of("scale", "randwrite 4k d32, 2 idle volumes");
    assert_eq!(found, names(["taipand", "taipand, idle volumes beside"]));
}

#[test]
fn two_data_cores_stand_beside_one() {
    let found = targets_of("cores", "few CPUs: randread 4k d16, connections: 4");
    assert_eq!(
        found,
        names(["taipand, 1 data core", "taipand, 2 data cores"])
    );
}
