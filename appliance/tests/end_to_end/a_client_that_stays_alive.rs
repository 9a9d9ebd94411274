//! Clients that outlive the server: they reconnect and FLUSH without writing anything again, and
//! every write that was answered on the old connection must be there, even after a host crash.

use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::harness::beside;
use crate::harness::daemon::{Daemon, Rig};

/// What qemu-io prints when it waits for a command.
const PROMPT: &str = "qemu-io> ";

/// A client that is told what to do over its standard input.
struct Interactive {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Interactive {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client runs");
        let stdin = child.stdin.take().expect("its input");
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        Self {
            child,
            stdin,
            stdout,
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("the client reads");
    }

    /// Reads up to `text`. Gives all that was read.
    fn await_text(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(text.as_bytes()) {
            let read = self.stdout.read(&mut byte).expect("the client's output");
            let shown = String::from_utf8_lossy(&seen);
            assert!(read > 0, "the client ended before {text:?}:\n{shown}");
            seen.extend_from_slice(&byte);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }
}

impl Drop for Interactive {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn libnbd_writer(socket: &Path) -> Interactive {
    let mut command = Command::new("timeout");
    // Debian's own interpreter: the one that has Debian's python3-libnbd.
    command
        .args(["400", "/usr/bin/python3"])
        .arg(beside("clients/reopening_writer.py"));
    Interactive::start(command.arg(socket).arg("vol0"))
}

/// The writer loses the server to `end`, reconnects, flushes. Then the memory that outlives the
/// process is lost as well, so that only what the FLUSH made durable is left to verify.
fn answered_writes_survive(end: impl Fn(Daemon)) {
    let rig = Rig::new(&["vol0:2GiB"]);
    let daemon = rig.start();
    let mut writer = libnbd_writer(&daemon.socket());
    writer.await_text("writing");
    std::thread::sleep(Duration::from_secs(2));
    end(daemon);
    let daemon = rig.start();
    writer.await_text("flushed");
    daemon.kill();
    rig.lose_memory();

    let daemon = rig.start();
    writer.tell("verify");
    writer.await_text("verified");
    daemon.stop();
}

#[test]
fn answered_writes_survive_a_kill() {
    answered_writes_survive(Daemon::kill);
}

#[test]
fn answered_writes_survive_sigterm() {
    answered_writes_survive(Daemon::stop);
}

#[test]
fn qemu_reconnects_and_flushes_what_was_answered() {
    let rig = Rig::new(&["vol0:1GiB"]);
    let mut daemon = rig.start();
    let mut command = Command::new("timeout");
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=vol0,reconnect-delay=180,\
         open-timeout=60",
        daemon.socket().display()
    );
    // Its answers and prompts are wanted as they come, although it writes to a pipe.
    command.args(["400", "stdbuf", "-o0", "qemu-io", "--image-opts", &image]);
    let mut qemu_io = Interactive::start(&mut command);
    qemu_io.await_text(PROMPT);
    let mut ask = |line: String, answer: &str| {
        qemu_io.tell(&line);
        let seen = qemu_io.await_text(PROMPT);
        assert!(
            seen.contains(answer) && !seen.contains("failed"),
            "{line}: {seen}"
        );
    };
    for round in 1..=3 {
        ask(
            format!("write -P {round} {round}M 256k"),
            "wrote 262144/262144 bytes",
        );
        daemon.kill();
        daemon = rig.start();
        // The old connection is found dead here; QEMU reconnects and sends only the FLUSH.
        ask("flush".to_owned(), "");
        ask(
            format!("read -P {round} {round}M 256k"),
            "read 262144/262144 bytes",
        );
        daemon.kill();
        rig.lose_memory();
        daemon = rig.start();
        ask(
            format!("read -P {round} {round}M 256k"),
            "read 262144/262144 bytes",
        );
    }
    daemon.stop();
}
