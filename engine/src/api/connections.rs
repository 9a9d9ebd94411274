//! JSON of NBD connections: who is connected to what, and how to end that.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Error;
use crate::snapshot::ImageName;
use crate::volume::VolumeName;

/// Path of the connections.
pub const CONNECTIONS_PATH: &str = "/v1/connections";

/// Path of one connection; `DELETE` ends it.
pub fn connection_path(name: ConnectionName) -> String {
    format!("{CONNECTIONS_PATH}/{name}")
}

/// Name of a connection, written `CORE-INDEX-USE`; not reused before thousands of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionName {
    /// The data core that serves it.
    pub core: u16,
    /// Its index there.
    pub index: u16,
    /// Counts the uses of the index.
    pub generation: u16,
}

impl fmt::Display for ConnectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.core, self.index, self.generation)
    }
}

impl FromStr for ConnectionName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Option<Vec<u16>> = text.split('-').map(|part| part.parse().ok()).collect();
        match parts.as_deref() {
            Some(&[core, index, generation]) => Ok(Self {
                core,
                index,
                generation,
            }),
            _ => Err(Error::invalid(format!(
                "{text:?} is no connection; `taipan connection list` shows them, such as 0-12-1"
            ))),
        }
    }
}

impl Serialize for ConnectionName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConnectionName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// It has not chosen a volume.
    #[default]
    Handshake,
    /// It has, and waits until dead connections of the same client are closed.
    Joining,
    /// Requests are served.
    Serving,
    /// No more requests are read: what is in flight is answered.
    Closing,
}

/// One NBD connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Its name.
    pub id: ConnectionName,
    /// Address of the client, or its process if it came over the unix socket.
    pub client: String,
    /// The volume, once chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeName>,
    /// The snapshot, or point in time, if it is one of that volume that the client reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<ImageName>,
    /// What it is doing.
    pub state: ConnectionState,
    /// Seconds since it was accepted.
    pub seconds: f64,
    /// Requests answered, errors included.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests not answered yet.
    pub in_flight: u64,
    /// Bytes of replies that the client has not taken yet.
    pub unsent_bytes: u64,
    /// What was negotiated beyond the plain protocol: `tls_1.3`, `structured_replies`,
    /// `extended_headers`, metadata contexts.
    pub features: Vec<String>,
    /// Names in the client's certificate, if it has shown one: `cn:backup dns:backup.example`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// Answer of `GET /v1/connections`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionList {
    /// All connections, by core and index.
    pub connections: Vec<ConnectionInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_and_nothing_else_is_a_name() {
        let name = ConnectionName {
            core: 1,
            index: 65_535,
            generation: 0,
        };
        assert_eq!(connection_path(name), "/v1/connections/1-65535-0");
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(serde_json::from_str::<ConnectionName>(&json).unwrap(), name);
        for bad in ["", "1-2", "1-2-3-4", "1-2-65536", "a-b-c", "1--2"] {
            assert!(bad.parse::<ConnectionName>().is_err(), "{bad}");
        }
    }
}
