//! GETs without the SDK's orchestrator: signed by its signer, sent over its connections. A cold
//! read of a block is one GET, and interceptors, layers of configuration and the rules of endpoints
//! took more of its time than everything else on this side (docs/internals/performance.md).

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::{HttpRequest, HttpResponse};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::identity::Identity;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::OnceCell;

use super::failure::{Failure, Remedy, causes};
use super::live_keys::LiveKeys;
use super::location::S3Location;
use super::requests::Attempt;
use crate::error::ErrorKind;

/// SHA-256 of no bytes, which is the body of a GET.
const NO_BODY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// Name of the service in signatures.
const SERVICE: &str = "s3";
/// What the key of the URL that is asked of the SDK ends with.
const MODEL_KEY: &str = "k";
const MODEL_VALID: std::time::Duration = std::time::Duration::from_secs(60);
/// So much of a refusal is read, at most.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// What a path names as it is (RFC 3986, unreserved); the rest is encoded, as signatures want it.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// What such GETs need.
pub(super) struct Direct {
    connector: Connector,
    keys: Arc<LiveKeys>,
    region: String,
    settings: SigningSettings,
    /// URL of every key without the key; `None` inside: the SDK signs in a way of its own here.
    base: OnceCell<Option<String>>,
}

/// An answer whose body is still to be read.
pub(super) struct Answer {
    pub(super) content_length: Option<u64>,
    pub(super) content_range: Option<String>,
    pub(super) body: ByteStream,
}

impl Direct {
    pub(super) fn new(connector: Connector, keys: Arc<LiveKeys>, location: &S3Location) -> Self {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        // None of those is among the headers that are signed.
        settings.excluded_headers = None;
        Self {
            connector,
            keys,
            region: location.region.clone(),
            settings,
            base: OnceCell::new(),
        }
    }

    /// Begins a GET of a key as it is in the bucket; `range` is the header's value. `None`: this is
    /// a bucket for the SDK alone.
    pub(super) async fn get(
        &self,
        client: &Client,
        location: &S3Location,
        full_key: &str,
        range: Option<&str>,
    ) -> Attempt<Option<Answer>> {
        let base = self.base.get_or_try_init(|| base_of(client, location));
        let Some(base) = base.await? else {
            return Ok(None);
        };
        let what = || format!("getting {full_key}");
        let url = format!("{base}{}", utf8_percent_encode(full_key, ENCODED));
        let request = self.signed(&url, range, SystemTime::now()).map_err(|e| {
            let text = format!("{}: {}", what(), causes(&*e));
            Failure::new(Remedy::Final, ErrorKind::Invalid, text)
        })?;
        let answer = self.connector.call(request).await;
        let answer = answer.map_err(|error| Failure::of_connection(&what(), &error))?;
        if !answer.status().is_success() {
            return Err(refusal(&what(), answer).await);
        }
        let header = |name| answer.headers().get(name);
        Ok(Some(Answer {
            content_length: header("content-length").and_then(|text| text.parse().ok()),
            content_range: header("content-range").map(ToOwned::to_owned),
            body: ByteStream::new(answer.into_body()),
        }))
    }

    fn signed(
        &self,
        url: &str,
        range: Option<&str>,
        now: SystemTime,
    ) -> Result<HttpRequest, Box<dyn StdError + Send + Sync>> {
        // They may have changed.
        let identity = Identity::from(self.keys.current());
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(SERVICE)
            .time(now)
            .settings(self.settings.clone())
            .build()?
            .into();
        let headers = range.map(|range| ("range", range));
        let body = SignableBody::Precomputed(NO_BODY_SHA256.to_owned());
        let signable = SignableRequest::new("GET", url, headers.into_iter(), body)?;
        let (instructions, _) = sign(signable, &params)?.into_parts();
        let mut request = HttpRequest::get(url)?;
        for header in instructions.into_parts().0 {
            let value = header.value().to_owned();
            request.headers_mut().try_insert(header.name(), value)?;
        }
        if let Some(range) = range {
            let range = range.to_owned();
            request.headers_mut().try_insert("range", range)?;
        }
        Ok(request)
    }
}

/// Asks the SDK, whose rules of endpoints are long, for the URL of one key.
async fn base_of(client: &Client, location: &S3Location) -> Attempt<Option<String>> {
    let wrong = |text: String| Failure::new(Remedy::Final, ErrorKind::Invalid, text);
    let model = PresigningConfig::expires_in(MODEL_VALID)
        .map_err(|e| wrong(format!("signing a URL: {}", causes(&e))))?;
    let get = client.get_object().bucket(&location.bucket).key(MODEL_KEY);
    let signed = get.presigned(model).await;
    let signed = signed.map_err(|e| Failure::of("making a URL of the bucket", &e))?;
    Ok(base_in(signed.uri(), &location.region))
}

/// The part before the key of a signed URL, if it is signed as [`Direct::signed`] does it.
fn base_in(url: &str, region: &str) -> Option<String> {
    let (place, query) = url.split_once('?')?;
    let scope = format!("%2F{region}%2F{SERVICE}%2Faws4_request");
    let ours = query.contains("X-Amz-Algorithm=AWS4-HMAC-SHA256&") && query.contains(&scope);
    let base = place.strip_suffix(MODEL_KEY)?;
    (ours && base.ends_with('/')).then(|| base.to_owned())
}

/// What an answer without success says.
async fn refusal(what: &str, answer: HttpResponse) -> Failure {
    let status = answer.status().as_u16();
    let mut body = ByteStream::new(answer.into_body());
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.next().await {
        text.extend_from_slice(&frame);
        if text.len() >= REFUSAL_BYTES_MAX {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    Failure::answered(
        what,
        status,
        element(&text, "Code"),
        element(&text, "Message"),
    )
}

/// What is between the first `<name>` and the next `</name>`.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inside, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inside.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_a_key_is_what_the_sdk_says() {
        let signed = |credential: &str| {
            format!(
                "http://h:1/b/k?x-id=GetObject&X-Amz-Algorithm=AWS4-HMAC-SHA256&\
                 X-Amz-Credential=ID%2F20261121%2F{credential}%2Faws4_request&X-Amz-Date=x"
            )
        };
        let base = |url: &str| base_in(url, "us-east-1");
        assert_eq!(
            base(&signed("us-east-1%2Fs3")).as_deref(),
            Some("http://h:1/b/")
        );
        assert_eq!(base(&signed("us-east-1%2Fs3express")), None);
        assert_eq!(base(&signed("eu-west-1%2Fs3")), None);
        assert_eq!(base("http://h:1/b/k"), None);
    }

    #[test]
    fn keys_are_encoded_as_signatures_want_it() {
        let encoded = utf8_percent_encode("v1/a b+c&d=é~x_y.z-1%", ENCODED).to_string();
        assert_eq!(encoded, "v1/a%20b%2Bc%26d%3D%C3%A9~x_y.z-1%25");
    }

    #[test]
    fn refusals_are_read_whatever_they_are() {
        let text = "<?xml?><Error><Code>NoSuchKey</Code><Message> gone </Message></Error>";
        assert_eq!(element(text, "Code"), Some("NoSuchKey"));
        assert_eq!(element(text, "Message"), Some("gone"));
        for broken in ["", "<Code>", "</Code><Code>", "<Code>x", "Code>x</Code>"] {
            assert_eq!(element(broken, "Code"), None, "{broken}");
        }
    }
}
