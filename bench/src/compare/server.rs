//! A server that runs for a comparison: started on its CPUs, watched, stopped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use taipan_nbd::ClientExport;

use super::peers::{Peer, Texts, Transport};
use super::warden::{Process, Warden};
use crate::connection::Connection;
use crate::interruption;
use crate::job::PATIENCE;
use crate::options::Replies;
use crate::uri::Address;

const START_MAX: Duration = Duration::from_secs(120);
const IDLE_MAX: Duration = Duration::from_secs(60);
const CONTROL_MAX: Duration = Duration::from_secs(300);
/// A server that uses less of a CPU than this is idle.
const IDLE_SHARE: f64 = 0.07;
/// Looks at the processes of a server, until two of them find the same.
const LOOKS_MAX: u32 = 5;
/// Clock ticks per second in /proc, the same on all of Linux's machines.
const TICKS: f64 = 100.0;
/// Size of the idle volumes.
const IDLE_VOLUME: &str = "1GiB";

/// Where a server's things are and how large they are.
pub(crate) struct Site<'a> {
    /// A directory of its own.
    pub(crate) dir: &'a Path,
    pub(crate) transport: Transport,
    pub(crate) size_bytes: u64,
    pub(crate) wal_bytes: u64,
    /// A file whose blocks are all written, for peers that serve one.
    pub(crate) disk: Option<&'a Path>,
    /// CPUs that the server may use, as `taskset -c` takes them; `None` for all.
    pub(crate) cpus: Option<&'a str>,
    /// Texts that hold for all servers.
    pub(crate) texts: &'a Texts,
    pub(crate) warden: &'a Arc<Warden>,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) peer: Peer,
    pub(crate) uri: String,
    command: Vec<String>,
    log: PathBuf,
    process: Process,
    /// What it says of its export.
    pub(crate) export: ClientExport,
    run: tempfile::TempDir,
    control: Option<PathBuf>,
    metrics: Option<String>,
    warden: Arc<Warden>,
}

/// CPU time since the start of a process group, in seconds, and what it holds in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    /// Of threads named `data-…`, taipand's data cores.
    pub(crate) data_seconds: f64,
    pub(crate) resident_bytes: u64,
}

impl Server {
    /// Starts a server and waits until its export can be opened.
    pub(crate) fn start(peer: &Peer, site: &Site<'_>) -> Result<Self> {
        fs::create_dir_all(site.dir)?;
        let memory = Path::new("/dev/shm");
        let memory = if memory.is_dir() { memory } else { site.dir };
        let run = tempfile::Builder::new()
            .prefix("taipan-compare-")
            .tempdir_in(memory)?;
        site.warden.directory(run.path())?;
        let socket = run.path().join("nbd.sock");
        let mut texts = site.texts.clone();
        texts
            .set("dir", site.dir.display())
            .set("run", run.path().display())
            .set("socket", socket.display())
            .set("port", free_port()?)
            .set("metrics", free_port()?)
            .set("size", site.size_bytes)
            .set("wal", site.wal_bytes);
        if let Some(disk) = site.disk {
            texts.set("disk", disk.display());
        }
        for (name, text) in &peer.files {
            fs::write(site.dir.join(name), texts.fill(text))?;
        }
        let (command, uri) = peer
            .over(site.transport)
            .with_context(|| format!("{} has no way to do that", peer.name))?;
        let mut command: Vec<String> = command.iter().map(|word| texts.fill(word)).collect();
        let program = peer.program(&texts)?;
        command[0] = program.display().to_string();
        let command = pinned(command, site.cpus);
        let uri = texts.fill(uri);
        let log = site.dir.join("log");
        let mut process = spawn(&command, &log, site.warden)?;
        let export = wait_for(&mut process, &uri, peer, &log)?;
        let server = Self {
            export,
            process,
            warden: Arc::clone(site.warden),
            peer: peer.clone(),
            uri,
            command,
            log,
            run,
            control: peer.control.as_ref().map(|path| texts.fill(path).into()),
            metrics: peer.metrics.as_ref().map(|address| texts.fill(address)),
        };
        for number in 0..peer.idle_volumes {
            let body = format!("{{\"name\": \"idle{number}\", \"size\": \"{IDLE_VOLUME}\"}}");
            interruption::check()?;
            server.control("POST", "/v1/volumes", &body)?;
        }
        Ok(server)
    }

