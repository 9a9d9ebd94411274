//! A server that others wrote, on a unix socket in a directory of its own.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// Bytes of the image that it finds.
pub(crate) const SIZE: u64 = 8 << 20;

/// A foreign server that ends with this value.
pub(crate) struct Server {
    child: Child,
    directory: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts `tool` on the socket `s` in a directory of its own, with an image in it. `None`, said
    /// loudly, when it is not installed.
    pub(crate) fn start(tool: &str, arguments: &[&str]) -> Option<Self> {
        let directory = TempDir::new().expect("a temporary directory");
        let image = std::fs::File::create(directory.path().join("image")).expect("an image");
        image.set_len(SIZE).expect("a sparse image");
        let spawned = Command::new(tool)
            .args(arguments)
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .spawn();
        let Ok(child) = spawned else {
            eprintln!("SKIPPED: {tool} is not installed");
            return None;
        };
        let server = Self { child, directory };
        for _ in 0..6000 {
            if UnixStream::connect(server.socket()).is_ok() {
                return Some(server);
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{tool} does not serve after a minute");
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }
}
