//! `taipan connection list` shows who is connected, and `kick` ends one connection: its answered
//! writes stay, others go on.

use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;
use crate::harness::{pattern, wait_until};

const WRITE: u64 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(60);

fn listed(daemon: &Daemon) -> Vec<Value> {
    // Refused while a core waits for a disk that stands still.
    let text = daemon.succeed_soon("connection list --json");
    let list: Value = serde_json::from_str(&text).expect("JSON");
    list["connections"].as_array().expect("a list").clone()
}

#[test]
fn a_kick_ends_one_connection_and_keeps_its_answered_writes() {
    let rig = Rig::new(&["vol0:1GiB", "vol1:1GiB"]);
    let daemon = rig.start();
    let mut doomed = daemon.client("vol0");
    let mut other = daemon.client("vol1");
    for place in 0..16 {
        let data = pattern(place, 1, WRITE as usize);
        assert_eq!(doomed.write(place * WRITE, &data).unwrap(), None);
    }
    assert_eq!(other.write(0, &pattern(0, 2, 4096)).unwrap(), None);
    assert!(doomed.read(1 << 30, 1).unwrap().is_err(), "beyond the end");

    // What the harness made to see whether the daemon serves goes.
    wait_until("two connections", LIMIT, || listed(&daemon).len() == 2);
    let connections = listed(&daemon);
    let of = |volume: &str| connections.iter().find(|c| c["volume"] == volume).unwrap();
    let shown = of("vol0");
    assert_eq!(shown["written_bytes"], 16 * WRITE);
    assert_eq!(
        (&shown["requests"], &shown["errors"]),
        (&17.into(), &1.into())
    );
    assert_eq!(
        (&shown["in_flight"], &shown["state"]),
        (&0.into(), &"serving".into())
    );
    assert!(shown["client"].as_str().unwrap().starts_with("unix pid "));
    let id = shown["id"].as_str().unwrap().to_owned();

    let kick = || -> Program { daemon.taipan().args(&format!("connection kick {id}")) };
    let kicked = kick().run();
    // A core that waits for its disk does it later than the command waits for.
    let is_late = kicked.stderr.contains("does not answer");
    assert!(kicked.status.success() || is_late, "{kicked}");
    wait_until("it is not listed", LIMIT, || listed(&daemon).len() == 1);
    assert!(doomed.flush().is_err(), "the connection is closed");
    assert_eq!(other.read(0, 4096).unwrap().unwrap(), pattern(0, 2, 4096));
    assert!(kick().fail().contains("no connection"));

    let mut again = daemon.client("vol0");
    for place in 0..16 {
        let found = again.read(place * WRITE, WRITE as u32).unwrap().unwrap();
        assert!(found == pattern(place, 1, WRITE as usize), "place {place}");
    }
    daemon.stop();
}
