//! Clients that others wrote against our server side.

use taipan_nbd::{ExportInfo, fuzz};

use crate::memory_server::MemoryServer;
use crate::{run, stdout};

fn described() -> Vec<ExportInfo> {
    vec![
        ExportInfo {
            description: "the first volume".to_owned(),
            ..ExportInfo::new("tenant/root", 64 << 20)
        },
        ExportInfo {
            read_only: true,
            ..ExportInfo::new("vol1", 1000 * 512)
        },
    ]
}

/// What real clients sent goes through the fuzz entry too. With `TAIPAN_CORPUS` set to a directory
/// the beginnings of the streams are kept there under `name`.
fn replay_recorded(server: &MemoryServer, name: &str) {
    for (index, stream) in server.recorded().iter().enumerate() {
        fuzz::fuzz_server(stream);
        if let Some(directory) = std::env::var_os("TAIPAN_CORPUS") {
            let beginning = &stream[..stream.len().min(2048)];
            let path = std::path::Path::new(&directory).join(format!("{name}-{index}"));
            std::fs::write(path, beginning).expect("a directory for the corpus");
        }
    }
}

#[test]
fn nbdinfo_sees_name_size_description_and_abilities() {
    let server = MemoryServer::start(described());
    let Some(text) = stdout("nbdinfo", &["--json", &server.uri("tenant/root")]) else {
        return;
    };
    for expected in [
        r#""export-name": "tenant/root""#,
        r#""description": "the first volume""#,
        r#""export-size": 67108864"#,
        r#""is_read_only": false"#,
        r#""can_cache": true"#,
        r#""can_fast_zero": true"#,
        r#""can_flush": true"#,
        r#""can_fua": true"#,
        r#""can_multi_conn": true"#,
        r#""can_trim": true"#,
        r#""can_zero": true"#,
        r#""block_size_minimum": 1"#,
        r#""block_size_preferred": 4096"#,
        r#""block_size_maximum": 33554432"#,
    ] {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
    let text = stdout("nbdinfo", &["--json", &server.uri("vol1")]).unwrap_or_default();
    assert!(text.contains(r#""is_read_only": true"#), "{text}");
    assert!(text.contains(r#""export-size": 512000"#), "{text}");
    replay_recorded(&server, "nbdinfo");
}

#[test]
fn nbdinfo_lists_the_exports_and_is_refused_a_stranger() {
    let server = MemoryServer::start(described());
    let Some(text) = stdout("nbdinfo", &["--list", &server.uri("")]) else {
        return;
    };
    assert!(text.contains(r#"export="tenant/root""#), "{text}");
    assert!(text.contains(r#"export="vol1""#), "{text}");
    let refused = run("nbdinfo", &[&server.uri("nobody")]).expect("it was there a moment ago");
    assert!(!refused.status.success());
    replay_recorded(&server, "nbdinfo-list");
}

/// It asks for every export on one connection: more options than a small fixed cap would allow.
#[test]
fn qemu_nbd_lists_a_thousand_exports_on_one_connection() {
    let exports = (0..1000).map(|index| ExportInfo::new(format!("vol{index:03}"), 4096));
    let server = MemoryServer::start(exports);
    let Some(text) = stdout("qemu-nbd", &["-L", "-k", server.socket()]) else {
        return;
    };
    assert!(text.contains("exports available: 1000"), "{text}");
    assert!(text.contains("export: 'vol999'"), "{text}");
    assert_eq!(text.matches("opt block: 4096").count(), 1000, "{text}");
    replay_recorded(&server, "qemu-nbd-list");
}

#[test]
fn qemu_img_sees_the_size() {
    let server = MemoryServer::start(described());
    let Some(text) = stdout("qemu-img", &["info", "--output=json", &server.uri("vol1")]) else {
        return;
    };
    assert!(text.contains(r#""virtual-size": 512000"#), "{text}");
    replay_recorded(&server, "qemu-img");
}

#[test]
fn qemu_io_writes_zeroes_trims_and_flushes() {
    let server = MemoryServer::start([ExportInfo::new("vol0", 64 << 20)]);
    let script = [
        "write -P 0x5a 0 64k",
        "read -P 0x5a 0 64k",
        "write -z -u 4k 8k",
        "read -P 0 4k 8k",
        "read -P 0x5a 12k 52k",
        "discard 128k 64k",
        "write -f -P 1 1M 4k",
        "write -P 7 512 3k",
        "read -P 7 512 3k",
        "read -P 0x5a 0 512",
        "flush",
    ];
    let uri = server.uri("vol0");
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(script.iter().flat_map(|command| ["-c", command]));
    arguments.push(&uri);
    let Some(text) = stdout("qemu-io", &arguments) else {
        return;
    };
    assert!(!text.contains("verification failed"), "{text}");
    assert!(!text.contains("failed"), "{text}");
    replay_recorded(&server, "qemu-io");
}

/// The plugin fails every write that differs from its own content, so the way back verifies all.
#[test]
fn nbdcopy_brings_a_sparse_image_there_and_back() {
    let server = MemoryServer::start([ExportInfo::new("vol0", 64 << 20)]);
    let uri = server.uri("vol0");
    let copies =
        format!(r#"nbdcopy -T4 -C4 --flush "$uri" '{uri}' && nbdcopy -T4 -C4 '{uri}' "$uri""#);
    let plugin = [
        "-U",
        "-",
        "sparse-random",
        "size=64M",
        "seed=1",
        "percent=20",
        "--run",
        &copies,
    ];
    if stdout("nbdkit", &plugin).is_some() {
        replay_recorded(&server, "nbdcopy");
    }
}
