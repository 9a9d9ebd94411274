//! A virtual machine under software emulation: Debian's cloud kernel and an initramfs made by the
//! scripts in `guest/`. It and the test talk over the serial console, a line at a time.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::beside;
use super::program::Program;

const BUILD_LIMIT: Duration = Duration::from_secs(300);

/// A running guest. Killed when dropped.
pub(crate) struct Guest {
    qemu: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    seen: Vec<String>,
}

/// What is built before the guest boots.
pub(crate) struct Image {
    kernel: String,
    folder: tempfile::TempDir,
}

impl Image {
    /// Builds the initramfs and the archive of a real tree of at least 200 MB.
    pub(crate) fn build() -> Self {
        let image = Self::without_tree();
        Program::new(beside("guest/build-tree"), BUILD_LIMIT)
            .arg(image.path("tree.tar"))
            .succeed();
        image
    }

    /// Builds the initramfs and a disk with fio.
    pub(crate) fn with_fio() -> Self {
        let image = Self::without_tree();
        Program::new(beside("guest/build-fio"), BUILD_LIMIT)
            .arg(image.path("fio.ext4"))
            .succeed();
        image
    }

    /// Builds the initramfs alone.
    pub(crate) fn without_tree() -> Self {
        let folder = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let limit = BUILD_LIMIT;
        let kernel = Program::new(beside("guest/build-initramfs"), limit)
            .arg(folder.path().join("initramfs"))
            .arg(beside("guest/init"))
            .succeed();
        Self {
            kernel: kernel.trim().to_owned(),
            folder,
        }
    }

    /// Boots a scenario of `guest/init`. `port` is where the host serves NBD; `volume` holds the
    /// QEMU arguments that attach the volume as a disk, if it is to be one.
    pub(crate) fn boot(&self, scenario: &str, port: u16, volume: &[String]) -> Guest {
        let options =
            format!("console=ttyS0 quiet panic=-1 taipan.scenario={scenario} taipan.port={port}");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-accel",
                "tcg",
                "-m",
                "768",
                "-smp",
                "1",
                "-nodefaults",
                "-no-reboot",
            ])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
            .args(["-kernel", &self.kernel, "-append", &options, "-initrd"])
            .arg(self.path("initramfs"))
            .args(["-netdev", "user,id=net"])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .args(volume);
        for (name, file) in [("tree", "tree.tar"), ("fio", "fio.ext4")] {
            let path = self.path(file);
            if path.exists() {
                let path = path.display();
                let disk = format!("driver=file,node-name={name},read-only=on,filename={path}");
                let device = format!("virtio-blk-pci,drive={name},serial={name}");
                command.args(["-blockdev", &disk, "-device", &device]);
            }
        }
        Guest::start(command)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::join(self.folder.path(), name)
    }
}

impl Guest {
    fn start(mut command: Command) -> Self {
        let mut qemu = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64 runs");
        let stdin = qemu.stdin.take().expect("its input");
        let stdout = qemu.stdout.take().expect("its output");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            qemu,
            stdin,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits until the guest says `step`. Gives the line.
    pub(crate) fn await_step(&mut self, step: &str, limit: Duration) -> String {
        loop {
            match self.lines.recv_timeout(limit) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    let said = line.strip_prefix("@@ ");
                    if said.is_some_and(|said| said.starts_with("FAILED")) {
                        self.give_up(&line);
                    }
                    if said.is_some_and(|said| said.starts_with(step)) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.give_up(&format!("no {step:?} in {limit:?}"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.give_up(&format!("ended before {step:?}"));
                }
            }
        }
    }

    /// Sends the guest a line.
    pub(crate) fn tell(&mut self, word: &str) {
        writeln!(self.stdin, "{word}").expect("the guest reads");
    }

    /// Waits for the power-off. Gives all that the guest printed.
    pub(crate) fn ended(mut self) -> String {
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(30)) {
            self.seen.push(line);
        }
        self.seen.join("\n")
    }

    fn give_up(&mut self, why: &str) -> ! {
        // What follows the message, the kernel's log above all, is most of the explanation.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(2)) {
            self.seen.push(line);
        }
        panic!("guest: {why}\n{}", self.seen.join("\n"));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
