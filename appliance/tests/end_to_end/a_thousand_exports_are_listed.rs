//! A daemon with a thousand volumes tells each client all of them: those that ask for the names
//! only, and those that go on to ask for each one on the same connection.

use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;

const LIMIT: Duration = Duration::from_secs(180);
const VOLUMES: usize = 1000;
const THREADS: usize = 8;

fn name(number: usize) -> String {
    format!("tenant-{}/disk-{number:03}", number % 7)
}

fn create_all(daemon: &Daemon) {
    let create_some = |thread: usize| {
        for number in (thread..VOLUMES).step_by(THREADS) {
            daemon.create(&name(number), "1GiB");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || create_some(thread));
        }
    });
}

/// Every volume is named, each once, by lines that look so.
fn names_all(listed: &str, line: impl Fn(&str) -> String) {
    let mut expected: Vec<_> = (0..VOLUMES).map(|number| line(&name(number))).collect();
    let lines = listed.lines().filter(|text| text.contains("tenant-"));
    let mut found: Vec<_> = lines.map(str::to_owned).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_thousand_exports_are_listed() {
    // A backend in memory: what takes time elsewhere is to make so many volumes durable.
    let rig = Rig::new(&[]).with_flags(&["--backend=mem:"]);
    let daemon = rig.start();
    create_all(&daemon);
    let uri = format!("nbd+unix:///?socket={}", daemon.socket().display());
    for nbdinfo in [Program::new, Program::of_newer_libnbd] {
        let listed = nbdinfo("nbdinfo", LIMIT).args("--list").arg(&uri).succeed();
        let exports = listed.lines().filter(|line| line.starts_with("export="));
        let exports = exports.map(|line| line.to_owned() + "\n");
        names_all(&exports.collect::<String>(), |name| {
            format!("export=\"{name}\":")
        });
    }
    let qemu_nbd = || Program::new("qemu-nbd", LIMIT).arg("-L");
    let port = daemon.tcp.port();
    for listed in [
        qemu_nbd().arg("-k").arg(daemon.socket()),
        // It asks for each in two pieces over TCP.
        qemu_nbd().args(&format!("-b 127.0.0.1 -p {port}")),
    ] {
        let listed = listed.succeed();
        assert!(listed.contains("exports available: 1000"), "{listed}");
        names_all(&listed, |name| format!(" export: '{name}'"));
    }
    let listed = Program::new("nbd-client", LIMIT).args(&format!("-l 127.0.0.1 {port}"));
    let listed = listed.succeed();
    let names = listed.lines().filter_map(|line| line.split_once(": "));
    let names: String = names.map(|(name, _)| name.to_owned() + "\n").collect();
    names_all(&names, str::to_owned);
    daemon.stop();
}
