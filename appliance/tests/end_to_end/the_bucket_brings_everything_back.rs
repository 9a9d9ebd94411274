//! 4 GiB from a self-checking source goes through SeaweedFS: after a kill, and after the loss of
//! the whole machine, the source refuses any block that differs from its own content.

use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;
use crate::harness::s3::SeaweedFs;

const LIMIT: Duration = Duration::from_secs(600);

/// Runs `copy` with `$SOURCE` and `$VOLUME` as the URIs of the plugin and of the volume.
fn with_source(daemon: &Daemon, copy: &str) {
    Program::new("nbdkit", LIMIT)
        .args("-U - sparse-random size=4G seed=31 percent=20 --run")
        .arg(format!("SOURCE=\"$uri\"; {copy}"))
        .env("VOLUME", daemon.uri("vol0"))
        .succeed();
}

fn copy_back(daemon: &Daemon) {
    with_source(daemon, "nbdcopy -T4 -C4 \"$VOLUME\" \"$SOURCE\"");
}

#[test]
fn a_copy_comes_back_without_the_machine() {
    let server = SeaweedFs::start();
    let bucket = server.bucket();
    let mut rig = Rig::new(&["vol0:4GiB"]).with_bucket(&bucket);
    let daemon = rig.start();
    with_source(&daemon, "nbdcopy -T4 -C4 --flush \"$SOURCE\" \"$VOLUME\"");
    daemon.kill();

    let daemon = rig.start();
    copy_back(&daemon);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();

    rig.forget_volumes();
    let daemon = rig.start();
    assert_eq!(daemon.volume("vol0")["size_bytes"], 4u64 << 30);
    copy_back(&daemon);
    daemon.stop();
}

#[test]
fn credentials_come_from_a_file_and_are_never_shown() {
    let server = SeaweedFs::start();
    let bucket = server.bucket();
    let rig = Rig::new(&["vol0:64MiB"]);
    let credentials = rig.path("credentials");
    bucket.write_credentials(&credentials);
    let url = format!(
        "{}&credentials_file={}",
        bucket.url(),
        credentials.display()
    );
    let rig = rig.with_flags(&["--backend", &url]);
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    assert_eq!(client.write_durably(0, &[7; 4096]).unwrap(), None);
    daemon.taipan().arg("drain").succeed();
    let shown = daemon.said() + &daemon.metrics_text() + &daemon.status().to_string();
    assert!(!shown.contains("no-secret-at-all"), "{shown}");
    daemon.stop();
}

#[test]
fn a_start_without_credentials_is_refused_with_the_reason() {
    let server = SeaweedFs::start();
    let url = server.bucket().url();
    let rig = Rig::new(&["vol0:64MiB"]).with_flags(&["--backend", &url]);
    let printed = rig.refused(&[], "");
    assert!(printed.to_lowercase().contains("credential"), "{printed}");
}
