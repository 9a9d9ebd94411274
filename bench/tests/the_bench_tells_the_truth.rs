//! `taipan-bench run` against a server that counts, and that loses, damages and refuses on demand.

mod interruptions;
mod memory_server;

use std::process::{Command, Output};
use std::sync::atomic::Ordering;

use memory_server::{Fault, MemoryServer};
use serde_json::Value;
use taipan_nbd::Errno;

const MIB: usize = 1 << 20;

fn bench(target: &str, options: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_taipan-bench"))
        .arg("run")
        .arg(target)
        .args(options.split_whitespace())
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, words: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(words), "{words:?} is not in: {text}");
}

#[test]
fn every_answered_request_is_counted_once() {
    let server = MemoryServer::start(4 * MIB, |_| {});
    let output = bench(
        &server.uri(),
        "--rw randrw --rwmixread 25 --bs 4k-16k --iodepth 8 --numjobs 2 --fsync 5 --json",
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let report = json(&output);
    let seen = &server.seen;
    for (kind, counter) in [
        ("read", &seen.reads),
        ("write", &seen.writes),
        ("flush", &seen.flushes),
    ] {
        let kinds = report["kinds"].as_array().unwrap();
        let row = kinds.iter().find(|k| k["kind"] == kind).unwrap();
        assert_eq!(row["requests"], counter.load(Ordering::SeqCst), "{kind}");
    }
    assert_eq!(report["requests"], seen.requests.load(Ordering::SeqCst));
    let bytes: u64 = [0, 1]
        .iter()
        .map(|&i| report["kinds"][i]["bytes"].as_u64().unwrap())
        .sum();
    assert!(
        (4 * MIB as u64..4 * MIB as u64 + 2 * 16384).contains(&bytes),
        "{bytes}"
    );
    assert!(report["kinds"][0]["latency_us"]["p99"].as_f64().unwrap() > 0.0);
    assert!(report["iops"].as_f64().unwrap() > 0.0);
}

#[test]
fn fua_trim_and_the_last_flush_reach_the_server() {
    let server = MemoryServer::start(MIB, |_| {});
    let run = |options| assert!(bench(&server.uri(), options).status.success());
    run("--rw write --bs 64k --fua");
    run("--rw trim --bs 256k");
    run("--rw write --bs 64k --numjobs 2 --end-fsync");
    let seen = &server.seen;
    assert_eq!(seen.fua_writes.load(Ordering::SeqCst), 16);
    assert_eq!(seen.trims.load(Ordering::SeqCst), 4);
    assert_eq!(seen.flushes.load(Ordering::SeqCst), 2);
}

#[test]
fn written_blocks_are_verified_in_the_run_and_by_a_later_run_with_the_same_seed() {
    let server = MemoryServer::start(4 * MIB, |_| {});
    let run = "--rw randrw --bs 512-64k --iodepth 16 --numjobs 2 --seed 9 --verify crc32c --json";
    let output = bench(&server.uri(), run);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = json(&output);
    assert!(report["verify"]["blocks_checked"].as_u64().unwrap() > 1000);
    assert_eq!(report["verify"]["blocks_bad"], 0);
    let writes = server.seen.writes.load(Ordering::SeqCst);

    let later = bench(&server.uri(), &format!("{run} --verify-only"));
    assert!(later.status.success(), "{}", stderr(&later));
    assert!(json(&later)["verify"]["blocks_checked"].as_u64().unwrap() > 1000);
    assert_eq!(
        server.seen.writes.load(Ordering::SeqCst),
        writes,
        "nothing is written"
    );

    let other = bench(
        &server.uri(),
        &format!("{} --verify-only", run.replace('9', "8")),
    );
    assert_fails(&other, 3, "expected write");
    server.edit(|disk| disk[100_000] ^= 1);
    let damaged = bench(&server.uri(), &format!("{run} --verify-only"));
    assert_fails(&damaged, 3, "CRC32C fails");
    assert_eq!(json(&damaged)["ok"], false);
}

#[test]
fn a_lost_a_damaged_and_a_misplaced_write_are_found() {
    for (fault, words) in [
        (Fault::LoseWrite(31), "expected write 31, found only zeros"),
        (
            Fault::FlipBit(31),
            "expected write 31, found a stamp whose CRC32C fails",
        ),
        (Fault::Misplace(31), "expected write 31, found only zeros"),
    ] {
        let server = MemoryServer::start(MIB, |_| {});
        server.inject(fault);
        let output = bench(
            &server.uri(),
            "--rw write --bs 8k --iodepth 4 --verify crc32c",
        );
        assert_fails(&output, 3, words);
    }
}

#[test]
fn an_older_version_of_a_block_is_found() {
    let server = MemoryServer::start(MIB, |_| {});
    let run = "--rw randwrite --bs 4k --runtime 1 --size 64k --seed 2 --end-fsync --verify crc32c";
    assert!(bench(&server.uri(), run).status.success());
    let mut first = Vec::new();
    server.edit(|disk| first = disk[..4096].to_vec());
    let state = tempfile::NamedTempFile::new().unwrap();
    let path = state.path().display();
    assert!(
        bench(&server.uri(), &format!("{run} --state {path}"))
            .status
            .success()
    );
    let check = format!("--verify-only --state {path}");
    assert!(bench(&server.uri(), &check).status.success());
    let mut last = Vec::new();
    server.edit(|disk| {
        last = disk[..4096].to_vec();
        // The write number decides; both runs start alike, so take one that surely differs.
        if first == last {
            first = disk[4096..8192].to_vec();
        }
        disk[..4096].copy_from_slice(&first);
    });
    let output = bench(&server.uri(), &check);
    assert_fails(&output, 3, "block at byte 0: expected write");
}

#[test]
fn after_a_closed_connection_every_answered_write_is_demanded_and_no_other() {
    for stored in [false, true] {
        let server = MemoryServer::start(MIB, |_| {});
        server.inject(Fault::Close { at: 500, stored });
        let state = tempfile::NamedTempFile::new().unwrap();
        let path = state.path().display();
        let run = "--rw randwrite --bs 4k --iodepth 16 --runtime 20 --fsync 7 --verify crc32c";
        let output = bench(&server.uri(), &format!("{run} --state {path}"));
        assert_fails(&output, 1, "the server closed the connection");
        server.inject(Fault::None);
        let check = format!("--verify-only --state {path}");
        let output = bench(&server.uri(), &check);
        assert!(output.status.success(), "{}", stderr(&output));
        server.edit(|disk| disk.fill(0));
        assert_fails(&bench(&server.uri(), &check), 3, "found only zeros");
    }
}

#[test]
fn refusals_end_the_run_with_a_clear_text() {
    let server = MemoryServer::start(MIB, |_| {});
    server.inject(Fault::Refuse(9, Errno::NoSpc));
    let output = bench(&server.uri(), "--rw write --bs 4k --iodepth 4 --json");
    assert_fails(
        &output,
        1,
        "WRITE of 4096 bytes at byte 36864: the server answered ENOSPC",
    );
    let report = json(&output);
    assert_eq!(report["ok"], false);
    let answered = report["requests"].as_u64().unwrap();
    let seen = server.seen.requests.load(Ordering::SeqCst);
    assert_eq!(answered, seen - 1, "a refused request is not counted");
}

#[test]
fn a_server_that_falls_silent_or_talks_nonsense_ends_the_run() {
    let server = MemoryServer::start(MIB, |_| {});
    server.inject(Fault::Silence(3));
    let output = bench(&server.uri(), "--rw read --bs 4k --timeout 1.5");
    assert_fails(
        &output,
        1,
        "READ of 4096 bytes at byte 12288: no answer for 1.5 s",
    );
    server.inject(Fault::WrongCookie(3));
    let output = bench(&server.uri(), "--rw write --bs 4k");
    assert_fails(
        &output,
        1,
        "answered request 0xdead, which is not in flight",
    );
}

#[test]
fn what_the_export_cannot_do_is_refused_before_the_run() {
    use taipan_nbd::TransmissionFlags as Flags;

    let read_only = MemoryServer::start(MIB, |info| info.read_only = true);
    let output = bench(&read_only.uri(), "--rw randwrite --bs 4k");
    assert_fails(&output, 1, "the export is read-only");
    let poor = MemoryServer::start(MIB, |info| {
        info.features = Flags::NONE;
        info.min_block = 4096;
        info.max_payload = MIB as u32;
    });
    for (options, words) in [
        ("--rw trim", "no TRIM"),
        ("--rw write --fsync 1", "no FLUSH"),
        ("--rw write --fua", "no FUA"),
        ("--rw write --numjobs 2 --verify crc32c", "CAN_MULTI_CONN"),
        ("--rw read --bs 512", "multiples of 4096"),
        ("--rw read --offset 100", "multiples of 4096"),
        ("--rw read --bs 2MiB", "too small"),
        ("--rw read --size 2MiB", "ends behind"),
        ("--rw read --offset 2MiB", "lies behind"),
    ] {
        assert_fails(&bench(&poor.uri(), options), 1, words);
    }
    let missing = poor.uri().replace("vol0", "vol1");
    assert_fails(&bench(&missing, "--rw read"), 1, "no such export");
    assert_fails(
        &bench("nbd+unix:///x?socket=/nonexistent", "--rw read"),
        1,
        "connecting to",
    );
    assert_fails(&bench("nbd+unix:///x", "--rw read"), 2, "?socket=PATH");
    assert_fails(
        &bench("nbd://h/x", "--rw read --ioengine file"),
        2,
        "needs a path",
    );
}

#[test]
fn large_requests_are_verified_over_tcp() {
    let server = MemoryServer::start_tcp(32 * MIB);
    let run = "--rw randrw --bs 512-4MiB --iodepth 4 --verify crc32c --json";
    let output = bench(&server.uri(), run);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(json(&output)["verify"]["blocks_checked"].as_u64().unwrap() > 1000);
    server.inject(Fault::FlipBit(2));
    let output = bench(&server.uri(), &run.replace("randrw", "write"));
    assert_fails(&output, 3, "CRC32C fails");
}

#[test]
fn the_rate_is_kept() {
    let server = MemoryServer::start(MIB, |_| {});
    let output = bench(
        &server.uri(),
        "--rw randread --rate-iops 200 --runtime 1 --iodepth 4 --json",
    );
    let requests = json(&output)["requests"].as_u64().unwrap();
    assert!(
        (1..=201).contains(&requests),
        "{requests} requests at 200 a second"
    );
}

#[test]
fn jobs_of_a_file_run_beside_and_after_each_other() {
    let server = MemoryServer::start(4 * MIB, |_| {});
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let text = format!(
        "[global]\nfilename={}\nbs=4k\n[writer]\nrw=randwrite\nsize=1m\nfsync=16\n\
         [reader]\nrw=randread\noffset=1m\nsize=1m\niodepth=8\nnumjobs=2\n\
         [trims]\nstonewall\nrw=randtrim\nbssplit=4k/50:8k/50\nsize=64k\n\
         random_distribution=zipf:1.2\n",
        server.uri()
    );
    std::fs::write(path("jobs"), text).unwrap();
    let options = format!(
        "run --job-file {} --iodepth 4 --json --output {} --hist-log {} --percentile-list 75",
        path("jobs"),
        path("out"),
        path("hist")
    );
    let output = Command::new(env!("CARGO_BIN_EXE_taipan-bench"))
        .args(options.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report = json(&output);
    let jobs = report["jobs"].as_array().unwrap();
    let names: Vec<_> = jobs
        .iter()
        .map(|job| job["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["writer", "reader", "trims"]);
    assert_eq!(jobs[0]["kinds"][0]["requests"], 256);
    assert_eq!(jobs[0]["kinds"][1]["requests"], 16);
    assert_eq!(
        jobs[1]["iodepth"], 4,
        "the command line goes before the file"
    );
    let sum: u64 = jobs
        .iter()
        .map(|job| job["requests"].as_u64().unwrap())
        .sum();
    assert_eq!(report["requests"], sum);
    assert_eq!(server.seen.requests.load(Ordering::SeqCst), sum);
    for job in jobs {
        let intervals = job["intervals"].as_array().unwrap();
        let kinds = intervals
            .iter()
            .flat_map(|i| i["kinds"].as_array().unwrap());
        let counted: u64 = kinds.map(|kind| kind["requests"].as_u64().unwrap()).sum();
        assert_eq!(job["requests"], counted);
        assert!(
            job["kinds"][0]["latency_us"]["percentiles"]["75"]
                .as_f64()
                .unwrap()
                > 0.0
        );
    }
    let saved = std::fs::read_to_string(path("out")).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&saved).unwrap()["requests"],
        sum
    );
    a_page_shows(&path("out"), &path("page.html"));
    assert!(
        std::fs::read_to_string(path("hist"))
            .unwrap()
            .lines()
            .count()
            >= 4
    );
}

/// The page of the three jobs has all of them and needs nothing from elsewhere.
fn a_page_shows(result: &str, page: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_taipan-bench"))
        .args(["report", result, "-o", page])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let over = Command::new(env!("CARGO_BIN_EXE_taipan-bench"))
        .args(["report", result, "-o", result])
        .output()
        .unwrap();
    assert_fails(&over, 1, "the page has no place there");
    assert!(std::fs::read_to_string(result).unwrap().starts_with('{'));
    let page = std::fs::read_to_string(page).unwrap();
    for words in [
        "[writer]",
        "[reader]",
        "[trims]",
        "zipf:1.2",
        "latency of flush",
        "kernel",
    ] {
        assert!(page.contains(words), "{words} is not on the page");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    // Rates and throughput of three jobs; latencies of writes, flushes, reads and trims.
    assert_eq!(page.matches("<svg").count(), 10);
    for elsewhere in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(elsewhere), "the page has {elsewhere}");
    }
}

#[test]
fn the_same_jobs_run_on_glommio() {
    let verified = "--rw randrw --bs 512-64k --iodepth 16 --numjobs 2 --fsync 9 --verify crc32c \
                    --ioengine glommio --json";
    for server in [
        MemoryServer::start(4 * MIB, |_| {}),
        MemoryServer::start_tcp(4 * MIB),
    ] {
        let output = bench(&server.uri(), verified);
        assert!(output.status.success(), "{}", stderr(&output));
        let report = json(&output);
        assert_eq!(report["jobs"][0]["engine"], "glommio");
        assert!(report["verify"]["blocks_checked"].as_u64().unwrap() > 1000);
        server.inject(Fault::Silence(3));
        let silent = "--rw read --bs 4k --timeout 1.5 --ioengine glommio";
        let output = bench(&server.uri(), silent);
        assert_fails(
            &output,
            1,
            "READ of 4096 bytes at byte 12288: no answer for 1.5 s",
        );
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk");
    let file = "--ioengine glommio --rw randwrite --bs 4k-16k --iodepth 8 --size 1MiB";
    let file = format!("{file} --verify crc32c --fsync 16 --json");
    let output = bench(path.to_str().unwrap(), &file);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(json(&output)["verify"]["blocks_checked"].as_u64().unwrap() > 100);
}

#[test]
fn a_wrong_job_file_is_a_usage_error_with_its_line() {
    let jobs = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(jobs.path(), "[a]\nfilename=/dev/null\niodeph=3\n").unwrap();
    let output = bench(
        "/dev/null",
        &format!("--job-file {}", jobs.path().display()),
    );
    assert_fails(
        &output,
        2,
        "line 3: unknown key \"iodeph\"; did you mean iodepth?",
    );
}

#[test]
fn a_file_is_laid_out_loaded_and_verified() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk");
    let path = path.to_str().unwrap();
    assert_fails(&bench(path, "--rw write"), 1, "O_DIRECT");
    assert!(
        !std::path::Path::new(path).exists(),
        "a misspelt path is not created"
    );
    let run = "--ioengine file --rw randwrite --bs 4k --iodepth 8 --size 1MiB --verify crc32c";
    let output = bench(path, &format!("{run} --fsync 16 --json"));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(json(&output)["kinds"][0]["requests"], 256);
    assert_eq!(std::fs::metadata(path).unwrap().len(), MIB as u64);
    let check = format!("{run} --fsync 16 --verify-only");
    assert!(bench(path, &check).status.success());
    let mut bytes = std::fs::read(path).unwrap();
    bytes[5000] ^= 1;
    bytes.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
    std::fs::write(path, bytes).unwrap();
    assert_fails(&bench(path, &check), 3, "expected write");
    for odd in ["--rw read --bs 100", "--rw read --offset 100"] {
        assert_fails(&bench(path, odd), 1, "O_DIRECT takes multiples of");
    }
}

#[test]
fn ranges_of_a_file_are_zeroed_and_given_back() {
    use std::os::unix::fs::MetadataExt;

    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk");
    let path = path.to_str().unwrap();
    assert!(bench(path, "--rw write --size 1MiB").status.success());
    let run = |options: &str| {
        let output = bench(
            path,
            &format!("{options} --name it --iodepth 4 --size 256KiB --json"),
        );
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(json(&output)["jobs"][0]["name"], "it");
        json(&output)["kinds"][0].clone()
    };
    let zeroed = run("--rw zeroes --bs 64k");
    assert_eq!(
        (&zeroed["kind"], &zeroed["requests"]),
        (&"zeroes".into(), &4.into())
    );
    let blocks = std::fs::metadata(path).unwrap().blocks();
    assert!(blocks * 512 >= MIB as u64, "its space is kept: {blocks}");
    let trimmed = run("--rw trim --bs 64k --offset 512KiB --numjobs 2");
    assert_eq!(
        (&trimmed["kind"], &trimmed["requests"]),
        (&"trim".into(), &4.into())
    );
    let blocks = std::fs::metadata(path).unwrap().blocks();
    assert!(
        blocks * 512 <= 3 * MIB as u64 / 4 + 65536,
        "a quarter is free: {blocks}"
    );
    let bytes = std::fs::read(path).unwrap();
    for (quarter, is_zero) in bytes.chunks(MIB / 4).zip([true, false, true, false]) {
        assert_eq!(quarter.iter().all(|&byte| byte == 0), is_zero);
    }
    for (options, words) in [
        ("--rw trim --ioengine glommio", "neither trims nor zeroes"),
        ("--rw trim --fua", "needs a workload that writes"),
    ] {
        let output = bench(path, options);
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert!(!output.status.success(), "{options}");
    }
}
