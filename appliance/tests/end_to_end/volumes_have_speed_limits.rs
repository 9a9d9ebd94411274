//! Limits on requests and bytes of a volume, changed while clients use it.

use std::time::{Duration, Instant};

use crate::harness::client::NbdClient;
use crate::harness::daemon::{Daemon, Rig};
use crate::harness::wait_until;

const LIMIT: Duration = Duration::from_secs(60);

fn set(daemon: &Daemon, flags: &str) {
    daemon
        .taipan()
        .args("volume set slow")
        .args(flags)
        .succeed();
}

/// Sends writes of so many bytes without waiting for answers.
fn send(client: &mut NbdClient, writes: u64, bytes: usize) {
    for at in 0..writes {
        client
            .send_write(at * 4096, &vec![1; bytes])
            .expect("room in the socket");
    }
}

fn receive(client: &mut NbdClient, answers: u64) {
    for _ in 0..answers {
        assert_eq!(client.receive().expect("an answer").errno, None);
    }
}

#[test]
fn hold_for_one_volume_and_are_changed_while_it_is_used() {
    let rig = Rig::new(&["slow:64MiB", "free:64MiB"]);
    let daemon = rig.start();
    let (mut slow, mut other) = (daemon.client("slow"), daemon.client("slow"));
    let mut free = daemon.client("free");
    set(&daemon, "--iops 50 --burst-seconds 1");
    let begun = Instant::now();
    // The burst, and 25 more on two connections.
    send(&mut slow, 40, 512);
    send(&mut other, 36, 512);
    let before = Instant::now();
    send(&mut free, 500, 512);
    receive(&mut free, 500);
    let unlimited = before.elapsed();
    receive(&mut slow, 40);
    receive(&mut other, 36);
    assert!(
        begun.elapsed() >= Duration::from_millis(490),
        "{:?}",
        begun.elapsed()
    );
    // Where they came so slowly that none had to wait, more do.
    wait_until("requests to be delayed", LIMIT, || {
        let delayed = |what: &str| daemon.metric(&format!("taipan_volume_delayed_{what}_total"));
        let are_counted = delayed("requests") > 0.0 && delayed("seconds") > 0.0;
        if !are_counted {
            send(&mut slow, 76, 512);
            receive(&mut slow, 76);
        }
        are_counted
    });
    let shown = daemon.taipan().args("volume show slow").succeed();
    assert!(shown.contains("50 requests/s, bursts of 1 s"), "{shown}");
    println!(
        "76 requests at 50/s: {:?}; 500 of another volume meanwhile: {unlimited:?}",
        begun.elapsed()
    );

    // One that waits for minutes goes on as soon as the limit is gone.
    set(&daemon, "--iops 0 --bandwidth 64KiB");
    send(&mut slow, 1, 1 << 20);
    send(&mut other, 1, 512);
    receive(&mut slow, 1);
    set(&daemon, "--bandwidth 0");
    receive(&mut other, 1);
    daemon.stop();
}
