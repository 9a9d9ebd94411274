//! `taipand` on directories of its own: start, kill, restart, stop, and what it logged.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::client::NbdClient;
use super::program::Program;
use super::s3::Bucket;
use super::{beside, built, http, wait_until};

/// From the start to serving, a replay of the small WAL of these tests included.
const READY_LIMIT: Duration = Duration::from_secs(180);
/// From SIGTERM to the end.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// The least time after which a hand-off is given up because somebody does not answer.
const HANDOFF_PATIENCE: Duration = Duration::from_secs(4);
/// How long a command may be refused because of a client that has left.
const REFUSED_LIMIT: Duration = Duration::from_secs(120);

/// Directories and settings of a daemon that comes and goes.
pub(crate) struct Rig {
    root: TempDir,
    runtime: TempDir,
    volumes: Vec<String>,
    extra: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// What starts the daemon, if not the test itself.
    parent: Vec<String>,
    data: PathBuf,
}

/// A running daemon. Killed when dropped; its log is shown if the test failed.
pub(crate) struct Daemon {
    child: Child,
    data: PathBuf,
    log: PathBuf,
    /// Where NBD is served over TCP.
    pub(crate) tcp: SocketAddr,
    /// Where `/metrics` and `/healthz` are.
    pub(crate) metrics: SocketAddr,
}

/// A port of the loopback that was free a moment ago. Counted up from below the range from which
/// the kernel takes ports for connections, and above those of [`super::s3`], so that it stays free
/// until the daemon has it.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 22_000 + (std::process::id() % 700) as u16 * 10;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Sends a signal to a process that is ours and not yet waited for.
pub(super) fn signal(child: &Child, signal: Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("a signal to a child");
}

impl Rig {
    /// Fresh directories, and these volumes (`NAME:SIZE`) to create.
    pub(crate) fn new(volumes: &[&str]) -> Self {
        // On the disk of the work tree: a tmpfs would make every write durable at once.
        let root = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory for the test");
        let runtime = TempDir::new_in("/dev/shm").expect("a directory on a tmpfs");
        Self {
            data: root.path().join("data"),
            root,
            runtime,
            volumes: volumes.iter().map(|&volume| volume.to_owned()).collect(),
            extra: vec!["--wal-size=256MiB".to_owned()],
            environment: Vec::new(),
            parent: Vec::new(),
        }
    }

    /// Another machine on this bucket: directories of its own, and nothing known of any volume.
    pub(crate) fn on(bucket: &Bucket) -> Self {
        Self::new(&[]).with_bucket(bucket)
    }

    /// The same with its chunks in a bucket; the credentials come from the environment.
    pub(crate) fn with_bucket(mut self, bucket: &Bucket) -> Self {
        self.extra.push(format!("--backend={}", bucket.url()));
        self.environment.extend(bucket.credentials());
        self
    }

    /// The same with another data directory, on a small file system say.
    pub(crate) fn with_data(mut self, data: PathBuf) -> Self {
        self.data = data;
        self
    }

