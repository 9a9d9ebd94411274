//! A guest attaches the volume with the Linux kernel's NBD client: a file system with a real tree
//! and fsynced files outlives a kill of the server between attachments and under write load.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::guest::Image;
use crate::harness::program::Program;
use crate::harness::s3::SeaweedFs;

const STEP: Duration = Duration::from_secs(400);

/// Writes to the other volume, so that the server has work when it is killed.
fn load(daemon: &Daemon) -> std::thread::JoinHandle<()> {
    let uri = daemon.uri("load");
    std::thread::spawn(move || {
        // It ends with an error when the server is gone; only its writes are wanted.
        Program::new("fio", Duration::from_secs(60))
            .args("--name=load --ioengine=nbd --rw=randwrite --bs=4k --iodepth=32 --size=512m")
            .args("--fsync=64 --time_based --runtime=50 --verify_state_save=0")
            .arg(format!("--uri={uri}"))
            .run();
    })
}

fn kill_under_load(rig: &Rig, daemon: Daemon, listen: &str) -> Daemon {
    let load = load(&daemon);
    std::thread::sleep(Duration::from_secs(2));
    daemon.kill();
    load.join().expect("the load ends");
    rig.start_with(&[listen], "")
}

/// The host's own look at the file system, on a copy of the volume.
fn host_finds_it_clean(rig: &Rig, daemon: &Daemon) {
    let copy = rig.path("vol0.img");
    let limit = Duration::from_secs(120);
    Program::new("nbdcopy", limit)
        .arg(daemon.uri("vol0"))
        .arg(&copy)
        .succeed();
    Program::new("e2fsck", limit)
        .arg("-fn")
        .arg(Path::new(&copy))
        .succeed();
}

/// The whole scenario; gives the daemon that serves the volume in the end.
fn survives_kills(rig: &Rig) -> Daemon {
    let image = Image::build();
    let daemon = rig.start();
    let port = daemon.tcp.port();
    let listen = format!("--listen=127.0.0.1:{port}");
    let mut guest = image.boot("kernel_client", port, &[]);

    guest.await_step("unpacked", STEP);
    let daemon = kill_under_load(rig, daemon, &listen);
    host_finds_it_clean(rig, &daemon);
    guest.tell("killed-and-restarted");
    guest.await_step("tree intact", STEP);

    // Now the guest itself writes and fsyncs when the server goes.
    guest.await_step("under load", STEP);
    std::thread::sleep(Duration::from_secs(4));
    daemon.kill();
    guest.await_step("lost the server", STEP);
    let daemon = rig.start_with(&[&listen], "");
    guest.tell("killed-and-restarted");
    guest.await_step("verified", STEP);
    guest.await_step("done", STEP);
    guest.ended();
    host_finds_it_clean(rig, &daemon);
    daemon
}

#[test]
fn a_file_system_of_the_kernel_client_survives_kills() {
    let rig = Rig::new(&["vol0:2GiB", "load:1GiB"]);
    survives_kills(&rig).stop();
}

#[test]
fn it_survives_the_loss_of_the_machine_in_a_bucket() {
    let server = SeaweedFs::start();
    let mut rig = Rig::new(&["vol0:2GiB", "load:1GiB"]).with_bucket(&server.bucket());
    let daemon = survives_kills(&rig);
    let before = rig.path("before.img");
    fs::rename(rig.path("vol0.img"), &before).expect("keep the copy");
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();

    rig.forget_volumes();
    let daemon = rig.start();
    host_finds_it_clean(&rig, &daemon);
    Program::new("cmp", Duration::from_secs(60))
        .arg(&before)
        .arg(rig.path("vol0.img"))
        .succeed();
    daemon.stop();
}
