//! Tests of the directory backend: full disks, crashes at each step, hostile surroundings.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};

use futures::executor::block_on;
use rustix::io::Errno;

use super::tree::{Step, Tree};
use super::*;
use crate::error::ErrorKind;
use crate::identity::{Generation, VolumeId};

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn temp_files(root: &Path) -> usize {
    let dirs = fs::read_dir(root.join(".tmp")).unwrap();
    let count = |dir: fs::DirEntry| match dir.path().is_dir() {
        // The lock file of a living opener is no leftover.
        true => fs::read_dir(dir.path()).unwrap().count() - 1,
        false => 0,
    };
    dirs.map(|dir| count(dir.unwrap())).sum()
}

#[test]
fn a_failing_step_leaves_no_partial_object_and_can_be_repeated() {
    let steps = [Step::MakeDir, Step::Write, Step::SyncFile, Step::Link];
    for (number, step) in steps.into_iter().enumerate() {
        for (errno, kind) in [
            (Errno::NOSPC, ErrorKind::Full),
            (Errno::DQUOT, ErrorKind::Full),
            (Errno::IO, ErrorKind::Io),
            (Errno::STALE, ErrorKind::Transient),
        ] {
            let root = tempfile::tempdir().unwrap();
            let tree = Tree::open(root.path()).unwrap();
            let key = key(&format!("v1/step/{number}"));
            *tree.fault.lock().unwrap() = Some((step, errno));
            let error = tree.put_if_absent(&key, b"body").unwrap_err();
            assert_eq!(error.kind(), kind, "{step:?} {errno:?}: {error}");
            assert!(tree.put(&key, b"body").is_err());
            assert_eq!(tree.head(&key).unwrap(), None, "{step:?}");
            assert!(tree.list("", None, 9).unwrap().is_empty());
            assert_eq!(temp_files(root.path()), 0, "{step:?}");
            *tree.fault.lock().unwrap() = None;
            assert_eq!(tree.put_if_absent(&key, b"body").unwrap(), Put::Created);
            assert_eq!(tree.get(&key).unwrap(), "body");
        }
    }
}

#[test]
fn a_failed_directory_sync_is_an_error_and_the_repeat_finds_the_object() {
    let root = tempfile::tempdir().unwrap();
    let tree = Tree::open(root.path()).unwrap();
    *tree.fault.lock().unwrap() = Some((Step::SyncDir, Errno::IO));
    for _ in 0..2 {
        // Also `Exists` is not answered before the directory is synced.
        let error = tree.put_if_absent(&key("v1/x"), b"body").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }
    *tree.fault.lock().unwrap() = None;
    assert_eq!(
        tree.put_if_absent(&key("v1/x"), b"other").unwrap(),
        Put::Exists
    );
    assert_eq!(tree.get(&key("v1/x")).unwrap(), "body");
}

#[test]
fn a_really_full_file_system_is_reported_and_recovers() {
    let root = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        std::process::Command::new(args[0])
            .args(&args[1..])
            .status()
    };
    let path = root.path().to_str().unwrap();
    let mounted = mount(&["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", path]);
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a small tmpfs needs root");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let backend = DirBackend::open(root.path()).unwrap();
        let body = Bytes::from(vec![7; 300 << 10]);
        let put = |n: u32| block_on(backend.put_if_absent(&key(&format!("v1/{n}")), body.clone()));
        let full = (0..10).map(put).position(|put| match put {
            Ok(_) => false,
            Err(e) => e.kind() == ErrorKind::Full,
        });
        assert_eq!(full, Some(3));
        let listed = block_on(backend.list("", None, 99)).unwrap();
        assert_eq!(listed.len(), 3);
        assert!(listed.iter().all(|object| object.bytes == 300 << 10));
        assert_eq!(temp_files(root.path()), 0);
        block_on(backend.delete(&key("v1/0"))).unwrap();
        assert_eq!(put(3).unwrap(), Put::Created);
    });
    mount(&["umount", path]).unwrap();
    outcome.unwrap();
}

