//! A backend in a bucket of an S3 server.
//!
//! Requests run on two threads of the backend's own, each with a tokio runtime and a connection
//! pool: reads on one, everything else on the other, so that a cold read never waits behind a chunk
//! on its way out. The futures work under any executor; dropping one cancels its request. Whoever
//! reads a lot moves to the reads' thread ([`Backend::run_beside_reads`]) and has no hops.

mod client;
mod credentials;
mod direct;
mod failure;
mod lane;
mod leftovers;
mod live_keys;
mod location;
mod multipart;
mod probe;
mod requests;
mod retry;
mod tally;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{Backend, BoxFuture, Listed, OBJECT_BYTES_MAX, Probe, Put, VerbCounts, too_short};
use crate::bodies::Bodies;
use crate::error::{Error, Result};
use crate::object::ObjectKey;

use failure::Remedy;
use lane::{Class, Lane};
use live_keys::LiveKeys;
pub use location::S3Location;
use requests::{Condition, Requests, crc_header};
use retry::{Repeat, Retries, finished};
use tally::{Tally, Verb};

/// Reads at once; what waits is the fetcher's business to bound further.
const READS_AT_ONCE: usize = 16;
/// Puts of chunks at once.
const PUTS_AT_ONCE: usize = 8;
/// Lists, deletes and small puts (manifests, names) at once.
const CONTROLS_AT_ONCE: usize = 8;
/// Requests of a class that may wait; one more fails as `Transient`.
const WAITING: usize = 1024;
/// Bodies up to this are put as control requests: a commit does not wait behind chunks.
const SMALL_BODY_BYTES: usize = 256 << 10;
/// Objects of one DeleteObjects request.
const DELETES_AT_ONCE: usize = 1000;
/// Bodies of reads whose memory is used again: what a reader's memory cache holds of what was read
/// ahead, 64 MiB in bodies of 4 MiB, and those under way.
const BODIES_KEPT: usize = 20;
/// Priority of the putting thread on machines of one or two CPUs, where clients come first.
const PUT_NICE_WHEN_SHARED: i32 = 10;

/// Objects in a bucket.
pub struct S3Backend {
    location: Arc<S3Location>,
    retries: Retries,
    reading: Lane,
    writing: Lane,
    reads: Class,
    puts: Class,
    controls: Class,
    read_requests: Arc<Requests>,
    write_requests: Arc<Requests>,
    tally: Arc<Tally>,
    /// Cleared when the server turns out not to know DeleteObjects.
    deletes_many: Arc<AtomicBool>,
}

impl S3Backend {
    /// Opens the bucket of a URL, with keys from the file that it names, the systemd credential
    /// `s3` or the environment; its threads run on `cpu` if one is given. Nothing is sent yet.
    pub fn open(url: &str, cpu: Option<usize>) -> Result<Self> {
        let location = S3Location::parse(url)?;
        let file = location.credentials_file.as_deref();
        let keys = LiveKeys::find(file, |name| std::env::var_os(name))?;
        Self::with_keys(location, &Arc::new(keys), cpu)
    }

