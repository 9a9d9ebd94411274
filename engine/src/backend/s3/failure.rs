//! What an unsuccessful request means: whether it may be repeated, and the error if it is not.

use std::io;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::error::{Error, ErrorKind};

/// Longest text of a server that is repeated in an error.
const TEXT_CHARS_MAX: usize = 300;

/// What to do about an unsuccessful request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// An answer that another attempt would not change.
    Final,
    /// A condition was not met (412): the object is there, or is another one.
    Exists,
    /// The request had no effect for certain: anything may be sent again.
    Unsent,
    /// The effect is unknown: only what may happen twice may be sent again.
    Again,
}

/// An unsuccessful request.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) remedy: Remedy,
    pub(super) error: Error,
}

impl Failure {
    pub(super) fn new(remedy: Remedy, kind: ErrorKind, message: impl Into<String>) -> Self {
        let error = Error::new(kind, message);
        Self { remedy, error }
    }

    /// No answer, a broken connection, or an answer that makes no sense.
    pub(super) fn unknown(message: impl Into<String>) -> Self {
        Self::new(Remedy::Again, ErrorKind::Transient, message)
    }

    /// An answer against the rules of the protocol.
    pub(super) fn nonsense(message: impl Into<String>) -> Self {
        Self::new(Remedy::Final, ErrorKind::Io, message)
    }

    /// Whether the server said no, as opposed to nothing, or that it cannot now.
    pub(super) fn is_answer(&self) -> bool {
        !matches!(self.error.kind(), ErrorKind::Transient | ErrorKind::Io)
    }

    /// Whether it is an absent object.
    pub(super) fn is_not_found(&self) -> bool {
        self.error.kind() == ErrorKind::NotFound
    }

    /// Reads an error of the SDK; `what` names the operation and the key.
    pub(super) fn of<E>(what: &str, error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let meta = answer.err().meta();
                Self::answered(what, status, meta.code(), meta.message())
            }
            SdkError::ResponseError(answer) if answer.raw().status().as_u16() >= 400 => {
                Self::answered(what, answer.raw().status().as_u16(), None, None)
            }
            SdkError::ConstructionFailure(_) => {
                let text = causes(error);
                Self::new(Remedy::Final, ErrorKind::Invalid, format!("{what}: {text}"))
            }
            SdkError::DispatchFailure(_) => Self::of_connection(what, error),
            _ => Self::unknown(format!("{what}: {}", causes(error))),
        }
    }

    /// Reads an error of a connection, or of making one.
    pub(super) fn of_connection(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let remedy = match was_never_sent(error) {
            true => Remedy::Unsent,
            false => Remedy::Again,
        };
        let text = causes(error);
        let message = match connection_hint(&text) {
            "" => format!("{what}: {text}"),
            hint => format!("{what}: {text} ({hint})"),
        };
        Self::new(remedy, ErrorKind::Transient, message)
    }

    /// Reads an answer by its status, and its code if it has one.
    pub(super) fn answered(
        what: &str,
        status: u16,
        code: Option<&str>,
        text: Option<&str>,
    ) -> Self {
        let (remedy, kind, hint) = meaning(status, code.unwrap_or_default());
        let mut message = format!("{what}: the server answers {status}");
        for part in [code, text].into_iter().flatten() {
            message.push(' ');
            message.extend(part.chars().take(TEXT_CHARS_MAX));
        }
        if !hint.is_empty() {
            message = format!("{message} ({hint})");
        }
        Self::new(remedy, kind, message)
    }
}

/// What an operator may have set wrong where no connection comes about.
fn connection_hint(text: &str) -> &'static str {
    let says = |part| text.contains(part);
    if says("UnknownIssuer") {
        return "is ca_file the authority of the server's certificate?";
    }
    if says("InvalidContentType") {
        return "does the endpoint speak http, without TLS?";
    }
    ""
}