    /// Adds flags for every start from now on.
    pub(crate) fn with_flags(mut self, flags: &[&str]) -> Self {
        self.extra.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// A service manager starts the daemon from now on, with these sockets (`NAME=PLACE`).
    pub(crate) fn with_sockets(mut self, sockets: &[String]) -> Self {
        let script = beside("clients/activating_parent.py");
        self.parent = vec!["/usr/bin/python3".to_owned(), script.display().to_string()];
        self.parent.extend_from_slice(sockets);
        self.parent.push("--".to_owned());
        self
    }

    /// The test starts it again.
    pub(crate) fn without_sockets(&mut self) {
        self.parent.clear();
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// A path for the test's own files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Starts the daemon and waits until it serves.
    pub(crate) fn start(&self) -> Daemon {
        self.start_with(&[], "")
    }

    /// The same with more flags and failpoints, for this start only.
    pub(crate) fn start_with(&self, flags: &[&str], failpoints: &str) -> Daemon {
        let mut daemon = self.spawn(flags, failpoints);
        let ready = |daemon: &Daemon| daemon.healthy() && daemon.listens();
        if let Some(status) = daemon.await_ready(ready) {
            panic!("taipand ended at start ({status})");
        }
        daemon
    }

    /// The same where its sockets for NBD are others than usual.
    pub(crate) fn start_activated(&self) -> Daemon {
        let mut daemon = self.spawn(&[], "");
        if let Some(status) = daemon.await_ready(Daemon::healthy) {
            panic!("taipand ended at start ({status})");
        }
        daemon
    }

    /// Starts a daemon that a failpoint ends soon; none if it already has.
    pub(crate) fn start_unless_crashed(&self, failpoints: &str) -> Option<Daemon> {
        let mut daemon = self.spawn(&[], failpoints);
        match daemon.await_ready(|daemon| daemon.healthy() && daemon.listens()) {
            None => Some(daemon),
            Some(status) => {
                let signal = status.signal();
                assert_eq!(
                    signal,
                    Some(Signal::KILL.as_raw()),
                    "{failpoints}: {status}"
                );
                None
            }
        }
    }

    /// Starts a daemon that a failpoint ends before it serves.
    pub(crate) fn start_to_crash(&self, failpoints: &str) -> Daemon {
        self.spawn(&[], failpoints)
    }

    /// Starts on something that is damaged: the daemon serves what it can, healthy or not, or ends
    /// with an error; then what it said.
    pub(crate) fn start_or_refuse(&self, flags: &[&str]) -> Result<Daemon, String> {
        let mut daemon = self.spawn(flags, "");
        match daemon.await_ready(|daemon| daemon.listens() && daemon.controls()) {
            None => Ok(daemon),
            Some(status) => {
                assert_eq!(
                    status.code().map(|code| code > 0),
                    Some(true),
                    "crashed: {status}"
                );
                Err(daemon.said())
            }
        }
    }

    /// Starts a daemon that must refuse to serve. Gives what it said.
    pub(crate) fn refused(&self, flags: &[&str], failpoints: &str) -> String {
        let mut daemon = self.spawn(flags, failpoints);
        let status = daemon.ended(READY_LIMIT);
        assert!(
            !status.success(),
            "taipand refused, but its exit status is {status}"
        );
        assert!(status.code().is_some(), "taipand crashed: {status}");
        daemon.said()
    }

    /// What a host crash does to the memory that outlives the process.
    pub(crate) fn lose_memory(&self) {
        for entry in fs::read_dir(self.runtime.path())
            .expect("the runtime directory")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                fs::remove_dir_all(path).expect("remove a folder of the runtime directory");
            } else {
                fs::remove_file(path).expect("remove a file of the runtime directory");
            }
        }
    }

    /// What the loss of the whole machine does: data directory and memory are gone.
    pub(crate) fn lose_machine(&self) {
        fs::remove_dir_all(&self.data).expect("remove the data directory");
        self.lose_memory();
    }

    /// Later starts are not told of any volume, so what they serve they found by themselves.
    pub(crate) fn forget_volumes(&mut self) {
        self.volumes.clear();
    }

    /// Another process takes over from the daemon, which must end without an error, unless a
    /// failpoint ends it.
    pub(crate) fn succeed(&self, mut daemon: Daemon, failpoints: &str) -> Daemon {
        for _ in 0..5 {
            let begun = Instant::now();
            let ended = match self.try_to_succeed(&mut daemon, failpoints) {
                Ok(successor) => return successor,
                Err(ended) => ended,
            };
            // Where all stand still for seconds clients are not kept waiting: they are served on.
            let stood_still = begun.elapsed() > HANDOFF_PATIENCE && daemon.alive();
            assert!(stood_still, "the successor ended: {ended}");
            eprintln!("no hand-off this time: {ended}");
        }
        panic!("no hand-off");
    }

    /// Gives what the successor said if it ended.
    fn try_to_succeed(&self, daemon: &mut Daemon, failpoints: &str) -> Result<Daemon, String> {
        let mut successor = self.spawn_successor(daemon, &[], failpoints);
        let pid = u64::from(successor.pid());
        // While one takes over from the other a request may find nobody.
        let ready = |successor: &Daemon| {
            let status = successor.try_status();
            status.is_some_and(|status| status["pid"] == pid)
        };
        if let Some(status) = successor.await_ready(ready) {
            return Err(format!("{status}: {}", successor.said()));
        }
        let status = daemon.ended(STOP_LIMIT);
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        assert!(status.success() || killed, "the predecessor: {status}");
        Ok(successor)
    }

