//! S3 servers for the daemon: SeaweedFS as `tools/setup` installed it, and the fake of
//! `taipan-bench` with its scripted faults. Both come and go while their content stays.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::daemon::{free_address, signal};
use super::{built, http, wait_until};

const ACCESS_KEY: &str = "taipan-tests";
const SECRET_KEY: &str = "no-secret-at-all";
const BUCKET: &str = "taipan";
/// From the start of a server to its first answer.
const READY_LIMIT: Duration = Duration::from_secs(180);

/// Where a daemon keeps its chunks.
#[derive(Clone)]
pub(crate) struct Bucket {
    address: SocketAddr,
}

impl Bucket {
    /// As `--backend` takes it.
    pub(crate) fn url(&self) -> String {
        format!(
            "s3://{BUCKET}/tests?endpoint=http://{}&region=us-east-1&path_style=true",
            self.address
        )
    }

    /// Variables of the environment.
    pub(crate) fn credentials(&self) -> [(&'static str, String); 2] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ]
    }

    /// A file with the same, as `credentials_file` takes it.
    pub(crate) fn write_credentials(&self, path: &Path) {
        let text = format!(
            "[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
        );
        fs::write(path, text).expect("a credentials file");
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(path, private).expect("a private file");
    }
}

/// SeaweedFS on a folder of its own. Killed when dropped.
pub(crate) struct SeaweedFs {
    child: Child,
    folder: TempDir,
    ports: [u16; 5],
}

/// A port that was free a moment ago, and whose other one, 10000 above it, for gRPC was too.
/// Neither is one of [`free_address`] or a daemon's default, which others may take before the
/// server does.
fn free_port_pair() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 11_000 + (std::process::id() % 80) as u16 * 10;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

impl SeaweedFs {
    /// Starts it and waits until it answers.
    pub(crate) fn start() -> Self {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let ports = std::array::from_fn(|_| free_port_pair());
        let child = Self::spawn(folder.path(), ports);
        let server = Self {
            child,
            folder,
            ports,
        };
        server.await_ready();
        server
    }

    fn spawn(folder: &Path, ports: [u16; 5]) -> Child {
        let weed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/seaweedfs/bin/weed");
        assert!(weed.exists(), "{weed:?} is missing: run tools/setup");
        let data = folder.join("data");
        fs::create_dir_all(&data).expect("a directory for SeaweedFS");
        let log = File::create(folder.join("log")).expect("a log file");
        let names = ["s3", "master", "volume", "filer", "admin"];
        Command::new(weed)
            .arg("mini")
            .arg(format!("-dir={}", data.display()))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
            .args(["-master.telemetry=false", "-webdav=false"])
            .args(["-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .args(
                names
                    .iter()
                    .zip(ports)
                    .map(|(n, p)| format!("-{n}.port={p}")),
            )
            .current_dir(folder)
            .env("TMPDIR", folder)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("S3_BUCKET", BUCKET)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file once more"))
            .stderr(log)
            .spawn()
            .expect("SeaweedFS runs")
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[0]))
    }

    fn await_ready(&self) {
        let log = self.folder.path().join("log");
        wait_until("SeaweedFS to serve", READY_LIMIT, || {
            // The bucket is made before this is printed. Unsigned, the request is refused.
            let said = fs::read_to_string(&log).unwrap_or_default();
            said.contains("All enabled components are running")
                && http::get(self.address(), &format!("/{BUCKET}")).is_ok_and(|(c, _)| c == 403)
        });
    }

    /// Its bucket.
    pub(crate) fn bucket(&self) -> Bucket {
        Bucket {
            address: self.address(),
        }
    }

    /// Ends it; connections are refused from now on.
    pub(crate) fn stop(&mut self) {
        signal(&self.child, Signal::TERM);
        wait_until("the end of SeaweedFS", READY_LIMIT, || {
            matches!(self.child.try_wait(), Ok(Some(_)))
        });
    }

    /// Starts it again with what it holds.
    pub(crate) fn start_again(&mut self) {
        self.child = Self::spawn(self.folder.path(), self.ports);
        self.await_ready();
    }

