//! SIGINT and SIGTERM: the first asks for an end that keeps what was measured, the second is the
//! end.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code of what was interrupted, as shells have it for SIGINT.
pub(crate) const EXIT: u8 = 130;

/// Whether a first one has come.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Whether the end was asked for: nothing more is begun, what is there is reported.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Fails when the end was asked for.
pub(crate) fn check() -> Result<()> {
    ensure!(!asked(), "interrupted");
    Ok(())
}

/// Calls `stop` at the first signal and ends the process at the second. Until this is called, the
/// first one is the end.
pub(crate) fn watch(stop: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("watching for signals")?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        let watched = |kind| signal(kind).context("watching for signals");
        (
            watched(SignalKind::terminate())?,
            watched(SignalKind::interrupt())?,
        )
    };
    let wait = move || {
        runtime.block_on(async {
            next(&mut terminate, &mut interrupt).await;
            ASKED.store(true, Ordering::Relaxed);
            stop();
            // Nobody may be listening any more.
            let _ = writeln!(
                std::io::stderr(),
                "interrupted: reporting what was measured; a second signal ends at once"
            );
            next(&mut terminate, &mut interrupt).await;
            std::process::exit(EXIT.into());
        });
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .context("watching for signals")?;
    Ok(())
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
