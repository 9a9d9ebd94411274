//! The URL of a bucket: `s3://bucket/prefix?endpoint=…&region=…`.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::error::{Error, Result};
use crate::object::ObjectKey;
use crate::size;

/// Least bytes of a part of a multipart upload (S3's own limit).
const PART_BYTES_MIN: u64 = 5 << 20;
/// Most bytes of a part, and so of an object that is put in one request (S3's own limit).
const PART_BYTES_MAX: u64 = 5 << 30;
const PART_BYTES_DEFAULT: u64 = 16 << 20;

/// The parameters that a URL may have, for messages.
const PARAMETERS: &str = "endpoint, region, path_style, ca_file, credentials_file, part_size";

/// Where a bucket is. Holds no secret, so it may be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    /// Name of the bucket.
    pub bucket: String,
    /// First part of every key, without `/` at the end; may be empty.
    pub prefix: String,
    /// Address of the server with its scheme; `None` is AWS.
    pub endpoint: Option<String>,
    /// Region, which is part of every signature.
    pub region: String,
    /// The bucket is named in the path, not in the host name.
    pub path_style: bool,
    /// PEM file of the only certification authorities that are trusted; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// File with the keys; `None`: systemd credential or environment.
    pub credentials_file: Option<PathBuf>,
    /// Larger objects are put in parts of so many bytes.
    pub part_bytes: u64,
}

impl S3Location {
    /// Reads a URL; the refusal names the part that is wrong.
    pub fn parse(url: &str) -> Result<Self> {
        Self::read(url).map_err(|why| {
            // A misplaced secret must not get into a log, so nothing behind '?' is repeated.
            let shown = url.split('?').next().unwrap_or_default();
            Error::invalid(format!("backend {shown:?}: {why}"))
        })
    }

    fn read(url: &str) -> std::result::Result<Self, String> {
        let rest = url
            .strip_prefix("s3://")
            .ok_or("write s3://bucket/prefix?endpoint=https://host&region=name")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_end_matches('/');
        let mut location = Self {
            bucket: checked_bucket(bucket)?,
            prefix: checked_prefix(prefix)?,
            endpoint: None,
            region: String::new(),
            path_style: false,
            ca_file: None,
            credentials_file: None,
            part_bytes: PART_BYTES_DEFAULT,
        };
        let mut path_style = None;
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("parameter {pair:?} has no value; write {pair}=…"))?;
            if seen.contains(&name) {
                return Err(format!("parameter {name} is given twice"));
            }
            seen.push(name);
            let value = decoded(name, value)?;
            match name {
                "endpoint" => location.endpoint = Some(checked_endpoint(&value)?),
                "region" => location.region = checked_region(value)?,
                "path_style" => path_style = Some(checked_boolean(name, &value)?),
                "ca_file" => location.ca_file = Some(checked_path(name, &value)?),
                "credentials_file" => {
                    location.credentials_file = Some(checked_path(name, &value)?);
                }
                "part_size" => location.part_bytes = checked_part(&value)?,
                _ => return Err(unknown(name)),
            }
        }
        location.path_style = path_style.unwrap_or_else(|| location.endpoint.is_some());
        if location.region.is_empty() {
            if location.endpoint.is_none() {
                return Err("region is missing: AWS needs it, write ?region=…".to_owned());
            }
            "us-east-1".clone_into(&mut location.region);
        }
        Ok(location)
    }

    /// The key in the bucket of one of ours (or of a prefix of ours).
    pub(super) fn full_key(&self, key: &str) -> String {
        match self.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        }
    }

    /// Our key of one in the bucket; `None` if it is not below our prefix.
    pub(super) fn own_key<'a>(&self, full: &'a str) -> Option<&'a str> {
        match self.prefix.as_str() {
            "" => Some(full),
            prefix => full.strip_prefix(prefix)?.strip_prefix('/'),
        }
    }

    /// Whether nobody can change bytes on their way unnoticed: TLS, or a server on this machine.
    /// Then the body needs no SHA-256 in the signature; its CRC32C is sent anyway.
    pub(super) fn is_private(&self) -> bool {
        let Some(endpoint) = &self.endpoint else {
            return true;
        };
        let host = endpoint.strip_prefix("http://").unwrap_or("");
        endpoint.starts_with("https://")
            || ["127.", "localhost:", "[::1]"]
                .iter()
                .any(|local| host.starts_with(local))
            || host == "localhost"
    }

    /// Whether connections are encrypted.
    pub(super) fn is_tls(&self) -> bool {
        let endpoint = self.endpoint.as_deref();
        endpoint.is_none_or(|endpoint| endpoint.starts_with("https://"))
    }

    /// The place in one line, for people.
    pub fn describe(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let server = match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("AWS {}", self.region),
        };
        format!("s3://{}{slash}{} at {server}", self.bucket, self.prefix)
    }
}

