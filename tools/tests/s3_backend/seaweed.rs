//! SeaweedFS, started once for all checks: it takes its time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use taipan_engine::backend::contract::CHECKS;
use taipan_engine::backend::{Backend, ConditionalWrites, Put, S3Backend};
use taipan_engine::error::ErrorKind;
use taipan_engine::object::ObjectKey;

use crate::servers::SeaweedFs;

#[test]
fn seaweedfs_keeps_the_rules_of_a_backend() {
    let server = SeaweedFs::start();
    for (name, check) in CHECKS {
        println!("{name}");
        check(&server.backend(name));
    }
    it_probes_as_full(&server);
    // A key with a character that URLs and signatures encode.
    a_large_object_goes_in_parts(&server.backend("parts-100%.x"));
    wrong_keys_are_named_and_replaced(&server);
}

#[test]
fn a_server_with_tls_is_trusted_by_its_own_authority_only() {
    let server = SeaweedFs::start_with_tls();
    let authority = SeaweedFs::authority();
    let url = format!("{}&ca_file={}", server.url("tls"), authority.display());
    let backend = S3Backend::open(&url, None).unwrap();
    let probe = block_on(backend.probe()).unwrap();
    assert_eq!(probe.conditional_writes, ConditionalWrites::Full);
    a_large_object_goes_in_parts(&backend);
    // The authorities of the system do not know it.
    let key = ObjectKey::parse("v1/x").unwrap();
    let error = block_on(server.backend("tls").get(&key)).unwrap_err();
    let text = error.to_string().to_lowercase();
    assert!(text.contains("certificate"), "{text}");
    let no_pem = url.replace("authority.pem", "server.key");
    let error = S3Backend::open(&no_pem, None).err().unwrap().to_string();
    assert!(error.contains("ca_file holds no certificate"), "{error}");
}

fn it_probes_as_full(server: &SeaweedFs) {
    let backend = server.backend("probed");
    let probe = block_on(backend.probe()).unwrap();
    assert_eq!(probe.conditional_writes, ConditionalWrites::Full);
    assert_eq!(probe.notes, Vec::<String>::new());
    let left = block_on(backend.list("", None, 9)).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

fn a_large_object_goes_in_parts(backend: &S3Backend) {
    let key = ObjectKey::parse("v1/large").unwrap();
    let body: Bytes = (0..(11u32 << 20)).map(|n| (n ^ (n >> 9)) as u8).collect();
    let put = |body: &Bytes| block_on(backend.put_if_absent(&key, body.clone())).unwrap();
    assert_eq!(put(&body), Put::Created);
    assert_eq!(put(&body.slice(1..)), Put::Exists);
    assert!(block_on(backend.get(&key)).unwrap() == body);
    let middle = block_on(backend.get_range(&key, (5 << 20) - 3, 7)).unwrap();
    assert_eq!(middle, body.slice((5 << 20) - 3..(5 << 20) + 4));
}

fn wrong_keys_are_named_and_replaced(server: &SeaweedFs) {
    let folder = tempfile::tempdir().unwrap();
    let path = crate::servers::write_keys(folder.path());
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("testtesttest", "hunter2hunter2")).unwrap();
    let url = server.url("denied");
    let (place, _) = url.split_once("&credentials_file=").unwrap();
    let url = format!("{place}&credentials_file={}", path.display());
    let backend = S3Backend::open(&url, None).unwrap();
    let key = ObjectKey::parse("v1/x").unwrap();
    let error = block_on(backend.get(&key)).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Io, "{text}");
    assert!(text.contains("403") && text.contains("keys"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    // Replaced by the right ones they are used without a new start.
    crate::servers::write_keys(folder.path());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match block_on(backend.get(&key)).unwrap_err().kind() {
            ErrorKind::NotFound => break,
            _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            other => panic!("the new keys are not used: {other:?}"),
        }
    }
}
