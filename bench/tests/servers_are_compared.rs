//! `taipan-bench compare` on servers that a user names, and on one that is not there.

use std::process::{Command, Output};

use serde_json::Value;

/// A server under another name, one that is missing, and one that does not start.
const PEERS: &str = "
[[peer]]
name = 'mine'
command = ['{bench}', 'null-server', '--size', '{size}']
unix = ['--socket', '{socket}']
uri_unix = 'nbd+unix:///?socket={socket}'
survives = 'nothing of mine'
durable_flush = false

[[peer]]
name = 'missing'
command = ['no-such-server-anywhere']
uri_unix = 'nbd+unix:///?socket={socket}'
survives = ''
durable_flush = true

[[peer]]
name = 'broken'
command = ['sh', '-c', 'echo it is broken; exit 1']
uri_unix = 'nbd+unix:///?socket={socket}'
survives = ''
durable_flush = true
";

fn compare(dir: &tempfile::TempDir, options: &[&str]) -> Output {
    let peers = dir.path().join("peers.toml");
    std::fs::write(&peers, PEERS).unwrap();
    Command::new(env!("CARGO_BIN_EXE_taipan-bench"))
        .args([
            "compare",
            "--wal-size",
            "256MiB",
            "--seconds",
            "0.5",
            "--rounds",
            "2",
        ])
        .arg("--dir")
        .arg(dir.path())
        .arg("--peers")
        .arg(peers)
        .args(["--server-cpus", "all", "--client-cpus", "all"])
        .args(options)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_users_server_is_measured_in_turn_with_the_null_server() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (json, html) = (dir.path().join("json"), dir.path().join("html"));
    let files = [json.to_str().unwrap(), html.to_str().unwrap()];
    let output = compare(
        &dir,
        &[
            "--only",
            "mine,missing,null server",
            "--lines",
            "randread 4k d1,no such line",
            "--suite",
            "kvm,commit",
            "--json",
            files[0],
            "--html",
            files[1],
        ],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let markdown = text(&output.stdout);
    for words in [
        "nothing of mine",
        "all lines on missing: no-such-server-anywhere is not there",
    ] {
        assert!(markdown.contains(words), "{words:?} is not in\n{markdown}");
    }
    let found: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let samples = found["samples"].as_array().unwrap();
    let order: Vec<_> = samples
        .iter()
        .filter(|sample| sample["line"] == "randread 4k d1")
        .map(|sample| sample["target"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["mine", "null server", "null server", "mine"]);
    for sample in samples {
        assert!(sample["value"].as_f64().unwrap() > 0.0);
        assert!(sample["client_us_per_request"].as_f64().unwrap() > 0.0);
        assert!(sample["resident_bytes"].as_u64().unwrap() > 0);
        assert!(sample["latency_us"]["p99"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(found["targets"][0]["fua"], true);
    assert!(
        std::fs::read_to_string(&html)
            .unwrap()
            .contains("randread 4k d1")
    );
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 3, "peers, JSON and page are all that is left");
}

#[test]
fn a_server_that_does_not_start_is_a_failure_with_its_words() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = compare(&dir, &["--only", "broken", "--lines", "randread 4k d1"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stdout);
    assert!(told.contains("FAILED: all lines on broken"), "{told}");
    assert!(told.contains("it is broken"), "{told}");
    let output = compare(&dir, &["--only", "nobody"]);
    assert!(text(&output.stderr).contains("there is no target \"nobody\""));
}
