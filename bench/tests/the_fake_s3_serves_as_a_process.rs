//! `taipan-bench fake-s3` with a script of faults, as scenarios of other crates start it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// From the start of the process to its port file.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &Path, arguments: &[&str]) -> (Server, Vec<String>) {
    let ports = folder.join("ports");
    let child = Command::new(env!("CARGO_BIN_EXE_taipan-bench"))
        .args(["fake-s3", "--bucket", "b", "--port-file"])
        .arg(&ports)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .expect("the server starts");
    let server = Server(child);
    let begin = Instant::now();
    while !ports.exists() {
        assert!(begin.elapsed() < READY_LIMIT, "no port file");
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = std::fs::read_to_string(&ports).expect("addresses");
    (server, text.lines().map(str::to_owned).collect())
}

/// Status and text of the answer to one request.
fn ask(address: &str, head: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    (status, answer)
}

#[test]
fn a_script_a_port_file_and_an_admin_endpoint() {
    let folder = tempfile::tempdir().expect("a directory");
    let script = folder.path().join("faults.json");
    let rules = r#"{"rules": [{"verbs": ["put"], "count": 1, "action": {"kind": "slow_down"}}]}"#;
    std::fs::write(&script, rules).expect("a script");
    let script = script.to_str().expect("a path");
    let (_server, addresses) = start(folder.path(), &["--script", script]);
    let [s3, admin] = addresses.as_slice() else {
        panic!("two addresses in {addresses:?}");
    };
    assert_eq!(ask(s3, "PUT /b/k", "x").0, "503");
    assert_eq!(ask(s3, "PUT /b/k", "x").0, "200");
    assert_eq!(ask(s3, "PUT /other/k", "x").0, "404");
    let (status, stats) = ask(admin, "GET /-/stats", "");
    assert_eq!(status, "200");
    assert!(stats.contains("\"put\": 2"), "{stats}");
}

#[test]
fn a_script_with_a_mistake_is_refused() {
    let folder = tempfile::tempdir().expect("a directory");
    let script = folder.path().join("faults.json");
    std::fs::write(&script, r#"{"rules": [{"action": {"kind": "explode"}}]}"#).expect("a script");
    let output = Command::new(env!("CARGO_BIN_EXE_taipan-bench"))
        .args(["fake-s3", "--script"])
        .arg(&script)
        .output()
        .expect("the server runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("faults.json") && said.contains("explode"),
        "{said}"
    );
}
