//! Listening sockets: a stale unix socket is replaced, a live one is not.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use taipan_engine::error::{Error, ErrorKind, Result};

/// Listens on a unix socket with the given permissions. A socket file that nobody listens on is
/// what a killed daemon left and is replaced; anything else at that path is an error.
pub fn listen_unix(path: &Path, mode: u32) -> Result<UnixListener> {
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            return Err(Error::invalid("exists and is not a socket").with_path(path));
        }
        if UnixStream::connect(path).is_ok() {
            let text = "another process listens on this socket; stop it or choose another path";
            return Err(Error::new(ErrorKind::Busy, text).with_path(path));
        }
        fs::remove_file(path)
            .map_err(|e| Error::io("removing a stale socket", e).with_path(path))?;
    }
    let listener = UnixListener::bind(path)
        .map_err(|e| Error::io("listening on the socket", e).with_path(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|e| Error::io("setting the socket's permissions", e).with_path(path))?;
    Ok(listener)
}

/// Listens on a TCP address for `purpose`.
pub fn listen_tcp(address: SocketAddr, purpose: &str) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
        let hint = if in_use {
            "; another process uses it, choose another address"
        } else {
            ""
        };
        Error::io(format!("listening on {address} for {purpose}{hint}"), error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = listen_unix(&path, 0o600).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            listen_unix(&path, 0o600).unwrap_err().kind(),
            ErrorKind::Busy
        );
        drop(first);
        listen_unix(&path, 0o600).unwrap();
    }

    #[test]
    fn a_file_is_never_replaced_by_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        listen_unix(&path, 0o600).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn an_address_in_use_is_named_with_what_to_do() {
        let first = listen_tcp(SocketAddr::from(([127, 0, 0, 1], 0)), "tests").unwrap();
        let address = first.local_addr().unwrap();
        let error = listen_tcp(address, "metrics").unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains("choose another address"), "{error}");
    }
}
