//! `taipan-bench compare` on servers that a user names, and on one that is not there.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
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

fn compare(dir: &tempfile::TempDir, options: &[&str]) -> Output {
    command(dir, options).output().unwrap()
}

fn command(dir: &tempfile::TempDir, options: &[&str]) -> Command {
    let peers = dir.path().join("peers.toml");
    fs::write(&peers, PEERS).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taipan-bench"));
    command
        .args(["compare", "--wal-size", "256MiB", "--rounds", "2"])
        .arg("--dir")
        .arg(dir.path())
        .arg("--peers")
        .arg(peers)
        .args(["--server-cpus", "all", "--client-cpus", "all"])
        .args(options);
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
    for (options, words) in [
        (["--only", "nobody"], "there is no target \"nobody\""),
        (["--lines", "nothing"], "in its name: nothing"),
        (["--variant", "nothing"], "it is NAME=OPTIONS"),
    ] {
        let output = compare(&dir, &options);
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(text(&output.stderr).contains(words), "{options:?}");
        assert!(output.stdout.is_empty());
    }
}

/// Processes that a comparison has started, found by what they inherit.
fn started_with(mark: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter(|entry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        text(&environment).contains(mark)
    });
    let name = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    found.map(|entry| text(&name(entry))).collect()
}

#[test]
fn nothing_is_left_of_a_comparison_that_is_killed() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mark = format!("TAIPAN_COMPARED={}", dir.path().display());
        let (name, value) = mark.split_once('=').unwrap();
        let options = ["--only", "mine", "--lines", "4k d1", "--seconds", "60"];
        let mut child = command(&dir, &options)
            .env(name, value)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let told = BufReader::new(child.stderr.take().unwrap());
        let mut told = told.lines().map(Result::unwrap);
        assert!(told.any(|line| line == "randread 4k d1"), "{signal:?}");
        let begin = Instant::now();
        while !started_with(&mark)
            .iter()
            .any(|name| name.contains("--rw="))
        {
            assert!(begin.elapsed() < Duration::from_secs(60), "no client");
            thread::sleep(Duration::from_millis(10));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        // Its end is that of the last process which has it.
        told.for_each(drop);
        let output = child.wait_with_output().unwrap();
        if signal != Signal::KILL {
            assert_eq!(output.status.code(), Some(130), "{signal:?}");
            let told = text(&output.stdout);
            assert!(told.contains("nothing of mine") && told.contains("INTERRUPTED"));
        }
        assert_eq!(started_with(&mark), [""; 0], "{signal:?}");
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 1, "the peers are all that is left after {signal:?}");
    }
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
