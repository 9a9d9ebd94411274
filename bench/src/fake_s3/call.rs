//! One request of S3, taken apart: which operation, on which key, under which conditions.

use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::Config;
use super::conditions::Conditions;
use super::reply::Refusal;

/// The operations there are, as statistics and fault rules name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// PutObject.
    Put,
    /// GetObject.
    Get,
    /// HeadObject.
    Head,
    /// DeleteObject.
    Delete,
    /// ListObjectsV2.
    List,
    /// DeleteObjects.
    DeleteObjects,
    /// CreateMultipartUpload.
    CreateUpload,
    /// UploadPart.
    UploadPart,
    /// CompleteMultipartUpload.
    CompleteUpload,
    /// AbortMultipartUpload.
    AbortUpload,
    /// HeadBucket.
    HeadBucket,
}

impl Verb {
    /// Whether it changes the store.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Get | Self::Head | Self::List | Self::HeadBucket)
    }
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    /// Empty for operations on the bucket.
    pub(crate) key: String,
    query: Vec<(String, String)>,
    pub(crate) conditions: Conditions,
    pub(crate) range: Option<String>,
    pub(crate) checksum: Option<String>,
    pub(crate) wants_checksum: bool,
    /// `x-amz-meta-*`, name without the prefix.
    pub(crate) metadata: Vec<(String, String)>,
}

impl Call {
    /// Takes a request's head apart.
    pub(crate) fn parse(parts: &Parts, config: &Config) -> Result<Self, Refusal> {
        let path = parts.uri.path().strip_prefix('/').unwrap_or_default();
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if decoded(bucket)? != config.bucket {
            return Err(Refusal::no_such_bucket());
        }
        let text = |name| header(&parts.headers, name);
        if text("x-amz-content-sha256").is_some_and(|hash| hash.starts_with("STREAMING-")) {
            return Err(Refusal::not_implemented("aws-chunked bodies"));
        }
        let query = query_of(parts.uri.query().unwrap_or_default())?;
        let key = decoded(key)?;
        let verb = verb_of(&parts.method, key.is_empty(), &query)?;
        let mut conditions = Conditions::of(&parts.headers);
        if verb.writes() {
            conditions = conditions.honoured(config.conditional_writes);
        }
        Ok(Self {
            verb,
            key,
            conditions,
            range: text("range"),
            checksum: text("x-amz-checksum-crc32c"),
            wants_checksum: text("x-amz-checksum-mode").is_some_and(|mode| mode == "ENABLED"),
            metadata: metadata_of(&parts.headers),
            query,
        })
    }

    /// A parameter of the query, empty when it has no value.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        find(&self.query, name)
    }

    /// A parameter that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<usize>, Refusal> {
        let parse = |text: &str| {
            let wrong = |_| Refusal::invalid_argument(&format!("{name} is not a number"));
            text.parse().map_err(wrong)
        };
        self.parameter(name).map(parse).transpose()
    }
}

fn find<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = query.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn metadata_of(headers: &HeaderMap) -> Vec<(String, String)> {
    let entry = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        let name = name.as_str().strip_prefix("x-amz-meta-")?;
        Some((name.to_owned(), value.to_str().ok()?.to_owned()))
    };
    headers.iter().filter_map(entry).collect()
}

/// The parameters of a query string.
pub(crate) fn query_of(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    let entry = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        Ok((decoded(name)?, decoded(value)?))
    };
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(entry)
        .collect()
}

fn decoded(text: &str) -> Result<String, Refusal> {
    let plain = percent_decode_str(text).decode_utf8();
    plain
        .map(Into::into)
        .map_err(|_| Refusal::invalid_argument("not UTF-8"))
}

fn verb_of(method: &Method, bucket: bool, query: &[(String, String)]) -> Result<Verb, Refusal> {
    let has = |name| find(query, name).is_some();
    let verb = match (method.as_str(), bucket) {
        ("PUT", false) if has("uploadId") => Verb::UploadPart,
        ("PUT", false) => Verb::Put,
        ("GET", false) if !has("uploadId") => Verb::Get,
        ("HEAD", false) => Verb::Head,
        ("DELETE", false) if has("uploadId") => Verb::AbortUpload,
        ("DELETE", false) => Verb::Delete,
        ("POST", false) if has("uploads") => Verb::CreateUpload,
        ("POST", false) if has("uploadId") => Verb::CompleteUpload,
        ("POST", true) if has("delete") => Verb::DeleteObjects,
        ("GET", true) if find(query, "list-type") == Some("2") => Verb::List,
        ("HEAD", true) => Verb::HeadBucket,
        _ => return Err(Refusal::not_implemented("this operation")),
    };
    Ok(verb)
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn parse(method: &str, uri: &str) -> Result<Call, Refusal> {
        let request = Request::builder().method(method).uri(uri);
        let request = request
            .header("If-None-Match", "*")
            .header("x-amz-meta-token", "t1");
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        Call::parse(&parts, &Config::default())
    }

    #[test]
    fn operations_are_told_apart() {
        let cases = [
            ("PUT", "/taipan/a", Verb::Put),
            ("PUT", "/taipan/a?partNumber=1&uploadId=x", Verb::UploadPart),
            ("GET", "/taipan/a?x-id=GetObject", Verb::Get),
            ("HEAD", "/taipan/a", Verb::Head),
            ("DELETE", "/taipan/a", Verb::Delete),
            ("DELETE", "/taipan/a?uploadId=x", Verb::AbortUpload),
            ("POST", "/taipan/a?uploads", Verb::CreateUpload),
            ("POST", "/taipan/a?uploadId=x", Verb::CompleteUpload),
            ("POST", "/taipan?delete", Verb::DeleteObjects),
            ("GET", "/taipan/?list-type=2&prefix=a%2Fb", Verb::List),
            ("HEAD", "/taipan", Verb::HeadBucket),
        ];
        for (method, uri, verb) in cases {
            assert_eq!(parse(method, uri).expect(uri).verb, verb, "{method} {uri}");
        }
    }

    #[test]
    fn keys_and_parameters_are_decoded() {
        let call = parse("PUT", "/taipan/v1/a%20b%2Bc%25?n=7&s=x%3Dy").expect("a call");
        assert_eq!(call.key, "v1/a b+c%");
        assert_eq!(call.number("n").expect("a number"), Some(7));
        assert_eq!(call.parameter("s"), Some("x=y"));
        assert!(call.number("s").is_err());
        assert!(call.conditions.any());
        assert_eq!(call.metadata, [("token".to_owned(), "t1".to_owned())]);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let status = |uri| parse("GET", uri).expect_err("a refusal").status.as_u16();
        assert_eq!(status("/other/a"), 404);
        assert_eq!(status("/taipan/?versions"), 501);
        assert_eq!(status("/taipan/%ff"), 400);
    }
}
