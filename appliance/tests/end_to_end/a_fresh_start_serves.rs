//! The command of the README serves, and three independent clients describe the volume rightly.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::Rig;
use crate::harness::program::Program;
use crate::harness::{http, wait_until};

const LIMIT: Duration = Duration::from_secs(180);
const SIZE: u64 = 10 << 30;

/// A daemon that nothing was said to about its memory, which is therefore in its default place.
/// Ended, and the memory given back, however the test ends.
struct Unconfigured {
    process: Child,
    runtime: Option<PathBuf>,
}

impl Drop for Unconfigured {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(runtime) = &self.runtime {
            let _ = fs::remove_dir_all(runtime);
        }
    }
}

#[test]
fn the_readme_command_serves_and_clients_describe_the_volume() {
    let folder = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let daemon = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .args(["--", "--data", "./taipan-data", "--volume", "vol0:10GiB"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut daemon = Unconfigured {
        process: daemon,
        runtime: None,
    };
    let health = "127.0.0.1:10880".parse().unwrap();
    // The limit includes a build, should anything have changed since the last one.
    wait_until("taipand to serve", Duration::from_secs(900), || {
        let ended = daemon.process.try_wait().unwrap();
        assert!(ended.is_none(), "taipand ended: {ended:?}");
        matches!(http::get(health, "/healthz"), Ok((200, _)))
    });

    let data = folder.path().join("taipan-data");
    let (_, status) = http::get_unix(&data.join("control.sock"), "/v1/status").unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    let runtime = status["runtime_dir"].as_str().expect("where the memory is");
    assert!(runtime.starts_with("/dev/shm/taipan-"), "{runtime}");
    daemon.runtime = Some(PathBuf::from(runtime));

    let socket = data.join("nbd.sock");
    for uri in [
        "nbd://127.0.0.1:10809/vol0".to_owned(),
        format!("nbd+unix:///vol0?socket={}", socket.display()),
    ] {
        nbdinfo_describes(&uri);
        qemu_img_describes(&uri);
    }
    qemu_nbd_lists();
}

fn nbdinfo_describes(uri: &str) {
    let printed = Program::new("nbdinfo", LIMIT)
        .arg("--json")
        .arg(uri)
        .succeed();
    let described: Value = serde_json::from_str(&printed).unwrap();
    let export = &described["exports"][0];
    assert_eq!(described["protocol"], "newstyle-fixed");
    assert_eq!(export["export-name"], "vol0");
    assert_eq!(export["export-size"], SIZE);
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["is_rotational"], false);
    for ability in [
        "cache",
        "fast_zero",
        "flush",
        "fua",
        "multi_conn",
        "trim",
        "zero",
    ] {
        assert_eq!(
            export[format!("can_{ability}")],
            true,
            "{ability}: {printed}"
        );
    }
    // libnbd 1.14 takes sizes apart only in its own API and names them so in JSON.
    assert_eq!(export["block_size_minimum"], 1, "{printed}");
    assert_eq!(export["block_size_preferred"], 4096, "{printed}");
    assert_eq!(export["block_size_maximum"], 32 << 20, "{printed}");
}

fn qemu_img_describes(uri: &str) {
    let printed = Program::new("qemu-img", LIMIT)
        .args("info --output=json")
        .arg(uri)
        .succeed();
    let described: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(described["virtual-size"], SIZE);
    assert_eq!(described["format"], "raw");
}

fn qemu_nbd_lists() {
    let printed = Program::new("qemu-nbd", LIMIT)
        .args("-L -b 127.0.0.1 -p 10809")
        .succeed();
    assert!(printed.contains("exports available: 1"), "{printed}");
    assert!(printed.contains("export: 'vol0'"), "{printed}");
    assert!(printed.contains(&format!("size:  {SIZE}")), "{printed}");
    for (what, bytes) in [("min", 1), ("opt", 4096), ("max", 32 << 20)] {
        assert!(
            printed.contains(&format!("{what} block: {bytes}")),
            "{printed}"
        );
    }
}

#[test]
fn qemu_io_reads_back_patterns_zeroes_and_discards() {
    let rig = Rig::new(&["tenant/disk:1GiB"]);
    let daemon = rig.start();
    let commands = [
        "write -P 0x5a 0 64k",
        "read -P 0x5a 0 64k",
        "write -P 0x11 1000 3000",
        "read -P 0x11 1000 3000",
        "read -P 0x5a 0 1000",
        "read -P 0x5a 4000 61536",
        "write -z -u 4k 8k",
        "read -P 0 4k 8k",
        "discard 32k 16k",
        "write -f -P 1 1M 4k",
        "flush",
        "read -P 1 1M 4k",
        "read -P 0 512M 1M",
    ];
    let mut qemu_io = Program::new("qemu-io", LIMIT).args("-f raw");
    for command in commands {
        qemu_io = qemu_io.arg("-c").arg(command);
    }
    // Its exit status does not tell of a mismatch in every mode.
    let printed = qemu_io.arg(daemon.uri("tenant%2Fdisk")).succeed();
    assert!(
        !printed.contains("Pattern verification failed"),
        "{printed}"
    );
    daemon.stop();
}
