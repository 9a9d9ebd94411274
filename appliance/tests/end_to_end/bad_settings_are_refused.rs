//! Settings that make no sense are refused with the reason, all at once, before anything is made.

use std::fs;
use std::time::Duration;

use crate::harness::built;
use crate::harness::daemon::Rig;
use crate::harness::program::Program;

fn check_config(flags: &[&str]) -> Program {
    let mut program = Program::new(built("taipand"), Duration::from_secs(60)).arg("check-config");
    for flag in flags {
        program = program.arg(flag);
    }
    program
}

#[test]
fn all_problems_of_a_file_are_named_at_once() {
    let rig = Rig::new(&[]);
    let file = rig.path("taipan.toml");
    fs::write(
        &file,
        "dta = \"x\"\n[wal]\nsize = \"12 parsecs\"\n[nbd]\nlisten = [\"nowhere\"]\n",
    )
    .unwrap();
    let flag = format!("--config={}", file.display());
    let printed = check_config(&[&flag]).fail();
    for part in ["dta", "12 parsecs", "nowhere"] {
        assert!(
            printed.contains(part),
            "{part:?} is not named in\n{printed}"
        );
    }
    // Serving refuses the same file, and makes nothing. (Flags of the rig win over its sizes.)
    let printed = rig.refused(&[&flag], "");
    assert!(printed.contains("dta"), "{printed}");
    assert!(!rig.data().exists(), "a data directory was made");

    fs::write(&file, "[wal]\nsize = \"512MiB\"\n").unwrap();
    check_config(&[&flag]).succeed();
}

#[test]
fn bad_flags_are_named() {
    let rig = Rig::new(&[]);
    let cases = [
        ("--volume=vol0:ten", "ten"),
        ("--volume=vol0", "vol0"),
        ("--volume=a@b:1GiB", "a@b"),
        ("--volume=../up:1GiB", "../up"),
        ("--volume=x:1000", "1000"),
        ("--wal-size=1KiB", "1KiB"),
        ("--backend=ftp://x", "ftp://x"),
        ("--cores=99", "99"),
    ];
    for (flag, named) in cases {
        let printed = rig.refused(&[flag], "");
        assert!(printed.contains(named), "{flag}: {printed}");
        assert!(!rig.data().exists(), "{flag} made a data directory");
    }
    let missing = rig.path("no/such/folder");
    let printed = rig.refused(&["--data", missing.to_str().unwrap()], "");
    assert!(printed.contains("no/such"), "{printed}");
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let rig = Rig::new(&["vol0:1GiB"]);
    let daemon = rig.start();
    let printed = rig.refused(&[], "");
    assert!(
        printed.contains(&daemon.pid().to_string()),
        "the holder is not named: {printed}"
    );
    // The first one is not disturbed, its sockets above all.
    assert_eq!(daemon.client("vol0").flush().unwrap(), None);
    daemon.stop();
}

#[test]
fn the_command_refuses_clashes_bad_names_and_what_is_in_use() {
    let rig = Rig::new(&["vol0:1GiB"]);
    let daemon = rig.start();
    let refuse = |line: &str, named: &str| {
        let printed = daemon.taipan().args(line).fail();
        assert!(printed.contains(named), "taipan {line}: {printed}");
    };
    refuse("volume create vol0 --size 1GiB", "vol0");
    refuse("volume create a@b --size 1GiB", "@");
    refuse("volume create x/../y --size 1GiB", "..");
    refuse("volume create x --size 0", "size");
    refuse("volume create x --size 1GiB --block-size 3000", "block");
    refuse("volume resize vol0 1MiB", "shrink");
    refuse("volume show nothing", "nothing");
    let client = daemon.client("vol0");
    refuse("volume delete vol0", "connected");
    drop(client);

    daemon
        .taipan()
        .args("volume create tenant/disk --size 64MiB --block-size 16KiB")
        .succeed();
    assert!(
        daemon
            .taipan()
            .args("volume list")
            .succeed()
            .contains("tenant/disk")
    );
    assert_eq!(daemon.client("tenant/disk").export.size, 64 << 20);
    daemon
        .taipan()
        .args("volume resize tenant/disk 128MiB")
        .succeed();
    assert_eq!(daemon.client("tenant/disk").export.size, 128 << 20);
    daemon.kill();

    // What the command did is durable.
    let daemon = rig.start();
    assert_eq!(daemon.client("tenant/disk").export.size, 128 << 20);
    daemon.succeed_soon("volume delete tenant/disk");
    daemon.kill();
    let daemon = rig.start();
    assert!(
        !daemon
            .taipan()
            .args("volume list")
            .succeed()
            .contains("tenant/disk")
    );
    daemon.stop();
}
