//! Socket activation: the listening sockets are there before the daemon, and after it.

use std::net::TcpStream;
use std::time::Duration;

use crate::harness::daemon::{Rig, free_address};
use crate::harness::program::Program;

#[test]
fn what_is_passed_by_name_is_used_and_survives_a_hand_off() {
    let rig = Rig::new(&["vol0:64MiB"]);
    let nbd = free_address();
    let unix = rig.path("activated.sock");
    let sockets = [
        format!("nbd={nbd}"),
        format!("nbd-local={}", unix.display()),
    ];
    let mut rig = rig.with_sockets(&sockets);
    let daemon = rig.start_activated();
    let uris = [
        format!("nbd://{nbd}/vol0"),
        format!("nbd+unix:///vol0?socket={}", unix.display()),
    ];
    let answers = || {
        for uri in &uris {
            let info = Program::new("nbdinfo", Duration::from_secs(60));
            info.args("--size").arg(uri).succeed();
        }
    };
    answers();
    assert!(
        TcpStream::connect(daemon.tcp).is_err(),
        "it is configured, not passed"
    );
    assert!(!rig.data().join("nbd.sock").exists());
    // A successor is given them by its predecessor.
    rig.without_sockets();
    let daemon = rig.succeed(daemon, "");
    answers();
    daemon.stop();
    assert!(unix.exists(), "the path is the service manager's");
}

#[test]
fn a_name_that_says_nothing_is_refused() {
    let rig = Rig::new(&[]);
    let rig = rig.with_sockets(&[format!("taipan.socket={}", free_address())]);
    let said = rig.refused(&[], "");
    assert!(said.contains("FileDescriptorName="), "{said}");
}
