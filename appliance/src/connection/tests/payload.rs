//! Payloads that come piece by piece, come too slowly, or belong to requests that are refused.

use std::net::Shutdown;

use super::*;

const MIB: usize = 1 << 20;
/// Attempts to send before the server is taken to have stopped reading.
const ATTEMPTS: usize = 200;

impl Rig {
    /// Sends all of it, as far as the server takes it, and gives what it answers meanwhile.
    pub(super) fn send(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut answered = Vec::new();
        for _ in 0..ATTEMPTS {
            match self.client.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            answered.extend(self.received());
            self.carry_out();
            if bytes.is_empty() {
                answered.extend(self.received());
                return answered;
            }
        }
        panic!("{} bytes are not taken", bytes.len());
    }
}

/// What ends a connection in the midst of a payload.
fn ends() -> [fn(&mut Rig); 2] {
    [
        |rig| rig.connection.finish(),
        |rig| {
            rig.client.shutdown(Shutdown::Write).unwrap();
            rig.received();
            assert!(rig.connection.finishing);
        },
    ]
}

#[test]
fn a_write_that_did_not_come_wholly_is_never_answered() {
    for flags in [0, command_flag::FUA] {
        for end in ends() {
            let mut rig = Rig::connect(Wishes::default());
            let header = rig.header(command::WRITE, flags, (0, MIB as u64));
            rig.client.write_all(&header).unwrap();
            let mut half = &[7; MIB / 2][..];
            // Nothing is carried out: parts of it wait for the disk, or for room.
            while !half.is_empty() {
                let sent = half.len().min(100 << 10);
                rig.client.write_all(&half[..sent]).unwrap();
                half = &half[sent..];
                assert!(rig.received().is_empty());
            }
            assert!(!rig.connection.requests.is_empty());
            end(&mut rig);
            for _ in 0..5 {
                rig.carry_out();
            }
            assert!(rig.received().is_empty(), "an answer");
            assert!(rig.connection.is_over(), "and all of it has ended");
        }
    }
}

#[test]
fn a_large_write_is_taken_whole_whatever_the_limits() {
    for (requests_max, bytes_max) in [(1, 64 << 20), (100, MIB as u64), (1, 1)] {
        let mut rig = Rig::connect(Wishes::default());
        (rig.limits.requests_max, rig.limits.bytes_max) = (requests_max, bytes_max);
        let header = rig.header(command::WRITE, 0, (BLOCK, MIB as u64));
        let mut answered = rig.send(&header);
        answered.extend(rig.send(&vec![9; MIB]));
        assert_eq!(answered, simple_reply(None, 77));
        let read = rig.ask(command::READ, 0, (BLOCK + MIB as u64 - 1, 1), &[]);
        assert_eq!(read, [&simple_reply(None, 77)[..], &[9]].concat());
    }
}

#[test]
fn a_refused_write_is_answered_behind_its_payload_and_the_next_request_is_found() {
    let refused = simple_reply(Some(Errno::NoSpc), 77);
    for payload in [1, 64 << 10, 2 * MIB] {
        let mut rig = Rig::connect(Wishes::default());
        rig.limits.requests_max = 1;
        let header = rig.header(command::WRITE, 0, (SIZE, payload as u64));
        let bytes = [header, vec![0x25; payload]].concat();
        let (all_but_one, last) = bytes.split_at(bytes.len() - 1);
        assert!(rig.send(all_but_one).is_empty(), "answered too early");
        let read = rig.header(command::READ, 0, (0, 1));
        let answered = rig.send(&[last, &read].concat());
        let expected = [&refused[..], &simple_reply(None, 77), &[0]].concat();
        assert_eq!(answered, expected);
    }
}

#[test]
fn zeros_are_fast_for_whole_blocks_or_not_written_at_all() {
    let mut rig = Rig::connect(Wishes::default());
    let (success, slow) = (
        simple_reply(None, 77),
        simple_reply(Some(Errno::NotSup), 77),
    );
    let written = rig.ask(command::WRITE, 0, (0, 3 * BLOCK), &[8; 3 * BLOCK as usize]);
    assert_eq!(written, success);
    let zero = |rig: &mut Rig, flags, range| rig.ask(command::WRITE_ZEROES, flags, range, &[]);
    let fast = command_flag::FAST_ZERO;
    for range in [(1, BLOCK), (0, BLOCK + 1), (BLOCK, 1), (512, 512)] {
        assert_eq!(zero(&mut rig, fast, range), slow);
    }
    let kept = rig.ask(command::READ, 0, (0, 3 * BLOCK), &[]);
    assert_eq!(kept[success.len()..], [8; 3 * BLOCK as usize]);
    assert_eq!(zero(&mut rig, fast, (BLOCK, BLOCK)), success);
    assert_eq!(zero(&mut rig, fast, (1, 0)), success, "nothing at all");
    assert_eq!(zero(&mut rig, 0, (1, 1)), success, "slow if need be");
    let read = rig.ask(command::READ, 0, (0, BLOCK + 2), &[]);
    assert_eq!(read[success.len()..][..3], [8, 0, 8]);
    assert_eq!(read[success.len()..][BLOCK as usize - 1..], [8, 0, 0]);
}