    /// SIGSTOP: connections are taken and never answered.
    pub(crate) fn pause(&self) {
        signal(&self.child, Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        signal(&self.child, Signal::CONT);
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        end(&mut self.child);
        if std::thread::panicking() {
            let said = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let from = lines.len().saturating_sub(15);
            eprintln!(
                "--- end of SeaweedFS' log\n{}\n---",
                lines[from..].join("\n")
            );
        }
    }
}

fn end(child: &mut Child) {
    // Both fail when it has ended already, which is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
}

/// The fake S3 server. Killed when dropped, with what it holds.
pub(crate) struct FakeS3 {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    /// Holds the file with its addresses.
    _folder: TempDir,
}

impl FakeS3 {
    /// Starts it and waits until it serves.
    pub(crate) fn start() -> Self {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let port_file: PathBuf = folder.path().join("ports");
        let mut child = Command::new(built("taipan-bench"))
            .args(["fake-s3", "--bucket", BUCKET, "--port-file"])
            .arg(&port_file)
            .args(["--listen", &free_address().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the fake S3 server runs");
        wait_until("the fake S3 server to serve", READY_LIMIT, || {
            let ended = child.try_wait().expect("the state of the fake S3 server");
            assert!(ended.is_none(), "the fake S3 server ended: {ended:?}");
            port_file.exists()
        });
        let text = fs::read_to_string(&port_file).expect("its addresses");
        let mut lines = text.lines().map(|line| line.parse().expect("an address"));
        let mut next = || lines.next().expect("two addresses");
        Self {
            child,
            address: next(),
            admin: next(),
            _folder: folder,
        }
    }

    /// Its bucket.
    pub(crate) fn bucket(&self) -> Bucket {
        Bucket {
            address: self.address,
        }
    }

    fn admin(&self, method: &str, path: &str, body: &str) -> Value {
        let answer = http::call(self.admin, method, &format!("/-/{path}"), body);
        let (code, text) = answer.expect("the fake's admin endpoint answers");
        assert_eq!(code, 200, "{method} {path} {body}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Replaces all faults by these rules, tried in this order.
    pub(crate) fn faults(&self, rules: &Value) {
        self.admin(
            "PUT",
            "faults",
            &json!({ "seed": 1, "rules": rules }).to_string(),
        );
    }

    /// How often each rule was carried out.
    pub(crate) fn fired(&self) -> Vec<u64> {
        let now = self.admin("GET", "faults", "");
        let counts = now["counts"].as_array().expect("counts of the rules");
        let fired = counts.iter().map(|counts| counts["fired"].as_u64());
        fired.map(|count| count.expect("a number")).collect()
    }

    /// No faults any more.
    pub(crate) fn heal(&self) {
        self.admin("DELETE", "faults", "");
    }

    /// Refuses connections until [`Self::heal`].
    pub(crate) fn go_down(&self) {
        self.admin("PUT", "faults", r#"{"down": "refuse"}"#);
    }

    /// Forgets the statistics.
    pub(crate) fn reset_stats(&self) {
        self.admin("DELETE", "stats", "");
    }

    /// The latest requests since the start or the last reset whose keys contain `part`.
    pub(crate) fn requests_for(&self, part: &str) -> Vec<Value> {
        let log = self.admin("GET", "log", "");
        let is_asked_for = |seen: &&Value| seen["key"].as_str().is_some_and(|k| k.contains(part));
        let seen = log.as_array().expect("a list of requests").iter();
        seen.filter(is_asked_for).cloned().collect()
    }

    /// Requests since the start or the last reset, and all of them as a list for messages.
    pub(crate) fn requests(&self) -> (u64, String) {
        let stats = self.admin("GET", "stats", "");
        let requests = stats["requests"].as_object().expect("requests per verb");
        let total = requests.values().filter_map(Value::as_u64).sum();
        (total, self.admin("GET", "log", "").to_string())
    }
}

impl Drop for FakeS3 {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