    fn with_keys(location: S3Location, keys: &Arc<LiveKeys>, cpu: Option<usize>) -> Result<Self> {
        let location = Arc::new(location);
        let tally = Arc::new(Tally::default());
        let requests = |idle_max| -> Result<Arc<Requests>> {
            Ok(Arc::new(Requests {
                client: client::client(&location, Arc::clone(keys), idle_max)?,
                direct: client::direct(&location, Arc::clone(keys), idle_max)?,
                location: Arc::clone(&location),
                tally: Arc::clone(&tally),
                bodies: Bodies::new(BODIES_KEPT),
            }))
        };
        let shared = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() <= 2);
        let nice = if shared { PUT_NICE_WHEN_SHARED } else { 0 };
        Ok(Self {
            reading: Lane::start("s3-read", cpu, 0)?,
            writing: Lane::start("s3-write", cpu, nice)?,
            reads: Class::new("reads", READS_AT_ONCE, WAITING),
            puts: Class::new("puts", PUTS_AT_ONCE, WAITING),
            controls: Class::new("requests", CONTROLS_AT_ONCE, WAITING),
            read_requests: requests(READS_AT_ONCE)?,
            write_requests: requests(PUTS_AT_ONCE + CONTROLS_AT_ONCE)?,
            retries: Retries::default(),
            deletes_many: Arc::new(AtomicBool::new(true)),
            location,
            tally,
        })
    }

    /// Puts on the writing thread; the class depends on the size.
    fn put_as<'a>(
        &'a self,
        key: &'a ObjectKey,
        body: Bytes,
        condition: Condition<'static>,
    ) -> BoxFuture<'a, Result<Put>> {
        let (requests, retries) = (Arc::clone(&self.write_requests), self.retries);
        let key = key.as_str().to_owned();
        let class = match body.len() <= SMALL_BODY_BYTES {
            true => &self.controls,
            false => &self.puts,
        };
        self.writing.run(class, async move {
            let outcome = if body.len() as u64 > requests.location.part_bytes {
                multipart::put_in_parts(&requests, &retries, &key, &body, condition).await
            } else {
                put_whole(&requests, &retries, &key, body, condition).await
            };
            match outcome {
                Err(failure)
                    if failure.remedy == Remedy::Exists && condition == Condition::Absent =>
                {
                    Ok(Put::Exists)
                }
                outcome => finished(outcome).map(|()| Put::Created),
            }
        })
    }

    fn length<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
        let (requests, retries) = (Arc::clone(&self.read_requests), self.retries);
        let key = key.as_str().to_owned();
        self.reading.run(&self.reads, async move {
            let attempt = || requests.head(&key);
            let tally = &requests.tally;
            finished(
                retries
                    .run(tally, Verb::Head, Repeat::Freely, 0, attempt)
                    .await,
            )
        })
    }

    fn read<'a>(
        &'a self,
        key: &'a ObjectKey,
        range: Option<(u64, u64)>,
    ) -> BoxFuture<'a, Result<Bytes>> {
        let (requests, retries) = (Arc::clone(&self.read_requests), self.retries);
        let key = key.as_str().to_owned();
        self.reading.run(&self.reads, async move {
            let bytes = range.map_or(0, |(_, len)| len as usize);
            let attempt = || requests.get(&key, range);
            let tally = &requests.tally;
            finished(
                retries
                    .run(tally, Verb::Get, Repeat::Freely, bytes, attempt)
                    .await,
            )
        })
    }
}

async fn put_whole(
    requests: &Requests,
    retries: &Retries,
    key: &str,
    body: Bytes,
    condition: Condition<'static>,
) -> requests::Attempt<()> {
    let crc = crc_header(&body);
    let repeat = match condition {
        Condition::Always => Repeat::Freely,
        _ => Repeat::OnlyIfUnsent,
    };
    let attempt = || requests.put(key, body.clone(), &crc, condition);
    let tally = &requests.tally;
    let put = retries.run(tally, Verb::Put, repeat, body.len(), attempt);
    put.await.map(|_tag| ())
}

/// Objects above `after` (which is below the prefix's end) in key order, up to `max`.
async fn list_all(
    requests: &Requests,
    retries: &Retries,
    prefix: &str,
    after: Option<&str>,
    max: usize,
) -> Result<Vec<Listed>> {
    let mut listed: Vec<Listed> = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let wanted = max - listed.len();
        let attempt = || requests.list(prefix, after, token.clone(), wanted);
        let tally = &requests.tally;
        let page = finished(
            retries
                .run(tally, Verb::List, Repeat::Freely, 0, attempt)
                .await,
        )?;
        let came = page.objects.len();
        listed.extend(page.objects.into_iter().take(wanted));
        token = page.next;
        if listed.len() >= max || token.is_none() {
            return Ok(listed);
        }
        if came == 0 {
            return Err(Error::new(
                crate::error::ErrorKind::Transient,
                format!("listing {prefix}: an empty page, and there should be more"),
            ));
        }
    }
}