fn unknown(name: &str) -> String {
    let secret = ["key", "secret", "token", "password"];
    if secret.iter().any(|word| name.to_lowercase().contains(word)) {
        return format!(
            "parameter {name}: secrets do not belong into a URL; use credentials_file, the systemd \
             credential 's3', or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        );
    }
    format!("parameter {name:?} is not known; there are {PARAMETERS}")
}

fn decoded(name: &str, value: &str) -> std::result::Result<String, String> {
    let text = percent_decode_str(value).decode_utf8();
    let text = text.map_err(|_| format!("parameter {name} is not UTF-8"))?;
    match text.is_empty() {
        true => Err(format!("parameter {name} is empty")),
        false => Ok(text.into_owned()),
    }
}

fn checked_bucket(bucket: &str) -> std::result::Result<String, String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let alphanumeric = bucket
        .as_bytes()
        .first()
        .is_some_and(u8::is_ascii_alphanumeric);
    if (3..=63).contains(&bucket.len()) && alphanumeric && bucket.bytes().all(ok) {
        return Ok(bucket.to_owned());
    }
    Err(format!(
        "{bucket:?} is not the name of a bucket: 3 to 63 letters, digits, '-', '.' and '_'"
    ))
}

fn checked_prefix(prefix: &str) -> std::result::Result<String, String> {
    // Room for our own keys, the longest of which are the logs of long volume names.
    if prefix.is_empty() || (prefix.len() <= 128 && ObjectKey::is_valid(prefix)) {
        return Ok(prefix.to_owned());
    }
    Err(format!(
        "prefix {prefix:?} is refused: parts of [A-Za-z0-9._%-], none empty or with a leading \
         '.', at most 128 bytes"
    ))
}

fn checked_endpoint(endpoint: &str) -> std::result::Result<String, String> {
    let endpoint = endpoint.trim_end_matches('/');
    let host = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"))
        .ok_or("endpoint must start with https:// or http://")?;
    if host.contains('@') {
        return Err("endpoint must not hold a user or a password".to_owned());
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'[' | b']');
    if host.is_empty() || !host.bytes().all(plain) {
        return Err(format!(
            "endpoint {endpoint:?}: write https://host or https://host:port"
        ));
    }
    let port = host.rsplit_once(':').filter(|_| !host.ends_with(']'));
    if let Some((_, port)) = port
        && port.parse::<u16>().is_err()
    {
        return Err(format!("endpoint {endpoint:?}: {port:?} is not a port"));
    }
    Ok(endpoint.to_owned())
}

fn checked_region(region: String) -> std::result::Result<String, String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    match region.bytes().all(ok) {
        true => Ok(region),
        false => Err(format!(
            "region {region:?} may hold letters, digits and '-'"
        )),
    }
}

fn checked_boolean(name: &str, value: &str) -> std::result::Result<bool, String> {
    value
        .parse()
        .map_err(|_| format!("parameter {name} is {value:?}; write true or false"))
}

fn checked_path(name: &str, value: &str) -> std::result::Result<PathBuf, String> {
    let path = PathBuf::from(value);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(format!(
            "parameter {name} is {value:?}; write an absolute path"
        )),
    }
}

