//! `taipan` on a running appliance: copies in and out, decodes every kind of file, and tells how
//! the appliance is doing.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::Rig;
use crate::harness::{MIB, pattern, wait_until};

const SIZE: u64 = 256 * MIB;
const LIMIT: Duration = Duration::from_secs(120);

/// A sparse file: 1 MiB of data in every 8.
fn sparse_file(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    for place in (0..SIZE).step_by(8 * MIB as usize) {
        file.write_all_at(&pattern(place, 1, MIB as usize), place)
            .unwrap();
    }
}

#[test]
fn a_file_goes_in_and_comes_out_the_same_and_sparse() {
    let rig = Rig::new(&[]);
    let source = rig.path("source.img");
    let copy = rig.path("copy.img");
    sparse_file(&source);
    let daemon = rig.start();
    daemon
        .taipan()
        .args("import --create")
        .arg(&source)
        .arg("tenant/disk")
        .succeed();
    daemon.kill();
    rig.lose_memory();

    let daemon = rig.start();
    daemon
        .taipan()
        .arg("export")
        .arg("tenant/disk")
        .arg(&copy)
        .succeed();
    assert!(
        fs::read(&source).unwrap() == fs::read(&copy).unwrap(),
        "the copy differs"
    );
    let allocated = copy.metadata().unwrap().blocks() * 512;
    assert!(
        allocated < SIZE / 4,
        "{allocated} bytes are allocated for {} of data",
        SIZE / 8
    );
    let printed = daemon
        .taipan()
        .arg("export")
        .arg("tenant/disk")
        .arg(&copy)
        .fail();
    assert!(
        printed.contains("copy.img"),
        "an existing file is not named: {printed}"
    );
    daemon.stop();
}

/// All files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files(&path, found),
            kind if kind.is_file() => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn every_file_of_an_appliance_is_decoded() {
    let rig = Rig::new(&["vol0:1GiB"]);
    let mut daemon = rig.start();
    let mut client = daemon.client("vol0");
    for place in 0..8 {
        let data = pattern(place, 1, MIB as usize);
        assert_eq!(client.write(place * MIB, &data).unwrap(), None);
    }
    drop(client);
    daemon.taipan().arg("drain").succeed();
    // Nothing is renamed or deleted while they are looked at.
    daemon.terminate();
    let ended = daemon.ended(LIMIT);
    assert!(ended.success(), "{ended}");
    let mut found = Vec::new();
    files(rig.data(), &mut found);
    found.retain(|path| !path.ends_with("lock"));
    for part in [
        "wal/shard-15.wal",
        "wal/state",
        "/chunks/",
        "/manifests/",
        "/names/",
        "volumes/",
    ] {
        let known = found
            .iter()
            .any(|path| path.to_string_lossy().contains(part));
        assert!(known, "no file like {part:?} among {found:?}");
    }
    // Marks are empty: their names say all.
    let is_mark = |path: &&PathBuf| fs::metadata(path).is_ok_and(|found| found.len() == 0);
    for path in found.iter().filter(|path| !is_mark(path)) {
        let printed = daemon.taipan().args("--json inspect").arg(path).succeed();
        let decoded: Result<Value, _> = serde_json::from_str(&printed);
        assert!(decoded.is_ok(), "{path:?}: {printed}");
        assert!(
            !daemon
                .taipan()
                .arg("inspect")
                .arg(path)
                .succeed()
                .is_empty(),
            "{path:?}"
        );
    }
}

#[test]
fn status_and_metrics_tell_what_was_done() {
    let rig = Rig::new(&["vol0:1GiB"]);
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    assert_eq!(client.write(0, &pattern(0, 1, MIB as usize)).unwrap(), None);
    assert_eq!(client.flush().unwrap(), None);
    let status = daemon.status();
    assert_eq!(status["state"], "serving", "{status:#}");
    assert_eq!(status["volumes"][0]["name"], "vol0", "{status:#}");
    assert_eq!(status["volumes"][0]["connections"], 1, "{status:#}");
    // A core that waits for a disk for seconds is left out of a report.
    wait_until("all shards", LIMIT, || {
        daemon.status()["shards"].as_array().map(Vec::len) == Some(16)
    });
    assert!(daemon.taipan().arg("status").succeed().contains("vol0"));

    daemon.taipan().arg("drain").succeed();
    let info = daemon.taipan().args("--json volume show vol0").succeed();
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["mapped_blocks"], 256, "{info:#}");
    assert_eq!(info["dirty_bytes"], 0, "{info:#}");
    let metrics = daemon.metrics_text();
    let row = metrics
        .lines()
        .find(|line| line.starts_with("taipan_volume_mapped_bytes"));
    assert!(
        row.is_some_and(|row| row.ends_with(" 1048576")),
        "{metrics}"
    );
    drop(client);
    daemon.stop();
}
