//! Where to connect: `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`.

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
    /// A file or block device.
    File(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, export } => {
                write!(f, "export {export:?} at {host} port {port}")
            }
            Self::Unix { socket, export } => write!(f, "export {export:?} at {}", socket.display()),
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
        match scheme {
            "nbd" => {
                ensure!(
                    query.is_empty(),
                    "nbd:// takes no parameters, not {query:?}"
                );
                let (host, port) = host_and_port(authority)?;
                Ok(Self::Tcp { host, port, export })
            }
            "nbd+unix" => {
                ensure!(
                    authority.is_empty(),
                    "nbd+unix:// names no host: nbd+unix:///EXPORT?socket=PATH"
                );
                let socket = query.strip_prefix("socket=").filter(|p| !p.is_empty());
                let socket = socket.context("nbd+unix:// needs ?socket=PATH")?;
                Ok(Self::Unix {
                    socket: PathBuf::from(decode(socket)?),
                    export,
                })
            }
            "nbds" | "nbds+unix" => bail!("TLS is not supported; use nbd:// or nbd+unix://"),
            _ => bail!("unknown scheme {scheme:?}; use nbd://, nbd+unix:// or a path"),
        }
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
        for (text, address) in [
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
            ("nbd://h/?a=b", "no parameters"),
            ("nbd+unix:///x", "?socket=PATH"),
            ("nbd+unix://h/x?socket=/s", "names no host"),
            ("nbds://h/x", "TLS"),
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
