//! Snapshots that a client names, and bitmaps since snapshots: they are opened when they are asked
//! for, and the handshake waits.

use taipan_nbd::{Awaited, ExportDirectory, ExportInfo, LookupError};

use super::{Connection, Outcome, Phase, Surroundings};
use crate::directory::Seen;

/// How far the search is for what the client named last.
#[derive(Debug, Default)]
pub(super) enum Lookup {
    /// There is none.
    #[default]
    Nothing,
    /// It is being opened.
    Awaited(Awaited),
    /// It is open, or why it is not.
    Told(Awaited, Result<(), LookupError>),
}

impl Lookup {
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited(_))
    }

    /// The directory as this client sees it.
    pub(super) fn exports<'a>(&'a self, directory: Seen<'a>) -> Exports<'a> {
        let refused = match self {
            Self::Told(awaited, Err(why)) => Some((awaited, why)),
            Self::Nothing | Self::Awaited(_) | Self::Told(_, Ok(())) => None,
        };
        Exports { directory, refused }
    }
}

/// The directory with what this client was told of something that cannot be had.
pub(super) struct Exports<'a> {
    directory: Seen<'a>,
    refused: Option<(&'a Awaited, &'a LookupError)>,
}

impl Exports<'_> {
    fn check(&self, name: &str) -> Result<(), LookupError> {
        match self.refused {
            Some((refused, why)) if refused.context.is_none() && refused.export == name => {
                Err(why.clone())
            }
            _ => Ok(()),
        }
    }

    /// The same of its contexts.
    fn check_contexts(&self, name: &str) -> Result<(), LookupError> {
        match self.refused {
            Some((refused, why)) if refused.export == name => Err(why.clone()),
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

    fn awaits_context(&self, name: &str, context: &str) -> bool {
        self.check_contexts(name).is_ok() && self.directory.awaits_context(name, context)
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        self.check_contexts(name)?;
        self.directory.contexts(name, visit)
    }
}

impl Connection {
    /// What the handshake waits for.
    pub fn awaited(&self) -> Option<&Awaited> {
        match &self.phase {
            Phase::Handshake {
                lookup: Lookup::Awaited(awaited),
                ..
            } => Some(awaited),
            Phase::Resuming(resuming) => match &resuming.lookup {
                Lookup::Awaited(awaited) => Some(awaited),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether it is known what became of that, and the handshake has not gone on.
    pub(super) fn is_told(&self) -> bool {
        matches!(
            &self.phase,
            Phase::Handshake {
                lookup: Lookup::Told(..),
                ..
            }
        )
    }

    /// What the handshake waits for is open, or cannot be had: it goes on.
    pub fn found(
        &mut self,
        result: Result<(), LookupError>,
        around: &mut Surroundings<'_>,
    ) -> Outcome {
        let lookup = match &mut self.phase {
            Phase::Handshake { lookup, .. } => lookup,
            Phase::Resuming(resuming) => &mut resuming.lookup,
            _ => return Outcome::Waiting,
        };
        match std::mem::take(lookup) {
            Lookup::Awaited(awaited) => *lookup = Lookup::Told(awaited, result),
            other => *lookup = other,
        }
        match self.work(around) {
            Outcome::Waiting if self.wants_turn() => Outcome::Ready,
            outcome => outcome,
        }
    }
}
