//! Listeners and connections, and playing dead.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use super::World;
use super::faults::Down;
use super::serve::serve;

/// Between attempts to take the port again after having played dead.
const REBIND: Duration = Duration::from_millis(20);
/// Most that is received or sent in one call. Hyper's 400 KiB are a millisecond in the kernel,
/// which a server on the machine of what is measured takes from it, and one elsewhere does not.
const BUFFER_BYTES_MAX: usize = 32 << 10;

/// Serves both listeners until the sender of `stopped` is gone.
pub(crate) async fn serve_until(
    world: Arc<World>,
    (listener, admin): (StdListener, StdListener),
    stopped: oneshot::Receiver<()>,
) {
    // The admin endpoint never plays dead.
    let (_living, never) = watch::channel(None);
    tokio::select! {
        () = accept(Arc::clone(&world), listener, world.faults.watch_down()) => {}
        () = accept(Arc::clone(&world), admin, never) => {}
        _ = stopped => {}
    }
}

/// Accepts until the listener fails for good.
async fn accept(world: Arc<World>, listener: StdListener, mut down: watch::Receiver<Option<Down>>) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let mut listening = TcpListener::from_std(listener).ok();
    loop {
        if *down.borrow_and_update() == Some(Down::Refuse) {
            drop(listening.take());
            if down.changed().await.is_err() {
                return;
            }
            continue;
        }
        let open = match listening.take() {
            Some(open) => open,
            None => bound(address).await,
        };
        tokio::select! {
            accepted = open.accept() => {
                if let Ok((stream, _)) = accepted {
                    tokio::spawn(connection(Arc::clone(&world), stream, down.clone()));
                }
            }
            changed = down.changed() => if changed.is_err() {
                return;
            }
        }
        listening = Some(open);
    }
}

async fn bound(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            // A closing connection may still hold the port.
            Err(_) => tokio::time::sleep(REBIND).await,
        }
    }
}

/// Serves one connection until it ends or the server plays dead.
async fn connection(world: Arc<World>, stream: TcpStream, mut down: watch::Receiver<Option<Down>>) {
    // Without it a reply in two pieces waits for an acknowledgement; slow is all that would be.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| serve(Arc::clone(&world), request));
    let serving = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // An error is a client that went away, or a cut that was scripted.
        _ = serving => {}
        _ = down.wait_for(|down| *down == Some(Down::Refuse)) => {}
    }
}