impl Backend for S3Backend {
    fn put_if_absent<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<Put>> {
        self.put_as(key, body, Condition::Absent)
    }

    fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>> {
        let put = self.put_as(key, body, Condition::Always);
        Box::pin(async move { put.await.map(|_created| ()) })
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
        self.read(key, None)
    }

    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>> {
        let end = offset.checked_add(len);
        if len > 0 && len <= OBJECT_BYTES_MAX && end.is_some() {
            return self.read(key, Some((offset, len)));
        }
        // HTTP has no empty ranges, and no object of ours has the others.
        let length = self.length(key);
        Box::pin(async move {
            let message = || format!("getting {key}: no such object");
            let missing = || Error::new(crate::error::ErrorKind::NotFound, message());
            let object_bytes = length.await?.ok_or_else(missing)?;
            match end.is_some_and(|end| end <= object_bytes) && len == 0 {
                true => Ok(Bytes::new()),
                false => Err(too_short(key.as_str(), offset, len, object_bytes)),
            }
        })
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
        self.length(key)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>> {
        // Servers differ over a start outside of the prefix.
        let after = after.filter(|&after| after >= prefix);
        let is_past = after.is_some_and(|after| !after.starts_with(prefix));
        if max == 0 || is_past {
            return Box::pin(async { Ok(Vec::new()) });
        }
        let (requests, retries) = (Arc::clone(&self.write_requests), self.retries);
        let (prefix, after) = (prefix.to_owned(), after.map(ToOwned::to_owned));
        self.writing.run(&self.controls, async move {
            list_all(&requests, &retries, &prefix, after.as_deref(), max).await
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
        let (requests, retries) = (Arc::clone(&self.write_requests), self.retries);
        let key = key.as_str().to_owned();
        self.writing.run(&self.controls, async move {
            delete_one(&requests, &retries, &key).await
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<()>> {
        let (requests, retries) = (Arc::clone(&self.write_requests), self.retries);
        let keys: Vec<String> = keys.iter().map(|key| key.as_str().to_owned()).collect();
        let deletes_many = Arc::clone(&self.deletes_many);
        self.writing.run(&self.controls, async move {
            for some in keys.chunks(DELETES_AT_ONCE) {
                delete_some(&requests, &retries, some, &deletes_many).await?;
            }
            Ok(())
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Probe>> {
        let (requests, retries) = (Arc::clone(&self.write_requests), self.retries);
        self.writing
            .run(&self.controls, probe::probe(requests, retries))
    }

    fn run_beside_reads(&self, task: BoxFuture<'static, ()>) -> Option<BoxFuture<'static, ()>> {
        self.reading.spawn(task);
        None
    }

    fn describe(&self) -> String {
        self.location.describe()
    }

    fn counts(&self) -> Vec<VerbCounts> {
        self.tally.counts()
    }

    fn answers(&self) -> u64 {
        self.tally.answers()
    }
}

async fn delete_one(requests: &Requests, retries: &Retries, key: &str) -> Result<()> {
    let attempt = || requests.delete(key);
    let tally = &requests.tally;
    finished(
        retries
            .run(tally, Verb::Delete, Repeat::Freely, 0, attempt)
            .await,
    )
}

/// Deletes in one request if the server can, else one by one.
async fn delete_some(
    requests: &Requests,
    retries: &Retries,
    keys: &[String],
    deletes_many: &AtomicBool,
) -> Result<()> {
    if keys.len() > 1 && deletes_many.load(Ordering::Relaxed) {
        let attempt = || requests.delete_many(keys);
        let tally = &requests.tally;
        let outcome = retries.run(tally, Verb::DeleteMany, Repeat::Freely, 0, attempt);
        match outcome.await {
            // Old servers want a Content-MD5, others do not know the request.
            Err(failure) if failure.remedy == Remedy::Final => {
                tracing::info!(error = %failure.error, "objects are deleted one by one");
                deletes_many.store(false, Ordering::Relaxed);
            }
            outcome => return finished(outcome),
        }
    }
    for key in keys {
        delete_one(requests, retries, key).await?;
    }
    Ok(())
}
