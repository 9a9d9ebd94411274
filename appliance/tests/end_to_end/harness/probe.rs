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
const SILENCE: Duration = Duration::from_secs(20);

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

/// Negotiates, sends requests, separated by `;`, all at once, and tells the reply to each; behind a
/// `|` when those before are answered. In the end `closed` if one more is not answered.
pub(crate) fn transmit(socket: &Path, options: &str, requests: &str) -> String {
    let style = Style::of(options);
    let mut stream = connect(socket);
    send(&stream, script::options(options).0);
    let agreed = reaction::options(&mut stream);
    assert!(agreed.ends_with("GO:ACK"), "{options}: {agreed}");
    let mut told = Vec::new();
    for batch in requests.split('|') {
        let (bytes, asked) = script::requests(style, batch);
        send(&stream, bytes);
        told.push(reaction::requests(&mut stream, style, &asked));
    }
    told.join(" | ")
}
