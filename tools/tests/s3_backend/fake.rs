//! The fake server with faults, each of which a backend must answer in one way.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::{FutureExt, join_all};
use taipan_bench::fake_s3::{self, Action, Config, Down, Rule, Verb};
use taipan_engine::backend::contract::CHECKS;
use taipan_engine::backend::{Backend, ConditionalWrites, Put, S3Backend, VerbCounts};
use taipan_engine::error::{Error, ErrorKind};
use taipan_engine::object::ObjectKey;

use crate::servers::Fake;

const BODY: Bytes = Bytes::from_static(b"the body of an object");

fn key() -> ObjectKey {
    ObjectKey::parse("v1/x/y").unwrap()
}

fn create(backend: &S3Backend, body: Bytes) -> Result<Put, Error> {
    block_on(backend.put_if_absent(&key(), body))
}

fn counts(backend: &S3Backend, verb: &str) -> VerbCounts {
    let counts = backend.counts();
    let found = counts.into_iter().find(|count| count.verb == verb);
    found.unwrap()
}

/// Another server to be held to the same rules, as `--backend` takes it, with keys in the
/// environment; below its prefix nothing may be yet.
const OTHER_SERVER: &str = "TAIPAN_TEST_S3_URL";

#[test]
fn the_fake_server_keeps_the_rules_of_a_backend() {
    let fake = Fake::start(Config::default());
    let other = std::env::var(OTHER_SERVER);
    for (name, check) in CHECKS {
        println!("{name}");
        check(&fake.backend(name));
        if let Ok(url) = &other {
            let url = url.replacen('?', &format!("/{name}?"), 1);
            println!("{name} at {url}");
            check(&S3Backend::open(&url, None).unwrap());
        }
    }
}

#[test]
fn a_conditional_put_with_a_lost_response_is_not_repeated() {
    for lost in [Action::ErrorAfter, Action::CutAfter] {
        let fake = Fake::start(Config::default());
        let backend = fake.backend("p");
        fake.server
            .faults()
            .add(Rule::on(&[Verb::Put], lost).times(1));
        assert_eq!(
            create(&backend, BODY).unwrap_err().kind(),
            ErrorKind::Transient
        );
        let put = counts(&backend, "put");
        assert_eq!((put.requests, put.errors, put.retries), (1, 1, 0));
        // It took effect: whoever asks again must read to know whose object it is.
        assert_eq!(
            create(&backend, Bytes::from_static(b"2")).unwrap(),
            Put::Exists
        );
        assert_eq!(block_on(backend.get(&key())).unwrap(), BODY);
    }
}

#[test]
fn a_conflict_is_tried_again_and_a_rival_is_reported() {
    let fake = Fake::start(Config::default());
    let backend = fake.backend("p");
    let faults = fake.server.faults();
    faults.add(Rule::on(&[Verb::Put], Action::Conflict).times(2));
    assert_eq!(create(&backend, BODY).unwrap(), Put::Created);
    assert_eq!(counts(&backend, "put").retries, 2);
    block_on(backend.delete(&key())).unwrap();
    let body = "rival".to_owned();
    faults.add(Rule::on(&[Verb::Put], Action::Rival { body }).times(1));
    assert_eq!(create(&backend, BODY).unwrap(), Put::Exists);
    assert_eq!(block_on(backend.get(&key())).unwrap(), "rival");
}

