//! Bytes to a server of NBD and what comes back, both as text: a reading of the protocol of its
//! own, so that server and test cannot share a mistake. Numbers are those of the protocol's text.

mod reaction;
mod script;

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use script::Style;

/// A server that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(60);

fn connect(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("the server listens");
    stream
        .set_read_timeout(Some(SILENCE))
        .expect("a time limit");
    reaction::greeting(&mut stream);
    stream
}

/// Sends while the answers are read. The server may close in the middle of it.
fn send(stream: &UnixStream, bytes: Vec<u8>) {
    let mut sender = stream.try_clone().expect("a second handle");
    std::thread::spawn(move || _ = sender.write_all(&bytes));
}

/// Sends client flags and options, separated by `;`, and tells every reply; in the end `alive` if
/// one more option is answered, or `closed`. Behind an option that starts transmission: nothing.
pub(crate) fn negotiate(socket: &Path, options: &str) -> String {
    let (mut bytes, steps) = script::options(options);
    let last = steps.last().copied().unwrap_or_default();
    let mut stream = connect(socket);
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
    pub(crate) fn begin(socket: &Path, options: &str) -> Self {
        let style = Style::of(options);
        let mut stream = connect(socket);
        send(&stream, script::options(options).0);
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
pub(crate) fn transmit(socket: &Path, options: &str, requests: &str) -> String {
    let mut talk = Talk::begin(socket, options);
    let told: Vec<_> = requests.split('|').map(|batch| talk.ask(batch)).collect();
    told.join(" | ")
}

/// The same by two clients, `a` and `b`, who take turns as the first word of each batch says.
pub(crate) fn take_turns(socket: &Path, options: &str, turns: &str) -> String {
    let mut talks = [Talk::begin(socket, options), Talk::begin(socket, options)];
    let told = turns.split('|').map(|turn| {
        let (who, requests) = turn.trim().split_once(' ').expect("who it is, and what");
        talks[usize::from(who == "b")].ask(requests)
    });
    told.collect::<Vec<_>>().join(" | ")
}
