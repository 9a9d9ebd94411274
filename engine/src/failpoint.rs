//! Scripted faults at the durable steps of the running daemon, for tests: `TAIPAN_FAILPOINTS`.
//!
//! The value is `name=action;name=action…`; an action is `error(ERRNO)`, `crash` or `delay(MS)` and
//! may be preceded by `N*` (only the first N hits) or `+N*` (after N hits, for ever).
//! ERRNO is EIO, ENOSPC or a number. Without the variable a failpoint costs one relaxed load.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::{self, Error};

/// The names in use, one for every durable step.
pub const NAMES: [&str; 39] = [
    "wal.write",
    "wal.barrier",
    "wal.read",
    "wal.release",
    "wal.end",
    "chunk.put",
    "chunk.get",
    "compact.read",
    "compact.put",
    "compact.manifest",
    "cache.read",
    "cache.write",
    "manifest.put",
    "configure.put",
    "delete.put",
    "delete.mark",
    "delete.name",
    "delete.free",
    "delete.done",
    "sweep.delete",
    "snapshot.delete",
    "group.put",
    "point.keep",
    "clone.pin",
    "clone.index",
    "clone.manifest",
    "clone.name",
    "clone.release",
    "flatten.release",
    "rollback.index",
    "rollback.put",
    "object.delete",
    "head.save",
    "region.append",
    "quarantine.write",
    "handoff.switch",
    "handoff.take",
    "handoff.taken",
    "handoff.release",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Error(i32),
    Crash,
    Delay(u64),
}

#[derive(Clone, Copy, Debug)]
struct Point {
    skip: u64,
    left: u64,
    action: Action,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static POINTS: OnceLock<Mutex<HashMap<&'static str, Point>>> = OnceLock::new();

/// Arms the failpoints of the environment. The error names what cannot be understood.
pub fn arm_from_environment() -> Result<usize, String> {
    match std::env::var("TAIPAN_FAILPOINTS") {
        Ok(text) if !text.is_empty() => arm(&text),
        _ => Ok(0),
    }
}

/// Arms the failpoints described by `text` and returns how many there are.
pub fn arm(text: &str) -> Result<usize, String> {
    let mut points = HashMap::new();
    for part in text.split(';').filter(|part| !part.trim().is_empty()) {
        let (name, action) = part
            .trim()
            .split_once('=')
            .ok_or_else(|| format!("failpoint {part:?} has no '='"))?;
        let name = NAMES
            .into_iter()
            .find(|known| *known == name)
            .ok_or_else(|| format!("failpoint {name:?} is none of {NAMES:?}"))?;
        points.insert(
            name,
            parse(action).ok_or_else(|| format!("bad action {action:?}"))?,
        );
    }
    let count = points.len();
    let mutex = POINTS.get_or_init(Mutex::default);
    *mutex.lock().unwrap_or_else(PoisonError::into_inner) = points;
    ARMED.store(count > 0, Ordering::Release);
    Ok(count)
}

fn parse(text: &str) -> Option<Point> {
    let (skip, left, action) = match text.split_once('*') {
        Some((count, action)) => match count.strip_prefix('+') {
            Some(skip) => (skip.parse().ok()?, u64::MAX, action),
            None => (0, count.parse().ok()?, action),
        },
        None => (0, u64::MAX, text),
    };
    let action = match action.strip_suffix(')').and_then(|a| a.split_once('(')) {
        Some(("error", errno)) => Action::Error(match errno {
            "EIO" => 5,
            "ENOSPC" => 28,
            number => number.parse().ok()?,
        }),
        Some(("delay", ms)) => Action::Delay(ms.parse().ok()?),
        _ if action == "crash" => Action::Crash,
        _ => return None,
    };
    Some(Point { skip, left, action })
}

#[cfg(any(test, feature = "sim"))]
mod scripted;
#[cfg(any(test, feature = "sim"))]
pub(crate) use scripted::{fail_next, fail_none, has_fired};

/// Passes the failpoint `name`: returns the scripted error, waits, or ends the process as by
/// `kill -9`.
#[inline]
pub fn hit(name: &'static str) -> io::Result<()> {
    #[cfg(any(test, feature = "sim"))]
    scripted::pass(name)?;
    if ARMED.load(Ordering::Relaxed) {
        fire(name)
    } else {
        Ok(())
    }
}

/// As [`hit`], with the error of an operation.
#[inline]
pub fn pass(name: &'static str) -> error::Result<()> {
    hit(name).map_err(|e| Error::io("a failpoint refused the operation", e))
}

#[cold]
fn fire(name: &'static str) -> io::Result<()> {
    let Some(mutex) = POINTS.get() else {
        return Ok(());
    };
    let action = {
        let mut points = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(point) = points.get_mut(name) else {
            return Ok(());
        };
        if point.skip > 0 {
            point.skip -= 1;
            return Ok(());
        }
        if point.left == 0 {
            return Ok(());
        }
        point.left -= 1;
        point.action
    };
    match action {
        Action::Error(errno) => Err(io::Error::from_raw_os_error(errno)),
        Action::Delay(ms) => {
            std::thread::sleep(Duration::from_millis(ms));
            Ok(())
        }
        Action::Crash => {
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            unreachable!("SIGKILL ends the process")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_parsed_counted_and_refused() {
        assert_eq!(parse("error(EIO)").unwrap().action, Action::Error(5));
        assert_eq!(parse("3*error(28)").unwrap().left, 3);
        assert_eq!(parse("+2*crash").unwrap().skip, 2);
        assert_eq!(parse("delay(7)").unwrap().action, Action::Delay(7));
        for bad in ["error", "error(x)", "x*crash", "boom"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        assert!(arm("no.such=crash").is_err());
        assert!(arm("wal.write").is_err());
    }

    #[test]
    fn a_counted_failpoint_fires_so_often_and_then_passes() {
        assert_eq!(arm("chunk.get=+1*error(EIO)"), Ok(1));
        assert!(hit("chunk.get").is_ok());
        assert_eq!(hit("chunk.get").unwrap_err().raw_os_error(), Some(5));
        assert!(hit("chunk.put").is_ok());
        assert_eq!(arm("chunk.get=1*error(EIO)"), Ok(1));
        assert!(hit("chunk.get").is_err());
        assert!(hit("chunk.get").is_ok());
        assert_eq!(arm(""), Ok(0));
    }
}