/// What an answer means. A code says more than a status, where there is one: a quota comes as 403
/// from some servers, and 404 may mean the bucket, which must not look like an absent object.
fn meaning(status: u16, code: &str) -> (Remedy, ErrorKind, &'static str) {
    use ErrorKind::{Corrupt, Full, Io, NotFound, Transient};
    match (status, code) {
        (_, "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull") | (507, _) => {
            (Remedy::Final, Full, "make room or raise the quota")
        }
        (_, "NoSuchKey") | (404, "NotFound") => (Remedy::Final, NotFound, ""),
        (_, "NoSuchBucket") => (Remedy::Final, Io, "the bucket does not exist"),
        (_, "NoSuchUpload") => (Remedy::Final, Transient, "the upload begins anew"),
        (404, _) => (Remedy::Final, Io, "is the endpoint an S3 server?"),
        (412, _) => (Remedy::Exists, ErrorKind::AlreadyExists, ""),
        (409, "ConditionalRequestConflict" | "OperationAborted") => {
            (Remedy::Unsent, Transient, "two writers at once")
        }
        (409, _) => (Remedy::Final, Transient, ""),
        (_, "RequestTimeTooSkewed" | "RequestExpired") => {
            (Remedy::Final, Io, "this machine's clock is wrong")
        }
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken") => {
            (Remedy::Final, Io, "the keys of the bucket are not valid")
        }
        (401 | 403, _) => (
            Remedy::Final,
            Io,
            "no permission: see backends.md for the policy",
        ),
        (
            _,
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "IllegalLocationConstraintException",
        )
        | (301 | 302 | 307 | 308, _) => (Remedy::Final, Io, "is the region right?"),
        (416, _) => (Remedy::Final, Corrupt, "the object is shorter"),
        // Nothing was stored, and the body goes out again from memory.
        (
            _,
            "BadDigest"
            | "IncompleteBody"
            | "XAmzContentChecksumMismatch"
            | "XAmzContentSHA256Mismatch",
        ) => (Remedy::Again, Transient, "the body was damaged on its way"),
        (_, "RequestTimeout") | (408 | 425 | 429, _) => (Remedy::Again, Transient, ""),
        (501, _) => (Remedy::Final, Io, "this server cannot do that"),
        (500.., _) => (Remedy::Again, Transient, ""),
        _ => (Remedy::Final, Io, ""),
    }
}

/// Whether the connection was never made, so that the server cannot have seen the request.
fn was_never_sent(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(os) = error.downcast_ref::<io::Error>() {
            return matches!(
                os.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::AddrNotAvailable
            );
        }
        let text = error.to_string();
        if text.contains("connect timeout") || text.contains("dns error") {
            return true;
        }
        cause = error.source();
    }
    false
}

/// All causes of an error on one line.
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&next);
        }
        cause = error.source();
    }
    text.chars().take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, code: &str) -> (Remedy, ErrorKind) {
        let failure = Failure::answered("putting x", status, Some(code), Some("text"));
        let shown = failure.error.to_string();
        assert!(
            shown.contains("putting x") && shown.contains(code),
            "{shown}"
        );
        (failure.remedy, failure.error.kind())
    }

    #[test]
    fn connections_that_fail_for_a_setting_say_which() {
        let shown = |text: &str| {
            let error = io::Error::other(text.to_owned());
            Failure::of_connection("putting x", &error)
                .error
                .to_string()
        };
        let unknown = shown("TLS handshake failed: invalid peer certificate: UnknownIssuer");
        assert!(unknown.contains("(is ca_file the authority"), "{unknown}");
        let plain = shown("received corrupt message of type InvalidContentType");
        assert!(plain.contains("speak http, without TLS?"), "{plain}");
        assert_eq!(shown("connection reset"), "putting x: connection reset");
    }

    #[test]
    fn answers_mean_what_callers_decide_on() {
        use ErrorKind::{AlreadyExists, Corrupt, Full, Io, NotFound, Transient};
        for (status, code, remedy, kind) in [
            (404, "NoSuchKey", Remedy::Final, NotFound),
            (404, "NotFound", Remedy::Final, NotFound),
            (404, "NoSuchBucket", Remedy::Final, Io),
            (404, "", Remedy::Final, Io),
            (412, "PreconditionFailed", Remedy::Exists, AlreadyExists),
            (409, "ConditionalRequestConflict", Remedy::Unsent, Transient),
            (403, "AccessDenied", Remedy::Final, Io),
            (401, "", Remedy::Final, Io),
            (403, "QuotaExceeded", Remedy::Final, Full),
            (507, "", Remedy::Final, Full),
            (403, "RequestTimeTooSkewed", Remedy::Final, Io),
            (416, "InvalidRange", Remedy::Final, Corrupt),
            (400, "BadDigest", Remedy::Again, Transient),
            (400, "RequestTimeout", Remedy::Again, Transient),
            (400, "InvalidRequest", Remedy::Final, Io),
            (429, "", Remedy::Again, Transient),
            (500, "InternalError", Remedy::Again, Transient),
            (503, "SlowDown", Remedy::Again, Transient),
            (501, "NotImplemented", Remedy::Final, Io),
        ] {
            assert_eq!(of(status, code), (remedy, kind), "{status} {code}");
        }
    }

    #[test]
    fn texts_of_servers_are_cut() {
        let long = "x".repeat(10_000);
        let failure = Failure::answered("getting x", 500, None, Some(&long));
        assert!(failure.error.to_string().len() < 400);
    }

    #[test]
    fn only_a_connection_that_was_never_made_sent_nothing() {
        for (kind, never) in [
            (io::ErrorKind::ConnectionRefused, true),
            (io::ErrorKind::NetworkUnreachable, true),
            (io::ErrorKind::ConnectionReset, false),
            (io::ErrorKind::BrokenPipe, false),
            (io::ErrorKind::TimedOut, false),
        ] {
            let outer = Error::new(ErrorKind::Io, "x").with_source(io::Error::from(kind));
            assert_eq!(was_never_sent(&outer), never, "{kind}");
        }
    }
}
