//! Multipart uploads: parts in any order, one object when completed.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;

use super::call::Call;
use super::checksum::etag_of;
use super::reply::{Refusal, Reply};
use super::store::{Object, Store};
use super::xml::{elements, escaped, text_of};

const PARTS_MAX: usize = 10_000;

/// One upload under way.
#[derive(Debug)]
pub(crate) struct Upload {
    key: String,
    metadata: Vec<(String, String)>,
    parts: BTreeMap<usize, Part>,
}

#[derive(Debug)]
struct Part {
    etag: String,
    body: Bytes,
}

/// CreateMultipartUpload.
pub(crate) fn create(store: &mut Store, call: &Call, bucket: &str) -> Reply {
    store.uploads_begun += 1;
    let id = format!("upload-{}", store.uploads_begun);
    let upload = Upload {
        key: call.key.clone(),
        metadata: call.metadata.clone(),
        parts: BTreeMap::new(),
    };
    store.uploads.insert(id.clone(), upload);
    Reply::xml(&format!(
        "<InitiateMultipartUploadResult><Bucket>{}</Bucket><Key>{}</Key>\
         <UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
        escaped(bucket),
        escaped(&call.key)
    ))
}

/// UploadPart; the body's checksum is verified already.
pub(crate) fn upload_part(store: &mut Store, call: &Call, body: Bytes) -> Result<Reply, Refusal> {
    let number = call.number("partNumber")?.unwrap_or(0);
    if !(1..=PARTS_MAX).contains(&number) {
        return Err(Refusal::invalid_argument(
            "Part number must be from 1 to 10000",
        ));
    }
    let etag = etag_of(&body, crc32c::crc32c(&body));
    let part = Part {
        etag: etag.clone(),
        body,
    };
    upload_of(store, call)?.parts.insert(number, part);
    Ok(Reply::empty(StatusCode::OK).with("etag", format!("\"{etag}\"")))
}

/// CompleteMultipartUpload: all named parts become the object, if the conditions hold.
pub(crate) fn complete(
    store: &mut Store,
    call: &Call,
    body: &[u8],
    part_bytes_min: usize,
) -> Result<Reply, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::malformed_xml())?;
    let named = named_parts(text)?;
    let upload = upload_of(store, call)?;
    let mut whole = BytesMut::new();
    for (place, (number, etag)) in named.iter().enumerate() {
        let part = upload.parts.get(number).filter(|part| part.etag == *etag);
        let missing = || Refusal::invalid_part(format!("part {number} is not there"));
        let part = part.ok_or_else(missing)?;
        if place + 1 < named.len() && part.body.len() < part_bytes_min {
            return Err(Refusal::part_too_small());
        }
        whole.extend_from_slice(&part.body);
    }
    let mut object = Object::of(whole.freeze());
    object.etag = format!("{}-{}", object.etag, named.len());
    object.metadata.clone_from(&upload.metadata);
    // A refused completion keeps the upload, as on AWS after 412.
    let etag = store.put_if(&call.key, object, &call.conditions)?;
    store.uploads.remove(id_of(call));
    Ok(Reply::xml(&format!(
        "<CompleteMultipartUploadResult><Key>{}</Key><ETag>&quot;{etag}&quot;</ETag>\
         </CompleteMultipartUploadResult>",
        escaped(&call.key)
    )))
}

/// AbortMultipartUpload.
pub(crate) fn abort(store: &mut Store, call: &Call) -> Result<Reply, Refusal> {
    upload_of(store, call)?;
    store.uploads.remove(id_of(call));
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

fn id_of(call: &Call) -> &str {
    call.parameter("uploadId").unwrap_or_default()
}

fn upload_of<'a>(store: &'a mut Store, call: &Call) -> Result<&'a mut Upload, Refusal> {
    let upload = store.uploads.get_mut(id_of(call));
    let upload = upload.filter(|upload| upload.key == call.key);
    upload.ok_or_else(Refusal::no_such_upload)
}

/// Number and ETag of the parts that a completion names, ascending.
fn named_parts(text: &str) -> Result<Vec<(usize, String)>, Refusal> {
    let mut parts: Vec<(usize, String)> = Vec::new();
    for element in elements(text, "Part") {
        let number = text_of(element, "PartNumber").and_then(|number| number.parse().ok());
        let etag = text_of(element, "ETag").map(|etag| etag.trim_matches('"').to_owned());
        let part = number.zip(etag).ok_or_else(Refusal::malformed_xml)?;
        if parts.last().is_some_and(|last| last.0 >= part.0) {
            return Err(Refusal::invalid_part(
                "The list of parts was not in ascending order",
            ));
        }
        parts.push(part);
    }
    if parts.is_empty() {
        return Err(Refusal::malformed_xml());
    }
    Ok(parts)
}