#[test]
fn leftovers_of_crashed_openers_go_and_those_of_living_ones_stay() {
    let root = tempfile::tempdir().unwrap();
    let living = Tree::open(root.path()).unwrap();
    let crashed = root.path().join(".tmp/00000000deadbeef");
    fs::create_dir(&crashed).unwrap();
    fs::write(crashed.join("lock"), b"").unwrap();
    fs::write(crashed.join("0"), b"half an obj").unwrap();
    let stillborn = root.path().join(".tmp/0000000000000001");
    fs::create_dir(&stillborn).unwrap();
    let dirs_before = fs::read_dir(root.path().join(".tmp")).unwrap().count();
    let second = Tree::open(root.path()).unwrap();
    assert!(!crashed.exists() && !stillborn.exists());
    let dirs_after = fs::read_dir(root.path().join(".tmp")).unwrap().count();
    assert_eq!(dirs_after, dirs_before - 2 + 1);
    assert_eq!(
        living.put_if_absent(&key("v1/a"), b"x").unwrap(),
        Put::Created
    );
    assert_eq!(
        second.put_if_absent(&key("v1/a"), b"y").unwrap(),
        Put::Exists
    );
    drop(second);
    let dirs_closed = fs::read_dir(root.path().join(".tmp")).unwrap().count();
    assert_eq!(dirs_closed, dirs_before - 2);
}

