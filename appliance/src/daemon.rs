//! The life of the daemon: take the data directory, plan memory, start the data plane, serve the
//! control plane, wait for a signal, stop in order.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use taipan_engine::error::{Error, Result};

use crate::budget::{MemoryBudget, machine_memory_bytes};
use crate::config::Config;
use crate::control::{Appliance, Servers};
use crate::lock::{DataDir, free_bytes};
use crate::memlock::allow_locked_memory;
use crate::notify::{self, Progress};
use crate::signals;

/// What the data plane is started with.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The data directory, held by this process.
    pub data: &'a DataDir,
    /// Directory of the memory that outlives the process.
    pub runtime_dir: PathBuf,
    /// Limits of memory.
    pub budget: MemoryBudget,
    /// Ends the daemon in order when something is sent, as a signal does.
    pub stop: Sender<&'static str>,
}

/// A data plane that serves.
pub trait Running {
    /// What the control plane talks to.
    fn appliance(&self) -> Arc<dyn Appliance>;

    /// Stops accepting, answers what is in flight, flushes, packs everything if `drain`, closes
    /// the sockets and returns when all threads have ended.
    fn stop(self: Box<Self>, drain: bool) -> Result<()>;
}

/// Serves until a signal arrives. `boot` recovers and starts the data plane; it is called once
/// this process holds the data directory and the addresses of the control plane.
pub fn run(
    config: &Config,
    boot: impl FnOnce(Parts<'_>) -> Result<Box<dyn Running>>,
) -> Result<()> {
    allow_locked_memory()?;
    let data = DataDir::open(&config.data_dir)?;
    let runtime_dir = data.runtime_dir(config.runtime_dir.as_deref())?;
    let budget = plan_memory(config, &runtime_dir)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        data = %config.data_dir.display(),
        runtime = %runtime_dir.display(),
        backend = %config.backend,
        "starting"
    );
    tracing::info!("memory: {budget}");

    let mut servers = Servers::bind(&config.control_socket, config.metrics)?;
    let (stop, stopped) = mpsc::channel();
    let on_signal = stop.clone();
    signals::watch(move |name| {
        // Fails only if the daemon is ending already.
        let _ = on_signal.send(name);
    })?;
    let running = boot(Parts {
        config,
        data: &data,
        runtime_dir,
        budget,
        stop,
    })?;
    servers.start(running.appliance(), None)?;
    notify::tell(Progress::Serving);
    wait(&stopped)?;
    notify::tell(Progress::Stopping);
    let result = running.stop(config.drain_on_stop);
    servers.stop();
    match &result {
        Ok(()) => tracing::info!("stopped; everything answered is durable"),
        Err(error) => tracing::error!(%error, "stopped with an error"),
    }
    result
}

fn plan_memory(config: &Config, runtime_dir: &Path) -> Result<MemoryBudget> {
    let free = free_bytes(runtime_dir)?;
    // What a killed daemon left there is taken over or removed, so it counts as room.
    let left: u64 = std::fs::read_dir(runtime_dir)
        .map_err(|e| Error::io("listing the runtime directory", e).with_path(runtime_dir))?
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .map(|found| found.blocks() * 512)
        .sum();
    MemoryBudget::plan(config, machine_memory_bytes(), free.saturating_add(left))
}

fn wait(stopped: &Receiver<&'static str>) -> Result<()> {
    // The sender lives in the signal thread as long as the process; without it nothing could
    // ever stop the daemon.
    let why = stopped
        .recv()
        .map_err(|_| Error::invalid("the signal watcher is gone"))?;
    tracing::info!(why, "stopping");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use taipan_engine::error::ErrorKind;

    use super::*;
    use crate::config::{Flags, Machine, load};
    use crate::control::Pretended;

    struct Pretence(Sender<bool>);

    impl Running for Pretence {
        fn appliance(&self) -> Arc<dyn Appliance> {
            Arc::new(Pretended::default())
        }

        fn stop(self: Box<Self>, drain: bool) -> Result<()> {
            self.0.send(drain).unwrap();
            Ok(())
        }
    }

    fn config(data: &Path) -> Config {
        let flags = Flags {
            data: Some(data.display().to_string()),
            runtime_dir: Some(data.join("run").display().to_string()),
            metrics: Some("off".to_owned()),
            cache_size: Some("128MiB".to_owned()),
            drain: true,
            ..Flags::default()
        };
        load(&flags, &Machine::detect()).unwrap()
    }

    #[test]
    fn a_second_daemon_on_the_directory_is_refused_until_the_first_has_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (booted, boots) = mpsc::channel();
        let (drained, drains) = mpsc::channel();
        let of_first = config.clone();
        let first = thread::spawn(move || {
            run(&of_first, |parts| {
                booted.send(parts.stop).unwrap();
                Ok(Box::new(Pretence(drained)))
            })
        });
        let stop = boots.recv_timeout(Duration::from_secs(60)).unwrap();

        let unreachable = |_: Parts<'_>| -> Result<Box<dyn Running>> {
            panic!("started without holding the data directory")
        };
        let error = run(&config, unreachable).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");

        stop.send("test").unwrap();
        first.join().unwrap().unwrap();
        assert_eq!(drains.recv(), Ok(true));
        assert!(!config.control_socket.exists());
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_boot_that_fails_leaves_nothing_held() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let fails = |_: Parts<'_>| Err(Error::corrupt("a damaged WAL"));
        let error = run(&config, fails).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(!config.control_socket.exists());
        DataDir::open(dir.path()).unwrap();
    }
}