#[test]
fn plain_requests_are_repeated_a_few_times() {
    for action in [
        Action::SlowDown,
        Action::TooManyRequests,
        Action::ErrorBefore,
        Action::ErrorAfter,
        Action::CutBefore,
        Action::CutAfter,
    ] {
        let fake = Fake::start(Config::default());
        let backend = fake.backend("p");
        let faults = fake.server.faults();
        faults.add(Rule::on(&[Verb::Put], action.clone()).times(1));
        block_on(backend.put(&key(), BODY)).unwrap();
        faults.add(Rule::on(&[Verb::Get], action.clone()).times(1));
        assert_eq!(block_on(backend.get_range(&key(), 4, 4)).unwrap(), "body");
        faults.add(Rule::on(&[Verb::List], action.clone()).times(1));
        assert_eq!(block_on(backend.list("", None, 9)).unwrap().len(), 1);
        faults.add(Rule::on(&[Verb::Get], action.clone()));
        let error = block_on(backend.get(&key())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{action:?}: {error}");
        let get = counts(&backend, "get");
        assert_eq!((get.requests, get.retries), (2 + 4, 1 + 3), "{action:?}");
    }
}

#[test]
fn a_body_that_ends_early_is_read_again_and_never_returned() {
    let fake = Fake::start(Config::default());
    let backend = fake.backend("p");
    block_on(backend.put(&key(), BODY)).unwrap();
    let faults = fake.server.faults();
    faults.add(Rule::on(&[Verb::Get], Action::Truncate { bytes: Some(3) }).times(1));
    assert_eq!(block_on(backend.get(&key())).unwrap(), BODY);
    faults.add(Rule::on(&[Verb::Get], Action::Truncate { bytes: None }));
    let error = block_on(backend.get_range(&key(), 0, 8)).unwrap_err();
    let is_expected = matches!(error.kind(), ErrorKind::Transient | ErrorKind::Corrupt);
    assert!(is_expected, "{error}");
}

#[test]
fn a_missing_permission_or_bucket_is_no_absent_object() {
    let fake = Fake::start(Config::default());
    let backend = fake.backend("p");
    fake.server
        .faults()
        .add(Rule::on(&[], Action::AccessDenied));
    for error in [
        block_on(backend.get(&key())).unwrap_err(),
        block_on(backend.head(&key())).unwrap_err(),
        create(&backend, BODY).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.to_string().contains("403"), "{error}");
    }
    fake.server.faults().clear();
    let elsewhere = fake.url("p").replace("s3://taipan/", "s3://elsewhere/");
    let backend = S3Backend::open(&elsewhere, None).unwrap();
    for error in [
        block_on(backend.get(&key())).unwrap_err(),
        block_on(backend.head(&key())).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(
            error.to_string().contains("bucket does not exist"),
            "{error}"
        );
    }
}

#[test]
fn a_server_that_is_away_is_transient_at_once_and_after_the_start() {
    let fake = Fake::start(Config::default());
    fake.server.faults().down(Some(Down::Refuse));
    let began = Instant::now();
    // Opening sends nothing, so it neither waits nor fails.
    let backend = fake.backend("p");
    assert!(block_on(backend.probe()).is_err());
    let probed = counts(&backend, "put").retries;
    // Nothing was sent, so even a conditional put is tried again.
    let error = create(&backend, BODY).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert_eq!(counts(&backend, "put").retries - probed, 3);
    // Eight attempts: two that are answered by nobody would take longer.
    assert!(began.elapsed() < Duration::from_secs(29));
    fake.server.faults().down(None);
    assert_eq!(create(&backend, BODY).unwrap(), Put::Created);
}

#[test]
fn servers_are_classified_by_what_they_do() {
    use fake_s3::ConditionalWrites as Fakes;
    for (conditional_writes, found) in [
        (Fakes::Full, ConditionalWrites::Full),
        (Fakes::CreateOnly, ConditionalWrites::CreateOnly),
        (Fakes::None, ConditionalWrites::None),
    ] {
        let fake = Fake::start(Config {
            conditional_writes,
            ..Config::default()
        });
        let backend = fake.backend("p");
        let probe = block_on(backend.probe()).unwrap();
        assert_eq!(probe.conditional_writes, found, "{probe:?}");
        assert_eq!(fake.server.objects("").len(), 0, "{found:?}");
        assert_eq!(probe.notes.is_empty(), found != ConditionalWrites::None);
    }
    let fake = Fake::start(Config {
        checksums_verified: false,
        batch_delete: false,
        ..Config::default()
    });
    let probe = block_on(fake.backend("p").probe()).unwrap();
    assert!(
        probe
            .notes
            .iter()
            .any(|note| note.contains("checksums unverified"))
    );
    assert!(
        probe
            .notes
            .iter()
            .any(|note| note.contains("DeleteObjects"))
    );
    assert_eq!(fake.server.objects("").len(), 0);
}

#[test]
fn a_probe_removes_what_probes_left_that_never_ended() {
    let fake = Fake::start(Config::default());
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let put = |key: &str, bytes: usize, age: Duration| {
        let key = format!("p/v1/probe/{key}");
        fake.server.put_object(&key, vec![1; bytes]);
        fake.server.age_object(&key, age);
        key
    };
    for name in ["a1", "a4", "race1", "race8", "b", "c"] {
        put(&format!("00000000000000aa/{name}"), 64, hours(25));
    }
    // May be in use; and what no probe has made.
    let mut kept = vec![put("00000000000000ab/a1", 28, hours(23))];
    for name in ["a", "a0", "a10", "a1x", "race0", "race", "d", "b/c"] {
        kept.push(put(&format!("00000000000000ac/{name}"), 28, hours(1000)));
    }
    for key in ["a1", "aa/a1", "00000000000000AD/a1", "00000000000000ad0/a1"] {
        kept.push(put(key, 28, hours(1000)));
    }
    kept.push(put("00000000000000ae/b", 65, hours(1000)));
    kept.sort();
    let probe = block_on(fake.backend("p").probe()).unwrap();
    assert_eq!(probe.notes, [""; 0]);
    let left = fake.server.objects("").into_iter().map(|o| o.key);
    assert_eq!(left.collect::<Vec<_>>(), kept);
}

