//! What the command says while the daemon lets it wait, mostly for a slow backend.

use std::time::Duration;

use taipan_engine::api::{BackendState, Status};

use crate::volume::word;

/// Whoever waits longer hears so often how it stands.
pub(crate) const NOTICE_EVERY: Duration = Duration::from_secs(10);

/// One line on what is waited for; `status` as far as the daemon tells it meanwhile.
pub(crate) fn notice(what: &str, waited: Duration, status: Option<&Status>) -> String {
    let waiting = format!("waiting to {what}, {} s so far", waited.as_secs());
    let Some(backend) = status.map(|status| &status.backend) else {
        return format!("{waiting}; the daemon does not tell how it is doing");
    };
    let state = word(backend.state);
    if backend.state == BackendState::Healthy {
        let requests: u64 = backend.requests.iter().map(|verb| verb.requests).sum();
        return format!("{waiting}; backend {state}, {requests} requests since the start");
    }
    let error = backend.last_error.as_deref().unwrap_or("no error is known");
    match backend.failing_seconds {
        Some(seconds) => format!("{waiting}; backend {state} for {seconds:.0} s: {error}"),
        None => format!("{waiting}; backend {state}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taipan_engine::backend::VerbCounts;

    #[test]
    fn who_waits_hears_how_the_backend_is_doing() {
        let told = |status: Option<&Status>| {
            let waited = Duration::from_millis(20_400);
            notice("create volume \"v\"", waited, status)
        };
        let begin = "waiting to create volume \"v\", 20 s so far";
        let mute = format!("{begin}; the daemon does not tell how it is doing");
        assert_eq!(told(None), mute);
        let mut status = Status::default();
        let count = |requests| VerbCounts {
            requests,
            ..VerbCounts::default()
        };
        status.backend.requests = vec![count(3), count(4)];
        let healthy = format!("{begin}; backend healthy, 7 requests since the start");
        assert_eq!(told(Some(&status)), healthy);
        status.backend.state = BackendState::Retrying;
        status.backend.last_error = Some("no route".to_owned());
        status.backend.failing_seconds = Some(12.3);
        let failing = format!("{begin}; backend retrying for 12 s: no route");
        assert_eq!(told(Some(&status)), failing);
    }
}