#[test]
fn a_put_survives_the_removal_of_its_directories() {
    let root = tempfile::tempdir().unwrap();
    let tree = Tree::open(root.path()).unwrap();
    tree.put(&key("v1/a/b"), b"1").unwrap();
    fs::remove_dir_all(root.path().join("v1")).unwrap();
    let error = tree.put_if_absent(&key("v1/a/b"), b"2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "not NotFound: {error}");
    assert_eq!(
        tree.put_if_absent(&key("v1/a/b"), b"2").unwrap(),
        Put::Created
    );
    // Somebody else's clean-up, on a file system without locks.
    fs::remove_dir_all(root.path().join(".tmp")).unwrap();
    fs::create_dir(root.path().join(".tmp")).unwrap();
    assert_eq!(
        tree.put_if_absent(&key("v1/a/c"), b"3").unwrap(),
        Put::Created
    );
    assert_eq!(tree.get(&key("v1/a/c")).unwrap(), "3");
}

#[test]
fn foreign_files_are_neither_listed_nor_followed() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"s").unwrap();
    let tree = Tree::open(root.path()).unwrap();
    tree.put(&key("v1/a/real"), b"1").unwrap();
    symlink(outside.path(), root.path().join("v1/link")).unwrap();
    symlink("nowhere", root.path().join("v1/a/dangling")).unwrap();
    fs::write(root.path().join("v1/a/with space"), b"").unwrap();
    fs::write(root.path().join("v1/a/.hidden"), b"").unwrap();
    fs::create_dir(root.path().join("lost+found")).unwrap();
    let listed = tree.list("", None, 99).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].key, "v1/a/real");
    // What is there and no object is in the way, but never overwritten.
    assert_eq!(
        tree.put_if_absent(&key("v1/a/dangling"), b"").unwrap(),
        Put::Exists
    );
    assert_eq!(
        tree.get(&key("v1/a")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(tree.head(&key("v1/a")).unwrap(), None);
    for hostile in ["../", "v1/../", "/etc/", "v1//"] {
        let error = tree.list(hostile, None, 9).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{hostile}");
    }
}

#[test]
fn parts_longer_than_a_file_name_are_kept_and_listed() {
    let root = tempfile::tempdir().unwrap();
    let tree = Tree::open(root.path()).unwrap();
    let long = "n".repeat(765);
    let keys = [
        format!("v1/names/{}/1", &long[..200]),
        format!("v1/names/{}/1", &long[..201]),
        format!("v1/names/{}/1", &long[..400]),
        format!("v1/names/{long}/1"),
        format!("v1/names/{long}/2"),
        format!("v1/{}", "z".repeat(255)),
    ];
    for text in &keys {
        assert_eq!(
            tree.put_if_absent(&key(text), b"x").unwrap(),
            Put::Created,
            "{text}"
        );
        assert_eq!(tree.get(&key(text)).unwrap(), "x");
    }
    let mut expected: Vec<&str> = keys.iter().map(String::as_str).collect();
    expected.sort_unstable();
    let listed = tree.list("v1/", None, 99).unwrap();
    let listed: Vec<&str> = listed.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(listed, expected);
    let one = tree.list(&format!("v1/names/{long}/"), None, 9).unwrap();
    assert_eq!(one.len(), 2);
}

#[test]
fn objects_that_vanish_meanwhile_do_not_end_a_list() {
    let root = tempfile::tempdir().unwrap();
    let tree = Tree::open(root.path()).unwrap();
    for n in 0..10 {
        tree.put(&key(&format!("v1/{n}")), b"x").unwrap();
    }
    // A dangling entry of the right name stands for one deleted between reading and looking.
    for n in 2..5 {
        let path = root.path().join(format!("v1/{n}"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    let listed = tree.list("v1/", None, 5).unwrap();
    let listed: Vec<&str> = listed.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(listed, ["v1/0", "v1/1", "v1/5", "v1/6", "v1/7"]);
}

#[test]
fn a_missing_parent_or_a_file_in_place_of_the_root_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let missing = DirBackend::open(&root.path().join("no/such"))
        .err()
        .unwrap();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("no/such"), "{missing}");
    let file = root.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = DirBackend::open(&file).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[test]
fn a_full_queue_is_transient() {
    let root = tempfile::tempdir().unwrap();
    let options = DirOptions {
        read_threads: 1,
        write_threads: 1,
        queue: 1,
    };
    let backend = DirBackend::with_options(root.path(), options).unwrap();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let (started, running) = std::sync::mpsc::channel::<()>();
    let mut hung = backend.reads.run(move || {
        started.send(()).unwrap();
        blocked.recv().unwrap();
        Ok(())
    });
    use futures::future::FutureExt;
    assert!((&mut hung).now_or_never().is_none());
    running.recv().unwrap();
    let mut waiting = backend.reads.run(|| Ok(1));
    assert!((&mut waiting).now_or_never().is_none());
    let refused = block_on(backend.get(&key("v1/x"))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Transient);
    // Writes have threads of their own.
    block_on(backend.put(&key("v1/x"), Bytes::from_static(b"x"))).unwrap();
    release.send(()).unwrap();
    block_on(hung).unwrap();
    assert_eq!(block_on(waiting).unwrap(), 1);
    assert_eq!(block_on(backend.get(&key("v1/x"))).unwrap(), "x");
}

#[test]
fn a_chunk_that_was_read_stays_open_until_it_is_deleted() {
    // Beside the sources: a temporary directory may be on a file system where nothing stays open.
    let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let backend = DirBackend::open(root.path()).unwrap();
    let chunk = ChunkKey {
        volume: VolumeId(1),
        generation: Generation(2),
        sequence: 3,
        random: 4,
    };
    let object = chunk.object();
    block_on(backend.put_if_absent(&object, Bytes::from_static(b"0123456789"))).unwrap();
    assert!(backend.local_file(&chunk).is_none());
    assert_eq!(block_on(backend.get_range(&object, 2, 3)).unwrap(), "234");
    let open = backend.local_file(&chunk).unwrap();
    let mut read = [0; 4];
    open.file.read_exact_at(&mut read, 6).unwrap();
    assert_eq!((&read, open.bytes), (b"6789", 10));
    assert!(block_on(backend.get_range(&object, 8, 3)).is_err());
    assert_eq!(block_on(backend.get_range(&object, 8, 2)).unwrap(), "89");

    block_on(backend.delete(&object)).unwrap();
    assert!(backend.local_file(&chunk).is_none());
    let gone = block_on(backend.get_range(&object, 0, 1)).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}