/// Each request of a probe fails once, whatever became of it: the class is the same, and nothing is
/// left.
#[test]
fn one_failure_changes_nothing_in_what_a_probe_finds() {
    let spoil = |action: Action| {
        let mut skip = 0;
        loop {
            let fake = Fake::start(Config::default());
            let faults = fake.server.faults();
            faults.add(Rule::on(&[], action.clone()).skip(skip).times(1));
            let probe = block_on(fake.backend("p").probe());
            if faults.counts()[0].fired == 0 {
                return skip;
            }
            let probe = probe.unwrap_or_else(|error| panic!("{action:?} at {skip}: {error}"));
            let found = (probe.conditional_writes, probe.notes.as_slice());
            assert_eq!(
                found,
                (ConditionalWrites::Full, [].as_slice()),
                "{action:?} at {skip}"
            );
            let left = fake.server.objects("");
            assert!(left.is_empty(), "{action:?} at {skip}: {left:?}");
            skip += 1;
        }
    };
    let actions = [
        Action::TooManyRequests,
        Action::ErrorBefore,
        Action::ErrorAfter,
        Action::CutBefore,
        Action::CutAfter,
    ];
    std::thread::scope(|scope| {
        let spoil = &spoil;
        let threads = actions.map(|action| scope.spawn(move || spoil(action)));
        for thread in threads {
            assert!(thread.join().unwrap() >= 10, "a probe makes more requests");
        }
    });
}

#[test]
fn without_batch_deletes_objects_are_deleted_one_by_one() {
    let fake = Fake::start(Config {
        batch_delete: false,
        ..Config::default()
    });
    let deletes = CHECKS.iter().find(|(name, _)| *name == "deletes").unwrap();
    let backend = fake.backend("p");
    (deletes.1)(&backend);
    assert_eq!(counts(&backend, "delete_many").requests, 1);
    assert!(counts(&backend, "delete").requests >= 6);
}

#[test]
fn a_large_object_goes_in_parts_and_a_failed_upload_is_given_up() {
    let fake = Fake::start(Config::default());
    let backend = fake.backend("p");
    let faults = fake.server.faults();
    let body = Bytes::from(vec![7; 11 << 20]);
    faults.add(Rule::on(&[Verb::UploadPart], Action::ErrorBefore).times(1));
    assert_eq!(create(&backend, body.clone()).unwrap(), Put::Created);
    assert!(block_on(backend.get(&key())).unwrap() == body);
    assert_eq!(create(&backend, body.slice(1..)).unwrap(), Put::Exists);
    block_on(backend.delete(&key())).unwrap();
    faults.add(Rule::on(&[Verb::UploadPart], Action::ErrorBefore));
    assert_eq!(
        create(&backend, body).unwrap_err().kind(),
        ErrorKind::Transient
    );
    // The upload is given up beside the answer.
    let began = Instant::now();
    while !fake.server.open_uploads().is_empty() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "an upload is left open"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(fake.server.objects("").len(), 0);
}

#[test]
fn a_read_does_not_wait_for_puts_that_hang() {
    let fake = Fake::start(Config::default());
    let backend = fake.backend("p");
    block_on(backend.put(&key(), BODY)).unwrap();
    let faults = fake.server.faults();
    faults.add(Rule::on(&[Verb::Put], Action::Hang { ms: 600_000 }));
    let chunks: Vec<ObjectKey> = (0..20)
        .map(|n| ObjectKey::parse(&format!("v1/chunks/{n}")).unwrap())
        .collect();
    let big = Bytes::from(vec![1; 1 << 20]);
    let mut puts = join_all(chunks.iter().map(|key| backend.put(key, big.clone()))).boxed();
    assert!((&mut puts).now_or_never().is_none());
    assert_eq!(block_on(backend.get(&key())).unwrap(), BODY);
    assert_eq!(block_on(backend.list("v1/x/", None, 9)).unwrap().len(), 1);
    // Dropped futures free their places: the next put is answered.
    drop(puts);
    faults.clear();
    block_on(backend.put(&chunks[0], big)).unwrap();
}

#[test]
fn secrets_are_not_printed() {
    let fake = Fake::start(Config::default());
    let backend = fake.backend("p");
    fake.server
        .faults()
        .add(Rule::on(&[], Action::AccessDenied));
    let error = block_on(backend.get(&key())).unwrap_err();
    for shown in [backend.describe(), error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("testtesttest"), "{shown}");
    }
}
