//! Programs that run with a time limit and whose output is part of the failure.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// So much is kept of each output: fio may repeat an error until its time is up, and that is not to
/// take all the memory of the machine.
const KEPT_BYTES: u64 = 64 << 20;

/// A program and its arguments, not yet run.
pub(crate) struct Program {
    command: Command,
    shown: String,
}

/// What a program left.
pub(crate) struct Ended {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
    shown: String,
}

impl Program {
    /// `program`, to be killed after `limit`.
    pub(crate) fn new(program: impl AsRef<OsStr>, limit: Duration) -> Self {
        let mut command = Command::new("timeout");
        command
            .arg("--kill-after=5")
            .arg(format!("{}", limit.as_secs()))
            .arg(program.as_ref())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let shown = program.as_ref().to_string_lossy().into_owned();
        Self { command, shown }
    }

    /// A program of the later libnbd that `tools/setup` unpacks, with its own loader and libraries.
    pub(crate) fn of_newer_libnbd(program: &str, limit: Duration) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/libnbd-trixie");
        let libraries = folder.join("usr/lib/x86_64-linux-gnu");
        let loader = libraries.join("ld-linux-x86-64.so.2");
        assert!(loader.exists(), "run tools/setup");
        Self::new(loader, limit)
            .arg("--library-path")
            .arg(libraries)
            .arg(folder.join("usr/bin").join(program))
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&argument.as_ref().to_string_lossy());
        self.command.arg(argument);
        self
    }

    /// Adds arguments separated by white space.
    pub(crate) fn args(mut self, line: &str) -> Self {
        for word in line.split_whitespace() {
            self = self.arg(word);
        }
        self
    }

    /// Sets a variable of the environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the working directory.
    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs it to its end, whatever that is.
    pub(crate) fn run(mut self) -> Ended {
        let mut child = self.command.spawn().expect("coreutils' timeout runs");
        let stderr = child.stderr.take().expect("it is a pipe");
        let stderr = std::thread::spawn(move || kept(stderr));
        let stdout = kept(child.stdout.take().expect("it is a pipe"));
        let stderr = stderr.join().expect("it only reads");
        Ended {
            status: child.wait().expect("a child of this process"),
            stdout,
            stderr,
            shown: self.shown,
        }
    }

    /// Runs it; fails the test unless it succeeds. Gives its standard output.
    pub(crate) fn succeed(self) -> String {
        let ended = self.run();
        assert!(ended.status.success(), "{ended}");
        ended.stdout
    }

    /// Runs it; fails the test unless it fails by itself. Gives both outputs together.
    pub(crate) fn fail(self) -> String {
        let ended = self.run();
        // 124 and 137: the time limit, which is a hang and not an answer.
        let hung = matches!(ended.status.code(), Some(124 | 137) | None);
        assert!(
            !ended.status.success() && !hung,
            "should have been refused: {ended}"
        );
        ended.stdout + &ended.stderr
    }
}

/// All of the output is read, and the first of it kept.
fn kept(mut output: impl Read) -> String {
    let mut first = Vec::new();
    let read = output.by_ref().take(KEPT_BYTES).read_to_end(&mut first);
    read.and_then(|_| io::copy(&mut output, &mut io::sink()))
        .expect("a pipe is read");
    String::from_utf8_lossy(&first).into_owned()
}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{}: {}\n{}\n{}",
            self.shown, self.status, self.stdout, self.stderr
        )
    }
}
