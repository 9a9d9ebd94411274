//! SIGTERM and SIGINT: the first asks for an orderly stop, the second ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};

use taipan_engine::error::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code after a second signal: the stop was not orderly, nothing acknowledged is lost.
pub const IMPATIENT_EXIT: i32 = 130;

/// Whether a first one has come.
static COME: AtomicBool = AtomicBool::new(false);

/// Whether the process was told to end: what is not yet under way need not begin.
pub fn has_come() -> bool {
    COME.load(Ordering::Acquire)
}

/// Calls `stop` with the signal's name at the first SIGTERM or SIGINT and ends the process at the
/// second. Watches from a thread of its own, before this returns.
pub fn watch(stop: impl FnOnce(&'static str) + Send + 'static) -> Result<()> {
    let failed = |error| Error::io("watching for signals", error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate()).map_err(failed)?,
            signal(SignalKind::interrupt()).map_err(failed)?,
        )
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                let first = next(&mut terminate, &mut interrupt).await;
                tracing::info!(signal = first, "stopping; a second signal ends at once");
                COME.store(true, Ordering::Release);
                stop(first);
                let second = next(&mut terminate, &mut interrupt).await;
                tracing::warn!(
                    signal = second,
                    "ending at once; the next start recovers what was answered"
                );
                std::process::exit(IMPATIENT_EXIT);
            });
        })
        .map_err(failed)?;
    Ok(())
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_signal_asks_for_a_stop_and_does_not_end_the_process() {
        let (told, hears) = mpsc::channel();
        watch(move |name| told.send(name).unwrap()).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
            .unwrap();
        assert_eq!(hears.recv_timeout(Duration::from_secs(60)), Ok("SIGTERM"));
        assert!(has_come());
    }
}
