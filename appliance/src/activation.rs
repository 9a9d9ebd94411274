//! Socket activation: listening sockets that the service manager made (`LISTEN_FDS`, `LISTEN_PID`,
//! `LISTEN_FDNAMES`, see sd_listen_fds(3)). Their names say what they are for.

use std::os::fd::RawFd;

use taipan_engine::error::{Error, Result};
use taipan_engine::ring::descriptor;

use crate::handoff::Purpose;
use crate::inherited::{Inherited, Listening, Origin, Socket};

/// The first passed descriptor.
const FIRST: RawFd = 3;
/// More than anybody needs.
const SOCKETS_MAX: u32 = 64;
/// What names may say; a suffix behind a dash tells several of a kind apart.
const PURPOSES: [Purpose; 3] = [Purpose::Nbd, Purpose::Control, Purpose::Metrics];

/// What the service manager says in the environment.
#[derive(Debug, Default)]
struct Told {
    fds: Option<String>,
    pid: Option<String>,
    names: Option<String>,
}

/// The sockets that the service manager passed to this process; none without its variables.
pub fn sockets() -> Result<Inherited> {
    let variable = |name| std::env::var(name).ok();
    let told = Told {
        fds: variable("LISTEN_FDS"),
        pid: variable("LISTEN_PID"),
        names: variable("LISTEN_FDNAMES"),
    };
    let mut inherited = Inherited::default();
    for (number, purpose) in understand(&told, std::process::id())? {
        let what = || format!("descriptor {number} that the service manager passed");
        let socket = descriptor(number).map_err(|e| Error::io(what(), e))?;
        let listening = Listening::of(socket, None)?;
        tracing::info!(?listening, "socket of the service manager");
        let socket = Socket {
            listening,
            origin: Origin::Activated,
        };
        inherited.add(purpose, socket);
    }
    Ok(inherited)
}

/// The descriptors and what each is for.
fn understand(told: &Told, own_pid: u32) -> Result<Vec<(RawFd, Purpose)>> {
    // Variables that were meant for a parent are left over.
    if told.pid.as_deref() != Some(&own_pid.to_string()) {
        return Ok(Vec::new());
    }
    let fds = told.fds.as_deref().unwrap_or("0");
    let count = fds.parse::<u32>().ok().filter(|n| *n <= SOCKETS_MAX);
    let count = count.ok_or_else(|| Error::invalid(format!("LISTEN_FDS is {fds:?}")))?;
    let names = told.names.as_deref().unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    let purpose = |index: u32| {
        let name = names.get(index as usize).copied().unwrap_or_default();
        let known = PURPOSES
            .into_iter()
            .find(|purpose| is_named(name, *purpose));
        known.ok_or_else(|| {
            Error::invalid(format!(
                "the service manager passed a socket named {name:?}; set FileDescriptorName= to \
                 nbd, control or metrics (several of a kind: nbd-1, nbd-2)"
            ))
        })
    };
    (0..count)
        .map(|index| Ok((FIRST + index as RawFd, purpose(index)?)))
        .collect()
}

fn is_named(name: &str, purpose: Purpose) -> bool {
    let rest = name.strip_prefix(purpose.name());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fds: &str, pid: &str, names: &str) -> Told {
        Told {
            fds: Some(fds.to_owned()),
            pid: Some(pid.to_owned()),
            names: Some(names.to_owned()),
        }
    }

    #[test]
    fn names_say_what_sockets_are_for() {
        let found = understand(&told("4", "7", "nbd:nbd-lan:control:metrics"), 7).unwrap();
        let expected = [
            (3, Purpose::Nbd),
            (4, Purpose::Nbd),
            (5, Purpose::Control),
            (6, Purpose::Metrics),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_meant_for_another_process_is_left_alone() {
        assert_eq!(understand(&Told::default(), 7).unwrap(), []);
        assert_eq!(understand(&told("1", "8", "nbd"), 7).unwrap(), []);
        assert_eq!(understand(&told("1", "", "nbd"), 7).unwrap(), []);
    }

    #[test]
    fn nonsense_is_refused_with_what_to_do() {
        for wrong in ["x", "-1", "1000"] {
            let error = understand(&told(wrong, "7", "nbd"), 7)
                .unwrap_err()
                .to_string();
            assert!(error.contains("LISTEN_FDS"), "{error}");
        }
        for names in ["", "unknown", "taipan.socket", "nbdx", "handoff"] {
            let error = understand(&told("1", "7", names), 7)
                .unwrap_err()
                .to_string();
            assert!(error.contains("FileDescriptorName="), "{names}: {error}");
        }
        let error = understand(&told("2", "7", "nbd"), 7)
            .unwrap_err()
            .to_string();
        assert!(error.contains("FileDescriptorName="), "{error}");
    }
}
