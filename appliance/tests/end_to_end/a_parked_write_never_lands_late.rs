//! A write that is parked when its connection dies never lands after the newer write that the
//! reconnected client makes to the same block.

use std::time::Duration;

use crate::harness::daemon::Rig;
use crate::harness::{MIB, pattern};

/// Each write is this long: one block of every shard.
const WRITE: u64 = 64 << 10;
/// More than the batch memory and the open batches hold, so that the last of them are parked.
const WRITES: u64 = 128 * MIB / WRITE;

#[test]
fn a_dead_connections_parked_write_does_not_overwrite_a_newer_one() {
    let rig = Rig::new(&["vol0:1GiB"]).with_flags(&["--cache-size=128MiB"]);
    // Every WAL write takes so long that answers stop and requests queue up.
    let daemon = rig.start_with(&[], "wal.write=delay(200)");
    let mut old = daemon.client("vol0");
    // A write that no longer fits into the socket is as good as parked: it must not block us.
    old.set_write_limit(Duration::from_secs(2));
    let mut sent = 0;
    for place in 0..WRITES {
        if old
            .send_write(place * WRITE, &pattern(place, 1, WRITE as usize))
            .is_err()
        {
            break;
        }
        sent = place + 1;
    }
    assert!(sent > 0, "nothing was sent");
    drop(old);

    let mut new = daemon.client("vol0");
    // From the newest backwards: those are parked for sure.
    let rewritten: Vec<u64> = (0..=sent.min(WRITES - 1)).rev().take(256).collect();
    for &place in &rewritten {
        let data = pattern(place, 2, WRITE as usize);
        assert_eq!(new.write(place * WRITE, &data).unwrap(), None);
    }
    assert_eq!(new.flush().unwrap(), None);
    // Whatever is still queued anywhere gets its chance to land.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(new.flush().unwrap(), None);
    let newest = |client: &mut crate::harness::client::NbdClient| {
        for &place in &rewritten {
            let found = client.read(place * WRITE, WRITE as u32).unwrap().unwrap();
            assert!(
                found == pattern(place, 2, WRITE as usize),
                "write {place} of {sent} is old"
            );
        }
    };
    newest(&mut new);
    daemon.kill();
    let daemon = rig.start();
    newest(&mut daemon.client("vol0"));
    daemon.stop();
}
