//! Servers, and backends on them.

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use taipan_bench::fake_s3::{Config, FakeS3};
use taipan_engine::backend::S3Backend;
use tempfile::TempDir;

const BUCKET: &str = "taipan";
/// SeaweedFS elects itself before it serves, and shares this machine with other tests.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// Writes a file of keys that only its owner can read.
pub(crate) fn write_keys(folder: &Path) -> PathBuf {
    let path = folder.join("keys");
    let text = "aws_access_key_id=test\naws_secret_access_key=testtesttest\n";
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

/// The fake server with a file of keys for it.
pub(crate) struct Fake {
    pub(crate) server: FakeS3,
    folder: TempDir,
}

impl Fake {
    pub(crate) fn start(config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_keys(folder.path());
        let server = FakeS3::start(config).unwrap();
        Self { server, folder }
    }

    pub(crate) fn url(&self, prefix: &str) -> String {
        let keys = self.folder.path().join("keys");
        let (bucket, endpoint) = (self.server.bucket(), self.server.endpoint());
        let keys = keys.display();
        format!("s3://{bucket}/{prefix}?endpoint={endpoint}&credentials_file={keys}&part_size=5MiB")
    }

    pub(crate) fn backend(&self, prefix: &str) -> S3Backend {
        S3Backend::open(&self.url(prefix), None).unwrap()
    }
}

/// SeaweedFS on a folder of its own. Killed when dropped.
pub(crate) struct SeaweedFs {
    child: Child,
    folder: TempDir,
    port: u16,
    scheme: &'static str,
}

/// Certificates for 127.0.0.1, their authority, and a key that protects nothing.
fn tls_file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/s3_backend/tls");
    folder.join(name)
}

impl SeaweedFs {
    /// Starts it and waits until its bucket is there.
    pub(crate) fn start() -> Self {
        Self::start_with("http", &[])
    }

    /// The same with TLS, its certificate signed by [`SeaweedFs::authority`].
    pub(crate) fn start_with_tls() -> Self {
        let file = |option, name| format!("-s3.{option}.file={}", tls_file(name).display());
        let options = [file("cert", "server.pem"), file("key", "server.key")];
        Self::start_with("https", &options)
    }

    /// The file for `ca_file`.
    pub(crate) fn authority() -> PathBuf {
        tls_file("authority.pem")
    }

    fn start_with(scheme: &'static str, options: &[String]) -> Self {
        let weed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/seaweedfs/bin/weed");
        assert!(
            weed.exists(),
            "{} is missing: run tools/setup",
            weed.display()
        );
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        write_keys(folder.path());
        let ports = free_ports();
        let log = File::create(folder.path().join("log")).unwrap();
        let parts = ["s3", "master", "volume", "filer", "admin"];
        let numbers = parts.iter().zip(ports);
        let child = Command::new(weed)
            .args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
            .args(["-master.telemetry=false", "-webdav=false"])
            .args(["-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-dir={}", folder.path().display()))
            .args(options)
            .args(numbers.map(|(part, port)| format!("-{part}.port={port}")))
            .current_dir(folder.path())
            .env("TMPDIR", folder.path())
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "testtesttest")
            .env("S3_BUCKET", BUCKET)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let port = ports[0];
        let server = Self {
            child,
            folder,
            port,
            scheme,
        };
        server.await_ready();
        server
    }

    fn await_ready(&self) {
        let began = Instant::now();
        let log = self.folder.path().join("log");
        loop {
            // The bucket is made before this is printed.
            let said = fs::read_to_string(&log).unwrap_or_default();
            let serves = said.contains("All enabled components are running");
            if serves && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return;
            }
            assert!(
                began.elapsed() < READY_LIMIT,
                "SeaweedFS does not start:\n{said}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn url(&self, prefix: &str) -> String {
        let keys = self.folder.path().join("keys");
        let (scheme, port, keys) = (self.scheme, self.port, keys.display());
        format!(
            "s3://{BUCKET}/{prefix}?endpoint={scheme}://127.0.0.1:{port}&credentials_file={keys}\
             &part_size=5MiB"
        )
    }

    pub(crate) fn backend(&self, prefix: &str) -> S3Backend {
        S3Backend::open(&self.url(prefix), None).unwrap()
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Five ports that were free a moment ago, as were those 10000 above for gRPC; below those that the
/// system gives to clients, and none of them twice.
fn free_ports() -> [u16; 5] {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + (std::process::id() % 250) as u16 * 10;
    std::array::from_fn(|_| {
        loop {
            let port = base + TRIED.fetch_add(1, Ordering::Relaxed);
            let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            if is_free(port) && is_free(port + 10_000) {
                return port;
            }
        }
    })
}
