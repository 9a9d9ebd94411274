//! The servers of the control plane: bound first, so that a clash is seen at start, then run on a
//! thread of their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::serve::Listener;
use axum::{Router, serve};
use taipan_engine::error::{Error, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::bounded::Bounded;
use super::model::Appliance;
use super::{health, routes};
use crate::handoff::{Offer, Purpose};
use crate::inherited::{Inherited, Listening, Origin, Socket};
use crate::sockets::{listen_tcp, listen_unix};

/// Open connections of each server.
const CONNECTIONS_MAX: usize = 64;
/// Threads for calls that block: a call that waits for a slow backend keeps no other one waiting.
const BLOCKING_THREADS_MAX: usize = 2 * CONNECTIONS_MAX;
/// How long answers in flight may take once the daemon stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// The control API and the metrics server, bound and perhaps running.
#[derive(Debug)]
pub struct Servers {
    /// The socket file; `None` once it is removed.
    control_path: Option<PathBuf>,
    /// The same of the daemon before, until this one answers.
    passed_path: Option<PathBuf>,
    control: Option<Socket>,
    metrics: Option<Socket>,
    metrics_address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Listens on the control socket (mode 0600) and on the metrics address, if any. Nothing is
    /// answered before [`Servers::start`]; requests wait in the backlog.
    /// What is inherited is taken instead.
    pub fn bind(
        control_socket: &Path,
        metrics: Option<SocketAddr>,
        inherited: &mut Inherited,
    ) -> Result<Self> {
        let metrics = inherited.tcp(Purpose::Metrics, metrics.as_slice(), |address| {
            listen_tcp(address, "metrics")
        })?;
        let control = inherited.unix(Purpose::Control, control_socket, |path| {
            listen_unix(path, 0o600)
        })?;
        let control = only(control, Purpose::Control)?;
        let path_of = |socket: &Socket, origin: Origin| match &socket.listening {
            Listening::Unix(_, path) if socket.origin == origin => Some(path.clone()),
            _ => None,
        };
        let passed_path = control
            .as_ref()
            .and_then(|socket| path_of(socket, Origin::Passed));
        let control_path = control
            .as_ref()
            .and_then(|socket| path_of(socket, Origin::Bound));
        let metrics = only(metrics, Purpose::Metrics)?;
        let metrics_address = match &metrics {
            Some(Socket {
                listening: Listening::Tcp(listener),
                ..
            }) => Some(
                listener
                    .local_addr()
                    .map_err(|e| Error::io("asking for the metrics address", e))?,
            ),
            _ => None,
        };
        Ok(Self {
            control_path,
            passed_path,
            control,
            metrics,
            metrics_address,
            stop: watch::Sender::new(false),
            thread: None,
        })
    }

    /// The sockets for a daemon that follows; to be called before [`Servers::start`].
    pub fn offers(&self) -> Result<Vec<Offer>> {
        let control = self.control.iter().map(|socket| (Purpose::Control, socket));
        let metrics = self.metrics.iter().map(|socket| (Purpose::Metrics, socket));
        let offer = |(purpose, socket)| Offer::of(purpose, socket);
        control.chain(metrics).map(offer).collect()
    }

    /// Where metrics are served, with the port that was assigned if port 0 was asked for.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Answers from now on, from a thread of its own named `control`, pinned to `cpu` if given.
    pub fn start(&mut self, appliance: Arc<dyn Appliance>, cpu: Option<usize>) -> Result<()> {
        let failed = |error| Error::io("starting the control plane", error);
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("control-call")
            .build()
            .map_err(failed)?;
        let control = match self.control.take().map(|socket| socket.listening) {
            Some(Listening::Unix(listener, _)) => {
                listener.set_nonblocking(true).map_err(failed)?;
                let _inside = runtime.enter();
                Some(tokio::net::UnixListener::from_std(listener).map_err(failed)?)
            }
            _ => None,
        };
        let metrics = match self.metrics.take().map(|socket| socket.listening) {
            Some(Listening::Tcp(listener)) => {
                listener.set_nonblocking(true).map_err(failed)?;
                let _inside = runtime.enter();
                Some(tokio::net::TcpListener::from_std(listener).map_err(failed)?)
            }
            _ => None,
        };
        let stop = self.stop.subscribe();
        let work = async move {
            let control = run(
                control,
                routes::router(Arc::clone(&appliance)),
                stop.clone(),
            );
            let metrics = run(metrics, health::router(appliance), stop);
            tokio::join!(control, metrics);
        };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || drive(runtime, cpu, work))
            .map_err(failed)?;
        self.thread = Some(thread);
        self.control_path = self.control_path.take().or_else(|| self.passed_path.take());
        Ok(())
    }

    /// A successor answers from now on: no more is accepted here, the socket files stay, and what
    /// is still being answered ends with the process.
    pub fn leave(mut self) {
        self.stop.send_replace(true);
        (self.control_path, self.thread) = (None, None);
    }

    /// Stops accepting, gives answers in flight a short time, and removes the control socket.
    pub fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control plane panicked");
        }
        if let Some(path) = self.control_path.take()
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "socket not removed");
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The socket for a purpose that has one.
fn only(sockets: Vec<Socket>, purpose: Purpose) -> Result<Option<Socket>> {
    if sockets.len() > 1 {
        let text = format!(
            "the service manager passed several sockets for {}",
            purpose.name()
        );
        return Err(Error::invalid(text));
    }
    Ok(sockets.into_iter().next())
}

fn drive(runtime: Runtime, cpu: Option<usize>, work: impl Future<Output = ()>) {
    if let Some(id) = cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        tracing::warn!(cpu = id, "the control plane could not be pinned");
    }
    runtime.block_on(work);
    // A call that still blocks ends with the process.
    runtime.shutdown_background();
}

async fn run<L>(listener: Option<L>, router: Router, mut stop: watch::Receiver<bool>)
where
    L: Listener,
    L::Io: Unpin,
    L::Addr: std::fmt::Debug,
{
    let Some(listener) = listener else {
        return;
    };
    let mut told = stop.clone();
    let graceful =
        serve(Bounded::new(listener, CONNECTIONS_MAX), router).with_graceful_shutdown(async move {
            // An error means that the sender is gone: stop too.
            let _ = told.wait_for(|stopped| *stopped).await;
        });
    let too_late = async {
        let _ = stop.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        result = async { graceful.await } => {
            if let Err(error) = result {
                tracing::error!(%error, "a server of the control plane ended");
            }
        }
        () = too_late => {}
    }
}
