//! Large objects in parts. An upload that does not finish is given up on the server, also when its
//! future is dropped; one whose process dies stays there until the bucket's lifecycle rule ends it.

use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::failure::Failure;
use super::requests::{Attempt, Condition, Requests, crc_header};
use super::retry::{Repeat, Retries};
use super::tally::Verb;

/// Parts under way at once.
const PARTS_AT_ONCE: usize = 4;
/// Most parts of an upload.
const PARTS_MAX: usize = 10_000;

/// An upload that has begun; given up when dropped unless it was completed.
struct Upload {
    requests: Arc<Requests>,
    key: String,
    id: String,
    is_complete: bool,
}

/// Puts `body` in parts. The condition is the server's to keep when the upload is completed, which
/// is tried once: its outcome is as unknown as that of a conditional put.
pub(super) async fn put_in_parts(
    requests: &Arc<Requests>,
    retries: &Retries,
    key: &str,
    body: &Bytes,
    condition: Condition<'_>,
) -> Attempt<()> {
    let part_bytes = (requests.location.part_bytes as usize).max(body.len().div_ceil(PARTS_MAX));
    let tally = &requests.tally;
    let begin = || Upload::begin(requests, key);
    let mut upload = retries
        .run(tally, Verb::Multipart, Repeat::Freely, 0, begin)
        .await?;
    let count = body.len().div_ceil(part_bytes);
    let parts: Vec<CompletedPart> = stream::iter(0..count)
        .map(|index| {
            let start = index * part_bytes;
            let part = body.slice(start..body.len().min(start + part_bytes));
            upload.put_part(retries, index as i32 + 1, part)
        })
        .buffered(PARTS_AT_ONCE)
        .try_collect()
        .await?;
    let repeat = match condition {
        Condition::Always => Repeat::Freely,
        _ => Repeat::OnlyIfUnsent,
    };
    let complete = || upload.complete(parts.clone(), condition);
    retries
        .run(tally, Verb::Multipart, repeat, body.len(), complete)
        .await?;
    upload.is_complete = true;
    Ok(())
}

impl Upload {
    async fn begin(requests: &Arc<Requests>, key: &str) -> Attempt<Self> {
        requests.tally.request(Verb::Multipart, 0);
        let answer = requests
            .client
            .create_multipart_upload()
            .bucket(&requests.location.bucket)
            .key(requests.location.full_key(key))
            .checksum_algorithm(ChecksumAlgorithm::Crc32C)
            .send()
            .await
            .map_err(|e| Failure::of(&format!("beginning an upload of {key}"), &e))?;
        let id = answer
            .upload_id()
            .ok_or_else(|| Failure::nonsense(format!("an upload of {key} has no id")))?;
        Ok(Self {
            requests: Arc::clone(requests),
            key: key.to_owned(),
            id: id.to_owned(),
            is_complete: false,
        })
    }

    async fn put_part(
        &self,
        retries: &Retries,
        number: i32,
        part: Bytes,
    ) -> Attempt<CompletedPart> {
        let crc = crc_header(&part);
        let attempt = || self.try_part(number, part.clone(), &crc);
        let tally = &self.requests.tally;
        let tag = retries
            .run(tally, Verb::Multipart, Repeat::Freely, part.len(), attempt)
            .await?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(tag)
            .checksum_crc32_c(crc)
            .build())
    }

    async fn try_part(&self, number: i32, part: Bytes, crc: &str) -> Attempt<Option<String>> {
        let requests = &self.requests;
        requests.tally.request(Verb::Multipart, part.len());
        let put = requests
            .client
            .upload_part()
            .bucket(&requests.location.bucket)
            .key(requests.location.full_key(&self.key))
            .upload_id(&self.id)
            .part_number(number)
            .content_length(part.len() as i64)
            .checksum_crc32_c(crc)
            .body(ByteStream::from(part))
            .customize();
        let put = match requests.location.is_private() {
            true => put.disable_payload_signing(),
            false => put,
        };
        let what = || format!("putting part {number} of {}", self.key);
        let stored = put.send().await.map_err(|e| Failure::of(&what(), &e))?;
        Ok(stored.e_tag().map(ToOwned::to_owned))
    }

    async fn complete(&self, parts: Vec<CompletedPart>, condition: Condition<'_>) -> Attempt<()> {
        let requests = &self.requests;
        requests.tally.request(Verb::Multipart, 0);
        let list = CompletedMultipartUpload::builder().set_parts(Some(parts));
        requests
            .client
            .complete_multipart_upload()
            .bucket(&requests.location.bucket)
            .key(requests.location.full_key(&self.key))
            .upload_id(&self.id)
            .multipart_upload(list.build())
            .set_if_none_match(condition.if_none_match())
            .send()
            .await
            .map_err(|e| Failure::of(&format!("completing the upload of {}", self.key), &e))?;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.is_complete {
            return;
        }
        let requests = Arc::clone(&self.requests);
        let give_up = requests
            .client
            .abort_multipart_upload()
            .bucket(&requests.location.bucket)
            .key(requests.location.full_key(&self.key))
            .upload_id(&self.id);
        // Dropped on the lane's thread, except when the lane itself has ended.
        if let Ok(lane) = tokio::runtime::Handle::try_current() {
            lane.spawn(async move {
                requests.tally.request(Verb::Multipart, 0);
                if let Err(error) = give_up.send().await {
                    let error = Failure::of("giving up an upload", &error).error;
                    tracing::debug!(%error, "parts may be left in the bucket");
                }
            });
        }
    }
}
