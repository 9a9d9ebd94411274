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
    wait(&stopped)?;
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
