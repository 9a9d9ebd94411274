//! Tells the service manager how far the daemon is (`Type=notify` of systemd): one datagram to the
//! socket that `NOTIFY_SOCKET` names. Without that variable nothing is said.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// How far the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything is recovered, and clients are served.
    Serving,
    /// It was told to stop; what is in flight is answered and made durable.
    Stopping,
    /// Another process serves from now on.
    HandedOver {
        /// That process.
        pid: u32,
    },
}

impl Progress {
    fn message(self) -> String {
        match self {
            Self::Serving => "READY=1\nSTATUS=serving".to_owned(),
            Self::Stopping => "STOPPING=1\nSTATUS=stopping".to_owned(),
            Self::HandedOver { pid } => format!("MAINPID={pid}\nSTATUS=handed over"),
        }
    }
}

/// Whether a service manager started this process: it may start the next one right away.
pub fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Tells the service manager, if there is one that wants to know. One that does not listen is
/// worth a line in the log and nothing more.
pub fn tell(progress: Progress) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, progress) {
        tracing::warn!(%error, ?socket, "the service manager was not told");
    }
}

/// A name that begins with @ is one of the abstract namespace.
fn send(socket: &OsStr, progress: Progress) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let message = progress.message();
    let sent = UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    if sent != message.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("taipan-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let listeners = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{name}").into(),
            ),
        ];
        for (listener, socket) in listeners {
            send(&socket, Progress::Serving).unwrap();
            send(&socket, Progress::Stopping).unwrap();
            send(&socket, Progress::HandedOver { pid: 7 }).unwrap();
            let told = || {
                let mut message = [0; 100];
                let len = listener.recv(&mut message).unwrap();
                String::from_utf8(message[..len].to_vec()).unwrap()
            };
            assert!(told().starts_with("READY=1\n"));
            assert!(told().starts_with("STOPPING=1\n"));
            assert!(told().starts_with("MAINPID=7\n"));
        }
        assert!(send(dir.path().join("none").as_os_str(), Progress::Serving).is_err());
    }
}