    /// A successor that a failpoint ends.
    pub(crate) fn succeed_to_crash(&self, daemon: &Daemon, failpoints: &str) {
        let mut successor = self.spawn_successor(daemon, &[], failpoints);
        let status = successor.ended(STOP_LIMIT);
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{failpoints}");
    }

    /// A successor that must refuse. Gives what it said.
    pub(crate) fn refused_succession(&self, daemon: &Daemon, flags: &[&str]) -> String {
        let mut successor = self.spawn_successor(daemon, flags, "");
        let status = successor.ended(READY_LIMIT);
        assert_eq!(status.code().map(|code| code > 0), Some(true), "{status}");
        successor.said()
    }

    fn spawn_successor(&self, daemon: &Daemon, flags: &[&str], failpoints: &str) -> Daemon {
        let flags = [&["--takeover"], flags].concat();
        let place = (daemon.tcp, daemon.metrics);
        let log = daemon
            .log
            .with_extension(format!("after-{}.log", daemon.pid()));
        self.spawn_at(place, log, &flags, failpoints)
    }

    fn spawn(&self, flags: &[&str], failpoints: &str) -> Daemon {
        let place = (free_address(), free_address());
        self.spawn_at(place, self.path("taipand.log"), flags, failpoints)
    }

    fn spawn_at(
        &self,
        (tcp, metrics): (SocketAddr, SocketAddr),
        log: PathBuf,
        flags: &[&str],
        failpoints: &str,
    ) -> Daemon {
        let output = File::create(&log).expect("a log file");
        let taipand = built("taipand");
        let mut words = self.parent.iter().map(PathBuf::from).chain([taipand]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .arg("--data")
            .arg(&self.data)
            .arg("--runtime-dir")
            .arg(self.runtime.path())
            .args([
                "--listen",
                &tcp.to_string(),
                "--metrics",
                &metrics.to_string(),
            ])
            .args(self.volumes.iter().flat_map(|volume| ["--volume", volume]))
            .args(&self.extra)
            .args(flags)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.root.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("the log file once more"))
            .stderr(output);
        if !failpoints.is_empty() {
            command.env("TAIPAN_FAILPOINTS", failpoints);
        }
        let child = command.spawn().expect("taipand runs");
        Daemon {
            child,
            data: self.data.clone(),
            log,
            tcp,
            metrics,
        }
    }
}

