//! How a command fails: an exit code on which scripts decide, and a text for people.

use std::fmt;
use std::io;

use serde::Serialize;
use taipan_engine::api::ErrorCode;
use taipan_engine::error::{Error, ErrorKind};

/// What the exit code says; documented in `docs/operations/cli.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Exit {
    /// Anything without a code of its own: I/O errors, a full disk, an error of the appliance.
    Failed = 1,
    /// The command line or a value in it makes no sense.
    Usage = 2,
    /// The volume or file does not exist.
    NotFound = 3,
    /// The present state forbids it: exists already, in use, read-only, fenced.
    Conflict = 4,
    /// No daemon answers.
    Unreachable = 5,
    /// Stored bytes are damaged.
    Damaged = 6,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) exit: Exit,
    message: String,
}

/// Result of a command or a step of it.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure; `message` says what was tried on what, and what to do.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// An I/O error of `operation` (such as `cannot read "x"`).
    pub(crate) fn io(operation: impl fmt::Display, error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            io::ErrorKind::AlreadyExists => Exit::Conflict,
            _ => Exit::Failed,
        };
        Self::new(exit, format!("{operation}: {error}"))
    }

    /// The failure as one JSON object on one line.
    pub(crate) fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Detail<'a>,
        }
        #[derive(Serialize)]
        struct Detail<'a> {
            kind: Exit,
            exit_code: u8,
            message: &'a str,
        }
        let body = Body {
            error: Detail {
                kind: self.exit,
                exit_code: self.exit as u8,
                message: &self.message,
            },
        };
        serde_json::to_string(&body).unwrap_or_else(|_| self.message.clone())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::Invalid => Exit::Usage,
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::Corrupt => Exit::Damaged,
            ErrorKind::AlreadyExists
            | ErrorKind::Busy
            | ErrorKind::Fenced
            | ErrorKind::ReadOnly => Exit::Conflict,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

/// The exit code for an error class of the control API.
pub(crate) fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::Invalid | ErrorCode::TooLarge => Exit::Usage,
        ErrorCode::NotFound => Exit::NotFound,
        ErrorCode::Corrupt => Exit::Damaged,
        ErrorCode::AlreadyExists | ErrorCode::Busy | ErrorCode::Fenced | ErrorCode::ReadOnly => {
            Exit::Conflict
        }
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_carries_class_code_and_message() {
        let failure = Failure::new(Exit::Conflict, "volume \"v\" is in use");
        assert_eq!(
            failure.to_json(),
            r#"{"error":{"kind":"conflict","exit_code":4,"message":"volume \"v\" is in use"}}"#
        );
    }

    #[test]
    fn engine_errors_keep_their_class() {
        assert_eq!(Failure::from(Error::invalid("x")).exit, Exit::Usage);
        assert_eq!(Failure::from(Error::corrupt("x")).exit, Exit::Damaged);
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(Failure::io("cannot open", &missing).exit, Exit::NotFound);
    }
}
