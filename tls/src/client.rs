//! A client's side: whom it trusts, what it shows, and its connection over a blocking socket.

use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::error::TlsError;
use crate::files::{CertificateFiles, authorities};

/// What a client trusts and shows.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    config: Arc<ClientConfig>,
}

impl ClientSettings {
    /// From a directory: `ca-cert.pem`, and `client-cert.pem` with `client-key.pem` if the former
    /// is there.
    pub fn load(directory: &Path) -> Result<Self, TlsError> {
        let files = CertificateFiles {
            certificate: directory.join("client-cert.pem"),
            key: directory.join("client-key.pem"),
            authorities: None,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(authorities(&directory.join("ca-cert.pem"))?);
        let mut config = if files.certificate.exists() {
            let own = files.own()?;
            let built = builder.with_client_auth_cert(own.certificates, own.key);
            built.map_err(|error| {
                TlsError::new("cannot be used with its key")
                    .at(&files.certificate)
                    .because(error)
            })?
        } else {
            builder.with_no_client_auth()
        };
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
        })
    }
}

/// A connection over a blocking socket.
pub struct ClientStream<S: Read + Write> {
    stream: StreamOwned<ClientConnection, S>,
}

impl<S: Read + Write> ClientStream<S> {
    /// Does the handshake over `socket` with the server of that name or address, which its
    /// certificate must have.
    pub fn start(settings: &ClientSettings, server: &str, mut socket: S) -> io::Result<Self> {
        let name = ServerName::try_from(server.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let config = Arc::clone(&settings.config);
        let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self {
            stream: StreamOwned::new(connection, socket),
        })
    }

    /// Seals from the beginning of `slices` and sends what the socket takes; tells how many bytes
    /// are taken over. For a socket that does not wait: `WouldBlock` while it has not taken what
    /// was sealed before.
    pub fn try_send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        while self.wants_send() {
            self.stream.conn.write_tls(&mut self.stream.sock)?;
        }
        let taken = self.stream.conn.writer().write_vectored(slices)?;
        while self.wants_send() {
            match self.stream.conn.write_tls(&mut self.stream.sock) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// Whether the socket has not taken all that is sealed.
    pub fn wants_send(&self) -> bool {
        self.stream.conn.wants_write()
    }

    /// Bytes of the protocol, into `room`; none at the end. For a socket that does not wait:
    /// `WouldBlock` if not enough has come. What is to be sent does not hold it up.
    pub fn try_receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.conn.reader().read(room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if self.stream.conn.read_tls(&mut self.stream.sock)? == 0 {
                return Ok(0);
            }
            let opened = self.stream.conn.process_new_packets();
            opened.map_err(io::Error::other)?;
        }
    }

    /// The socket, for its settings only.
    pub fn socket(&self) -> &S {
        self.stream.get_ref()
    }

    /// Tells the server that nothing more comes.
    pub fn end(&mut self) -> io::Result<()> {
        self.stream.conn.send_close_notify();
        self.stream.flush()
    }
}

impl<S: Read + Write> Read for ClientStream<S> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.stream.read(room)
    }
}

impl<S: Read + Write> Write for ClientStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
