//! The life of the daemon: take the data directory, plan memory, start the data plane, serve the
//! control plane, wait for a signal or a successor, end in order.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use taipan_engine::error::{Error, Result};

use crate::activation;
use crate::budget::{MemoryBudget, machine_memory_bytes};
use crate::config::Config;
use crate::control::{Appliance, Servers};
use crate::handoff::{
    Conversation, Door, Handed, Inheritance, Offer, Offers, Successor, door_path,
};
use crate::inherited::Inherited;
use crate::lock::{DataDir, free_bytes};
use crate::memlock::allow_locked_memory;
use crate::notify::{self, Progress};
use crate::signals;

/// How long a successor that is ready waits for commits.
const LIGHTEN_WAIT: Duration = Duration::from_secs(3);

/// How this process comes to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Nobody serves.
    Start,
    /// Another process does, and hands over.
    Takeover,
}

/// What ends a daemon.
#[derive(Debug)]
pub enum Order {
    /// A signal, by its name.
    Stop(&'static str),
    /// A successor is ready.
    HandOver(Conversation),
}

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
    /// Listening sockets that others made.
    pub inherited: &'a mut Inherited,
    /// The daemon that serves still: whatever can fail comes before [`Successor::switch`].
    pub successor: Option<Successor>,
    /// Ends the daemon in order, as a signal does.
    pub orders: Sender<Order>,
    /// When the process began.
    pub began: Instant,
}

/// A data plane that serves.
pub trait Running {
    /// What the control plane talks to.
    fn appliance(&self) -> Arc<dyn Appliance>;

    /// The listening sockets, for a successor.
    fn offers(&self) -> Result<Vec<Offer>>;

    /// Reads no more requests, answers those in flight, makes everything durable and gives the
    /// connections, which stay open here. After an error too [`Running::unpark`] is to follow.
    fn park(&self) -> Result<Vec<Handed>>;

    /// The connections are served on.
    fn unpark(&self) -> Result<()>;

    /// The connections are another process's now: closes everything else in order and returns when
    /// that one may use the data directory.
    fn release(self: Box<Self>) -> Result<()>;

    /// Stops accepting, answers what is in flight, flushes, packs everything if `drain`, closes
    /// the sockets and returns when all threads have ended.
    fn stop(self: Box<Self>, drain: bool) -> Result<()>;
}

