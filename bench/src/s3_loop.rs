//! `taipan-bench s3-loop`: what a plain loop over aws-sdk-s3 gets from a server, as the peer of the
//! S3 backend. One thread, a number of requests at once, nothing retried.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use serde::Serialize;
use taipan_engine::size::ByteSize;

use crate::random::SplitMix64;

/// Options of `taipan-bench s3-loop`. Keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
#[derive(Debug, Args)]
pub(crate) struct S3LoopArgs {
    /// s3://BUCKET/PREFIX?endpoint=http://HOST:PORT&region=NAME; objects are PREFIX/loop-NUMBER
    #[arg(long, value_parser = Place::parse)]
    url: Place,

    /// put writes objects, get reads them whole, randget reads a random range of a random one
    #[arg(long, value_enum)]
    rw: LoopRw,

    /// Requests at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    concurrency: u32,

    /// Bytes of an object
    #[arg(long, default_value = "4MiB")]
    object_bytes: ByteSize,

    /// Objects there are
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    objects: u64,

    /// Requests; the default is one for every object
    #[arg(long)]
    requests: Option<u64>,

    /// Bytes of a range of randget
    #[arg(long, default_value = "4KiB")]
    range_bytes: ByteSize,

    /// Seed of contents and ranges
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LoopRw {
    Put,
    Get,
    Randget,
}

/// Where the objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    bucket: String,
    prefix: String,
    endpoint: String,
    region: String,
}

impl Place {
    fn parse(url: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("s3://")
            .context("write s3://BUCKET/PREFIX?endpoint=…")?;
        let (path, query) = rest.split_once('?').context("an endpoint is missing")?;
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let find = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let mut found = pairs.filter(|(key, _)| *key == name);
            found.next().map(|(_, value)| value.to_owned())
        };
        ensure!(!bucket.is_empty(), "a bucket is missing");
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_end_matches('/').to_owned(),
            endpoint: find("endpoint").context("an endpoint is missing")?,
            region: find("region").unwrap_or_else(|| "us-east-1".to_owned()),
        })
    }

    fn key(&self, number: u64) -> String {
        format!("{}/loop-{number:08}", self.prefix)
            .trim_start_matches('/')
            .to_owned()
    }
}

/// What came of a run.
#[derive(Debug, Serialize)]
struct Outcome {
    requests: u64,
    bytes: u64,
    seconds: f64,
    requests_per_second: f64,
    megabytes_per_second: f64,
    latency_us: Latency,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// What the requests of a run share.
struct Run<'a> {
    args: &'a S3LoopArgs,
    client: Client,
    body: Bytes,
    body_crc: u32,
    requests: u64,
    begun: Cell<u64>,
    bytes: Cell<u64>,
    latency_us: RefCell<Histogram<u64>>,
}

/// Runs the loop and prints what it got.
pub(crate) fn run(args: &S3LoopArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(measure(args))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        println!(
            "{} requests, {:.1} MB/s, {:.0} requests/s, \
             µs p50 {:.0} p99 {:.0} p99.9 {:.0} max {:.0}",
            outcome.requests,
            outcome.megabytes_per_second,
            outcome.requests_per_second,
            outcome.latency_us.p50,
            outcome.latency_us.p99,
            outcome.latency_us.p999,
            outcome.latency_us.max,
        );
    }
    Ok(())
}

async fn measure(args: &S3LoopArgs) -> Result<Outcome> {
    let object_bytes = args.object_bytes.0;
    ensure!(object_bytes > 0, "an object has at least one byte");
    ensure!(
        (1..=object_bytes).contains(&args.range_bytes.0),
        "a range is as long as an object at most"
    );
    let mut body = vec![0; usize::try_from(object_bytes)?];
    SplitMix64::of(&[args.seed]).fill(&mut body);
    let run = Run {
        args,
        client: client(&args.url)?,
        body_crc: crc32c::crc32c(&body),
        body: body.into(),
        requests: args.requests.unwrap_or(args.objects),
        begun: Cell::new(0),
        bytes: Cell::new(0),
        latency_us: RefCell::new(Histogram::new_with_bounds(1, 3_600_000_000, 3)?),
    };
    let begin = Instant::now();
    try_join_all((0..args.concurrency).map(|lane| requests(&run, lane))).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let latency = run.latency_us.borrow();
    Ok(Outcome {
        requests: latency.len(),
        bytes: run.bytes.get(),
        seconds,
        requests_per_second: latency.len() as f64 / seconds,
        megabytes_per_second: run.bytes.get() as f64 / seconds / 1e6,
        latency_us: Latency {
            mean: latency.mean(),
            p50: latency.value_at_quantile(0.5) as f64,
            p99: latency.value_at_quantile(0.99) as f64,
            p999: latency.value_at_quantile(0.999) as f64,
            max: latency.max() as f64,
        },
    })
}

