//! `taipan-bench run` that is interrupted, or cannot write or go on, still tells what it measured.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::memory_server::{Fault, MemoryServer};
use crate::{MIB, json};

const LONG: &str = "--rw randwrite --iodepth 4 --runtime 600 --interval 100ms --json";

fn command(target: &str, options: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taipan-bench"));
    command
        .arg("run")
        .arg(target)
        .args(options.split_whitespace())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn an_interrupted_run_reports_what_was_answered() {
    for sent in [Signal::INT, Signal::TERM] {
        for engine in ["nbd", "glommio"] {
            let server = MemoryServer::start(MIB, |_| {});
            let options = format!("{LONG} --ioengine {engine}");
            let child = command(&server.uri(), &options).spawn().unwrap();
            let writes = || server.seen.writes.load(Ordering::SeqCst);
            until("no write comes", || writes() > 1000);
            signal(&child, sent);
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(130), "{output:?}");
            let report = json(&output);
            assert_eq!(report["interrupted"], true);
            assert_eq!(report["requests"], writes(), "every answer counts");
            assert!(!report["jobs"][0]["intervals"][0]["kinds"][0].is_null());
        }
    }
}

#[test]
fn an_interrupted_run_does_not_wait_for_a_silent_server() {
    let server = MemoryServer::start(MIB, |_| {});
    server.inject(Fault::Silence(1000));
    let child = command(&server.uri(), LONG).spawn().unwrap();
    let requests = || server.seen.requests.load(Ordering::SeqCst);
    until("no request comes", || requests() > 1000);
    signal(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(json(&output)["requests"].as_u64().unwrap() >= 900);
}

#[test]
fn the_patience_with_a_slow_server_begins_with_the_interruption() {
    let server = MemoryServer::start(MIB, |_| {});
    server.inject(Fault::Hold(9));
    let options = LONG.replace("--iodepth 4", "--iodepth 1");
    let mut child = command(&server.uri(), &options).spawn().unwrap();
    let requests = || server.seen.requests.load(Ordering::SeqCst);
    until("no request comes", || requests() > 9);
    thread::sleep(Duration::from_millis(2500));
    signal(&child, Signal::INT);
    let said = BufReader::new(child.stderr.take().unwrap());
    let mut said = said.lines().map(Result::unwrap);
    assert!(said.any(|line| line.starts_with("interrupted")));
    thread::sleep(Duration::from_millis(300));
    server.inject(Fault::None);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(json(&output)["requests"], 10);
}

#[test]
fn an_interrupted_run_says_so_and_does_not_call_verified_what_it_has_not_read_back() {
    let server = MemoryServer::start(MIB, |_| {});
    let options = "--rw randrw --bs 4k --seed 3 --runtime 600 --verify crc32c";
    let child = command(&server.uri(), options).spawn().unwrap();
    let reads = || server.seen.reads.load(Ordering::SeqCst);
    until("no read comes", || reads() > 1000);
    signal(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.ends_with("interrupted: it ended early\n"), "{told}");
    assert!(
        told.contains("as written, but not all was read back"),
        "{told}"
    );
}

#[test]
fn a_thread_that_cannot_connect_takes_no_numbers_of_the_others_with_it() {
    let server = MemoryServer::start(MIB, |_| {});
    // The first looks at the export.
    server.inject(Fault::TurnAway {
        first: 2,
        after: 1000,
    });
    let options = "--rw randread --numjobs 2 --runtime 20 --ioengine glommio --json";
    let output = command(&server.uri(), options).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = json(&output);
    assert!(report["requests"].as_u64().unwrap() >= 999, "{report}");
    let errors = report["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let lasted = report["elapsed_seconds"].as_f64().unwrap();
    assert!(lasted < 20.0, "the other thread ended with it: {lasted}");
}

#[test]
fn nothing_is_left_where_a_report_of_nothing_would_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let options = format!(
        "--rw read --output {} --hist-log {}",
        path("r.json"),
        path("log")
    );
    let output = command("nbd+unix:///?socket=/none", &options).output();
    assert_eq!(output.unwrap().status.code(), Some(1));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn jobs_behind_the_interruption_do_not_begin() {
    let server = MemoryServer::start(MIB, |_| {});
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobs");
    let text = "[one]\nrw=write\nruntime=600\n[two]\nstonewall\nrw=read\nruntime=600\n";
    fs::write(&file, text).unwrap();
    let options = format!("--json --job-file {}", file.display());
    let child = command(&server.uri(), &options).spawn().unwrap();
    let seen = &server.seen;
    until("no write comes", || seen.writes.load(Ordering::SeqCst) > 9);
    signal(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(json(&output)["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(seen.reads.load(Ordering::SeqCst), 0);
}

#[test]
fn a_job_that_cannot_begin_takes_no_other_with_it() {
    let server = MemoryServer::start(MIB, |_| {});
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobs");
    let text = format!(
        "[one]\nfilename={}\nrw=write\n[two]\nstonewall\nfilename=nbd+unix:///?socket=/none\n",
        server.uri()
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taipan-bench"));
    command.args(["run", "--json", "--job-file"]).arg(&file);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = json(&output);
    assert_eq!(report["jobs"][0]["requests"], 256);
    assert_eq!(report["ok"], false);
    let error = report["errors"][0].as_str().unwrap();
    assert!(error.contains("job two: connecting to /none"), "{error}");
}

#[test]
fn a_run_that_ends_before_it_measures_is_no_result() {
    let server = MemoryServer::start(MIB, |_| {});
    let options = "--rw write --ramp-time 600 --json";
    let output = command(&server.uri(), options).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = "job write: no request was answered in the measured time";
    assert_eq!(json(&output)["errors"][0], error);
}

#[test]
fn what_one_place_does_not_take_is_told_in_the_other() {
    let server = MemoryServer::start(MIB, |_| {});
    for option in ["--output", "--hist-log"] {
        let options = format!("--rw write --json {option} /dev/full");
        let output = command(&server.uri(), &options).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("No space left"), "{said}");
        assert_eq!(json(&output)["requests"], 256, "{option}");
    }
    let before = server.seen.requests.load(Ordering::SeqCst);
    let nowhere = command(&server.uri(), "--rw write --output /none/r.json").output();
    assert_eq!(nowhere.unwrap().status.code(), Some(1));
    let after = server.seen.requests.load(Ordering::SeqCst);
    assert_eq!(before, after, "that is said before the run");
    let options = "--rw write --verify crc32c --json --state /dev/full";
    let output = command(&server.uri(), options).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json(&output)["requests"], 256);

    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let options = format!("--rw write --output {}", kept.display());
    let mut full = command(&server.uri(), &options);
    full.stdout(File::options().write(true).open("/dev/full").unwrap());
    let output = full.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("writing to standard output: No space"),
        "{said}"
    );
    assert!(
        fs::read_to_string(kept)
            .unwrap()
            .contains("\"requests\": 256")
    );
}
