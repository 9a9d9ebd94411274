//! Locked memory: the executor of the uploader needs some for its rings and refuses to start with
//! less, long after the data cores serve. So it is looked at first.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::size;

/// What the executor asks for.
const NEEDED_BYTES: u64 = 512 << 10;

/// Raises the limit on locked memory (`RLIMIT_MEMLOCK`) as far as this process may.
///
/// # Errors
/// `Full` when the hard limit is too low; the text says what to set.
pub fn allow_locked_memory() -> Result<()> {
    let limit = getrlimit(Resource::Memlock);
    let Some(raised) = raised(limit)? else {
        return Ok(());
    };
    setrlimit(Resource::Memlock, raised)
        .map_err(|errno| Error::io("raising the limit on locked memory", errno.into()))
}

/// The limit to set, if the present one does not do.
fn raised(limit: Rlimit) -> Result<Option<Rlimit>> {
    let suffices = |bytes: Option<u64>| bytes.is_none_or(|bytes| bytes >= NEEDED_BYTES);
    if suffices(limit.current) {
        return Ok(None);
    }
    if suffices(limit.maximum) {
        return Ok(Some(Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        }));
    }
    let has = size::human(limit.maximum.unwrap_or(u64::MAX));
    let needed = size::human(NEEDED_BYTES);
    Err(Error::new(
        ErrorKind::Full,
        format!(
            "the limit on locked memory is {has}, at least {needed} are needed: set \
             LimitMEMLOCK=8M in the systemd unit, memlock in /etc/security/limits.conf, or start \
             from a shell after `ulimit -l 8192`"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(current: u64, maximum: Option<u64>) -> Rlimit {
        Rlimit {
            current: Some(current),
            maximum,
        }
    }

    #[test]
    fn enough_stays_as_it_is() {
        assert!(raised(limit(512 << 10, Some(512 << 10))).unwrap().is_none());
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        assert!(raised(unlimited).unwrap().is_none());
    }

    #[test]
    fn a_soft_limit_is_raised_to_the_hard_one() {
        let raised_to = |maximum| raised(limit(64 << 10, maximum)).unwrap().unwrap().current;
        assert_eq!(raised_to(Some(8 << 20)), Some(8 << 20));
        assert_eq!(raised_to(None), None, "no limit at all");
    }

    #[test]
    fn a_hard_limit_that_is_too_low_says_what_to_set() {
        let error = raised(limit(64 << 10, Some(64 << 10))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full);
        assert!(error.to_string().contains("LimitMEMLOCK"), "{error}");
    }

    #[test]
    fn this_process_gets_what_it_needs_or_is_told() {
        let outcome = allow_locked_memory();
        let now = getrlimit(Resource::Memlock).current;
        assert_eq!(
            outcome.is_ok(),
            now.is_none_or(|bytes| bytes >= NEEDED_BYTES)
        );
    }
}
