//! Snapshots that a client names: they are opened when they are asked for, and the handshake waits.

use taipan_nbd::{ExportDirectory, ExportInfo, LookupError};

use super::{Connection, Outcome, Phase, Surroundings};
use crate::directory::Seen;

/// How far the search for the snapshot is that the client named last.
#[derive(Debug, Default)]
pub(super) enum Lookup {
    /// There is none.
    #[default]
    Nothing,
    /// It is being opened.
    Awaited(String),
    /// It is open, or why it is not.
    Told(String, Result<(), LookupError>),
}

impl Lookup {
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited(_))
    }

    /// The directory as this client sees it.
    pub(super) fn exports<'a>(&'a self, directory: Seen<'a>) -> Exports<'a> {
        let refused = match self {
            Self::Told(name, Err(why)) => Some((name.as_str(), why)),
            Self::Nothing | Self::Awaited(_) | Self::Told(_, Ok(())) => None,
        };
        Exports { directory, refused }
    }
}

/// The directory with what this client was told of a snapshot that cannot be had.
pub(super) struct Exports<'a> {
    directory: Seen<'a>,
    refused: Option<(&'a str, &'a LookupError)>,
}

impl Exports<'_> {
    fn check(&self, name: &str) -> Result<(), LookupError> {
        match self.refused {
            Some((refused, why)) if refused == name => Err(why.clone()),
            _ => Ok(()),
        }
    }
}

impl ExportDirectory for Exports<'_> {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        self.directory.list(visit)
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        self.check(name)?;
        self.directory.find(name)
    }

    fn awaits(&self, name: &str) -> bool {
        self.check(name).is_ok() && self.directory.awaits(name)
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        self.check(name)?;
        self.directory.contexts(name, visit)
    }
}

impl Connection {
    /// The snapshot for which the handshake waits.
    pub fn awaited(&self) -> Option<&str> {
        match &self.phase {
            Phase::Handshake {
                lookup: Lookup::Awaited(name),
                ..
            } => Some(name),
            _ => None,
        }
    }

    /// Whether it is known what became of the snapshot, and the handshake has not gone on.
    pub(super) fn is_told(&self) -> bool {
        matches!(
            &self.phase,
            Phase::Handshake {
                lookup: Lookup::Told(..),
                ..
            }
        )
    }

    /// The snapshot for which the handshake waits is open, or cannot be had: it goes on.
    pub fn found(
        &mut self,
        result: Result<(), LookupError>,
        around: &mut Surroundings<'_>,
    ) -> Outcome {
        let Phase::Handshake { lookup, .. } = &mut self.phase else {
            return Outcome::Waiting;
        };
        match std::mem::take(lookup) {
            Lookup::Awaited(name) => *lookup = Lookup::Told(name, result),
            other => *lookup = other,
        }
        match self.work(around) {
            Outcome::Waiting if self.wants_turn() => Outcome::Ready,
            outcome => outcome,
        }
    }
}
