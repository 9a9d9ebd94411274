//! Single requests: one attempt each, counted, with their answers checked.

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use bytes::{Bytes, BytesMut};

use super::direct::{Answer, Direct};
use super::failure::{Failure, Remedy, causes};
use super::location::S3Location;
use super::tally::{Tally, Verb};
use crate::backend::{Listed, OBJECT_BYTES_MAX, too_short};
use crate::bodies::{Bodies, LARGE_BYTES};
use crate::checksum;
use crate::error::ErrorKind;

/// Result of an attempt.
pub(super) type Attempt<T> = Result<T, Failure>;

/// Under which condition a put may take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition<'a> {
    /// Always.
    Always,
    /// If the key does not exist.
    Absent,
    /// If the object has this entity tag.
    Matches(&'a str),
}

impl Condition<'_> {
    pub(super) fn if_none_match(self) -> Option<String> {
        (self == Condition::Absent).then(|| "*".to_owned())
    }

    fn if_match(self) -> Option<String> {
        match self {
            Condition::Matches(tag) => Some(tag.to_owned()),
            _ => None,
        }
    }
}

/// One page of a listing.
pub(super) struct Page {
    pub(super) objects: Vec<Listed>,
    /// When each was stored, in seconds since 1970 by the server's clock, if it says so.
    pub(super) stored_secs: Vec<Option<i64>>,
    /// Where the next page goes on; `None`: there is none.
    pub(super) next: Option<String>,
}

/// What the requests of one lane need.
pub(super) struct Requests {
    pub(super) client: Client,
    pub(super) direct: Direct,
    pub(super) location: Arc<S3Location>,
    pub(super) tally: Arc<Tally>,
    /// Memory of the bodies that were read.
    pub(super) bodies: Bodies,
}

/// The value of the header `x-amz-checksum-crc32c`.
pub(super) fn crc_header(body: &[u8]) -> String {
    base64_of(checksum::crc32c(body).to_be_bytes())
}

/// Base64 of four bytes.
fn base64_of(bytes: [u8; 4]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u64::from(u32::from_be_bytes(bytes)) << 4;
    let digit = |n: u32| char::from(DIGITS[(bits >> (6 * (5 - n)) & 63) as usize]);
    (0..6).map(digit).chain(['=', '=']).collect()
}

impl Requests {
    /// Puts a whole object; `crc` is [`crc_header`] of the body. Gives its entity tag, if any.
    pub(super) async fn put(
        &self,
        key: &str,
        body: Bytes,
        crc: &str,
        condition: Condition<'_>,
    ) -> Attempt<Option<String>> {
        self.tally.request(Verb::Put, body.len());
        let put = self
            .client
            .put_object()
            .bucket(&self.location.bucket)
            .key(self.location.full_key(key))
            .content_length(body.len() as i64)
            .checksum_crc32_c(crc)
            .set_if_none_match(condition.if_none_match())
            .set_if_match(condition.if_match())
            .body(ByteStream::from(body))
            .customize();
        let put = match self.location.is_private() {
            true => put.disable_payload_signing(),
            false => put,
        };
        let stored = put.send().await;
        let stored = stored.map_err(|e| Failure::of(&format!("putting {key}"), &e))?;
        Ok(stored.e_tag().map(ToOwned::to_owned))
    }

    /// The whole object, or exactly a range `(offset, len)` of it; `len` is not zero.
    pub(super) async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Attempt<Bytes> {
        self.tally.request(Verb::Get, 0);
        let header = range.map(|(offset, len)| format!("bytes={offset}-{}", offset + len - 1));
        let full_key = self.location.full_key(key);
        let (client, location) = (&self.client, &self.location);
        let begun = self
            .direct
            .get(client, location, &full_key, header.as_deref());
        let answer = match begun.await? {
            Some(answer) => answer,
            None => self.begin_get(key, full_key, header).await?,
        };
        let announced = answer
            .content_length
            .ok_or_else(|| Failure::unknown(format!("getting {key}: no Content-Length")))?;
        if let Some((offset, len)) = range {
            let answered = answer.content_range.as_deref();
            check_range(key, offset, len, answered, announced)?;
        } else if announced > OBJECT_BYTES_MAX {
            let message = format!("object {key} has {announced} bytes, too many to be one of ours");
            return Err(Failure::new(Remedy::Final, ErrorKind::Corrupt, message));
        }
        let body = read_body(key, answer.body, announced as usize, &self.bodies).await?;
        self.tally.received(Verb::Get, body.len());
        Ok(body)
    }

