//! Clients that do not read what they asked for.

use super::*;

const READ_BYTES: usize = 64 << 10;

impl Rig {
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
    let mut rig = Rig::connect(Wishes::default());
    rig.ask_for(40);
    let mut piece = vec![0; READ_BYTES + 16];
    for round in 0..400 {
        assert!(!rig.connection.flush_output(), "more than it takes");
        rig.client.read_exact(&mut piece).unwrap();
        rig.ask_for(1);
        // What is sent is half of it at most, and the vector twice as long as what is in it.
        let held = rig.connection.output.capacity();
        assert!(held < 5 * SEND_BYTES_MAX, "{held} bytes in round {round}");
    }
}

#[test]
fn what_a_client_does_not_read_is_counted_whenever_it_comes() {
    let mut rig = Rig::connect(Wishes::default());
    rig.ask_for(20);
    assert!(!rig.connection.flush_output());
    for _ in 0..10 {
        // The socket is full: nobody tries to send until it has room.
        rig.ask_for(1);
        let waiting = rig.connection.output.len() as u64;
        assert_eq!(rig.connection.unsent.held(), waiting);
    }
}

#[test]
fn a_client_that_reads_nothing_is_not_read_from_for_ever() {
    let mut rig = Rig::connect(Wishes::default());
    for _ in 0..1000 {
        let before = rig.connection.output.len();
        rig.ask_for(1);
        rig.connection.flush_output();
        if before > 0 && rig.connection.output.len() == before {
            assert!(before < SEND_BYTES_MAX + 2 * READ_BYTES);
            return;
        }
    }
    panic!("{} bytes wait for it", rig.connection.output.len());
}
