//! The daemon that takes over: it asks for what there is, prepares itself while the other serves,
//! and then says when.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint;

use super::channel::Channel;
use super::format::Message;
use super::{Handed, door_path, release};
use crate::inherited::{Inherited, Listening, Origin, Socket};

/// How long the running daemon may take for an answer: it finishes what is in flight.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// How long it may take to close everything in order.
const RELEASE_WAIT: Duration = Duration::from_secs(60);
/// More listening sockets than any daemon has.
const LISTENERS_MAX: usize = 1024;

/// A hand-off that the running daemon has agreed to.
#[derive(Debug)]
pub struct Successor {
    channel: Channel,
}

/// What can be had before the switch.
#[derive(Debug)]
pub struct Inheritance {
    /// The lock of the data directory; shared with the running daemon until that ends.
    pub lock: OwnedFd,
    /// Its listening sockets.
    pub sockets: Inherited,
}

impl Successor {
    /// Knocks at the daemon that serves the data directory.
    pub fn knock(data_dir: &Path) -> Result<(Self, Inheritance)> {
        let path = door_path(data_dir);
        let stream = UnixStream::connect(&path).map_err(|e| {
            let text = "no daemon is there to take over from; start without --takeover";
            Error::io(text, e).with_path(&path)
        })?;
        let channel = Channel::new(stream);
        if !channel.is_same_user() {
            return Err(Error::invalid("the running daemon is another user's").with_path(&path));
        }
        channel.patience(ANSWER_WAIT)?;
        let pid = std::process::id();
        let hello = Message::Hello {
            pid,
            release: release(),
        };
        channel.send(&hello, None)?;
        let (mut sockets, mut count) = (Inherited::default(), 0);
        while count <= LISTENERS_MAX {
            match channel.receive()? {
                (Message::Listener(note), Some(socket)) => {
                    let path = Some(&note.path).filter(|path| !path.is_empty());
                    let socket = Socket {
                        listening: Listening::of(socket, path.map(PathBuf::from))?,
                        origin: match note.activated {
                            true => Origin::Activated,
                            false => Origin::Passed,
                        },
                    };
                    sockets.add(note.purpose, socket);
                    count += 1;
                }
                (
                    Message::Welcome {
                        pid,
                        release,
                        listeners,
                    },
                    Some(lock),
                ) if listeners as usize == count => {
                    tracing::info!(
                        pid,
                        release,
                        listeners,
                        "taking over from the running daemon"
                    );
                    return Ok((Self { channel }, Inheritance { lock, sockets }));
                }
                (other, _) => return Err(unexpected(&other)),
            }
        }
        Err(Error::invalid("the running daemon has too many sockets"))
    }

    /// Everything is prepared: takes the clients over, and with them the data directory. An error
    /// that comes before the running daemon has let go leaves it serving.
    pub fn switch(self) -> Result<Vec<Handed>> {
        let channel = self.channel;
        channel.send(&Message::Switch, None)?;
        failpoint::hit("handoff.switch").map_err(|e| Error::io("a failpoint refused", e))?;
        let mut clients = Vec::new();
        loop {
            match channel.receive()? {
                (Message::Connection(passed), Some(socket)) => {
                    clients.push(Handed { socket, passed });
                }
                (Message::Parked { connections }, _) if connections as usize == clients.len() => {
                    break;
                }
                (other, _) => return Err(unexpected(&other)),
            }
        }
        failpoint::hit("handoff.take").map_err(|e| Error::io("a failpoint refused", e))?;
        channel.send(&Message::Taken, None)?;
        failpoint::hit("handoff.release").map_err(|e| Error::io("a failpoint refused", e))?;
        channel.patience(RELEASE_WAIT)?;
        match channel.receive() {
            Ok((Message::Released, _)) => Ok(clients),
            Ok((other, _)) => Err(unexpected(&other)),
            // It was killed: its locks are free, and what it left is recovered.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!("the daemon before was killed while it let go");
                Ok(clients)
            }
            Err(error) => Err(error),
        }
    }

    /// It does not come to a switch.
    pub fn give_up(self, why: &Error) {
        // The end of the conversation says enough if this does not arrive.
        let _ = self.channel.send(&Message::Refused(why.to_string()), None);
    }
}

fn unexpected(message: &Message) -> Error {
    match message {
        Message::Refused(why) => Error::new(
            ErrorKind::Busy,
            format!("the running daemon goes on: {why}"),
        ),
        _ => Error::invalid("the running daemon said something unexpected"),
    }
}
