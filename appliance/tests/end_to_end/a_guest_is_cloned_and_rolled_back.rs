//! A guest's ext4 is snapshot while files are written, and cloned: both are whole. After a rollback
//! the volume has its old files again, and the clone keeps its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::guest::Image;
use crate::harness::program::Program;

const STEP: Duration = Duration::from_secs(400);
const LIMIT: Duration = Duration::from_secs(120);

/// A copy of a volume.
fn copy_of(rig: &Rig, daemon: &Daemon, volume: &str) -> PathBuf {
    let copy = rig.path(&format!("{volume}.img"));
    // What is there of another one would shine through.
    let _ = fs::remove_file(&copy);
    let nbdcopy = Program::new("nbdcopy", LIMIT).arg(daemon.uri(volume));
    nbdcopy.arg(&copy).succeed();
    copy
}

/// What a mount would do first, and then nothing may be wrong.
fn is_clean(image: &Path) {
    let e2fsck = |options| Program::new("e2fsck", LIMIT).args(options).arg(image);
    e2fsck("-p -E journal_only").succeed();
    e2fsck("-fn").succeed();
}

/// All files of a file system, unpacked into a fresh folder.
fn unpacked(rig: &Rig, image: &Path) -> PathBuf {
    let folder = image.with_extension("files");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder");
    Program::new("debugfs", LIMIT)
        .arg("-R")
        .arg(format!("rdump / {}", folder.display()))
        .arg(image)
        .within(rig.data())
        .succeed();
    folder
}

/// The sums of the old files, which they have.
fn sums(folder: &Path) -> String {
    let list = folder.join("SHA256SUMS");
    Program::new("sha256sum", LIMIT)
        .args("--strict --quiet -c ../SHA256SUMS")
        .within(&folder.join("old"))
        .succeed();
    fs::read_to_string(list).expect("the sums")
}

/// Files of the load are there one after the other, each as its name says; the last one may have
/// been cut off. Gives how many.
fn check_load(folder: &Path) -> usize {
    let names = fs::read_dir(folder.join("load")).expect("the load");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").path();
    let mut files: Vec<PathBuf> = names.map(name).collect();
    let parts = |file: &PathBuf| {
        let name = file.file_name().expect("a name").to_string_lossy();
        let (number, sum) = name.split_once('-').expect("NUMBER-SUM");
        (number.parse::<usize>().expect("a number"), sum.to_owned())
    };
    files.sort_by_key(|file| parts(file).0);
    for (number, file) in files.iter().enumerate() {
        let (named, sum) = parts(file);
        assert_eq!(named, number, "one is missing");
        let found = Program::new("sha256sum", LIMIT).arg(file).succeed();
        let is_last = number + 1 == files.len();
        assert!(is_last || found.starts_with(&sum), "{file:?}: {found}");
    }
    files.len()
}

/// Gives the clone a file of its own, through a copy.
fn change_clone(rig: &Rig, daemon: &Daemon) {
    let image = copy_of(rig, daemon, "clone");
    is_clean(&image);
    let own = rig.path("own");
    fs::write(&own, "of the clone alone").expect("a file");
    Program::new("debugfs", LIMIT)
        .args("-w -R")
        .arg(format!("write {} own", own.display()))
        .arg(&image)
        .succeed();
    let nbdcopy = Program::new("nbdcopy", LIMIT).arg("--flush").arg(&image);
    nbdcopy.arg(daemon.uri("clone")).succeed();
}

#[test]
fn a_guest_is_snapshot_under_load_cloned_and_rolled_back() {
    let rig = Rig::new(&["vol0:256MiB"]);
    let image = Image::without_tree();
    let daemon = rig.start();
    let port = daemon.tcp.port();
    let disk = format!(
        "driver=nbd,node-name=volume,server.type=inet,server.host=127.0.0.1,server.port={port},\
         export=vol0,discard=unmap"
    );
    let device = "virtio-blk-pci,drive=volume,serial=volume,werror=stop,rerror=stop";
    let arguments = ["-blockdev", &disk, "-device", device].map(str::to_owned);
    let mut guest = image.boot("snapshot_under_load", port, &arguments);
    let taipan = |line: &str| daemon.taipan().args(line).succeed();

    guest.await_step("under load", STEP);
    taipan("snapshot create vol0 before");
    taipan("clone vol0@before clone");
    guest.tell("cloned");
    guest.await_step("done", STEP);
    guest.ended();

    let now = copy_of(&rig, &daemon, "vol0");
    is_clean(&now);
    let new_sums = sums(&unpacked(&rig, &now));
    change_clone(&rig, &daemon);
    daemon.succeed_soon("rollback vol0 before");
    let restored = copy_of(&rig, &daemon, "vol0");
    is_clean(&restored);
    let restored = unpacked(&rig, &restored);
    let old_sums = sums(&restored);
    assert_ne!(old_sums, new_sums);
    assert!(check_load(&restored) >= 10);
    assert!(!restored.join("own").exists());

    let clone = copy_of(&rig, &daemon, "clone");
    is_clean(&clone);
    let clone = unpacked(&rig, &clone);
    assert_eq!(sums(&clone), old_sums);
    assert_eq!(check_load(&clone), check_load(&restored));
    assert!(clone.join("own").exists());
    daemon.stop();
}
