//! The servers of the control plane: bound first, so that a clash is seen at start, then run on a
//! thread of their own.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
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
use crate::sockets::{listen_tcp, listen_unix};

/// Open connections of each server.
const CONNECTIONS_MAX: usize = 64;
/// Threads for calls that block.
const BLOCKING_THREADS_MAX: usize = 8;
/// How long answers in flight may take once the daemon stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// The control API and the metrics server, bound and perhaps running.
#[derive(Debug)]
pub struct Servers {
    /// The socket file; `None` once it is removed.
    control_path: Option<PathBuf>,
    control: Option<UnixListener>,
    metrics: Option<TcpListener>,
    metrics_address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Listens on the control socket (mode 0600) and on the metrics address, if any. Nothing is
    /// answered before [`Servers::start`]; requests wait in the backlog.
    pub fn bind(control_socket: &Path, metrics: Option<SocketAddr>) -> Result<Self> {
        let metrics = metrics
            .map(|address| listen_tcp(address, "metrics"))
            .transpose()?;
        let metrics_address = match &metrics {
            Some(listener) => Some(
                listener
                    .local_addr()
                    .map_err(|e| Error::io("asking for the metrics address", e))?,
            ),
            None => None,
        };
        Ok(Self {
            control: Some(listen_unix(control_socket, 0o600)?),
            control_path: Some(control_socket.to_owned()),
            metrics,
            metrics_address,
            stop: watch::Sender::new(false),
            thread: None,
        })
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
        let control = match self.control.take() {
            Some(listener) => {
                listener.set_nonblocking(true).map_err(failed)?;
                let _inside = runtime.enter();
                Some(tokio::net::UnixListener::from_std(listener).map_err(failed)?)
            }
            None => None,
        };
        let metrics = match self.metrics.take() {
            Some(listener) => {
                listener.set_nonblocking(true).map_err(failed)?;
                let _inside = runtime.enter();
                Some(tokio::net::TcpListener::from_std(listener).map_err(failed)?)
            }
            None => None,
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
        Ok(())
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
