//! libnbd of Debian 13, which knows extended headers: it agrees on them, maps with extents of 64
//! bits, sees what has changed, and copies.

use std::time::Duration;

use serde_json::Value;

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
