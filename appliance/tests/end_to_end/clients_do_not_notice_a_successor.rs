//! Hand-off: another process takes the clients over while they work, and they never see it. One
//! that fails on the way leaves everything as it was, or loses nothing that was answered.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::beside;
use crate::harness::client::NbdClient;
use crate::harness::daemon::Rig;
use crate::harness::guest::Image;
use crate::harness::stamps::Ledger;
use crate::harness::{Dice, wait_until};

const LIMIT: Duration = Duration::from_secs(240);
/// Hand-offs in `tools/check`; `TAIPAN_HANDOFFS` says otherwise.
const HANDOFFS: u32 = 5;
/// Hand-offs of a guest, which is slow.
const GUEST_HANDOFFS: u32 = 3;
/// Most of it is the boot of the guest.
const GUEST_LIMIT: Duration = Duration::from_secs(400);
const BLOCKS: u64 = 1024;

fn rig() -> Rig {
    let wal = format!("--wal-size={}", wal_size());
    Rig::new(&["vol0:1GiB", "vol1:1GiB"]).with_flags(&[&wal, "--cache-size=128MiB"])
}

/// At length, that of a data directory which nobody configured.
fn wal_size() -> &'static str {
    match wanted_handoffs() {
        Some(_) => "4GiB",
        None => "128MiB",
    }
}

/// libnbd on a volume of its own.
struct Foreign {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Foreign {
    fn start(uri: &str) -> Self {
        let mut command = Command::new("timeout");
        // Debian's own interpreter: the one that has Debian's python3-libnbd.
        command
            .args(["600", "/usr/bin/python3"])
            .arg(beside("clients/steady_client.py"))
            .arg(uri)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the client runs");
        let said = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, said }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a line");
        line
    }

    /// It is told to end, and must without an error. Gives the last thing that it said.
    fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let last = self.line();
        let status = self.child.wait().expect("its end");
        assert!(status.success(), "the client failed: {status}");
        last
    }
}

fn wanted_handoffs() -> Option<u32> {
    let wanted = std::env::var("TAIPAN_HANDOFFS").ok();
    wanted.map(|n| n.parse().expect("a number of hand-offs"))
}

#[test]
fn again_and_again_under_load() {
    let rig = rig();
    let mut daemon = rig.start();
    let mut ledger = Ledger::new(BLOCKS);
    let writers = ledger.start_writers(&daemon.socket(), &mut Dice::new());
    let times = wanted_handoffs().unwrap_or(HANDOFFS);
    let mut foreign = Foreign::start(&daemon.tcp_uri("vol1"));
    assert_eq!(foreign.line(), "working\n");
    for _ in 0..times {
        daemon = rig.succeed(daemon, "");
        assert!(daemon.said().contains(" searched=0 "), "the logs had ended");
        let before = writers.answers();
        wait_until("answers", LIMIT, || writers.answers() > before + 100);
    }
    println!("{times} hand-offs under load: {}", foreign.end().trim());
    assert_eq!(daemon.status()["recovery"]["clean"], true);
    // Who connects now finds the same addresses.
    NbdClient::connect(&daemon.socket(), "vol0").expect("a new connection");
    daemon.stop();
    ledger.join(writers);
    let daemon = rig.start();
    assert!(daemon.said().contains(" noted=16 "), "the logs told of it");
    let found = ledger.read(&mut daemon.client("vol0"));
    ledger.check_answered(&found);
    daemon.stop();
}

/// The Linux kernel's client in a guest, with several connections, under fio's verified load.
#[test]
fn the_kernel_client_again_and_again_under_load() {
    let image = Image::with_fio();
    let rig = rig();
    let mut daemon = rig.start();
    let mut guest = image.boot("kernel_client_handed_over", daemon.tcp.port(), &[]);
    guest.await_step("under load", GUEST_LIMIT);
    let times = wanted_handoffs().unwrap_or(GUEST_HANDOFFS);
    for _ in 0..times {
        daemon = rig.succeed(daemon, "");
        wait_until("requests of the guest", LIMIT, || {
            daemon.metric("taipan_requests_total") > 500.0
        });
    }
    guest.tell("go-on");
    let said = guest.await_step("longest stall", GUEST_LIMIT);
    println!(
        "{times} hand-offs under a guest: {}",
        said.trim_start_matches("@@ ")
    );
    guest.await_step("done", GUEST_LIMIT);
    guest.ended();
    daemon.stop();
}

/// One client that writes and reads on the connection that it has.
fn works(client: &mut NbdClient, value: u8) {
    let data = vec![value; 64 << 10];
    assert_eq!(client.write(0, &data).expect("the connection holds"), None);
    assert_eq!(client.flush().expect("the connection holds"), None);
    let read = client.read(0, 64 << 10).expect("the connection holds");
    assert_eq!(read.expect("a read"), data);
}

#[test]
fn a_successor_that_fails_before_the_point_of_no_return_changes_nothing() {
    let rig = rig();
    let mut daemon = rig.start();
    let mut client = daemon.client("vol0");
    works(&mut client, 1);
    let refusals = [
        (&["--set=nonsense=1"][..], "nonsense"),
        (
            &["--backend=dir:/no/such/place/at/all"][..],
            "does not exist",
        ),
    ];
    for (flags, why) in refusals {
        let said = rig.refused_succession(&daemon, flags);
        assert!(said.contains(why), "{said}");
        works(&mut client, 2);
    }
    for step in ["handoff.switch=crash", "handoff.take=crash"] {
        rig.succeed_to_crash(&daemon, step);
        works(&mut client, 3);
        assert!(daemon.alive(), "{step}");
    }
    // Another daemon on the directory is refused as ever.
    let said = rig.refused(&[], "");
    assert!(said.contains("in use by process"), "{said}");
    let daemon = rig.succeed(daemon, "");
    works(&mut client, 4);
    daemon.stop();
}

#[test]
fn a_predecessor_that_is_killed_while_it_lets_go_has_handed_over() {
    let rig = rig();
    let daemon = rig.start_with(&[], "handoff.taken=crash");
    let mut client = daemon.client("vol0");
    works(&mut client, 1);
    let daemon = rig.succeed(daemon, "");
    works(&mut client, 2);
    daemon.stop();
}

/// Whoever is killed then: what was answered is there.
fn killed_after_the_point_of_no_return(of_predecessor: &str) {
    let rig = rig();
    let mut daemon = rig.start_with(&[], of_predecessor);
    let mut ledger = Ledger::new(BLOCKS);
    let writers = ledger.start_writers(&daemon.socket(), &mut Dice::new());
    wait_until("answers", LIMIT, || writers.answers() > 500);
    rig.succeed_to_crash(&daemon, "handoff.release=crash");
    daemon.ended(LIMIT);
    ledger.join(writers);
    let daemon = rig.start();
    let found = ledger.read(&mut daemon.client("vol0"));
    ledger.check_answered(&found);
    daemon.stop();
}

#[test]
fn a_successor_that_is_killed_later_loses_nothing() {
    killed_after_the_point_of_no_return("");
}

#[test]
fn both_killed_lose_nothing() {
    killed_after_the_point_of_no_return("handoff.taken=crash");
}
