//! Prefix oracle: the daemon is killed at random moments under writers on several connections. If
//! the machine is lost with it, the image in the bucket is a cut of what they wrote; if the disk is
//! left, every flushed write is there; if the memory is left too, every answered one.

use std::time::Duration;

use tempfile::TempDir;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::{FakeS3, SeaweedFs};
use crate::harness::stamps::Ledger;
use crate::harness::{Dice, rounds, wait_until};

/// Blocks that are written: 16 MiB of the volume.
const BLOCKS: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(180);

/// What is left when a daemon was killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    /// The bucket.
    Bucket,
    /// The disk too.
    Disk,
    /// All but the process.
    Memory,
}

/// The rounds so far and what they came to, so that they cannot pass without having shown anything.
struct Game {
    rig: Rig,
    dice: Dice,
    ledger: Ledger,
    cuts: u64,
    moved: u64,
    lost: usize,
}

impl Game {
    /// One round; gives the daemon that came after the kill.
    fn round(&mut self, daemon: Daemon, left: Left, commits: u64) -> Daemon {
        let before = self.ledger.now();
        let manifest = |daemon: &Daemon| daemon.volume("vol0")["manifest"].as_u64();
        let last = manifest(&daemon).expect("a number") + commits;
        let writers = self.ledger.start_writers(&daemon.socket(), &mut self.dice);
        wait_until("a commit", LIMIT, || manifest(&daemon) >= Some(last));
        // A busy machine may take its time to start the writers.
        wait_until("an answer", LIMIT, || writers.answers() > 0);
        std::thread::sleep(Duration::from_millis(100 + self.dice.below(900)));
        daemon.kill();
        self.ledger.join(writers);
        match left {
            Left::Bucket => self.rig.lose_machine(),
            Left::Disk => self.rig.lose_memory(),
            Left::Memory => {}
        }
        let daemon = self.rig.start();
        self.check(&daemon, left, before);
        daemon
    }

    fn check(&mut self, daemon: &Daemon, left: Left, before: u64) {
        let ledger = &mut self.ledger;
        let found = ledger.read(&mut daemon.client("vol0"));
        match left {
            Left::Bucket => {
                ledger.check_cut(&found);
                self.cuts += 1;
                self.moved += u64::from(found.newest() >= before);
                self.lost += ledger.missing(&found);
                ledger.settle(&found);
                return;
            }
            Left::Disk => ledger.check_flushed(&found),
            Left::Memory => ledger.check_answered(&found),
        }
        ledger.settle_locally(&found);
    }
}

fn play(on_backend: impl Fn(Rig) -> Rig, rounds: u64) {
    let rig = on_backend(Rig::new(&["vol0:64MiB"])).with_flags(&[
        "--wal-size=128MiB",
        "--set=commit.interval_seconds=1",
        "--set=commit.pending_size=1MiB",
    ]);
    let mut game = Game {
        rig,
        dice: Dice::new(),
        ledger: Ledger::new(BLOCKS),
        cuts: 0,
        moved: 0,
        lost: 0,
    };
    let mut daemon = game.rig.start();
    game.rig.forget_volumes();
    // Where all stood still when it mattered the rounds may have shown nothing: then some more.
    let has_shown = |game: &Game| game.moved > 0 && game.lost > 0;
    for round in 0..rounds.max(1) + 20 {
        if round >= rounds && has_shown(&game) {
            break;
        }
        // The first round has a commit for certain, so that it shows something.
        let (left, commits) = match game.dice.below(4) {
            _ if round == 0 || round >= rounds => (Left::Bucket, 1),
            0 => (Left::Disk, 0),
            1 => (Left::Memory, 0),
            _ => (Left::Bucket, 0),
        };
        eprintln!("round {round}: {left:?} is left");
        daemon = game.round(daemon, left, commits);
    }
    daemon.stop();
    assert!(
        has_shown(&game),
        "no round had a commit, or none a write without one"
    );
    let Game {
        cuts, moved, lost, ..
    } = game;
    eprintln!("{cuts} cuts, {moved} of them new, {lost} writes lost");
}

#[test]
fn on_the_fake() {
    let server = FakeS3::start();
    play(|rig| rig.with_bucket(&server.bucket()), rounds(12, 1));
}

#[test]
fn on_seaweedfs() {
    let server = SeaweedFs::start();
    play(|rig| rig.with_bucket(&server.bucket()), rounds(4, 10));
}

#[test]
fn on_a_directory() {
    let objects = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let backend = format!("--backend=dir:{}", objects.path().display());
    play(|rig| rig.with_flags(&[&backend]), rounds(3, 20));
}
