//! Conditional requests: what is demanded of the object that is there.

use hyper::HeaderMap;
use hyper::header::{IF_MATCH, IF_NONE_MATCH};
use serde::{Deserialize, Serialize};

use super::reply::Refusal;

/// Which conditional writes a server honours; what it does not, it ignores without a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionalWrites {
    /// `If-None-Match: *` and `If-Match`, as on AWS.
    #[default]
    Full,
    /// `If-None-Match: *` alone.
    CreateOnly,
    /// None at all: every PUT overwrites, as on Garage.
    None,
}

/// The conditions of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    if_match: Option<String>,
    if_none_match: Option<String>,
}

impl Conditions {
    /// Takes them from the headers of a request.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.trim().to_owned());
        Self {
            if_match: text(IF_MATCH),
            if_none_match: text(IF_NONE_MATCH),
        }
    }

    /// Without those that the server does not know.
    pub(crate) fn honoured(mut self, by: ConditionalWrites) -> Self {
        if by != ConditionalWrites::Full {
            self.if_match = None;
        }
        if by == ConditionalWrites::None {
            self.if_none_match = None;
        }
        self
    }

    /// Whether there is any.
    pub(crate) fn any(&self) -> bool {
        self.if_match.is_some() || self.if_none_match.is_some()
    }

    /// Whether a write may go on where an object with `etag`, or none, is.
    pub(crate) fn check_write(&self, etag: Option<&str>) -> Result<(), Refusal> {
        match (&self.if_match, etag) {
            (Some(_), None) => return Err(Refusal::no_such_key()),
            (Some(wanted), Some(etag)) if !matches(wanted, etag) => {
                return Err(Refusal::precondition_failed());
            }
            _ => {}
        }
        match (&self.if_none_match, etag) {
            (Some(wanted), Some(etag)) if matches(wanted, etag) => {
                Err(Refusal::precondition_failed())
            }
            _ => Ok(()),
        }
    }

    /// Whether a read of the object with `etag` goes on.
    pub(crate) fn check_read(&self, etag: &str) -> Result<(), Refusal> {
        if self
            .if_match
            .as_deref()
            .is_some_and(|wanted| !matches(wanted, etag))
        {
            return Err(Refusal::precondition_failed());
        }
        if self
            .if_none_match
            .as_deref()
            .is_some_and(|known| matches(known, etag))
        {
            return Err(Refusal::not_modified());
        }
        Ok(())
    }
}

fn matches(wanted: &str, etag: &str) -> bool {
    wanted == "*"
        || wanted
            .split(',')
            .any(|one| one.trim().trim_matches('"') == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(if_match: Option<&str>, if_none_match: Option<&str>) -> Conditions {
        Conditions {
            if_match: if_match.map(str::to_owned),
            if_none_match: if_none_match.map(str::to_owned),
        }
    }

    fn status(result: Result<(), Refusal>) -> u16 {
        result.map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn writes_as_on_aws() {
        let create = conditions(None, Some("*"));
        assert_eq!(status(create.check_write(None)), 200);
        assert_eq!(status(create.check_write(Some("e1"))), 412);
        let swap = conditions(Some("\"e1\""), None);
        assert_eq!(status(swap.check_write(Some("e1"))), 200);
        assert_eq!(status(swap.check_write(Some("e2"))), 412);
        assert_eq!(status(swap.check_write(None)), 404);
    }

    #[test]
    fn reads_as_on_aws() {
        assert_eq!(status(conditions(Some("e1"), None).check_read("e2")), 412);
        assert_eq!(
            status(conditions(None, Some("\"e1\"")).check_read("e1")),
            304
        );
        assert_eq!(
            status(conditions(Some("\"e1\""), None).check_read("e1")),
            200
        );
    }

    #[test]
    fn a_lesser_server_ignores_what_it_does_not_know() {
        let both = || conditions(Some("x"), Some("*"));
        let create_only = both().honoured(ConditionalWrites::CreateOnly);
        assert_eq!(status(create_only.check_write(None)), 200);
        assert_eq!(status(create_only.check_write(Some("y"))), 412);
        assert!(!both().honoured(ConditionalWrites::None).any());
    }
}
