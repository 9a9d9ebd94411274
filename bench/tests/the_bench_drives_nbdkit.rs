//! `taipan-bench run` against a server of other people: nbdkit with its memory plugin.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

struct Nbdkit(Child);

impl Drop for Nbdkit {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nbdkit on `socket`, or `None` where it is not installed.
fn start(socket: &Path) -> Option<Nbdkit> {
    let child = Command::new("nbdkit")
        .args(["-f", "-U"])
        .arg(socket)
        .args(["memory", "16M"])
        .spawn();
    let server = Nbdkit(child.ok()?);
    let begin = Instant::now();
    while UnixStream::connect(socket).is_err() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "nbdkit does not start"
        );
        thread::sleep(Duration::from_millis(10));
    }
    Some(server)
}

#[test]
fn what_is_written_to_nbdkit_is_verified_in_the_run_and_later() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbdkit.sock");
    let Some(_server) = start(&socket) else {
        eprintln!("SKIPPED: nbdkit is not installed");
        return;
    };
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let run = |options: &str| {
        Command::new(env!("CARGO_BIN_EXE_taipan-bench"))
            .args(["run", &uri])
            .args(options.split_whitespace())
            .output()
            .unwrap()
    };
    let write = "--rw randrw --bs 512-256k --iodepth 16 --numjobs 4 --fsync 32 --verify crc32c";
    let chunks = format!("{write} --replies structured");
    for options in [write, &format!("{write} --verify-only"), &chunks] {
        let output = run(options);
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("all as written"));
    }
    for options in [
        "--rw trim --bs 1M",
        "--rw randread --bs 4k --iodepth 32 --runtime 0.2",
    ] {
        assert!(run(options).status.success(), "{options}");
    }
    let changed = run(&format!("{write} --verify-only"));
    assert_eq!(changed.status.code(), Some(3), "everything was trimmed");
}
