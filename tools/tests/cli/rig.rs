//! What the tests stand on: running the command, a scripted control API, and `nbdkit`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// What a run of the command gave.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A scratch directory, which is also the data directory of the appliance that is played.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().expect("a scratch directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path of a file as an argument.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The command with these arguments, on this data directory.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taipan"));
        command.arg("--data").arg(self.0.path()).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Runs the command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        ran(&self.command(args).output().expect("the command starts"))
    }

    /// Serves `nbdkit` with these arguments on the NBD socket.
    pub(crate) fn nbdkit(&self, args: &[&str]) -> Nbdkit {
        let socket = self.path("nbd.sock");
        let child = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(&socket)
            .args(args)
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit is installed (tools/check installs it)");
        wait_for(&socket);
        Nbdkit(child)
    }

    /// Answers requests on the control socket with `answers`, in order, then stops.
    pub(crate) fn control(&self, answers: &[(u16, &str)]) -> FakeControl {
        let listener = UnixListener::bind(self.path("control.sock")).expect("the socket is free");
        let answers: Vec<(u16, String)> = answers.iter().map(|a| (a.0, a.1.to_owned())).collect();
        let (asked, requests) = channel();
        std::thread::spawn(move || {
            for (status, body) in answers {
                let Ok((stream, _)) = listener.accept() else {
                    return;
                };
                answer_one(&stream, status, &body, &asked);
            }
        });
        FakeControl { requests }
    }
}

pub(crate) fn ran(output: &Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Waits until somebody listens on the socket.
fn wait_for(socket: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {socket:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running `nbdkit`, ended when dropped.
pub(crate) struct Nbdkit(Child);

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A request that the scripted control API received.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Method and path.
    pub(crate) line: String,
    pub(crate) body: String,
}

/// A scripted control API.
pub(crate) struct FakeControl {
    requests: Receiver<Asked>,
}

impl FakeControl {
    /// The next request that was received.
    pub(crate) fn asked(&self) -> Asked {
        self.requests
            .recv_timeout(Duration::from_secs(60))
            .expect("a request was received")
    }
}

fn answer_one(stream: &UnixStream, status: u16, body: &str, asked: &Sender<Asked>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a request line");
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).expect("a header");
        if header.trim().is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').expect("a header has a colon");
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut sent = vec![0; length];
    reader.read_exact(&mut sent).expect("the whole body");
    let line = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
    let sent = String::from_utf8(sent).expect("JSON is UTF-8");
    // The test may have ended already.
    let _ = asked.send(Asked { line, body: sent });
    let mut stream = stream;
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}
