//! TLS of NBD connections, both sides: certificates from files, the machine between the bytes on a
//! socket and those of the protocol, and who the other end is.
//!
//! Cryptography and X.509 are [rustls](https://docs.rs/rustls) with ring: TLS 1.2 and 1.3. No
//! session is resumed, so that each handshake looks at the client's certificate anew.
//!
//! * [`Keeper`] holds what a server shows and trusts, and looks at the files again.
//! * [`ServerChannel`] is one connection of a server, without I/O.
//! * [`ClientStream`] is one connection of a client, over a blocking socket.
//! * [`Identity`] is what a verified certificate says of its owner.

#![forbid(unsafe_code)]

#[cfg(any(test, feature = "authority"))]
pub mod authority;
mod channel;
mod client;
mod error;
mod files;
mod identity;
mod keeper;

pub use channel::{Opened, RECORD_BYTES_MAX, ServerChannel};
pub use client::{ClientSettings, ClientStream};
pub use error::TlsError;
pub use files::CertificateFiles;
pub use identity::{Identity, Kind, Name};
pub use keeper::{Clients, Keeper, Look};
