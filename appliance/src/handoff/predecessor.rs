//! The daemon that serves: it listens for a successor, tells it what there is, and says when that
//! one is ready to take over.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use taipan_engine::error::{Error, Result};
use taipan_engine::failpoint;

use super::channel::Channel;
use super::format::{Message, Purpose};
use super::{Handed, Offer, door_path, release};
use crate::inherited::{Inherited, Listening, Socket};
use crate::sockets::listen_unix;

/// How long a successor may take for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long it may take to prepare itself.
const PREPARE_WAIT: Duration = Duration::from_secs(300);
/// Nobody but the daemon's user may knock.
const DOOR_MODE: u32 = 0o600;

/// What a successor is told when it knocks; nothing once the daemon ends.
#[derive(Clone, Debug, Default)]
pub struct Offers(Arc<Mutex<Option<Inventory>>>);

#[derive(Debug)]
struct Inventory {
    lock: OwnedFd,
    sockets: Vec<Offer>,
}

impl Offers {
    /// From now on a successor may have these sockets, and with them the lock.
    pub fn set(&self, lock: OwnedFd, sockets: Vec<Offer>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Inventory { lock, sockets });
    }

    /// The daemon ends: who knocks is sent away, and nothing listens on because of an offer.
    pub fn withdraw(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The socket on which successors knock.
#[derive(Debug)]
pub struct Door {
    socket: Socket,
}

/// A successor that is ready. Dropping it without a word makes that one give up.
#[derive(Debug)]
pub struct Conversation {
    channel: Channel,
    pid: u32,
    /// Dropped with it: the door opens for the next one.
    _busy: Sender<()>,
}

impl Door {
    /// Makes the door, or takes over that of a predecessor.
    pub fn hang(data_dir: &Path, inherited: &mut Inherited) -> Result<Self> {
        let path = door_path(data_dir);
        let mut sockets =
            inherited.unix(Purpose::HandOff, &path, |path| listen_unix(path, DOOR_MODE))?;
        let socket = sockets.pop();
        let socket = socket.ok_or_else(|| Error::invalid("there is no socket for hand-offs"))?;
        Ok(Self { socket })
    }

    /// The door itself, for the one after next.
    pub fn offer(&self) -> Result<Offer> {
        Offer::of(Purpose::HandOff, &self.socket)
    }

    /// Opens it: `ready` is called with every successor that is ready, one at a time.
    pub fn open(self, offers: Offers, ready: impl Fn(Conversation) + Send + 'static) -> Result<()> {
        let Listening::Unix(listener, _) = self.socket.listening else {
            return Err(Error::invalid("the socket for hand-offs is no unix socket"));
        };
        std::thread::Builder::new()
            .name("handoff".to_owned())
            .spawn(move || attend(&listener, &offers, &ready))
            .map_err(|e| Error::io("starting to listen for hand-offs", e))?;
        Ok(())
    }
}

/// Speaks to whoever knocks, for ever.
fn attend(listener: &UnixListener, offers: &Offers, ready: &impl Fn(Conversation)) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a successor could not be heard");
                std::thread::sleep(ANSWER_WAIT);
                continue;
            }
        };
        let (busy, free) = bounded::<()>(0);
        match welcome(stream, offers, busy) {
            Ok(conversation) => ready(conversation),
            Err(error) => tracing::warn!(%error, "no hand-off; serving goes on"),
        }
        // Until the conversation is over, however it ends.
        let _ = free.recv();
    }
}

/// Everything that happens while clients are served still.
fn welcome(stream: UnixStream, offers: &Offers, busy: Sender<()>) -> Result<Conversation> {
    let channel = Channel::new(stream);
    channel.patience(ANSWER_WAIT)?;
    if !channel.is_same_user() {
        return Err(Error::invalid("a successor of another user was sent away"));
    }
    let hello = channel.receive();
    let (pid, theirs) = match hello {
        Ok((Message::Hello { pid, release }, _)) => (pid, release),
        Ok(_) => return refuse(&channel, "a hand-off begins otherwise"),
        Err(error) => return refuse(&channel, &error.to_string()),
    };
    tracing::info!(pid, release = theirs, "a successor prepares itself");
    {
        let offers = offers.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inventory) = offers.as_ref() else {
            return refuse(&channel, "the daemon is starting or stopping");
        };
        for offer in &inventory.sockets {
            let message = Message::Listener(offer.note.clone());
            channel.send(&message, Some(offer.socket.as_fd()))?;
        }
        let message = Message::Welcome {
            pid: std::process::id(),
            release: release(),
            listeners: inventory.sockets.len() as u32,
        };
        channel.send(&message, Some(inventory.lock.as_fd()))?;
    }
    channel.patience(PREPARE_WAIT)?;
    match channel.receive()?.0 {
        Message::Switch => {}
        Message::Refused(why) => return Err(Error::invalid(why)),
        _ => return refuse(&channel, "there is nothing to do but to switch"),
    }
    channel.patience(ANSWER_WAIT)?;
    Ok(Conversation {
        channel,
        pid,
        _busy: busy,
    })
}

fn refuse<T>(channel: &Channel, why: &str) -> Result<T> {
    // It may be gone.
    let _ = channel.send(&Message::Refused(why.to_owned()), None);
    Err(Error::invalid(why))
}

impl Conversation {
    /// The successor's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Passes the clients, which are not served meanwhile, and waits until the successor has all of
    /// them. After an error it has given up, and this daemon serves on.
    pub fn pass(&self, clients: &[Handed]) -> Result<()> {
        for client in clients {
            let message = Message::Connection(client.passed.clone());
            self.channel.send(&message, Some(client.socket.as_fd()))?;
        }
        let connections = clients.len() as u32;
        self.channel.send(&Message::Parked { connections }, None)?;
        match self.channel.receive()?.0 {
            Message::Taken => {}
            Message::Refused(why) => return Err(Error::invalid(why)),
            _ => {
                return Err(Error::invalid(
                    "the successor does not say that it took over",
                ));
            }
        }
        failpoint::hit("handoff.taken").map_err(|e| Error::io("a failpoint refused", e))
    }

    /// The hand-off cannot be.
    pub fn refuse(self, why: &Error) {
        // It may be gone.
        let _ = self.channel.send(&Message::Refused(why.to_string()), None);
    }

    /// Everything is the successor's.
    pub fn release(self) {
        if let Err(error) = self.channel.send(&Message::Released, None) {
            tracing::error!(%error, "the successor has gone; the next start recovers");
        }
    }
}