impl Daemon {
    /// The NBD socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.data.join("nbd.sock")
    }

    /// URI of a volume over the unix socket.
    pub(crate) fn uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.socket().display())
    }

    /// URI of a volume over TCP.
    pub(crate) fn tcp_uri(&self, volume: &str) -> String {
        format!("nbd://{}/{volume}", self.tcp)
    }

    /// A client of ours, connected to a volume.
    pub(crate) fn client(&self, volume: &str) -> NbdClient {
        NbdClient::connect(&self.socket(), volume).expect("a connection to the volume")
    }

    /// The same where the volume may not be served.
    pub(crate) fn try_client(&self, volume: &str) -> std::io::Result<NbdClient> {
        NbdClient::connect(&self.socket(), volume)
    }

    /// The operator's command on this daemon.
    pub(crate) fn taipan(&self) -> Program {
        Program::new(built("taipan"), Duration::from_secs(120))
            .arg("--data")
            .arg(&self.data)
    }

    /// Creates a volume through the control API, without a process for it.
    pub(crate) fn create(&self, name: &str, size: &str) {
        let body = serde_json::json!({ "name": name, "size": size }).to_string();
        let socket = self.data.join("control.sock");
        let answer = http::post_unix(&socket, "/v1/volumes", &body);
        let (code, body) = answer.expect("the control API answers");
        assert_eq!(code, 201, "{name}: {body}");
    }

    /// Runs the command until it succeeds, as one that is refused while a client that just left is
    /// still known. Gives what it said.
    pub(crate) fn succeed_soon(&self, line: &str) -> String {
        let mut said = String::new();
        wait_until(line, REFUSED_LIMIT, || {
            let ended = self.taipan().args(line).run();
            said = ended.stdout;
            ended.status.success()
        });
        said
    }

    /// Runs a command that must be refused, for this reason in the end: as long as a client that
    /// just left is still known it may be refused for that one. Gives what it said.
    pub(crate) fn refused_for(&self, line: &str, why: &str) -> String {
        let mut said = String::new();
        wait_until(&format!("{line}: {why:?}"), REFUSED_LIMIT, || {
            said = self.taipan().args(line).fail();
            said.contains(why)
        });
        said
    }

    /// `GET /v1/status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        self.try_status().expect("the control API answers")
    }

    /// The same where nobody may answer.
    fn try_status(&self) -> Option<serde_json::Value> {
        let socket = self.data.join("control.sock");
        let (code, body) = http::get_unix(&socket, "/v1/status").ok()?;
        (code == 200).then(|| serde_json::from_str(&body).expect("status is JSON"))
    }

    /// What the status says of one volume.
    pub(crate) fn volume(&self, name: &str) -> serde_json::Value {
        let mut status = self.status();
        let volumes = status["volumes"].as_array_mut().expect("a list of volumes");
        let found = volumes.iter_mut().find(|volume| volume["name"] == name);
        found.map_or(serde_json::Value::Null, serde_json::Value::take)
    }

    /// The sum of a metric over all its labels; 0 if it does not exist.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metrics_text()
            .lines()
            .filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                let value = rest.rsplit(' ').next()?;
                rest.starts_with([' ', '{']).then(|| value.parse().ok())?
            })
            .fold(0.0, |sum, value: f64| sum + value)
    }

    /// `GET /metrics`.
    pub(crate) fn metrics_text(&self) -> String {
        let (code, body) = http::get(self.metrics, "/metrics").expect("the metrics server answers");
        assert_eq!(code, 200, "{body}");
        body
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its memory beside the batches, which outlive it and are bounded by configuration.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("its status");
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        let kib = kib.and_then(|kib| kib.parse::<u64>().ok());
        kib.expect("kibibytes") << 10
    }

    /// What it printed and logged.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for a text in the log.
    pub(crate) fn await_log(&self, text: &str, limit: Duration) {
        wait_until(&format!("{text:?} in the log"), limit, || {
            self.said().contains(text)
        });
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("the end of taipand");
    }

    /// SIGTERM without waiting for the end.
    pub(crate) fn terminate(&self) {
        signal(&self.child, Signal::TERM);
    }

    /// SIGHUP: it looks at its certificates.
    pub(crate) fn hang_up(&self) {
        signal(&self.child, Signal::HUP);
    }

    /// SIGSTOP: nothing of it runs until [`Self::resume`].
    pub(crate) fn pause(&self) {
        signal(&self.child, Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        signal(&self.child, Signal::CONT);
    }

    /// SIGTERM; it must end with status 0.
    pub(crate) fn stop(mut self) {
        self.terminate();
        let status = self.ended(STOP_LIMIT);
        assert!(status.success(), "after SIGTERM: {status}");
    }

    /// Waits for the end.
    pub(crate) fn ended(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait_until("the end of taipand", limit, || {
            status = self.child.try_wait().expect("the state of taipand");
            status.is_some()
        });
        status.expect("ended")
    }

    /// True while the process runs.
    pub(crate) fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `ready`; gives the exit status if it ended instead.
    fn await_ready(&mut self, ready: impl Fn(&Self) -> bool) -> Option<ExitStatus> {
        let start = Instant::now();
        while !ready(self) {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            assert!(start.elapsed() < READY_LIMIT, "taipand does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    fn healthy(&self) -> bool {
        matches!(http::get(self.metrics, "/healthz"), Ok((200, _)))
    }

    fn listens(&self) -> bool {
        UnixStream::connect(self.socket()).is_ok()
    }

    fn controls(&self) -> bool {
        self.try_status().is_some()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = self.said();
            let lines: Vec<&str> = said.lines().collect();
            let from = lines.len().saturating_sub(60);
            eprintln!(
                "--- end of taipand's log\n{}\n---",
                lines[from..].join("\n")
            );
        }
    }
}
