//! Rules that every backend keeps, and the scripted faults of the one in memory.

use std::sync::Arc;

use futures::executor::block_on;
use futures::future::FutureExt;

use super::*;
use crate::error::ErrorKind;

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

/// Runs `check` on each implementation.
fn on_every_backend(check: impl Fn(&dyn Backend)) {
    check(&MemBackend::new());
    let root = tempfile::tempdir().unwrap();
    check(&DirBackend::open(root.path()).unwrap());
}

#[test]
fn every_backend_keeps_the_rules() {
    for (name, check) in contract::CHECKS {
        println!("{name}");
        on_every_backend(check);
    }
}

#[test]
fn racing_openers_of_one_directory_have_one_winner_too() {
    let root = tempfile::tempdir().unwrap();
    let backends: Vec<Arc<DirBackend>> = (0..4)
        .map(|_| Arc::new(DirBackend::open(root.path()).unwrap()))
        .collect();
    for round in 0..20 {
        let key = key(&format!("v1/race/{round}"));
        let mut threads = Vec::new();
        for writer in 0..16u8 {
            let (backend, key) = (backends[usize::from(writer) % 4].clone(), key.clone());
            threads.push(std::thread::spawn(move || {
                block_on(backend.put_if_absent(&key, Bytes::from(vec![writer]))).unwrap()
            }));
        }
        let created = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|&put| put == Put::Created)
            .count();
        assert_eq!(created, 1, "round {round}");
    }
}

#[test]
fn backends_are_opened_by_url() {
    let root = tempfile::tempdir().unwrap();
    let default = root.path().join("objects");
    assert!(
        open("mem:", &default)
            .unwrap()
            .describe()
            .starts_with("mem:")
    );
    assert!(!default.exists());
    open("dir:", &default).unwrap();
    assert!(default.is_dir());
    let elsewhere = root.path().join("elsewhere");
    let opened = open(&format!("dir:{}", elsewhere.display()), &default).unwrap();
    assert!(opened.describe().contains("elsewhere"));
    for bad in ["", "mem", "mem:x", "s4://bucket", "/path"] {
        let error = open(bad, &default).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
        assert!(error.to_string().contains("dir:/path"), "{error}");
    }
}

#[test]
fn both_backends_probe_as_create_only() {
    on_every_backend(|backend| {
        let probe = block_on(backend.probe()).unwrap();
        assert_eq!(probe.conditional_writes, ConditionalWrites::CreateOnly);
        assert!(block_on(backend.list("", None, 9)).unwrap().is_empty());
    });
}

#[test]
fn scripted_failures_hit_before_or_after_the_effect() {
    let backend = MemBackend::new();
    let key = key("v1/m/1");
    let put = |body: &'static [u8]| block_on(backend.put_if_absent(&key, Bytes::from_static(body)));
    let rule = |fault| FaultRule::once(Operation::PutIfAbsent, "v1/m", fault);
    backend.script(rule(Fault::FailBefore(ErrorKind::Transient)));
    assert_eq!(put(b"a").unwrap_err().kind(), ErrorKind::Transient);
    assert!(backend.keys().is_empty());
    backend.script(rule(Fault::FailAfter(ErrorKind::Io)));
    assert_eq!(put(b"b").unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(backend.keys(), ["v1/m/1"]);
    assert_eq!(put(b"c").unwrap(), Put::Exists);
    assert_eq!(block_on(backend.get(&key)).unwrap(), "b");
    assert_eq!(backend.count(Operation::PutIfAbsent), 3);
}

#[test]
fn a_rule_skips_and_counts() {
    let backend = MemBackend::new();
    let key = key("v1/k");
    backend.script(FaultRule {
        operation: None,
        key_contains: String::new(),
        skip: 1,
        times: 2,
        fault: Fault::FailBefore(ErrorKind::Transient),
    });
    let outcomes: Vec<bool> = (0..5)
        .map(|_| block_on(backend.head(&key)).is_ok())
        .collect();
    assert_eq!(outcomes, [true, false, false, true, true]);
}

#[test]
fn a_held_put_lands_late_even_if_nobody_waits() {
    let backend = MemBackend::new();
    let key = key("v1/m/1");
    backend.script(FaultRule::once(Operation::PutIfAbsent, "", Fault::Hold));
    let mut put = backend.put_if_absent(&key, Bytes::from_static(b"late"));
    assert!((&mut put).now_or_never().is_none());
    assert_eq!((backend.held(), backend.keys().len()), (1, 0));
    drop(put);
    assert!(backend.release_next());
    assert!(!backend.release_next());
    assert_eq!(block_on(backend.get(&key)).unwrap(), "late");

    backend.script(FaultRule::once(Operation::Get, "", Fault::Hold));
    let mut get = backend.get(&key);
    assert!((&mut get).now_or_never().is_none());
    backend.release_next();
    assert_eq!(block_on(get).unwrap(), "late");
}

#[test]
fn bodies_can_be_corrupted_truncated_and_rotted() {
    let backend = MemBackend::new();
    let key = key("v1/m/1");
    block_on(backend.put(&key, Bytes::from_static(b"0000"))).unwrap();
    backend.script(FaultRule::once(Operation::Get, "", Fault::CorruptByte(1)));
    backend.script(FaultRule::once(Operation::Get, "", Fault::Truncate(2)));
    assert_eq!(block_on(backend.get(&key)).unwrap(), "0 00");
    assert_eq!(block_on(backend.get(&key)).unwrap(), "00");
    assert_eq!(block_on(backend.get(&key)).unwrap(), "0000");
    assert!(backend.rot(&key, 3));
    assert!(!backend.rot(&key, 4));
    assert_eq!(block_on(backend.get(&key)).unwrap(), "000 ");
}

#[test]
fn a_full_memory_says_so_and_keeps_nothing() {
    let backend = MemBackend::new();
    backend.set_capacity(Some(10));
    let put = |text: &str, len| block_on(backend.put(&key(text), Bytes::from(vec![0; len])));
    put("a", 6).unwrap();
    assert_eq!(put("b", 5).unwrap_err().kind(), ErrorKind::Full);
    put("a", 10).unwrap();
    backend.set_capacity(None);
    put("b", 5).unwrap();
    assert_eq!(backend.keys(), ["a", "b"]);
}
