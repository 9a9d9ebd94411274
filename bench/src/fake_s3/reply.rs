//! Replies before they become HTTP: plain ones and refusals in S3's error format.

use bytes::Bytes;
use hyper::StatusCode;

use super::xml::escaped;

/// A reply whose body is whole.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// For HEAD: the length to be told while no body is sent.
    pub(crate) told_length: Option<usize>,
}

impl Reply {
    /// A reply without a body.
    pub(crate) fn empty(status: StatusCode) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
            told_length: None,
        }
    }

    /// 200 with an XML body; `inner` is what stands behind the declaration.
    pub(crate) fn xml(inner: &str) -> Self {
        let mut reply = Self::empty(StatusCode::OK).with("content-type", "application/xml");
        reply.body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{inner}").into();
        reply
    }

    /// 200 with a JSON body.
    pub(crate) fn json(value: &impl serde::Serialize) -> Self {
        let mut reply = Self::empty(StatusCode::OK).with("content-type", "application/json");
        // Only a map with keys that are no text can fail, and there is none.
        reply.body = serde_json::to_vec_pretty(value).unwrap_or_default().into();
        reply
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// An error as S3 says it.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    pub(crate) fn no_such_key() -> Self {
        let message = "The specified key does not exist.";
        Self::new(StatusCode::NOT_FOUND, "NoSuchKey", message)
    }

    pub(crate) fn no_such_bucket() -> Self {
        let message = "The specified bucket does not exist";
        Self::new(StatusCode::NOT_FOUND, "NoSuchBucket", message)
    }

    pub(crate) fn no_such_upload() -> Self {
        let message = "The specified multipart upload does not exist.";
        Self::new(StatusCode::NOT_FOUND, "NoSuchUpload", message)
    }

    pub(crate) fn precondition_failed() -> Self {
        let message = "At least one of the pre-conditions you specified did not hold";
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "PreconditionFailed",
            message,
        )
    }

    pub(crate) fn conflict() -> Self {
        let message = "The conditional request cannot succeed due to a conflicting operation \
                       against this resource.";
        Self::new(StatusCode::CONFLICT, "ConditionalRequestConflict", message)
    }

    pub(crate) fn not_modified() -> Self {
        Self::new(StatusCode::NOT_MODIFIED, "NotModified", "")
    }

    pub(crate) fn invalid_range() -> Self {
        let message = "The requested range is not satisfiable";
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", message)
    }

    pub(crate) fn invalid_argument(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidArgument", message)
    }

    pub(crate) fn invalid_part(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidPart", message)
    }

    pub(crate) fn part_too_small() -> Self {
        let message = "Your proposed upload is smaller than the minimum allowed size";
        Self::new(StatusCode::BAD_REQUEST, "EntityTooSmall", message)
    }

    pub(crate) fn too_large() -> Self {
        let message = "Your proposed upload exceeds the maximum allowed size";
        Self::new(StatusCode::BAD_REQUEST, "EntityTooLarge", message)
    }

    pub(crate) fn malformed_xml() -> Self {
        let message = "The XML you provided was not well-formed";
        Self::new(StatusCode::BAD_REQUEST, "MalformedXML", message)
    }

    pub(crate) fn bad_digest() -> Self {
        let message = "The CRC32C you specified did not match the calculated checksum.";
        Self::new(StatusCode::BAD_REQUEST, "BadDigest", message)
    }

    pub(crate) fn not_implemented(what: &str) -> Self {
        let message = format!("The fake does not implement {what}");
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message)
    }

    pub(crate) fn internal_error() -> Self {
        let message = "We encountered an internal error. Please try again.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    pub(crate) fn slow_down() -> Self {
        let message = "Please reduce your request rate.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "SlowDown", message)
    }

    pub(crate) fn too_many_requests() -> Self {
        let message = "Please reduce your request rate.";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
    }

    pub(crate) fn access_denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, "AccessDenied", "Access Denied")
    }

    /// The reply; without a body where HTTP allows none.
    pub(crate) fn reply(&self, key: &str, headless: bool) -> Reply {
        let mut reply = Reply::empty(self.status);
        if !headless && self.status != StatusCode::NOT_MODIFIED {
            let inner = format!(
                "<Error><Code>{}</Code><Message>{}</Message><Key>{}</Key></Error>",
                self.code,
                escaped(&self.message),
                escaped(key)
            );
            reply = Reply::xml(&inner);
            reply.status = self.status;
        }
        reply
    }
}