    /// Stops it and starts it again on the same data.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.process.end();
        // A name that is left in the way is taken for a server that runs.
        let _ = fs::remove_file(self.run.path().join("nbd.sock"));
        self.process = spawn(&self.command, &self.log, &self.warden)?;
        self.export = wait_for(&mut self.process, &self.uri, &self.peer, &self.log)?;
        Ok(())
    }

    /// Waits until nothing is left to be done in the background.
    pub(crate) fn settle(&self) -> Result<()> {
        interruption::check()?;
        if self.control.is_some() {
            self.control("POST", "/v1/drain", "")?;
        }
        let begin = Instant::now();
        let pause = Duration::from_millis(300);
        let mut before = self.usage();
        while begin.elapsed() < IDLE_MAX {
            interruption::check()?;
            thread::sleep(pause);
            let now = self.usage();
            if now.cpu_seconds - before.cpu_seconds <= IDLE_SHARE * pause.as_secs_f64() {
                return Ok(());
            }
            before = now;
        }
        bail!("{} does not become idle", self.peer.name)
    }

    /// What it has used.
    pub(crate) fn usage(&self) -> Usage {
        usage(self.process.id())
    }

    /// Bytes that are in the WAL, or zero for servers without counters.
    pub(crate) fn wal_bytes(&self) -> Result<Option<f64>> {
        let Some(address) = &self.metrics else {
            return Ok(None);
        };
        let stream = TcpStream::connect(address).context("connecting to the metrics")?;
        let text = http(stream, "GET", "/metrics", "")?;
        let sum = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let values = lines.filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                (series.split('{').next() == Some(name)).then_some(value)
            });
            values.filter_map(|value| value.parse::<f64>().ok()).sum()
        };
        // Each batch has a header of one page.
        let pages = sum("taipan_wal_write_bytes_total") - sum("taipan_wal_writes_total") * 4096.0;
        Ok(Some(pages))
    }

    fn control(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let socket = self.control.as_ref().context("no control socket")?;
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let begin = Instant::now();
        http(Patient { stream, begin }, method, path, body)
            .with_context(|| format!("{method} {path}"))
    }
}

/// A control connection whose answer may take long, but not after an interruption.
struct Patient {
    stream: UnixStream,
    begin: Instant,
}

impl Read for Patient {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(out) {
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        && self.begin.elapsed() < CONTROL_MAX =>
                {
                    interruption::check().map_err(io::Error::other)?;
                }
                read => return read,
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.stream.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The command on certain CPUs.
pub(crate) fn pinned(command: Vec<String>, cpus: Option<&str>) -> Vec<String> {
    let Some(cpus) = cpus else {
        return command;
    };
    let mut words = ["taskset", "-c", cpus].map(str::to_owned).to_vec();
    words.extend(command);
    words
}

fn spawn(command: &[String], log: &Path, warden: &Arc<Warden>) -> Result<Process> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut program = Command::new(&command[0]);
    program
        .args(&command[1..])
        .stdout(log.try_clone()?)
        .stderr(log);
    Process::start(&mut program, warden).with_context(|| format!("starting {}", command.join(" ")))
}

fn wait_for(process: &mut Process, uri: &str, peer: &Peer, log: &Path) -> Result<ClientExport> {
    let address: Address = uri.parse()?;
    let begin = Instant::now();
    loop {
        match Connection::open(&address, Replies::Simple) {
            Ok(connection) => return Ok(connection.export),
            Err(error) => {
                if process.has_ended() || begin.elapsed() > START_MAX {
                    process.end();
                    let text = fs::read_to_string(log).unwrap_or_default();
                    let count = text.lines().count();
                    let tail: Vec<_> = text.lines().skip(count.saturating_sub(5)).collect();
                    let tail = tail.join("\n");
                    bail!("{} did not start: {error:#}\n{tail}", peer.name);
                }
            }
        }
        interruption::check()?;
        thread::sleep(Duration::from_millis(10));
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// One HTTP request; the body of a good answer.
fn http(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> Result<String> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: taipan\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(
        status.starts_with('2'),
        "the server answered {status}: {body}"
    );
    Ok(body.to_owned())
}

/// Sums over the processes of a group and their descendants; of those that have ended, if they were
/// waited for. Memory that several of them share counts for each.
fn usage(group: u32) -> Usage {
    let mut sum = Usage::default();
    let mut members = members_of(group);
    // One that ends between the looks at it and at its parent would count twice or not at all.
    for _ in 0..LOOKS_MAX {
        let again = members_of(group);
        let is_steady = again.keys().eq(members.keys());
        members = again;
        if is_steady {
            break;
        }
    }
    for (number, stat) in members {
        sum.cpu_seconds += stat.seconds + stat.children_seconds;
        let path = PathBuf::from(format!("/proc/{number}"));
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        sum.resident_bytes += kib.unwrap_or(0) << 10;
        let threads = fs::read_dir(path.join("task")).into_iter().flatten();
        for thread in threads.flatten() {
            sum.data_seconds += data_core_seconds(&thread.path()).unwrap_or(0.0);
        }
    }
    sum
}

/// The processes of a group and their descendants, by their numbers.
fn members_of(group: u32) -> BTreeMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((number, read_stat(&entry.path().join("stat"))?))
    });
    let all: BTreeMap<u32, Stat> = found.collect();
    let is_member = |number: &u32| {
        let mut at = *number;
        // As many steps as there are processes, should they change meanwhile.
        for _ in 0..all.len() {
            match all.get(&at) {
                Some(stat) if stat.group == group => return true,
                Some(stat) => at = stat.parent,
                None => return false,
            }
        }
        false
    };
    let members = all.iter().filter(|(number, _)| is_member(number));
    members.map(|(&number, &stat)| (number, stat)).collect()
}

