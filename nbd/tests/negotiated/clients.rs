//! Clients that others wrote against a server that offers everything.

use std::path::Path;
use std::process::Command;

use taipan_nbd::Features;

use crate::driver::{CHANGED, Volume, serve};

const SIZE: u64 = 16 << 20;

/// A volume with data at 1 MiB, written, and at 2 MiB, there from before.
fn volume() -> Volume {
    let mut volume = Volume::new(SIZE);
    for (at, byte) in [(1 << 20, 7), (2 << 20, 9)] {
        volume.content[at..at + 65536].fill(byte);
    }
    let blocks = (1 << 20) / 4096..(1 << 20) / 4096 + 16;
    blocks.for_each(|block| volume.changed[block] = true);
    volume
}

/// Standard output of a tool that must succeed. `None`, said loudly, when it is not installed.
pub(crate) fn stdout(tool: &str, arguments: &[&str]) -> Option<String> {
    let mut run = Command::new("timeout");
    let run = run.arg("60").arg(tool).args(arguments);
    let output = run.output().expect("timeout runs");
    if output.status.code() == Some(127) {
        eprintln!("SKIPPED: {tool} is not installed");
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {text}{errors}"
    );
    Some(text)
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///v?socket={}", socket.display())
}

/// Words of a text, so that columns do not matter.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn nbdinfo_maps_allocation_and_changes() {
    let (_directory, socket) = serve("nbdinfo", volume(), Features::ALL);
    let uri = uri(&socket);
    let Some(info) = stdout("nbdinfo", &["--json", &uri]) else {
        return;
    };
    assert!(info.contains(r#""structured": true"#), "{info}");
    assert!(info.contains(r#""base:allocation""#), "{info}");
    assert!(info.contains(CHANGED), "{info}");
    assert!(info.contains(r#""can_df": true"#), "{info}");
    let map = words(&stdout("nbdinfo", &["--map", &uri]).unwrap_or_default());
    let expected = "0 1048576 3 hole,zero 1048576 65536 0 data 1114112 983040 3 hole,zero \
                    2097152 65536 0 data 2162688 14614528 3 hole,zero";
    assert_eq!(map, expected);
    let changes = format!("--map={CHANGED}");
    let map = words(&stdout("nbdinfo", &[&changes, &uri]).unwrap_or_default());
    let expected = "0 1048576 0 clean 1048576 65536 1 dirty 1114112 15663104 0 clean";
    assert_eq!(map, expected);
}

#[test]
fn qemu_nbd_lists_contexts_and_long_transactions() {
    let (_directory, socket) = serve("qemu-nbd", volume(), Features::ALL);
    let socket = socket.to_str().expect("a path of ASCII");
    let Some(text) = stdout("qemu-nbd", &["-L", "-k", socket]) else {
        return;
    };
    assert!(text.contains("transaction size: 64-bit"), "{text}");
    assert!(text.contains("available meta contexts: 2"), "{text}");
    assert!(text.contains("base:allocation"), "{text}");
    assert!(text.contains(CHANGED), "{text}");
}

/// Once with 64-bit headers and once without: QEMU takes what it is offered.
#[test]
fn qemu_img_maps_and_converts_in_both_styles() {
    for extended_headers in [true, false] {
        let features = Features {
            extended_headers,
            ..Features::ALL
        };
        let (directory, socket) = serve("qemu-img", volume(), features);
        let uri = uri(&socket);
        let map = ["map", "-f", "raw", "--output=json", &uri];
        let Some(map) = stdout("qemu-img", &map) else {
            return;
        };
        let data =
            r#""start": 1048576, "length": 65536, "depth": 0, "present": true, "zero": false"#;
        assert!(map.contains(data), "{map}");
        assert_eq!(map.matches("start").count(), 5, "{map}");
        let image = directory.path().join("copy");
        let image = image.to_str().expect("a path of ASCII");
        let convert = ["convert", "-f", "raw", "-O", "raw", &uri, image];
        stdout("qemu-img", &convert).expect("it was there a moment ago");
        let copy = std::fs::read(image).expect("the copy");
        assert!(
            copy == volume().content,
            "headers extended: {extended_headers}"
        );
    }
}

#[test]
fn qemu_sees_changed_blocks_as_a_dirty_bitmap() {
    let (_directory, socket) = serve("qemu-bitmap", volume(), Features::ALL);
    let socket = socket.display();
    let image = format!(
        "driver=nbd,export=v,server.type=unix,server.path={socket},x-dirty-bitmap={CHANGED}"
    );
    let map = ["map", "--output=json", "--image-opts", &image];
    let Some(map) = stdout("qemu-img", &map) else {
        return;
    };
    // QEMU shows what is dirty as not being data.
    assert!(
        map.contains(r#""start": 1048576, "length": 65536"#),
        "{map}"
    );
    assert_eq!(map.matches("start").count(), 3, "{map}");
}

#[test]
fn qemu_io_reads_and_writes_with_extended_headers() {
    let (_directory, socket) = serve("qemu-io", volume(), Features::ALL);
    let script = [
        "write -P 0x5a 0 64k",
        "read -P 0x5a 0 64k",
        "write -z -u 4k 8k",
        "read -P 0 4k 8k",
        "discard 128k 64k",
        "write -f -P 1 3M 4k",
        "read -P 1 3M 4k",
        "read -P 7 1M 64k",
        "flush",
    ];
    let uri = uri(&socket);
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(script.iter().flat_map(|command| ["-c", command]));
    arguments.push(&uri);
    let Some(text) = stdout("qemu-io", &arguments) else {
        return;
    };
    assert!(!text.contains("failed"), "{text}");
}

/// The plugin fails every write that differs from its own content, so the way back verifies all.
#[test]
fn nbdcopy_brings_a_sparse_image_there_and_back_in_chunks() {
    let (_directory, socket) = serve("nbdcopy", Volume::new(SIZE), Features::ALL);
    let uri = uri(&socket);
    let copies =
        format!(r#"nbdcopy -T4 -C4 --flush "$uri" '{uri}' && nbdcopy -T4 -C4 '{uri}' "$uri""#);
    let plugin = ["-U", "-", "sparse-random", "size=16M", "seed=1"];
    stdout(
        "nbdkit",
        &[&plugin[..], &["percent=20", "--run", &copies]].concat(),
    );
}
