//! `taipan-bench compare` on servers that a user names, and on one that is not there.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A server under another name, one that is missing, and one that does not start.
const PEERS: &str = "
[[peer]]
name = 'mine'
command = ['{bench}', 'null-server', '--size', '{size}']
unix = ['--socket', '{socket}']
uri_unix = 'nbd+unix:///?socket={socket}'
survives = 'nothing of mine'
durable_flush = false

[[peer]]
name = 'missing'
command = ['no-such-server-anywhere']
uri_unix = 'nbd+unix:///?socket={socket}'
survives = ''
durable_flush = true

[[peer]]
name = 'broken'
command = ['sh', '-c', 'echo it is broken; exit 1']
uri_unix = 'nbd+unix:///?socket={socket}'
survives = ''
durable_flush = true
";

/// What all processes of a comparison inherit: its directory.
const MARK: &str = "TAIPAN_COMPARED";

fn compare(dir: &tempfile::TempDir, options: &[&str]) -> Output {
    command(dir, options).output().unwrap()
}

fn command(dir: &tempfile::TempDir, options: &[&str]) -> Command {
    command_for(dir, PEERS, options)
}

fn command_for(dir: &tempfile::TempDir, text: &str, options: &[&str]) -> Command {
    let peers = dir.path().join("peers.toml");
    fs::write(&peers, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taipan-bench"));
    command
        .args(["compare", "--wal-size", "256MiB", "--rounds", "2"])
        .arg("--dir")
        .arg(dir.path())
        .arg("--peers")
        .arg(peers)
        .args(["--server-cpus", "all", "--client-cpus", "all"])
        .args(options)
        .env(MARK, dir.path());
    if !options.contains(&"--seconds") {
        command.args(["--seconds", "0.5"]);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_users_server_is_measured_in_turn_with_the_null_server() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (json, html) = (dir.path().join("json"), dir.path().join("html"));
    let files = [json.to_str().unwrap(), html.to_str().unwrap()];
    let output = compare(
        &dir,
        &[
            "--only",
            "mine,missing,null server",
            "--lines",
            "randread 4k d1,no such line",
            "--suite",
            "kvm,commit",
            "--json",
            files[0],
            "--html",
            files[1],
        ],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let markdown = text(&output.stdout);
    for words in [
        "nothing of mine",
        "all lines on missing: no-such-server-anywhere is not there",
    ] {
        assert!(markdown.contains(words), "{words:?} is not in\n{markdown}");
    }
    let found: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let samples = found["samples"].as_array().unwrap();
    let order: Vec<_> = samples
        .iter()
        .filter(|sample| sample["line"] == "randread 4k d1")
        .map(|sample| sample["target"].as_str().unwrap())
        .collect();
    assert_eq!(
        order,
        ["null server", "mine", "mine", "null server"],
        "the client's ceiling comes first"
    );
    for sample in samples {
        assert!(sample["value"].as_f64().unwrap() > 0.0);
        assert_eq!(sample["unit"], "requests_per_second");
        assert!(sample["client_us_per_request"].as_f64().unwrap() > 0.0);
        assert!(sample["resident_bytes"].as_u64().unwrap() > 0);
        assert!(sample["latency_us"]["p99"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(found["targets"][0]["fua"], true);
    assert!(
        fs::read_to_string(&html)
            .unwrap()
            .contains("randread 4k d1")
    );
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 3, "peers, JSON and page are all that is left");
}

#[test]
fn every_known_server_is_measured_with_sixteen_clients() {
    known_servers_are_measured("unix");
}

#[test]
fn every_known_server_is_measured_over_tcp() {
    known_servers_are_measured("tcp");
}

fn known_servers_are_measured(transport: &str) {
    let known = ["nbdkit memory", "nbdkit file", "qemu-nbd", "nbd-server"];
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let json = dir.path().join("json");
    let only = known.join(",");
    let line = ["--suite", "commit", "--lines", "write 4k, 16 connections"];
    let place = ["--only", &only, "--json", json.to_str().unwrap()];
    let way = ["--transport", transport];
    let output = compare(&dir, &[&line[..], &place, &way].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(found["left"].as_array().unwrap().len(), 0, "{found}");
    for name in known {
        let samples = found["samples"].as_array().unwrap().iter();
        let its: Vec<_> = samples.filter(|s| s["target"] == name).collect();
        assert_eq!(its.len(), 2, "{name}");
        for sample in its {
            let cpu = sample["server_us_per_request"].as_f64();
            assert!(cpu.is_some_and(|us| us > 0.0), "{name}: {sample}");
        }
    }
    assert_eq!(started_in(&dir), [""; 0]);
}

#[test]
fn a_server_that_does_not_start_is_a_failure_with_its_words() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = compare(&dir, &["--only", "broken", "--lines", "randread 4k d1"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stdout);
    assert!(told.contains("FAILED: all lines on broken"), "{told}");
    assert!(told.contains("it is broken"), "{told}");
    let output = compare(&dir, &["--only", "missing", "--lines", "randread 4k d1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nothing was measured"));
}

#[test]
fn a_wrong_command_line_measures_nothing() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let json = dir.path().join("r.json");
    for (options, words) in [
        (["--only", "nobody"], "there is no target \"nobody\""),
        (["--lines", "nothing"], "in its name: nothing"),
        (["--variant", "nothing"], "it is NAME=OPTIONS"),
    ] {
        let place = ["--json", json.to_str().unwrap()];
        let output = compare(&dir, &[options, place].concat());
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(!json.exists(), "a report of nothing is left");
        assert!(text(&output.stderr).contains(words), "{options:?}");
        assert!(output.stdout.is_empty());
    }
}

/// Processes that a comparison has started, found by what they inherit: numbers and command lines.
fn processes_of(dir: &tempfile::TempDir) -> Vec<(i32, String)> {
    let mark = format!("{MARK}={}", dir.path().display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter(|entry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        text(&environment).contains(&mark)
    });
    let process = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let number = entry.file_name().into_string().unwrap();
        (number.parse().unwrap(), text(&line))
    };
    found.map(process).collect()
}

fn started_in(dir: &tempfile::TempDir) -> Vec<String> {
    let found = processes_of(dir).into_iter();
    found.map(|(_, line)| line).collect()
}

fn has_client(dir: &tempfile::TempDir) -> bool {
    started_in(dir)
        .iter()
        .any(|line| line.contains("--rw=rand"))
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The directory in memory of the server that runs.
fn run_directory(dir: &tempfile::TempDir) -> PathBuf {
    let lines = started_in(dir);
    let socket = |line: &String| {
        let mut words = line.split('\0').skip_while(|&word| word != "--socket");
        words.nth(1).map(PathBuf::from)
    };
    let socket = lines.iter().find_map(socket).expect("a server runs");
    socket.parent().unwrap().to_owned()
}

#[test]
fn nothing_is_left_of_a_comparison_that_is_killed() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let options = ["--only", "mine", "--lines", "4k d1", "--seconds", "60"];
        let mut child = command(&dir, &options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let told = BufReader::new(child.stderr.take().unwrap());
        let mut told = told.lines().map(Result::unwrap);
        assert!(told.any(|line| line == "randread 4k d1"), "{signal:?}");
        until("no client", || has_client(&dir));
        let run = run_directory(&dir);
        assert!(run.join("nbd.sock").exists(), "{}", run.display());
        kill_process(Pid::from_child(&child), signal).unwrap();
        // Its end is that of the last process which has it.
        told.for_each(drop);
        let output = child.wait_with_output().unwrap();
        if signal != Signal::KILL {
            assert_eq!(output.status.code(), Some(130), "{signal:?}");
            let told = text(&output.stdout);
            assert!(told.contains("nothing of mine") && told.contains("INTERRUPTED"));
        }
        assert_eq!(started_in(&dir), [""; 0], "{signal:?}");
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 1, "the peers are all that is left after {signal:?}");
        assert!(!run.exists(), "{} is left after {signal:?}", run.display());
    }
}

/// A control socket in a directory; how often it was asked. It answers, or leaves all waiting.
fn control(dir: &tempfile::TempDir, answers: bool) -> (String, Arc<AtomicU32>) {
    let path = dir.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let asked: Arc<AtomicU32> = Arc::default();
    let counter = Arc::clone(&asked);
    thread::spawn(move || {
        let mut waiting = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut head = BufReader::new(stream.try_clone().unwrap()).lines();
            while head.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            counter.fetch_add(1, Ordering::SeqCst);
            if answers {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            } else {
                waiting.push(stream);
            }
        }
    });
    let line = format!(
        "control = '{}'\nsurvives = 'nothing of mine'",
        path.display()
    );
    (PEERS.replace("survives = 'nothing of mine'", &line), asked)
}

#[test]
fn an_interrupted_comparison_drains_no_more() {
    for answers in [true, false] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let sockets = tempfile::tempdir().unwrap();
        let (peers, drains) = control(&sockets, answers);
        let options = ["--only", "mine", "--lines", "4k d1", "--seconds", "60"];
        let mut child = command_for(&dir, &peers, &options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let drained = || drains.load(Ordering::SeqCst);
        until("no drain", || drained() > 0);
        if answers {
            until("no client", || has_client(&dir));
        }
        let (begin, before) = (Instant::now(), drained());
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        while child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it goes on");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(drained(), before, "it answers: {answers}");
    }
}

#[test]
fn a_comparison_to_which_nobody_listens_is_interrupted_as_well() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = ["--only", "mine", "--lines", "4k d1", "--seconds", "600"];
    let mut child = command(&dir, &options)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("no client", || has_client(&dir));
    drop(child.stderr.take());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    until("a client goes on", || !has_client(&dir));
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_comparison_ends_after_its_warden() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut child = command(&dir, &["--only", "mine", "--lines", "randread 4k d1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut report = BufReader::new(child.stdout.take().unwrap());
    let is_warden = |line: &str| line.split('\0').nth(1) == Some("warden");
    let warden = || {
        processes_of(&dir)
            .into_iter()
            .find(|found| is_warden(&found.1))
    };
    until("no warden", || warden().is_some());
    let warden = Pid::from_raw(warden().unwrap().0).unwrap();
    kill_process(warden, Signal::STOP).unwrap();
    report.read_line(&mut String::new()).unwrap();
    thread::sleep(Duration::from_millis(500));
    let ended = child.try_wait().unwrap();
    kill_process(warden, Signal::CONT).unwrap();
    assert_eq!(ended, None, "the warden is waited for");
    std::io::copy(&mut report, &mut std::io::sink()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_report_that_has_no_place_is_said_before_anything_is_measured() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = compare(&dir, &["--only", "mine", "--json", "/none/r.json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("opening /none/r.json"), "{said}");
    assert!(!said.contains("randread"), "{said}");
}
