//! fio's verification: random sizes and trims with flushes, and a state saved when the server was
//! killed, checked against what the restarted server holds.

use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::{Ended, Program};
use crate::harness::wait_until;

const LIMIT: Duration = Duration::from_secs(400);

fn fio(rig: &Rig, daemon: &Daemon, job: &str) -> Program {
    Program::new("fio", LIMIT)
        .within(&rig.path(""))
        .args("--ioengine=nbd --verify=crc32c --verify_fatal=1 --iodepth=16 --randseed=31415")
        .arg(format!("--uri={}", daemon.uri("vol0")))
        .args(job)
}

/// Writes of any size and alignment on a volume of that block size.
fn random_sizes_verify(block_size: &str) {
    let rig = Rig::new(&[]);
    let daemon = rig.start();
    daemon
        .taipan()
        .args("volume create vol0 --size 2GiB --block-size")
        .arg(block_size)
        .succeed();
    let job = "--name=sizes --rw=randwrite --bsrange=512-256k --size=256m";
    fio(&rig, &daemon, job).arg("--fsync=32").succeed();
    daemon.kill();
    // The same job once more, reading only: its random numbers, and so its content, are the same.
    let daemon = rig.start();
    fio(&rig, &daemon, job).arg("--verify_only").succeed();
    daemon.taipan().arg("drain").succeed();
    daemon.stop();
    rig.lose_memory();
    let daemon = rig.start();
    fio(&rig, &daemon, job).arg("--verify_only").succeed();
    daemon.stop();
}

#[test]
fn random_sizes_verify_on_blocks_of_4_kib() {
    random_sizes_verify("4KiB");
}

#[test]
fn random_sizes_verify_on_blocks_of_16_kib() {
    random_sizes_verify("16KiB");
}

#[test]
fn random_sizes_verify_on_blocks_of_64_kib() {
    random_sizes_verify("64KiB");
}

#[test]
fn writes_mixed_with_trims_verify() {
    let rig = Rig::new(&["vol0:2GiB"]);
    let daemon = rig.start();
    // Each block is trimmed, then written; one at a time, as NBD orders nothing by itself.
    let job = "--name=each --rw=randtrimwrite --bs=4k --size=64m --fsync=32 --iodepth=1";
    fio(&rig, &daemon, job).succeed();
    // Many at a time, of other sizes; which of them came last is anybody's guess.
    let mixed = "--name=mixed --rw=randtrimwrite --bsrange=512-256k --size=512m --offset=512m \
                 --fsync=32 --verify=0";
    fio(&rig, &daemon, mixed).succeed();
    daemon.kill();
    let daemon = rig.start();
    fio(&rig, &daemon, job).arg("--verify_only").succeed();
    daemon.stop();
}

#[test]
fn the_saved_state_verifies_after_a_kill() {
    let rig = Rig::new(&["vol0:2GiB"]);
    let daemon = rig.start();
    let job = "--name=state --rw=randwrite --bs=4k --size=1g";
    let write = fio(&rig, &daemon, job).args("--do_verify=0 --verify_state_save=1 --fsync=32");
    let writer = std::thread::spawn(move || write.run());
    wait_until("thousands of requests", LIMIT, || {
        daemon.metric("taipan_requests_total") > 8000.0
    });
    daemon.kill();
    let ended: Ended = writer.join().unwrap();
    assert!(
        !ended.status.success(),
        "the job ended before the kill: {ended}"
    );
    let state = rig.path("local-state-0-verify.state");
    assert!(state.exists(), "fio saved no state: {ended}");

    let daemon = rig.start();
    // One read at a time: fio compares the reads that have *ended* with the number of writes to
    // know where the last, unanswered ones begin; with more in flight it checks those, too.
    fio(&rig, &daemon, job)
        .args("--verify_state_load=1 --verify_only --iodepth=1")
        .succeed();
    daemon.stop();
}
