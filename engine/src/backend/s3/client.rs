//! The SDK's client, told everything, so that it looks for nothing by itself: no provider chain, no
//! metadata service, no proxy from the environment, no retries of its own.

use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::HttpConnectorSettings;

use super::direct::Direct;
use super::live_keys::LiveKeys;
use super::location::S3Location;
use crate::error::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Servers close idle connections after some time, and firewalls forget them without a word; a
/// request on such a connection would wait for its whole time limit.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);

const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// Makes a client with a connection pool of its own, for the requests of one lane.
pub(super) fn client(
    location: &S3Location,
    keys: Arc<LiveKeys>,
    idle_max: usize,
) -> Result<Client> {
    let keys: Arc<dyn ProvideCredentials> = keys;
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT);
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(location.region.clone()))
        .force_path_style(location.path_style)
        .credentials_provider(keys)
        // They are at hand, and may change at any time.
        .identity_cache(IdentityCache::no_cache())
        .http_client(http_client(location, idle_max)?)
        // The CRC32C of every body is set by hand; ranges carry no checksum, their blocks do.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts.build())
        // It takes a thread that is starved of CPU for a stalled connection; attempts have limits.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .disable_s3_express_session_auth(true);
    if let Some(endpoint) = &location.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

/// Makes what GETs are sent with beside the SDK, with as many connections of its own.
pub(super) fn direct(
    location: &S3Location,
    keys: Arc<LiveKeys>,
    idle_max: usize,
) -> Result<Direct> {
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT);
    let builder = Connector::builder()
        .connector_settings(settings.build())
        .pool_idle_timeout(IDLE_CONNECTION)
        .pool_max_idle_per_host(idle_max);
    let connector = match location.is_tls() {
        false => builder.build_http(),
        true => builder
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(tls_context(location)?)
            .build(),
    };
    Ok(Direct::new(connector, keys, location))
}

fn http_client(location: &S3Location, idle_max: usize) -> Result<SharedHttpClient> {
    let builder = Builder::new()
        .pool_idle_timeout(IDLE_CONNECTION)
        .pool_max_idle_per_host(idle_max);
    if !location.is_tls() {
        return Ok(builder.build_http());
    }
    Ok(builder
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(tls_context(location)?)
        .build_https())
}

fn tls_context(location: &S3Location) -> Result<TlsContext> {
    let mut trust = TrustStore::default();
    if let Some(path) = &location.ca_file {
        let pem = std::fs::read_to_string(path)
            .map_err(|e| Error::io("reading ca_file", e).with_path(path))?;
        // The TLS library panics over what it cannot read.
        if !pem.contains(PEM_BEGIN) {
            let message = format!("ca_file holds no certificate ({PEM_BEGIN})");
            return Err(Error::invalid(message).with_path(path));
        }
        trust = TrustStore::empty().with_pem_certificate(pem);
    }
    TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|e| Error::invalid("the trusted certificates are not usable").with_source(e))
}
