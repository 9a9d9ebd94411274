//! What every operation does to the store, and what it answers.

use bytes::Bytes;
use hyper::StatusCode;

use super::World;
use super::call::{Call, Verb};
use super::checksum::base64_of;
use super::dates::http_date;
use super::listing::list;
use super::multipart;
use super::reply::{Refusal, Reply};
use super::store::{Object, Past};
use super::xml::{elements, escaped, text_of};

/// Most keys of one DeleteObjects, as on AWS.
const BATCH_KEYS_MAX: usize = 1000;

/// Carries a call out.
pub(crate) fn apply(
    world: &World,
    call: &Call,
    body: Bytes,
    past: Option<Past>,
) -> Result<Reply, Refusal> {
    check_digest(world, call, &body)?;
    let bucket = world.config.bucket.as_str();
    let mut store = world.store();
    match call.verb {
        Verb::Put => {
            let mut object = Object::of(body);
            object.metadata.clone_from(&call.metadata);
            let checksum = base64_of(object.crc32c);
            let etag = store.put_if(&call.key, object, &call.conditions)?;
            let reply = Reply::empty(StatusCode::OK).with("etag", format!("\"{etag}\""));
            Ok(match call.checksum {
                Some(_) => reply.with("x-amz-checksum-crc32c", checksum),
                None => reply,
            })
        }
        Verb::Get => read(store.get(&call.key).ok_or_else(Refusal::no_such_key)?, call),
        Verb::Head => {
            let mut reply = read(store.get(&call.key).ok_or_else(Refusal::no_such_key)?, call)?;
            reply.told_length = Some(std::mem::take(&mut reply.body).len());
            Ok(reply)
        }
        Verb::Delete => {
            store.check_write(&call.key, &call.conditions)?;
            store.delete(&call.key);
            Ok(Reply::empty(StatusCode::NO_CONTENT))
        }
        Verb::List => list(&store, call, bucket, past),
        Verb::DeleteObjects if !world.config.batch_delete => {
            Err(Refusal::not_implemented("DeleteObjects"))
        }
        Verb::DeleteObjects => {
            let (keys, quiet) = keys_of(&body)?;
            keys.iter().for_each(|key| store.delete(key));
            Ok(deleted(&keys, quiet))
        }
        Verb::CreateUpload => Ok(multipart::create(&mut store, call, bucket)),
        Verb::UploadPart => multipart::upload_part(&mut store, call, body),
        Verb::CompleteUpload => {
            multipart::complete(&mut store, call, &body, world.config.part_bytes_min)
        }
        Verb::AbortUpload => multipart::abort(&mut store, call),
        Verb::HeadBucket => Ok(Reply::empty(StatusCode::OK)),
    }
}

fn check_digest(world: &World, call: &Call, body: &[u8]) -> Result<(), Refusal> {
    let whole = matches!(call.verb, Verb::Put | Verb::UploadPart);
    match &call.checksum {
        Some(told) if whole && world.config.checksums_verified => {
            if *told == base64_of(crc32c::crc32c(body)) {
                Ok(())
            } else {
                Err(Refusal::bad_digest())
            }
        }
        _ => Ok(()),
    }
}

fn read(object: &Object, call: &Call) -> Result<Reply, Refusal> {
    call.conditions.check_read(&object.etag)?;
    let size = object.body.len();
    let mut reply = Reply::empty(StatusCode::OK)
        .with("etag", format!("\"{}\"", object.etag))
        .with("last-modified", http_date(object.modified))
        .with("accept-ranges", "bytes")
        .with("content-type", "application/octet-stream");
    for (name, value) in &object.metadata {
        reply = reply.with(&format!("x-amz-meta-{name}"), value.as_str());
    }
    let range = call.range.as_deref().and_then(|text| range_of(text, size));
    match range {
        None => {
            reply.body = object.body.clone();
            if call.wants_checksum {
                reply = reply.with("x-amz-checksum-crc32c", base64_of(object.crc32c));
            }
        }
        Some((begin, end)) if begin < end => {
            reply.status = StatusCode::PARTIAL_CONTENT;
            reply.body = object.body.slice(begin..end);
            let told = format!("bytes {begin}-{}/{size}", end - 1);
            reply = reply.with("content-range", told);
        }
        Some(_) => return Err(Refusal::invalid_range()),
    }
    Ok(reply)
}

/// Begin and end of a range within `size` bytes, empty if it cannot be satisfied; none if the
/// header is not one range of bytes, which HTTP ignores.
fn range_of(text: &str, size: usize) -> Option<(usize, usize)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let last: usize = last.parse().ok()?;
        return Some((size.saturating_sub(last), size));
    }
    let first: usize = first.parse().ok()?;
    let end = match last {
        "" => size,
        last => last.parse::<usize>().ok()?.saturating_add(1).min(size),
    };
    Some((first, end.max(first)).min((first, size.max(first))))
}

fn keys_of(body: &[u8]) -> Result<(Vec<String>, bool), Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::malformed_xml())?;
    let key = |object: &&str| text_of(object, "Key");
    let keys: Vec<String> = elements(text, "Object").iter().filter_map(key).collect();
    if keys.is_empty() || keys.len() > BATCH_KEYS_MAX {
        return Err(Refusal::malformed_xml());
    }
    Ok((keys, text_of(text, "Quiet").as_deref() == Some("true")))
}

fn deleted(keys: &[String], quiet: bool) -> Reply {
    let told = if quiet { &[] } else { keys };
    let each = |key: &String| format!("<Deleted><Key>{}</Key></Deleted>", escaped(key));
    let inner: String = told.iter().map(each).collect();
    Reply::xml(&format!("<DeleteResult>{inner}</DeleteResult>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ten_bytes() {
        let cases = [
            ("bytes=0-0", Some((0, 1))),
            ("bytes=2-5", Some((2, 6))),
            ("bytes=7-", Some((7, 10))),
            ("bytes=7-99", Some((7, 10))),
            ("bytes=-3", Some((7, 10))),
            ("bytes=-99", Some((0, 10))),
            ("bytes=x-3", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(range_of(text, 10), wanted, "{text}");
        }
    }

    #[test]
    fn ranges_that_cannot_be_satisfied_are_empty() {
        for text in [
            "bytes=10-",
            "bytes=10-11",
            "bytes=99-",
            "bytes=-0",
            "bytes=5-4",
        ] {
            let (begin, end) = range_of(text, 10).expect("a range");
            assert!(begin >= end, "{text}: {begin}..{end}");
        }
    }
}
