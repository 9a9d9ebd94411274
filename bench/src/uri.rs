//! Where to connect: `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`, under TLS
//! `nbds` instead of `nbd` and `tls-certificates=DIR`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

const DEFAULT_PORT: u16 = 10809;

/// A target of `taipan-bench run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// An NBD export over TCP.
    Tcp {
        host: String,
        port: u16,
        export: String,
    },
    /// An NBD export over a unix socket.
    Unix { socket: PathBuf, export: String },
    /// Either of them under TLS.
    Sealed { server: Box<Self>, tls: Tls },
    /// A file or block device.
    File(PathBuf),
}

/// What TLS needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Directory of certificates.
    pub(crate) certificates: PathBuf,
    /// What the server's certificate must name.
    pub(crate) name: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, export } => {
                write!(f, "export {export:?} at {host} port {port}")
            }
            Self::Unix { socket, export } => write!(f, "export {export:?} at {}", socket.display()),
            Self::Sealed { server, .. } => write!(f, "{server} under TLS"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::File(PathBuf::from(text)));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(path)?;
        let mut parameters = Parameters::read(query)?;
        let (server, name) = match scheme {
            "nbd" | "nbds" => {
                ensure!(
                    parameters.socket.is_none(),
                    "nbd:// takes no socket; use nbd+unix://"
                );
                let (host, port) = host_and_port(authority)?;
                let name = host.clone();
                (Self::Tcp { host, port, export }, name)
            }
            "nbd+unix" | "nbds+unix" => {
                ensure!(
                    authority.is_empty(),
                    "nbd+unix:// names no host: nbd+unix:///EXPORT?socket=PATH"
                );
                let socket = parameters.socket.take();
                let socket = socket.context("nbd+unix:// needs ?socket=PATH")?;
                (Self::Unix { socket, export }, "localhost".to_owned())
            }
            _ => bail!("unknown scheme {scheme:?}; use nbd://, nbd+unix://, nbds:// or a path"),
        };
        if !scheme.starts_with("nbds") {
            let is_clear = parameters.certificates.is_none() && parameters.name.is_none();
            ensure!(is_clear, "TLS is nbds://, not nbd://");
            return Ok(server);
        }
        let certificates = parameters.certificates;
        let tls = Tls {
            certificates: certificates.context("nbds:// needs ?tls-certificates=DIR")?,
            name: parameters.name.unwrap_or(name),
        };
        let server = Box::new(server);
        Ok(Self::Sealed { server, tls })
    }
}

/// What stands behind the question mark.
#[derive(Default)]
struct Parameters {
    socket: Option<PathBuf>,
    certificates: Option<PathBuf>,
    name: Option<String>,
}

impl Parameters {
    fn read(query: &str) -> Result<Self> {
        let mut parameters = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            ensure!(!value.is_empty(), "{key} without a value");
            let value = decode(value)?;
            match key {
                "socket" => parameters.socket = Some(value.into()),
                "tls-certificates" => parameters.certificates = Some(value.into()),
                "tls-hostname" => parameters.name = Some(value),
                _ => bail!("unknown parameter {key:?}"),
            }
        }
        Ok(parameters)
    }
}

fn host_and_port(authority: &str) -> Result<(String, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) = rest
                .split_once(']')
                .context("an IPv6 address ends with ]")?;
            (host, tail.strip_prefix(':'))
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    ensure!(
        !host.is_empty(),
        "nbd:// needs a host: nbd://HOST[:PORT]/EXPORT"
    );
    let port = match port {
        Some(port) => port
            .parse()
            .with_context(|| format!("{port:?} is no port"))?,
        None => DEFAULT_PORT,
    };
    Ok((host.to_owned(), port))
}

/// Resolves `%XX`.
fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let value = digits.filter(|d| !d.starts_with('+'));
        let value = value.and_then(|d| u8::from_str_radix(d, 16).ok());
        bytes.push(value.with_context(|| format!("% without two hex digits in {text:?}"))?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).with_context(|| format!("{text:?} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_nbd_uri_text_says() {
        let tcp = |host: &str, port, export: &str| Address::Tcp {
            host: host.into(),
            port,
            export: export.into(),
        };
        let unix = |socket: &str, export: &str| Address::Unix {
            socket: socket.into(),
            export: export.into(),
        };
        let sealed = |server, certificates: &str, name: &str| Address::Sealed {
            server: Box::new(server),
            tls: Tls {
                certificates: certificates.into(),
                name: name.into(),
            },
        };
        for (text, address) in [
            (
                "nbds://h:7/v?tls-certificates=/pki",
                sealed(tcp("h", 7, "v"), "/pki", "h"),
            ),
            (
                "nbds+unix:///v?socket=/s&tls-certificates=p%20q&tls-hostname=n",
                sealed(unix("/s", "v"), "p q", "n"),
            ),
            ("nbd://localhost", tcp("localhost", 10809, "")),
            ("nbd://10.0.0.1:99/vol0", tcp("10.0.0.1", 99, "vol0")),
            ("nbd://[::1]:99/a%20b", tcp("::1", 99, "a b")),
            ("nbd://h/tenant/vol", tcp("h", 10809, "tenant/vol")),
            (
                "nbd+unix:///vol0?socket=/run/nbd.sock",
                unix("/run/nbd.sock", "vol0"),
            ),
            ("nbd+unix://?socket=./s", unix("./s", "")),
            ("/dev/vda", Address::File("/dev/vda".into())),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), address, "{text}");
        }
    }

    #[test]
    fn bad_addresses_are_refused_with_the_reason() {
        for (text, why) in [
            ("nbd:///x", "needs a host"),
            ("nbd://h:x/", "no port"),
            ("nbd://h/?a=b", "unknown parameter"),
            ("nbd://h/?socket=/s", "takes no socket"),
            ("nbd://h/?tls-certificates=/p", "TLS is nbds://"),
            ("nbd+unix:///x", "?socket=PATH"),
            ("nbd+unix://h/x?socket=/s", "names no host"),
            ("nbds://h/x", "needs ?tls-certificates=DIR"),
            ("nbds+unix:///x?tls-certificates=/p", "?socket=PATH"),
            ("http://h/x", "unknown scheme"),
            ("nbd://h/%zz", "two hex digits"),
            ("nbd://h/%2", "two hex digits"),
            ("nbd://h/%ff", "UTF-8"),
        ] {
            let error = format!("{:#}", text.parse::<Address>().unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
