//! Two daemons that speak, in one process.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};

use taipan_engine::error::{Error, ErrorKind};
use taipan_nbd::Agreement;

use super::format::Begun;
use super::*;
use crate::inherited::Inherited;
use crate::lock::DataDir;
use crate::sockets::listen_unix;

struct Predecessor {
    dir: tempfile::TempDir,
    offers: Offers,
    ready: Receiver<Conversation>,
}

impl Predecessor {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let door = Door::hang(dir.path(), &mut Inherited::default()).unwrap();
        let listener = listen_unix(&dir.path().join("nbd.sock"), 0o600).unwrap();
        let socket = Socket {
            listening: Listening::Unix(listener, dir.path().join("nbd.sock")),
            origin: Origin::Bound,
        };
        let offers = Offers::default();
        let sockets = vec![
            Offer::of(Purpose::Nbd, &socket).unwrap(),
            door.offer().unwrap(),
        ];
        offers.set(data.lock_again().unwrap(), sockets);
        let (sender, ready) = channel();
        let open = door.open(offers.clone(), move |conversation| {
            sender.send(conversation).unwrap();
        });
        open.unwrap();
        Self { dir, offers, ready }
    }

    fn knock(&self) -> Result<(Successor, Inheritance)> {
        Successor::knock(self.dir.path())
    }
}

fn client(name: &str) -> (Handed, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    let passed = Passed {
        core: 0,
        read_only: false,
        age_ms: 0,
        size_bytes: 1,
        tally: [0; 4],
        export: name.to_owned(),
        peer: String::new(),
        agreement: Agreement::default(),
        begun: Begun::Nothing,
        input: Vec::new(),
        output: Vec::new(),
    };
    let handed = Handed {
        socket: here.into(),
        passed: Box::new(passed),
    };
    (handed, there)
}

#[test]
fn everything_comes_over_and_the_lock_stays_held() {
    let before = Predecessor::start();
    let (successor, inheritance) = before.knock().unwrap();
    let data = DataDir::share(before.dir.path(), inheritance.lock).unwrap();
    let mut sockets = inheritance.sockets;
    let path = before.dir.path().join("nbd.sock");
    let never = |_: &Path| -> Result<std::os::unix::net::UnixListener> { panic!("it came over") };
    let nbd = sockets.unix(Purpose::Nbd, &path, never).unwrap();
    assert_eq!(nbd[0].origin, Origin::Passed);
    Door::hang(before.dir.path(), &mut sockets).unwrap();

    let names = ["a", "b", "c"];
    let (clients, _ends): (Vec<_>, Vec<_>) = names.iter().map(|name| client(name)).unzip();
    let after = std::thread::spawn(move || successor.switch());
    let conversation = before.ready.recv().unwrap();
    assert_eq!(conversation.pid(), std::process::id());
    conversation.pass(&clients).unwrap();
    before.offers.withdraw();
    conversation.release();
    let taken = after.join().unwrap().unwrap();
    let exports: Vec<_> = taken
        .iter()
        .map(|client| &client.passed.export[..])
        .collect();
    assert_eq!(exports, names);
    assert!(DataDir::open(before.dir.path()).is_err());
    drop(data);
    DataDir::open(before.dir.path()).unwrap();
}

#[test]
fn a_successor_that_ends_or_gives_up_leaves_the_door_open_for_the_next() {
    let before = Predecessor::start();
    drop(before.knock().unwrap());
    let (successor, _) = before.knock().unwrap();
    successor.give_up(&Error::invalid("a bad setting"));

    // In the middle: the clients are served on where they are.
    let (successor, _) = before.knock().unwrap();
    let after = std::thread::spawn(move || successor.switch());
    let conversation = before.ready.recv().unwrap();
    conversation.refuse(&Error::new(ErrorKind::Busy, "requests wait"));
    let error = after.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("requests wait"), "{error}");

    let (_successor, _) = before.knock().unwrap();
    before.offers.withdraw();
}

#[test]
fn a_daemon_that_ends_sends_successors_away_and_without_one_there_is_nothing_to_take() {
    let before = Predecessor::start();
    before.offers.withdraw();
    let error = before.knock().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    let dir = tempfile::tempdir().unwrap();
    let error = Successor::knock(dir.path()).unwrap_err().to_string();
    assert!(error.contains("start without --takeover"), "{error}");
}
