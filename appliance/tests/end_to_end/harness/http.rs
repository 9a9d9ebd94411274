//! The least of an HTTP client: one request over TCP or a unix socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A machine may stall for seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Status code and body of `GET path` from a TCP address.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    call(address, "GET", path, "")
}

/// Status code and body of the answer to any request at a TCP address.
pub(crate) fn call(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> io::Result<(u16, String)> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    ask(stream, method, path, body)
}

/// Status code and body of `GET path` from a unix socket.
pub(crate) fn get_unix(socket: &Path, path: &str) -> io::Result<(u16, String)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    ask(stream, "GET", path, "")
}

/// The same of `POST path` with a body.
pub(crate) fn post_unix(socket: &Path, path: &str, body: &str) -> io::Result<(u16, String)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    ask(stream, "POST", path, body)
}

fn ask(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    body: &str,
) -> io::Result<(u16, String)> {
    // In one piece: a server may answer and close as soon as it has seen enough.
    let message = format!(
        "{method} {path} HTTP/1.1\r\nhost: taipan\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(message.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let broken = || io::Error::other(format!("not an HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(broken)?;
    Ok((code, body.to_owned()))
}
