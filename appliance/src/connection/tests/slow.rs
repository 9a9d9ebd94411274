//! Clients that do not read what they asked for.

use super::*;

const READ_BYTES: usize = 64 << 10;
const MUCH_BYTES: usize = 2 << 20;

impl Rig {
    /// A client whose socket takes less than a burst.
    fn narrow() -> Self {
        let rig = Self::connect(Wishes::default());
        sockopt::set_socket_send_buffer_size(&rig.connection.socket, 64 << 10).unwrap();
        rig
    }

    /// Asks for more than fits.
    fn ask_for_much(&mut self) {
        let read = self.header(command::READ, 0, (0, MUCH_BYTES as u64));
        self.client.write_all(&read).unwrap();
        self.turn();
    }

    /// Asks for so many pieces of zeros.
    fn ask_for(&mut self, pieces: usize) {
        let request = Request {
            flags: 0,
            command: command::READ,
            cookie: 77,
            offset: 0,
            length: READ_BYTES as u64,
        };
        let mut bytes = Vec::new();
        for _ in 0..pieces {
            request.append(self.style(), &mut bytes).unwrap();
        }
        self.client.write_all(&bytes).unwrap();
        self.turn();
    }
}

#[test]
fn replies_to_a_client_that_always_leaves_some_unread_do_not_pile_up() {
    let mut rig = Rig::narrow();
    rig.ask_for(40);
    let mut piece = vec![0; READ_BYTES + 16];
    for round in 0..400 {
        assert!(!rig.flush(), "more than it takes");
        rig.client.read_exact(&mut piece).unwrap();
        rig.ask_for(1);
        // What is sent is half of it at most, and the vector twice as long as what is in it.
        let held = rig.connection.output.capacity();
        assert!(held < 5 * SEND_BYTES_MAX, "{held} bytes in round {round}");
    }
}

#[test]
fn replies_are_counted_from_the_turn_that_makes_them() {
    let mut rig = Rig::connect(Wishes::default());
    rig.ask_for(3);
    assert_eq!(rig.connection.output.len(), 3 * (READ_BYTES + 16));
    for _ in 0..10 {
        let waiting = rig.connection.output.len() as u64;
        assert_eq!(rig.connection.share.held(), waiting);
        // The socket is full: nobody tries to send until it has room.
        rig.flush();
        rig.ask_for(1);
    }
}

#[test]
fn replies_are_sent_before_many_more_are_made() {
    let mut rig = Rig::connect(Wishes::default());
    let read = rig.header(command::READ, 0, (0, 4096));
    let asked = REQUESTS_PER_TURN * 2 + 3;
    rig.client.write_all(&read.repeat(asked)).unwrap();
    for replies in [REQUESTS_PER_TURN, REQUESTS_PER_TURN, 3] {
        let outcome = rig.turn();
        assert_eq!(rig.connection.output.len(), replies * (4096 + 16));
        assert!(rig.flush());
        assert_eq!(outcome == Outcome::Ready, replies == REQUESTS_PER_TURN);
    }
    // Exactly as many as are taken at once need no further look.
    rig.client
        .write_all(&read.repeat(REQUESTS_PER_TURN))
        .unwrap();
    assert_eq!(rig.turn(), Outcome::Waiting);
}

#[test]
fn a_client_gets_one_burst_before_it_has_shown_that_it_takes_replies() {
    let mut rig = Rig::narrow();
    rig.ask_for(40);
    let burst = rig.connection.output.len();
    assert!((BURST_BYTES..BURST_BYTES + 2 * READ_BYTES).contains(&burst));
    assert_eq!(rig.turn(), Outcome::Ready, "it goes on when that was tried");
    assert_eq!(rig.connection.output.len(), burst);
    assert!(!rig.flush());
    for _ in 0..40 / REQUESTS_PER_TURN {
        rig.turn();
    }
    assert!(rig.connection.output.len() > 8 * READ_BYTES);
}

