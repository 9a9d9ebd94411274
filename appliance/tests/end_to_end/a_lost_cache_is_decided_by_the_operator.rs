//! Answered writes went with the memory of the host: the mark of that holds over orderly restarts
//! until an operator says that the volume may go on.

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::{MIB, pattern};

const READ_ONLY: &str = "volume set vol0 --on-lost-cache read-only";
const CONTINUE: &str = "volume set vol0 --on-lost-cache continue";

/// A volume of which answered writes were lost.
fn lost() -> Rig {
    let rig = Rig::new(&["vol0:64MiB"]);
    let daemon = rig.start();
    let data = pattern(0, 1, MIB as usize);
    let mut client = daemon.client("vol0");
    assert_eq!(client.write(0, &data).unwrap(), None);
    daemon.kill();
    rig.lose_memory();
    rig
}

fn state(daemon: &Daemon) -> (String, String) {
    let volume = daemon.volume("vol0");
    let text = |key: &str| volume[key].as_str().unwrap().to_owned();
    (text("state"), text("lineage"))
}

fn is(daemon: &Daemon, served: &str, lineage: &str) {
    assert_eq!(state(daemon), (served.to_owned(), lineage.to_owned()));
}

#[test]
fn the_mark_outlives_orderly_restarts_until_it_is_decided() {
    let rig = lost();
    for _ in 0..2 {
        let daemon = rig.start();
        is(&daemon, "online", "broken");
        daemon.stop();
    }
    let daemon = rig.start();
    daemon.taipan().args(READ_ONLY).succeed();
    is(&daemon, "read_only", "broken");
    daemon.stop();
    for _ in 0..2 {
        let daemon = rig.start();
        is(&daemon, "read_only", "broken");
        daemon.stop();
    }
    let daemon = rig.start();
    daemon.taipan().args(CONTINUE).succeed();
    is(&daemon, "online", "intact");
    daemon.stop();
    let daemon = rig.start();
    is(&daemon, "online", "intact");
    daemon.stop();
}

#[test]
fn a_volume_that_goes_on_by_its_settings_is_whole_once_that_is_confirmed() {
    let rig = lost();
    let daemon = rig.start();
    is(&daemon, "online", "broken");
    daemon.taipan().args(CONTINUE).succeed();
    daemon.stop();
    let daemon = rig.start();
    is(&daemon, "online", "intact");
    daemon.stop();
}
