//! Hand-off: a daemon gives its clients, its listening sockets and its data directory to another
//! one, which serves on (`docs/internals/handoff.md`).

mod channel;
pub mod format;
mod predecessor;
mod successor;

#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use taipan_engine::error::Result;

use crate::inherited::{Listening, Origin, Socket, absolute};

pub use format::{ListenerNote, Passed, Purpose};
pub use predecessor::{Conversation, Door, Offers};
pub use successor::{Inheritance, Successor};

/// A client's socket with everything that must be known of the connection.
#[derive(Debug)]
pub struct Handed {
    /// The socket, non-blocking.
    pub socket: OwnedFd,
    /// Its state.
    pub passed: Box<Passed>,
}

/// A listening socket that a successor may have.
#[derive(Debug)]
pub struct Offer {
    /// What it is.
    pub note: ListenerNote,
    /// The socket once more.
    pub socket: OwnedFd,
}

impl Offer {
    /// A socket of this daemon.
    pub fn of(purpose: Purpose, socket: &Socket) -> Result<Self> {
        let path = match &socket.listening {
            Listening::Tcp(_) => String::new(),
            Listening::Unix(_, path) => absolute(path).to_string_lossy().into_owned(),
        };
        Ok(Self {
            note: ListenerNote {
                purpose,
                activated: socket.origin == Origin::Activated,
                path,
            },
            socket: socket.listening.try_clone()?,
        })
    }
}

/// Where a daemon listens for its successor.
pub fn door_path(data_dir: &Path) -> PathBuf {
    data_dir.join("handoff.sock")
}

fn release() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