#[test]
fn those_that_take_their_replies_go_on_when_others_hold_what_they_may() {
    let allowance = Allowance::new(4 << 20);
    let mut greedy: Vec<Rig> = (0..10)
        .map(|_| Rig::sharing(Wishes::default(), &allowance))
        .collect();
    for _ in 0..5 {
        for rig in &mut greedy {
            rig.ask_for(30);
            rig.flush();
        }
    }
    let held: u64 = greedy.iter().map(|rig| rig.connection.share.held()).sum();
    assert!(held < 4 << 20, "{held} bytes");
    let mut modest = Rig::sharing(Wishes::default(), &allowance);
    for _ in 0..20 {
        modest.ask_for(2);
        let replies = modest.connection.output.len();
        assert_eq!(replies, 2 * (READ_BYTES + 16), "both in one turn");
        assert!(modest.flush());
        let mut bytes = vec![0; replies];
        modest.client.read_exact(&mut bytes).unwrap();
    }
}

/// Two connections that share little memory; the first one's large read is answered but not taken.
fn one_holds_what_the_other_needs() -> (Rig, Rig) {
    let allowance = Allowance::new(4 << 20);
    let rig = || Rig::sharing(Wishes::default(), &allowance);
    let (mut first, mut second) = (rig(), rig());
    first.ask_for_much();
    assert!(!first.flush());
    second.ask_for_much();
    assert!(second.connection.is_starved() && second.connection.output.is_empty());
    (first, second)
}

#[test]
fn a_request_that_does_not_fit_waits_for_another_such_and_for_nothing_else() {
    let (mut first, mut second) = one_holds_what_the_other_needs();
    let mut bytes = vec![0; MUCH_BYTES + 16];
    let mut read = 0;
    while read < bytes.len() {
        read += first.client.read(&mut bytes[read..]).unwrap();
        first.flush();
    }
    second.turn();
    assert!(!second.connection.is_starved());
    assert_eq!(second.connection.output.len(), bytes.len());
}

#[test]
fn who_takes_nothing_while_another_waits_for_it_is_closed() {
    let (mut first, _second) = one_holds_what_the_other_needs();
    let mut closed = |now_ms, taken: usize| {
        first.client.read_exact(&mut vec![0; taken]).unwrap();
        first.flush();
        first.connection.is_in_the_way(now_ms, &mut first.buffers)
    };
    assert!(!closed(1000, 0));
    assert!(!closed(5999, 0));
    assert!(!closed(5999, 128 << 10), "it takes something");
    assert!(!closed(10_998, 0));
    assert!(closed(10_999, 0));
}

#[test]
fn a_large_write_goes_on_in_pieces_when_all_memory_is_held_by_others() {
    let allowance = Allowance::new(1 << 20);
    let mut others = Share::new(Arc::clone(&allowance));
    others.hold(1 << 20, 0);
    let mut rig = Rig::sharing(Wishes::default(), &allowance);
    let length = 4 << 20;
    let mut bytes = rig.header(command::WRITE, command_flag::FUA, (0, length as u64));
    bytes.extend(vec![3; length]);
    let mut answered = rig.send(&bytes);
    for _ in 0..100 {
        rig.carry_out();
        answered.extend(rig.received());
    }
    assert_eq!(answered, simple_reply(None, 77));
}

#[test]
fn a_connection_without_work_holds_no_buffer_and_one_with_little_a_small_one() {
    let mut rig = Rig::connect(Wishes::default());
    rig.ask_for(1);
    rig.flush();
    assert_eq!(rig.connection.share.held(), 0);
    let buffers = (
        rig.connection.input.held(),
        rig.connection.output.capacity(),
    );
    assert_eq!(buffers, (0, 0));
    let half = [rig.header(command::WRITE, 0, (0, 20_000)), vec![0; 10_000]].concat();
    rig.client.write_all(&half[..20]).unwrap();
    rig.turn();
    assert_eq!(rig.connection.share.held(), 20);
    rig.client.write_all(&half[20..]).unwrap();
    rig.turn();
    assert_eq!(rig.connection.share.held(), RECEIVE_BYTES as u64);
    rig.connection.is_in_the_way(0, &mut rig.buffers);
    assert_eq!(rig.connection.share.held(), half.len() as u64);
}

#[test]
fn a_client_that_reads_nothing_is_not_read_from_for_ever() {
    let mut rig = Rig::connect(Wishes::default());
    for _ in 0..1000 {
        let before = rig.connection.output.len();
        rig.ask_for(1);
        rig.flush();
        if before > 0 && rig.connection.output.len() == before {
            assert!(before < SEND_BYTES_MAX + 2 * READ_BYTES);
            return;
        }
    }
    panic!("{} bytes wait for it", rig.connection.output.len());
}