    /// Begins a GET by the SDK.
    async fn begin_get(
        &self,
        key: &str,
        full_key: String,
        range: Option<String>,
    ) -> Attempt<Answer> {
        let get = self.client.get_object().bucket(&self.location.bucket);
        let answer = get.key(full_key).set_range(range).send().await;
        let answer = answer.map_err(|e| Failure::of(&format!("getting {key}"), &e))?;
        Ok(Answer {
            content_length: answer.content_length().and_then(|n| u64::try_from(n).ok()),
            content_range: answer.content_range().map(ToOwned::to_owned),
            body: answer.body,
        })
    }

    /// Length of an object, `None` if there is none.
    pub(super) async fn head(&self, key: &str) -> Attempt<Option<u64>> {
        self.tally.request(Verb::Head, 0);
        let answer = self
            .client
            .head_object()
            .bucket(&self.location.bucket)
            .key(self.location.full_key(key))
            .send()
            .await;
        let is_404 = |raw: u16| raw == 404;
        match answer {
            Ok(answer) => answer
                .content_length()
                .and_then(|n| u64::try_from(n).ok())
                .map(Some)
                .ok_or_else(|| Failure::unknown(format!("head of {key}: no Content-Length"))),
            Err(error)
                if error
                    .raw_response()
                    .is_some_and(|r| is_404(r.status().as_u16())) =>
            {
                self.confirm_absence(key).await
            }
            Err(error) => Err(Failure::of(&format!("head of {key}"), &error)),
        }
    }