fn data_core_seconds(thread: &Path) -> Option<f64> {
    let name = fs::read_to_string(thread.join("comm")).ok()?;
    if !name.starts_with("data-") {
        return None;
    }
    let spent = fs::read_to_string(thread.join("schedstat")).ok()?;
    let ns: f64 = spent.split_whitespace().next()?.parse().ok()?;
    Some(ns / 1e9)
}

#[derive(Clone, Copy)]
struct Stat {
    parent: u32,
    group: u32,
    /// CPU time of the process.
    seconds: f64,
    /// CPU time of its children that have ended.
    children_seconds: f64,
}

fn read_stat(path: &Path) -> Option<Stat> {
    let text = fs::read_to_string(path).ok()?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        seconds: (ticks(11)? + ticks(12)?) / TICKS,
        children_seconds: (ticks(13)? + ticks(14)?) / TICKS,
    })
}

/// CPU time of all programs that this process has started and waited for, in seconds.
pub(crate) fn children_cpu_seconds() -> f64 {
    read_stat(Path::new("/proc/self/stat")).map_or(0.0, |stat| stat.children_seconds)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn a_child_that_worked_shows_in_the_usage() {
        let mut busy = Command::new("sh");
        busy.args(["-c", "while :; do :; done"]).process_group(0);
        let mut child = busy.spawn().unwrap();
        let begin = Instant::now();
        while usage(child.id()).cpu_seconds == 0.0 {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "no CPU time is seen"
            );
            thread::sleep(Duration::from_millis(10));
        }
        assert!(usage(child.id()).resident_bytes > 0);
        let before = children_cpu_seconds();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(children_cpu_seconds() > before);
    }

    #[test]
    fn a_daemon_that_has_left_its_session_still_counts() {
        let mut leaves = Command::new("sh");
        let busy = "setpriv --pdeathsig KILL setsid sh -c 'while :; do :; done' & wait";
        leaves.args(["-c", busy]).process_group(0);
        let mut child = leaves.spawn().unwrap();
        let begin = Instant::now();
        // The shell itself does next to nothing.
        while usage(child.id()).cpu_seconds < 0.2 {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "no CPU time is seen"
            );
            thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn commands_are_pinned_where_that_is_asked() {
        let command = || vec!["a".to_owned()];
        assert_eq!(pinned(command(), None), ["a"]);
        assert_eq!(
            pinned(command(), Some("0-1")),
            ["taskset", "-c", "0-1", "a"]
        );
    }

    #[test]
    fn an_answer_of_a_server_is_its_body_or_an_error() {
        struct Canned(&'static [u8]);
        impl Read for Canned {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                self.0.read(out)
            }
        }
        impl Write for Canned {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let good = Canned(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
        assert_eq!(http(good, "GET", "/", "").unwrap(), "hi");
        let bad = Canned(b"HTTP/1.1 409 Conflict\r\n\r\nno");
        assert!(
            http(bad, "GET", "/", "")
                .unwrap_err()
                .to_string()
                .contains("409")
        );
    }
}