/// Serves until a signal arrives, or a successor takes over. `boot` recovers and starts the data
/// plane; it is called once this process holds the data directory and the addresses of the control
/// plane, though in a takeover another one serves until it calls [`Successor::switch`].
pub fn run(
    config: &Config,
    arrival: Arrival,
    boot: impl FnOnce(Parts<'_>) -> Result<Box<dyn Running>>,
) -> Result<()> {
    let began = Instant::now();
    allow_locked_memory()?;
    let (mut data, mut inherited, successor) = arrive(&config.data_dir, arrival)?;
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

    let mut servers = Servers::bind(&config.control_socket, config.metrics, &mut inherited)?;
    let door = Door::hang(data.path(), &mut inherited)?;
    let (orders, ordered) = mpsc::channel();
    let on_signal = orders.clone();
    signals::watch(move |name| {
        // Fails only if the daemon is ending already.
        let _ = on_signal.send(Order::Stop(name));
    })?;
    let running = boot(Parts {
        config,
        data: &data,
        runtime_dir,
        budget,
        inherited: &mut inherited,
        successor,
        orders: orders.clone(),
        began,
    })?;
    drop(inherited);
    data.sign()?;
    let offers = open_door(door, &data, &servers, &*running, orders)?;
    servers.start(running.appliance(), None)?;
    notify::tell(Progress::Serving);
    serve(config, servers, running, &offers, &ordered)
}

/// The data directory and the sockets that this process begins with.
fn arrive(data_dir: &Path, arrival: Arrival) -> Result<(DataDir, Inherited, Option<Successor>)> {
    match arrival {
        Arrival::Start => {
            let inherited = activation::sockets()?;
            Ok((DataDir::open(data_dir)?, inherited, None))
        }
        Arrival::Takeover => {
            let (successor, inheritance) = Successor::knock(data_dir)?;
            let Inheritance { lock, sockets } = inheritance;
            Ok((DataDir::share(data_dir, lock)?, sockets, Some(successor)))
        }
    }
}

/// Listens for a successor from now on.
fn open_door(
    door: Door,
    data: &DataDir,
    servers: &Servers,
    running: &dyn Running,
    orders: Sender<Order>,
) -> Result<Offers> {
    let mut sockets = servers.offers()?;
    sockets.extend(running.offers()?);
    sockets.push(door.offer()?);
    let offers = Offers::default();
    offers.set(data.lock_again()?, sockets);
    door.open(offers.clone(), move |conversation| {
        // Fails only if the daemon is ending already.
        let _ = orders.send(Order::HandOver(conversation));
    })?;
    Ok(offers)
}

/// Serves until it is told to end, and ends.
fn serve(
    config: &Config,
    mut servers: Servers,
    running: Box<dyn Running>,
    offers: &Offers,
    ordered: &Receiver<Order>,
) -> Result<()> {
    loop {
        match next(ordered)? {
            Order::HandOver(conversation) => match pass(&*running, conversation) {
                Ok(conversation) => {
                    notify::tell(Progress::HandedOver {
                        pid: conversation.pid(),
                    });
                    servers.leave();
                    let result = running.release();
                    conversation.release();
                    tracing::info!("handed over");
                    return result;
                }
                Err(error) => tracing::warn!(%error, "no hand-off; serving goes on"),
            },
            Order::Stop(why) => {
                tracing::info!(why, "stopping");
                offers.withdraw();
                // Best effort: the next start replaces it.
                let _ = std::fs::remove_file(door_path(&config.data_dir));
                notify::tell(Progress::Stopping);
                let result = running.stop(config.drain_on_stop);
                servers.stop();
                match &result {
                    Ok(()) => tracing::info!("stopped; everything answered is durable"),
                    Err(error) => tracing::error!(%error, "stopped with an error"),
                }
                return result;
            }
        }
    }
}

/// Commits what is in the log, so that the successor need not read it there. One that takes long is
/// not waited for: that costs time later, and nothing else.
fn lighten(running: &dyn Running) {
    let (appliance, (done, ended)) = (running.appliance(), mpsc::channel());
    let commit = move || {
        // Nobody may be waiting any more.
        let _late = done.send(appliance.drain());
    };
    let thread = std::thread::Builder::new().name("lighten".to_owned());
    let result = thread
        .spawn(commit)
        .map(|_| ended.recv_timeout(LIGHTEN_WAIT));
    tracing::info!(?result, "committed before the hand-off");
}

/// Passes the clients to a successor. After an error they are served here as before.
fn pass(running: &dyn Running, conversation: Conversation) -> Result<Conversation> {
    lighten(running);
    let parked = running.park();
    let passed = match &parked {
        Ok(clients) => {
            tracing::info!(
                pid = conversation.pid(),
                clients = clients.len(),
                "handing over"
            );
            conversation.pass(clients)
        }
        Err(error) => Err(Error::new(error.kind(), error.to_string())),
    };
    match passed {
        Ok(()) => Ok(conversation),
        Err(error) => {
            running.unpark()?;
            conversation.refuse(&error);
            Err(error)
        }
    }
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

fn next(ordered: &Receiver<Order>) -> Result<Order> {
    // A sender lives in the signal thread as long as the process; without it nothing could ever
    // stop the daemon.
    let gone = |_| Error::invalid("the signal watcher is gone");
    ordered.recv().map_err(gone)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use taipan_engine::error::ErrorKind;

    use super::*;
    use crate::config::{Flags, Machine, load};
    use crate::control::Pretended;

    struct Pretence(Sender<bool>);

    impl Running for Pretence {
        fn appliance(&self) -> Arc<dyn Appliance> {
            Arc::new(Pretended::default())
        }

        fn offers(&self) -> Result<Vec<Offer>> {
            Ok(Vec::new())
        }

        fn park(&self) -> Result<Vec<Handed>> {
            Err(Error::new(ErrorKind::Busy, "requests wait"))
        }

        fn unpark(&self) -> Result<()> {
            Ok(())
        }

        fn release(self: Box<Self>) -> Result<()> {
            panic!("there was nothing to hand over")
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
            run(&of_first, Arrival::Start, |parts| {
                booted.send(parts.orders).unwrap();
                Ok(Box::new(Pretence(drained)))
            })
        });
        let stop = boots.recv_timeout(Duration::from_secs(60)).unwrap();

        let unreachable = |_: Parts<'_>| -> Result<Box<dyn Running>> {
            panic!("started without holding the data directory")
        };
        let error = run(&config, Arrival::Start, unreachable).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");

        stop.send(Order::Stop("test")).unwrap();
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
        let error = run(&config, Arrival::Start, fails).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(!config.control_socket.exists());
        DataDir::open(dir.path()).unwrap();
    }
}