    /// The answer to HEAD has no body, so it cannot say whether the object or the whole bucket is
    /// not there; a GET can.
    async fn confirm_absence(&self, key: &str) -> Attempt<Option<u64>> {
        match self.get(key, None).await {
            // It appeared just now.
            Ok(body) => Ok(Some(body.len() as u64)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// One page of the objects whose key starts with `prefix` and is above `after`, or the page
    /// that goes on at `token`.
    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        token: Option<String>,
        max: usize,
    ) -> Attempt<Page> {
        self.tally.request(Verb::List, 0);
        let location = &self.location;
        let after = after.filter(|_| token.is_none());
        let answer = self
            .client
            .list_objects_v2()
            .bucket(&location.bucket)
            .prefix(location.full_key(prefix))
            .set_start_after(after.map(|after| location.full_key(after)))
            .set_continuation_token(token)
            .max_keys(max.min(1000) as i32)
            .send()
            .await
            .map_err(|e| Failure::of(&format!("listing {prefix}"), &e))?;
        let mut objects = Vec::with_capacity(answer.contents().len());
        let mut stored_secs = Vec::with_capacity(answer.contents().len());
        for object in answer.contents() {
            let own = object.key().and_then(|key| location.own_key(key));
            let bytes = object.size().and_then(|n| u64::try_from(n).ok());
            let (Some(key), Some(bytes)) = (own, bytes) else {
                let message = format!("listing {prefix}: an entry without key or size");
                return Err(Failure::nonsense(message));
            };
            let key = key.to_owned();
            objects.push(Listed { key, bytes });
            stored_secs.push(object.last_modified().map(|time| time.secs()));
        }
        let next = match answer.is_truncated() {
            Some(true) => answer.next_continuation_token().map(ToOwned::to_owned),
            _ => None,
        };
        Ok(Page {
            objects,
            stored_secs,
            next,
        })
    }

    /// Removes an object; an absent one is fine.
    pub(super) async fn delete(&self, key: &str) -> Attempt<()> {
        self.tally.request(Verb::Delete, 0);
        let answer = self
            .client
            .delete_object()
            .bucket(&self.location.bucket)
            .key(self.location.full_key(key))
            .send()
            .await;
        match answer.map_err(|e| Failure::of(&format!("deleting {key}"), &e)) {
            Err(failure) if failure.is_not_found() => Ok(()),
            answered => answered.map(|_| ()),
        }
    }

    /// Removes up to 1000 objects in one request; absent ones are fine.
    pub(super) async fn delete_many(&self, keys: &[String]) -> Attempt<()> {
        self.tally.request(Verb::DeleteMany, 0);
        let what = format!("deleting {} objects", keys.len());
        let broken = |e| Failure::nonsense(format!("{what}: {}", causes(&e)));
        let mut list = Delete::builder().quiet(true);
        for key in keys {
            let object = ObjectIdentifier::builder().key(self.location.full_key(key));
            list = list.objects(object.build().map_err(broken)?);
        }
        let answer = self
            .client
            .delete_objects()
            .bucket(&self.location.bucket)
            .delete(list.build().map_err(broken)?)
            .send()
            .await
            .map_err(|e| Failure::of(&what, &e))?;
        for refused in answer.errors() {
            let code = refused.code().unwrap_or_default();
            if code != "NoSuchKey" {
                let key = refused.key().unwrap_or_default();
                return Err(Failure::unknown(format!("{what}: {key}: {code}")));
            }
        }
        Ok(())
    }
}

/// Whether an answer is what was asked for: `bytes 0-99/1000` in its Content-Range.
fn check_range(
    key: &str,
    offset: u64,
    len: u64,
    answered: Option<&str>,
    announced: u64,
) -> Attempt<()> {
    let Some(text) = answered else {
        // All of it, which is right if all of it was wanted.
        if (offset, len) == (0, announced) {
            return Ok(());
        }
        let message = format!("getting {key}: the server ignores ranges");
        return Err(Failure::nonsense(message));
    };
    let parsed = text.strip_prefix("bytes ").and_then(|text| {
        let (range, total) = text.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        Some((first.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
    });
    match parsed {
        Some((_, total)) if total < offset + len => {
            let error = too_short(key, offset, len, total);
            Err(Failure {
                remedy: Remedy::Final,
                error,
            })
        }
        Some((first, _)) if first == offset && announced == len => Ok(()),
        _ => Err(Failure::new(
            Remedy::Again,
            ErrorKind::Corrupt,
            format!("getting {key}: {text:?} of {announced} bytes for {len} bytes at {offset}"),
        )),
    }
}

/// Reads a body of exactly `announced` bytes, with one copy at most.
async fn read_body(
    key: &str,
    mut body: ByteStream,
    announced: usize,
    bodies: &Bodies,
) -> Attempt<Bytes> {
    let mut whole: Option<BytesMut> = None;
    let mut len = 0;
    while let Some(frame) = body.next().await {
        let frame = frame.map_err(|e| {
            Failure::unknown(format!("body of {key} after {len} bytes: {}", causes(&e)))
        })?;
        len += frame.len();
        if len > announced {
            break;
        }
        if len == announced && whole.is_none() && len < LARGE_BYTES {
            return Ok(frame);
        }
        let whole = whole.get_or_insert_with(|| bodies.take(announced));
        whole.extend_from_slice(&frame);
    }
    if len == announced {
        return Ok(whole.map_or_else(Bytes::new, |whole| bodies.freeze(whole)));
    }
    let message = format!("body of {key} has {len} bytes, announced were {announced}");
    Err(Failure::new(Remedy::Again, ErrorKind::Corrupt, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_in_base64() {
        // CRC32C of "123456789" is e3069283.
        assert_eq!(crc_header(b"123456789"), "4waSgw==");
        assert_eq!(base64_of([0xff; 4]), "/////w==");
        assert_eq!(base64_of([0; 4]), "AAAAAA==");
    }

    #[test]
    fn a_range_must_be_the_one_that_was_asked_for() {
        let check = |offset, len, text, announced| {
            let checked = check_range("k", offset, len, text, announced);
            checked.map_err(|failure| (failure.remedy, failure.error.kind()))
        };
        assert_eq!(check(0, 10, None, 10), Ok(()));
        assert_eq!(check(3, 4, Some("bytes 3-6/10"), 4), Ok(()));
        let ignored = Err((Remedy::Final, ErrorKind::Io));
        assert_eq!(check(3, 4, None, 10), ignored);
        assert_eq!(check(0, 4, None, 10), ignored);
        let too_short = Err((Remedy::Final, ErrorKind::Corrupt));
        assert_eq!(check(7, 4, Some("bytes 7-9/10"), 3), too_short);
        let again = Err((Remedy::Again, ErrorKind::Corrupt));
        assert_eq!(check(3, 4, Some("bytes 2-5/10"), 4), again);
        assert_eq!(check(3, 4, Some("bytes 3-4/10"), 2), again);
        assert_eq!(check(3, 4, Some("bytes 3-6/*"), 4), again);
        assert_eq!(check(3, 4, Some("nonsense"), 4), again);
    }
}
