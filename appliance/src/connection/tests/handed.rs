//! Connections that go on in another process, whatever they are in the middle of.

use super::*;

impl Rig {
    /// The connection comes to rest, becomes a message, and another one goes on where it stopped.
    fn move_on(&mut self) {
        self.connection.park();
        self.turn();
        assert!(self.connection.is_at_rest());
        let handed = self.connection.hand_over(3, 5).unwrap();
        let handed = handed.expect("it can be served elsewhere");
        assert_eq!((handed.passed.core, handed.passed.age_ms), (3, 5));
        let id = self.connection.id().next();
        self.connection = Connection::resumed(id, handed, Allowance::new(1 << 30));
        let outcome = self.with(Connection::resume);
        assert_ne!(outcome, Outcome::Closed);
    }
}

const HALF: usize = 300 << 10;

#[test]
fn requests_that_have_come_in_part_end_where_the_rest_of_them_goes() {
    for wishes in [Wishes::default(), wishes(false), wishes(true)] {
        let mut rig = Rig::connect(wishes);
        let style = rig.style();
        // In the middle of the payload, several times, and of the next header.
        let data: Vec<u8> = (0..2 * HALF)
            .map(|at| (at / 1000 % 251) as u8 + 1)
            .collect();
        let mut bytes = rig.header(command::WRITE, 0, (BLOCK, data.len() as u64));
        bytes.extend_from_slice(&data);
        let read = rig.header(
            command::READ,
            command_flag::DF * u16::from(style != HeaderStyle::Simple),
            (BLOCK, 5000),
        );
        bytes.extend_from_slice(&read);
        let mut answer = Vec::new();
        for part in [0..HALF, HALF..HALF + 7, HALF + 7..bytes.len() - 9] {
            // A socket does not hold all of it.
            for some in bytes[part].chunks(64 << 10) {
                rig.client.write_all(some).unwrap();
                answer.extend(rig.received());
            }
            rig.move_on();
        }
        rig.client.write_all(&bytes[bytes.len() - 9..]).unwrap();
        answer.extend(rig.received());
        let mut reader = ReplyReader::new(style, 1 << 20);
        let mut input = &answer[..];
        let (_, none) = reader.next(&mut input).unwrap().expect("the write's reply");
        assert!(none.is_empty());
        assert!(answer.ends_with(&data[..5000]), "{style:?}");
        let info = rig.connection.info(0, 0.0);
        assert_eq!((info.requests, info.written_bytes), (2, 2 * HALF as u64));
    }
}

#[test]
fn a_refusal_is_told_behind_the_payload_that_comes_later() {
    let mut rig = Rig::connect(Wishes::default());
    let mut bytes = rig.header(command::WRITE, 0, (SIZE, 5000));
    bytes.extend_from_slice(&[7; 2000]);
    rig.client.write_all(&bytes).unwrap();
    assert!(rig.received().is_empty());
    rig.move_on();
    rig.client.write_all(&[7; 3000]).unwrap();
    assert_eq!(rig.received(), simple_reply(Some(Errno::NoSpc), 77));
}

#[test]
fn replies_that_the_client_has_not_taken_come_in_order() {
    let mut rig = Rig::connect(Wishes::default());
    let one = 1 << 20;
    for value in 1..=3_u8 {
        let data = vec![value; 100 << 10];
        rig.ask(
            command::WRITE,
            0,
            (u64::from(value) * one, data.len() as u64),
            &data,
        );
    }
    let mut asked = Vec::new();
    for value in 1..=3_u64 {
        asked.extend(rig.header(command::READ, 0, (value * one, one)));
    }
    rig.client.write_all(&asked).unwrap();
    let mut got = Vec::new();
    for _ in 0..1000 {
        rig.turn();
        rig.flush();
        rig.move_on();
        let mut some = [0; 50_000];
        if let Ok(n) = rig.client.read(&mut some) {
            got.extend_from_slice(&some[..n]);
        }
    }
    let whole = SIMPLE_BYTES + one as usize;
    assert_eq!(got.len(), 3 * whole);
    for (reply, value) in got.chunks(whole).zip(1..) {
        assert_eq!(reply[..SIMPLE_BYTES], simple_reply(None, 77));
        assert!(
            reply[SIMPLE_BYTES..][..100 << 10]
                .iter()
                .all(|byte| *byte == value)
        );
    }
}

const SIMPLE_BYTES: usize = 16;

#[test]
fn nothing_happens_to_a_connection_that_another_process_has_until_it_comes_back() {
    let mut rig = Rig::connect(Wishes::default());
    rig.connection.park();
    let handed = rig.connection.hand_over(0, 0).unwrap();
    let success = simple_reply(None, 77);
    assert!(rig.ask(command::FLUSH, 0, (0, 0), &[]).is_empty());
    drop(handed);
    assert!(rig.received().is_empty());
    rig.connection.unpark();
    assert_eq!(rig.received(), success);
}

#[test]
fn a_promise_that_does_not_hold_any_more_closes_the_connection() {
    for (size, name) in [(SIZE * 2, "vol0"), (SIZE, "another")] {
        let mut rig = Rig::connect(Wishes::default());
        rig.connection.park();
        let mut handed = rig.connection.hand_over(0, 0).unwrap().unwrap();
        handed.passed.size_bytes = size;
        handed.passed.export = name.to_owned();
        let id = rig.connection.id();
        rig.connection = Connection::resumed(id, handed, Allowance::new(1 << 30));
        assert_eq!(rig.with(Connection::resume), Outcome::Closed);
    }
}
