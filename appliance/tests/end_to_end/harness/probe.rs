//! Bytes to a server of NBD and what comes back, both as text: a reading of the protocol of its
//! own, so that server and test cannot share a mistake. Numbers are those of the protocol's text.

mod reaction;
mod relay;
mod script;

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use taipan_tls::ClientSettings;

use script::Style;

/// A server that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(60);

/// Where a server is, and how it is come to.
#[derive(Clone)]
pub(crate) struct Place {
    at: At,
    /// Certificates, and options that are sent in the clear before STARTTLS.
    tls: Option<(ClientSettings, &'static str)>,
}

#[derive(Clone)]
enum At {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Place {
    pub(crate) fn unix(socket: PathBuf) -> Self {
        Self {
            at: At::Unix(socket),
            tls: None,
        }
    }

    pub(crate) fn tcp(address: SocketAddr) -> Self {
        Self {
            at: At::Tcp(address),
            tls: None,
        }
    }

    /// The same under TLS, with these options in the clear before it, separated by `;`.
    pub(crate) fn under_tls(&self, settings: &ClientSettings, before: &'static str) -> Self {
        Self {
            at: self.at.clone(),
            tls: Some((settings.clone(), before)),
        }
    }

    /// A connection that the server has greeted.
    fn connect(&self) -> UnixStream {
        let mut stream = match &self.at {
            At::Unix(socket) => UnixStream::connect(socket).expect("the server listens"),
            At::Tcp(address) => {
                let stream = TcpStream::connect(address).expect("the server listens");
                stream.set_nodelay(true).expect("no delays");
                // What reads and writes does not care which kind of socket it is.
                OwnedFd::from(stream).into()
            }
        };
        let limit = stream.set_read_timeout(Some(SILENCE));
        limit.expect("a time limit");
        reaction::greeting(&mut stream);
        let Some((settings, before)) = &self.tls else {
            return stream;
        };
        stream.write_all(&script::starttls(before)).expect("sent");
        reaction::tls_starts(&mut stream);
        relay::start(stream, settings, SILENCE)
    }

    /// Options as they are sent at this place: client flags go before STARTTLS.
    fn options(&self, text: &str) -> (Vec<u8>, Vec<u32>) {
        let (mut bytes, steps) = script::options(text);
        if self.tls.is_some() {
            bytes.drain(..script::FLAGS_BYTES);
        }
        (bytes, steps)
    }
}

/// Sends while the answers are read. The server may close in the middle of it.
fn send(stream: &UnixStream, bytes: Vec<u8>) {
    let mut sender = stream.try_clone().expect("a second handle");
    std::thread::spawn(move || _ = sender.write_all(&bytes));
}

/// Sends client flags and options, separated by `;`, and tells every reply; in the end `alive` if
/// one more option is answered, or `closed`. Behind an option that starts transmission: nothing.
pub(crate) fn negotiate(place: &Place, options: &str) -> String {
    let (mut bytes, steps) = place.options(options);
    let last = steps.last().copied().unwrap_or_default();
    let mut stream = place.connect();
    if last == script::EXPORT_NAME {
        stream.write_all(&bytes).expect("sent");
        let _ = stream.shutdown(Shutdown::Write);
        return reaction::rest(&mut stream);
    }
    bytes.extend(script::ping_option());
    send(&stream, bytes);
    reaction::options(&mut stream)
}

/// A client in transmission.
pub(crate) struct Talk {
    stream: UnixStream,
    style: Style,
}

impl Talk {
    /// Negotiates.
    pub(crate) fn begin(place: &Place, options: &str) -> Self {
        let style = Style::of(options);
        let mut stream = place.connect();
        send(&stream, place.options(options).0);
        let agreed = reaction::options(&mut stream);
        assert!(agreed.ends_with("GO:ACK"), "{options}: {agreed}");
        Self { stream, style }
    }

    /// Sends requests, separated by `;`, all at once, and tells the reply to each. In the end
    /// `closed` if one more is not answered.
    pub(crate) fn ask(&mut self, requests: &str) -> String {
        let (bytes, asked) = script::requests(self.style, requests);
        send(&self.stream, bytes);
        reaction::requests(&mut self.stream, self.style, &asked)
    }

    /// What comes without being asked for until the server closes.
    pub(crate) fn end(mut self) -> String {
        reaction::rest(&mut self.stream)
    }
}

/// Negotiates and sends requests; behind a `|` when those before are answered.
pub(crate) fn transmit(place: &Place, options: &str, requests: &str) -> String {
    let mut talk = Talk::begin(place, options);
    let told: Vec<_> = requests.split('|').map(|batch| talk.ask(batch)).collect();
    told.join(" | ")
}

/// The same by two clients, `a` and `b`, who take turns as the first word of each batch says.
pub(crate) fn take_turns(place: &Place, options: &str, turns: &str) -> String {
    let mut talks = [Talk::begin(place, options), Talk::begin(place, options)];
    let told = turns.split('|').map(|turn| {
        let (who, requests) = turn.trim().split_once(' ').expect("who it is, and what");
        talks[usize::from(who == "b")].ask(requests)
    });
    told.collect::<Vec<_>>().join(" | ")
}