fn checked_part(value: &str) -> std::result::Result<u64, String> {
    let bytes = size::parse(value).map_err(|why| format!("part_size: {why}"))?;
    match (PART_BYTES_MIN..=PART_BYTES_MAX).contains(&bytes) {
        true => Ok(bytes),
        false => Err(format!("part_size {value} is not within 5MiB to 5GiB")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(place in ".{0,40}", name in ".{0,12}", value in ".{0,40}") {
            let names = ["endpoint", "region", "path_style", "ca_file", "part_size", &name];
            for name in names {
                let url = format!("s3://{place}?region=x&{name}={value}");
                if let Ok(location) = S3Location::parse(&url) {
                    let full = location.full_key("v1/x");
                    prop_assert_eq!(location.own_key(&full), Some("v1/x"));
                    prop_assert!(ObjectKey::is_valid(&full));
                }
            }
        }
    }

    #[test]
    fn every_part_is_read() {
        let url = "s3://blk/a/b/?endpoint=http://127.0.0.1:8333/&region=eu-1&path_style=false\
                   &ca_file=/etc/ca%20x.pem&credentials_file=/etc/keys&part_size=8MiB";
        let location = S3Location::parse(url).unwrap();
        assert_eq!((&*location.bucket, &*location.prefix), ("blk", "a/b"));
        assert_eq!(location.endpoint.as_deref(), Some("http://127.0.0.1:8333"));
        assert_eq!((&*location.region, location.path_style), ("eu-1", false));
        assert_eq!(location.ca_file, Some(PathBuf::from("/etc/ca x.pem")));
        assert_eq!(location.credentials_file, Some(PathBuf::from("/etc/keys")));
        assert_eq!(location.part_bytes, 8 << 20);
        assert_eq!(location.full_key("v1/x"), "a/b/v1/x");
        assert_eq!(location.own_key("a/b/v1/x"), Some("v1/x"));
        assert_eq!(location.own_key("a/bc/v1/x"), None);
    }

    #[test]
    fn defaults_suit_a_server_of_ones_own_and_aws() {
        let own = S3Location::parse("s3://blk?endpoint=https://s3.example:9000").unwrap();
        assert!(own.path_style && own.is_tls() && own.is_private());
        assert_eq!((&*own.region, &*own.prefix), ("us-east-1", ""));
        let aws = S3Location::parse("s3://blk/p?region=eu-central-1").unwrap();
        assert!(!aws.path_style && aws.is_tls());
        assert_eq!(aws.describe(), "s3://blk/p at AWS eu-central-1");
        let open = S3Location::parse("s3://blk?endpoint=http://10.0.0.1:80").unwrap();
        assert!(!open.is_private() && !open.is_tls());
        let near = S3Location::parse("s3://blk?endpoint=http://[::1]:80").unwrap();
        assert!(near.is_private());
        let trick = S3Location::parse("s3://blk?endpoint=http://localhost.example").unwrap();
        assert!(!trick.is_private());
    }

    #[test]
    fn a_refusal_names_the_part_and_never_the_query() {
        for (url, why) in [
            ("s3:/blk", "s3://bucket"),
            ("s3://", "name of a bucket"),
            ("s3://a_/b//c?region=x", "name of a bucket"),
            ("s3://blk/b//c?region=x", "prefix"),
            ("s3://blk/../c?region=x", "prefix"),
            ("s3://blk", "region is missing"),
            ("s3://blk?endpoint=host:1", "https://"),
            ("s3://blk?endpoint=http://u:p@h", "password"),
            ("s3://blk?endpoint=http://h/x", "https://host:port"),
            ("s3://blk?endpoint=http://h:99999", "not a port"),
            ("s3://blk?region=a b", "region"),
            ("s3://blk?region=a&region=b", "twice"),
            ("s3://blk?region", "no value"),
            ("s3://blk?region=", "empty"),
            ("s3://blk?region=x&path_style=1", "true or false"),
            ("s3://blk?region=x&ca_file=ca.pem", "absolute"),
            ("s3://blk?region=x&part_size=1MiB", "5MiB"),
            ("s3://blk?region=x&regoin=y", "regoin"),
        ] {
            let error = S3Location::parse(url).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
        let url = "s3://blk?region=x&secret_access_key=hunter2";
        let error = S3Location::parse(url).unwrap_err().to_string();
        assert!(error.contains("credentials_file"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