/// One of the requests at once: one after the other until all are begun.
async fn requests(run: &Run<'_>, lane: u32) -> Result<()> {
    let mut random = SplitMix64::of(&[run.args.seed, u64::from(lane)]);
    while run.begun.get() < run.requests {
        let number = run.begun.get();
        run.begun.set(number + 1);
        let begin = Instant::now();
        let bytes = request(run, number, &mut random).await?;
        let micros = begin.elapsed().as_micros() as u64;
        run.latency_us.borrow_mut().saturating_record(micros.max(1));
        run.bytes.set(run.bytes.get() + bytes);
    }
    Ok(())
}

/// One request; the bytes that it moved.
async fn request(run: &Run<'_>, number: u64, random: &mut SplitMix64) -> Result<u64> {
    let args = run.args;
    let key = match args.rw {
        LoopRw::Randget => args.url.key(random.below(args.objects)),
        _ => args.url.key(number % args.objects),
    };
    match args.rw {
        LoopRw::Put => put(run, &key).await,
        LoopRw::Get => get(run, &key, None).await,
        LoopRw::Randget => {
            let length = args.range_bytes.0;
            let first = random.below(args.object_bytes.0 - length + 1);
            get(run, &key, Some(first..first + length)).await
        }
    }
    .with_context(|| format!("{:?} of {key}", args.rw))
}

async fn put(run: &Run<'_>, key: &str) -> Result<u64> {
    // Counted in the time, as the backend has to do it too.
    let crc = taipan_bench::fake_s3::checksum_header(&run.body);
    let put = run
        .client
        .put_object()
        .bucket(&run.args.url.bucket)
        .key(key);
    let put = put
        .body(ByteStream::from(run.body.clone()))
        .checksum_crc32_c(crc);
    put.customize().disable_payload_signing().send().await?;
    Ok(run.body.len() as u64)
}

/// Gets an object or a range of it, and checks what came by its sum, as the backend has to do it
/// too.
async fn get(run: &Run<'_>, key: &str, range: Option<Range<u64>>) -> Result<u64> {
    let header = |range: &Range<u64>| format!("bytes={}-{}", range.start, range.end - 1);
    let get = run
        .client
        .get_object()
        .bucket(&run.args.url.bucket)
        .key(key)
        .set_range(range.as_ref().map(header));
    let mut got = get.send().await?;
    let (mut bytes, mut crc) = (0, 0);
    while let Some(piece) = got.body.next().await {
        let piece = piece?;
        bytes += piece.len() as u64;
        crc = crc32c::crc32c_append(crc, &piece);
    }
    let (wanted, right) = match range {
        None => (run.args.object_bytes.0, run.body_crc),
        Some(range) => {
            let part = &run.body[range.start as usize..range.end as usize];
            (range.end - range.start, crc32c::crc32c(part))
        }
    };
    ensure!(bytes == wanted, "{bytes} bytes instead of {wanted}");
    ensure!(crc == right, "wrong bytes");
    Ok(bytes)
}

/// A client with the settings of the S3 backend.
fn client(place: &Place) -> Result<Client> {
    let secret = |name| std::env::var(name).with_context(|| format!("{name} is not set"));
    let (id, key) = (
        secret("AWS_ACCESS_KEY_ID")?,
        secret("AWS_SECRET_ACCESS_KEY")?,
    );
    let token = std::env::var("AWS_SESSION_TOKEN").ok();
    let http = Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(place.region.clone()))
        .endpoint_url(&place.endpoint)
        .force_path_style(true)
        .credentials_provider(Credentials::new(id, key, token, None, "environment"))
        .http_client(http)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .disable_s3_express_session_auth(true)
        .build();
    Ok(Client::from_conf(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_the_objects() {
        let place = Place::parse("s3://b/p/q/?endpoint=http://h:1&path_style=true");
        let place = place.expect("a place");
        assert_eq!(
            (place.bucket.as_str(), place.region.as_str()),
            ("b", "us-east-1")
        );
        assert_eq!(place.endpoint, "http://h:1");
        assert_eq!(place.key(7), "p/q/loop-00000007");
        let bare = Place::parse("s3://b?endpoint=http://h:1&region=garage").expect("a place");
        assert_eq!(
            (bare.key(0).as_str(), bare.region.as_str()),
            ("loop-00000000", "garage")
        );
        for wrong in [
            "s3://b/p",
            "http://b?endpoint=x",
            "s3:///p?endpoint=x",
            "s3://b?region=x",
        ] {
            assert!(Place::parse(wrong).is_err(), "{wrong}");
        }
    }
}
