//! libnbd of Debian 13, which knows extended headers: it agrees on them, maps with extents of 64
//! bits, asks for some contexts of those that it selected, sees what has changed, and copies.

use std::time::Duration;

use serde_json::Value;

use crate::harness::beside;
use crate::harness::daemon::Rig;
use crate::harness::program::Program;

const LIMIT: Duration = Duration::from_secs(180);
const TIB: u64 = 1 << 40;

fn newer(program: &str) -> Program {
    Program::of_newer_libnbd(program, LIMIT)
}

/// Offset, length and type of each extent.
fn map(uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let nbdinfo = newer("nbdinfo")
        .arg("--json")
        .arg(format!("--map={context}"));
    let map: Vec<Value> = serde_json::from_str(&nbdinfo.arg(uri).succeed()).expect("JSON");
    let number = |extent: &Value, name: &str| extent[name].as_u64().expect("a number");
    let extent = |e: &Value| (number(e, "offset"), number(e, "length"), number(e, "type"));
    map.iter().map(extent).collect()
}

/// Of three contexts that it selected it asks for two: BLOCK_STATUS with a payload.
fn asks_for_some_contexts(uri: &str) {
    let told = newer("/usr/bin/python3")
        .arg(beside("clients/asks_for_some_contexts.py"))
        .arg(uri)
        .arg("base:allocation,taipan:durability,qemu:dirty-bitmap:since-mon")
        .arg("base:allocation,qemu:dirty-bitmap:since-mon")
        .arg(TIB.to_string())
        .succeed();
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["payload"], 1, "{told}");
    let extents = |status: [u64; 3]| {
        let lengths = [TIB - 8192, 4096, 4096];
        let extents: Vec<_> = lengths.into_iter().zip(status).collect();
        serde_json::json!({ "offset": 0, "extents": extents })
    };
    let expected = serde_json::json!({
        "base:allocation": extents([3, 0, 3]),
        "qemu:dirty-bitmap:since-mon": extents([0, 1, 0]),
    });
    assert_eq!(told["extents"], expected);
}

#[test]
fn a_newer_libnbd_uses_extended_headers() {
    let rig = Rig::new(&["vol0:1TiB", "copy:64MiB", "from:64MiB"]);
    let daemon = rig.start();
    for uri in [daemon.uri("vol0"), daemon.tcp_uri("vol0")] {
        let told = newer("nbdinfo").arg(&uri).succeed();
        for text in ["extended packets", "base:allocation", "taipan:durability"] {
            assert!(told.contains(text), "{told}");
        }
        // One extent, which compact headers could not tell.
        assert_eq!(map(&uri, "base:allocation"), [(0, TIB, 3)]);
    }
    daemon.taipan().args("snapshot create vol0 mon").succeed();
    let answer = daemon.client("vol0").write(TIB - 8192, &[7; 4096]);
    assert_eq!(answer.expect("an answer"), None);
    let since = map(&daemon.uri("vol0"), "qemu:dirty-bitmap:since-mon");
    let expected = [
        (0, TIB - 8192, 0),
        (TIB - 8192, 4096, 1),
        (TIB - 4096, 4096, 0),
    ];
    assert_eq!(since, expected);
    asks_for_some_contexts(&daemon.uri("vol0"));
    asks_for_some_contexts(&daemon.tcp_uri("vol0"));

    let mut from = daemon.client("from");
    for place in [0, 31, 63] {
        let data = crate::harness::pattern(place, 1, 1 << 20);
        assert_eq!(from.write(place << 20, &data).expect("an answer"), None);
    }
    let nbdcopy = newer("nbdcopy").arg("--flush").arg(daemon.uri("from"));
    nbdcopy.arg(daemon.tcp_uri("copy")).succeed();
    Program::new("qemu-img", LIMIT)
        .args("compare -f raw -F raw")
        .arg(daemon.uri("from"))
        .arg(daemon.uri("copy"))
        .succeed();
    daemon.stop();
}
