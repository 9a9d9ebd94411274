//! `verify` on a backend in a directory: its exit codes, and what it tells.

use std::fs;

use futures::executor::block_on;
use serde_json::Value;
use taipan_engine::backend::DirBackend;
use taipan_engine::identity::{VolumeId, WriterToken};
use taipan_engine::registry::{VolumeSeed, create_volume};
use taipan_engine::volume::{VolumeName, VolumeSettings};

use crate::rig::Scratch;

/// A backend in `objects` with the volumes `a` and `tenant/b`.
fn backend() -> Scratch {
    let scratch = Scratch::new();
    let backend = DirBackend::open(&scratch.path("objects")).unwrap();
    for (id, name) in [(1, "a"), (2, "tenant/b")] {
        let seed = VolumeSeed {
            id: VolumeId(id),
            token: WriterToken(id),
        };
        let name = VolumeName::parse(name).unwrap();
        let settings = VolumeSettings::with_size(1 << 20);
        block_on(create_volume(&backend, seed, &name, &settings)).unwrap();
    }
    scratch
}

#[test]
fn verify_needs_no_daemon_and_ends_with_codes_of_its_own() {
    let scratch = backend();
    let url = format!("dir:{}", scratch.text("objects"));
    let all = scratch.run(&["verify", &url, "--json"]);
    assert_eq!(all.code, 0, "{}", all.err);
    let found: Value = serde_json::from_str(&all.out).unwrap();
    let names = found["volumes"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|volume| volume["volume"].as_str()).collect();
    assert_eq!(names, [Some("a"), Some("tenant/b")]);
    let one = scratch.run(&["verify", "tenant/b", "--deep"]);
    assert_eq!((one.code, one.out.contains("clean")), (0, true));
    for bad in [
        &["verify", "nosuch"][..],
        &["verify", "a", "b"],
        &["verify", "s3:nonsense://"],
        &["verify"],
        &["verify", "a", "--no-such-option"],
    ] {
        assert_eq!(scratch.run(bad).code, 4, "{bad:?}");
    }
    assert_eq!(scratch.run(&["volume"]).code, 2);

    let manifests = scratch.path(&format!("objects/v1/{}/manifests", VolumeId(2)));
    let first = fs::read_dir(manifests).unwrap().next().unwrap().unwrap();
    fs::write(first.path(), b"TaipanMf, not").unwrap();
    let damaged = scratch.run(&["verify", &url]);
    assert_eq!(damaged.code, 3, "{}", damaged.out);
    assert!(damaged.out.contains("all of tenant/b"), "{}", damaged.out);
    fs::remove_file(first.path()).unwrap();
    let lost = scratch.run(&["verify", &url, "tenant/b", "--json"]);
    let found: Value = serde_json::from_str(&lost.out).unwrap();
    assert_eq!((lost.code, &found["severity"]), (2, &Value::from("lost")));
}
