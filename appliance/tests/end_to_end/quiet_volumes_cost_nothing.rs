//! Requests cost money: a volume at rest makes none, and one that is written a little makes at most
//! three per commit interval.

use std::time::{Duration, Instant};

use crate::harness::daemon::Rig;
use crate::harness::s3::FakeS3;
use crate::harness::{pattern, wait_until};

const INTERVAL_SECONDS: u64 = 4;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn idle_volumes_make_no_requests_and_a_trickle_makes_few() {
    let server = FakeS3::start();
    let interval = format!("--set=commit.interval_seconds={INTERVAL_SECONDS}");
    let rig = Rig::new(&["vol0:1GiB", "vol1:1GiB", "vol2:1GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&[&interval]);
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    assert_eq!(client.write(0, &pattern(0, 0, 4096)).unwrap(), None);
    daemon.taipan().arg("drain").succeed();
    // Until what the commit left to do is done.
    wait_until("a second without requests", LIMIT, || {
        server.reset_stats();
        std::thread::sleep(Duration::from_secs(1));
        server.requests().0 == 0
    });
    std::thread::sleep(Duration::from_secs(2 * INTERVAL_SECONDS + 1));
    let (idle, seen) = server.requests();
    assert_eq!(idle, 0, "requests of volumes at rest: {seen}");

    let intervals = 4;
    let begun = Instant::now();
    for second in 0..intervals * INTERVAL_SECONDS {
        let place = second * 1000;
        let data = pattern(place, second, 4096);
        assert_eq!(client.write(place * 4096, &data).unwrap(), None);
        assert_eq!(client.flush().unwrap(), None);
        std::thread::sleep(Duration::from_secs(1));
    }
    let (trickle, seen) = server.requests();
    // Where the machine stands still these seconds have more of them.
    let intervals = begun.elapsed().as_secs() / INTERVAL_SECONDS;
    // An interval may be under way at either end.
    assert!(
        trickle <= 3 * (intervals + 1),
        "{trickle} requests in {intervals} commit intervals: {seen}"
    );
    wait_until("commits", LIMIT, || server.requests().0 >= 4);
    daemon.stop();
}
