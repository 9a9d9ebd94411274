//! A terabyte is zeroed in one request, again and again while cuts are made: no memory by its
//! length, in the daemon or in the chunks, and nothing comes back.

use std::fs;
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;

const LIMIT: Duration = Duration::from_secs(180);
/// More than this may not be added by all requests together.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// Runs commands of qemu-io on the volume.
fn qemu_io(daemon: &Daemon, commands: &[&str]) {
    let program = Program::new("qemu-io", LIMIT).args("-f raw");
    let with_commands = commands
        .iter()
        .fold(program, |program, command| program.arg("-c").arg(command));
    with_commands.arg(daemon.uri("vol0")).succeed();
}

/// Writes all over the volume, so that its index has leaves everywhere.
fn scatter(daemon: &Daemon) {
    let writes: Vec<String> = (0..32)
        .map(|place| format!("write -P 7 {}G 128k", place * 31))
        .collect();
    let writes: Vec<&str> = writes.iter().map(String::as_str).collect();
    qemu_io(daemon, &writes);
}

/// Bytes of the objects of the volume.
fn stored_bytes(rig: &Rig) -> u64 {
    let mut bytes = 0;
    let mut left = vec![rig.data().join("objects")];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => left.push(entry.path()),
                Ok(found) => bytes += found.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

#[test]
fn a_discard_of_everything_costs_nothing() {
    let rig = Rig::new(&["vol0:1TiB"]).with_flags(&["--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    scatter(&daemon);
    qemu_io(&daemon, &["write -z -n -u 0 1T"]);
    daemon.taipan().arg("drain").succeed();
    let (before, stored_before) = (daemon.resident_bytes(), stored_bytes(&rig));
    for _ in 0..4 {
        scatter(&daemon);
        // In one request where QEMU speaks of 64-bit lengths; while it runs, cuts are made.
        let zeroes = ["write -z -n -u 4k 1048572M"; 4];
        qemu_io(&daemon, &zeroes);
        daemon.taipan().arg("drain").succeed();
    }
    let growth = daemon.resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes more");
    let stored = stored_bytes(&rig).saturating_sub(stored_before);
    // What was scattered four times is 16 MiB.
    assert!(stored < GROWTH_BYTES_MAX + (16 << 20), "{stored} bytes");
    check_zeros(&daemon);
    daemon.kill();
    let daemon = rig.start();
    check_zeros(&daemon);
    daemon.stop();
}

/// Nothing is left of what was written, but for the first block and what the last request spared.
fn check_zeros(daemon: &Daemon) {
    let printed = Program::new("qemu-img", LIMIT)
        .args("map -f raw --output=json")
        .arg(daemon.uri("vol0"))
        .succeed();
    let map: serde_json::Value = serde_json::from_str(&printed).expect("a map in JSON");
    let extents = map.as_array().expect("extents");
    let data = extents.iter().filter(|extent| extent["data"] == true);
    let data: Vec<_> = data
        .map(|e| (e["start"].as_u64(), e["length"].as_u64()))
        .collect();
    assert_eq!(data, [(Some(0), Some(4096))]);
    qemu_io(
        daemon,
        &["read -P 7 0 4k", "read -P 0 4k 1M", "read -P 0 31G 128k"],
    );
}
