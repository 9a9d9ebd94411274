//! Log output: lines for people or JSON objects, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Logging};

/// Why a log filter cannot be used.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::builder()
        .parse(filter)
        .map(drop)
        .map_err(|error| format!("{filter:?} is not a log filter: {error}"))
}

/// Starts logging for the whole process; a second call changes nothing.
pub fn start(logging: &Logging) {
    let filter = EnvFilter::builder().parse_lossy(&logging.filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Fails only if logging runs already.
    let _ = match logging.format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_before_they_are_used() {
        for good in ["info", "taipan_engine=debug,info", "off"] {
            check_filter(good).unwrap();
        }
        let error = check_filter("info,a=b=c").unwrap_err();
        assert!(error.contains("not a log filter"), "{error}");
    }
}
