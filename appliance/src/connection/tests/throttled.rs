//! Volumes with limits on requests and bytes.

use super::*;

pub(super) const SECOND: u64 = 1_000_000_000;

impl Rig {
    pub(super) fn limit(&self, iops: u64, bandwidth_bytes: u64) {
        let volume = self.directory.resolve("vol0").unwrap();
        let settings = VolumeSettings {
            iops,
            bandwidth_bytes,
            ..volume.settings()
        };
        volume.throttle.set(&settings);
    }

    fn delayed(&self) -> u64 {
        let volume = self.directory.resolve("vol0").unwrap();
        volume.throttle.delays().requests
    }
}

#[test]
fn requests_above_the_rate_wait_and_flush_does_not() {
    let mut rig = Rig::connect(Wishes::default());
    let success = simple_reply(None, 77);
    rig.limit(2, 0);
    rig.now_ns = 50 * SECOND;
    let mut asked = Vec::new();
    for offset in 0..6 {
        asked.extend(rig.header(command::WRITE, 0, (offset * 5, 5)));
        asked.extend_from_slice(b"bytes");
    }
    rig.client.write_all(&asked).unwrap();
    assert_eq!(
        rig.received(),
        success.repeat(3),
        "the burst, and one that begins"
    );
    assert_eq!(rig.connection.turn_ns(), Some(50 * SECOND + SECOND / 2));
    rig.now_ns += SECOND / 4;
    assert!(rig.received().is_empty(), "too early");
    for _ in 0..2 {
        rig.now_ns += SECOND / 2;
        assert_eq!(rig.received(), success);
    }
    assert_eq!(rig.delayed(), 2);
    rig.now_ns += 10 * SECOND;
    assert_eq!(rig.received(), success);
    assert_eq!(rig.connection.turn_ns(), None);

    let mut rig = Rig::connect(Wishes::default());
    rig.limit(1, 0);
    for _ in 0..20 {
        assert_eq!(rig.ask(command::FLUSH, 0, (0, 0), &[]), success);
    }
}

#[test]
fn bytes_count_and_a_limit_that_is_taken_away_holds_nobody_up() {
    let mut rig = Rig::connect(Wishes::default());
    rig.limit(0, 1 << 20);
    let read = 16 + (2 << 20);
    let whole = (0, 2 << 20);
    assert_eq!(rig.ask_much(whole).len(), read, "longer than the burst");
    assert!(rig.ask(command::READ, 0, (0, 10), &[]).is_empty());
    assert!(rig.connection.turn_ns().is_some());
    rig.limit(0, 0);
    assert_eq!(rig.received().len(), 26);
    assert_eq!(rig.delayed(), 0, "no time went by");
}

impl Rig {
    /// A read of more than the socket holds.
    fn ask_much(&mut self, range: (u64, u64)) -> Vec<u8> {
        let header = self.header(command::READ, 0, range);
        self.client.write_all(&header).unwrap();
        let mut got = Vec::new();
        for _ in 0..200 {
            self.turn();
            self.flush();
            let mut some = vec![0; 64 << 10];
            if let Ok(n) = self.client.read(&mut some) {
                got.extend_from_slice(&some[..n]);
            }
        }
        got
    }
}

#[test]
fn a_write_whose_payload_is_late_is_counted_once() {
    let mut rig = Rig::connect(Wishes::default());
    rig.limit(1, 0);
    let mut asked = rig.header(command::WRITE, 0, (0, 3));
    asked.extend_from_slice(b"by");
    rig.client.write_all(&asked).unwrap();
    for _ in 0..5 {
        assert!(rig.received().is_empty());
    }
    rig.client.write_all(b"e").unwrap();
    let success = simple_reply(None, 77);
    assert_eq!(rig.received(), success);
    assert_eq!(
        rig.ask(command::TRIM, 0, (0, BLOCK), &[]),
        success,
        "within the burst"
    );
    assert!(rig.ask(command::TRIM, 0, (0, BLOCK), &[]).is_empty());
}
