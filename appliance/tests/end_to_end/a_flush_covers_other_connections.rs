//! FLUSH on one connection makes durable what was answered on another: after the kill even the
//! memory that outlives the process is taken away.

use crate::harness::daemon::Rig;
use crate::harness::{KIB, MIB, pattern};

#[test]
fn a_write_on_one_connection_is_flushed_on_another() {
    let rig = Rig::new(&["vol0:1GiB"]);
    let mut daemon = rig.start();
    for round in 0..5 {
        // From 512 bytes to a request over all 16 shards.
        let writes = [
            (0, 512),
            (8 * KIB, 4 * KIB),
            (MIB, 256 * KIB),
            (512 * MIB, 4 * KIB),
        ];
        let mut a = daemon.client("vol0");
        let mut b = daemon.client("vol0");
        for (offset, bytes) in writes {
            let data = pattern(offset, round, bytes as usize);
            assert_eq!(a.write(offset, &data).unwrap(), None);
        }
        assert_eq!(b.flush().unwrap(), None);
        daemon.kill();
        rig.lose_memory();
        daemon = rig.start();
        let mut c = daemon.client("vol0");
        for (offset, bytes) in writes {
            let found = c.read(offset, bytes as u32).unwrap().unwrap();
            assert_eq!(
                found,
                pattern(offset, round, bytes as usize),
                "{offset} round {round}"
            );
        }
    }
    daemon.stop();
}

#[test]
fn fua_is_durable_without_a_flush() {
    let rig = Rig::new(&["vol0:1GiB"]);
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    for block in 0..64 {
        let data = pattern(block, 7, 4096);
        assert_eq!(client.write_durably(block * 4 * KIB, &data).unwrap(), None);
    }
    daemon.kill();
    rig.lose_memory();
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    for block in 0..64 {
        let found = client.read(block * 4 * KIB, 4096).unwrap().unwrap();
        assert_eq!(found, pattern(block, 7, 4096), "block {block}");
    }
    daemon.stop();
}
