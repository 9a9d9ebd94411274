//! Who may use which volume: rules of the configuration, by name of the volume and address of the
//! client.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// What a client may do with a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grant {
    /// Nothing; the volume is not listed either.
    None,
    /// Read.
    Read,
    /// Everything.
    #[default]
    Write,
}

/// Who is told the names of the volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listing {
    /// Everybody.
    #[default]
    All,
    /// Clients of the unix socket.
    Unix,
    /// Nobody.
    None,
}

/// Volumes whose name is this, or begins so if it ends in `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(String);

/// Clients of the unix socket, or with an address of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// All of the unix socket.
    Unix,
    /// Addresses that begin with the same bits.
    Network {
        /// The first address.
        address: IpAddr,
        /// How many bits count.
        bits: u8,
    },
}

/// What some clients may do with some volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Any of these volumes.
    pub volumes: Vec<Names>,
    /// Any of these clients.
    pub clients: Vec<Clients>,
    /// May do so much.
    pub grant: Grant,
}

/// All rules. Without a rule for it a volume is everybody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Who is told the names.
    pub listing: Listing,
    /// Tried in order.
    pub rules: Vec<Rule>,
}

impl Access {
    /// What a client (`None`: of the unix socket) may do with a volume: the first rule for both
    /// decides; if there are only rules for other clients, nothing.
    pub fn grant(&self, volume: &str, client: Option<IpAddr>) -> Grant {
        let mut grant = Grant::Write;
        let of_volume = |rule: &&Rule| rule.volumes.iter().any(|names| names.cover(volume));
        for rule in self.rules.iter().filter(of_volume) {
            if rule.clients.iter().any(|clients| clients.cover(client)) {
                return rule.grant;
            }
            grant = Grant::None;
        }
        grant
    }

    /// Whether a client (`None`: of the unix socket) is told the names of its volumes.
    pub fn lists_to(&self, client: Option<IpAddr>) -> bool {
        match self.listing {
            Listing::All => true,
            Listing::Unix => client.is_none(),
            Listing::None => false,
        }
    }
}

impl Names {
    fn cover(&self, volume: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(begin) => volume.starts_with(begin),
            None => volume == self.0,
        }
    }
}

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let begin = text.strip_suffix('*').unwrap_or(text);
        if text.is_empty() || begin.contains('*') || begin.contains('@') {
            return Err(format!(
                "{text:?} is no name of volumes; write a name, or its beginning and a *"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The bits of an address from the first on, and how many it has.
fn bits_of(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

/// The first `bits` of an address.
fn prefix(address: IpAddr, bits: u8) -> u128 {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    bits_of(address).0 & mask
}

impl Clients {
    fn cover(&self, client: Option<IpAddr>) -> bool {
        match (*self, client.map(|address| address.to_canonical())) {
            (Self::Unix, client) => client.is_none(),
            (Self::Network { .. }, None) => false,
            (Self::Network { address, bits }, Some(client)) => {
                address.is_ipv4() == client.is_ipv4()
                    && prefix(address, bits) == prefix(client, bits)
            }
        }
    }
}

impl FromStr for Clients {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let why = || {
            format!(
                "{text:?} is no client; write an address (10.0.0.7), a network (10.0.0.0/8) or \
                 \"unix\""
            )
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| why())?;
        let all = bits_of(address).1;
        let bits = match bits {
            Some(bits) => bits.parse().map_err(|_| why())?,
            None => all,
        };
        if bits > all {
            return Err(why());
        }
        if prefix(address, bits) != bits_of(address).0 {
            return Err(format!(
                "{text:?} has more than {bits} bits; write the first address of the network"
            ));
        }
        if address != address.to_canonical() {
            return Err(format!("{text:?}: write it as an address of IPv4"));
        }
        Ok(Self::Network { address, bits })
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::Network { address, bits } => write!(f, "{address}/{bits}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(volumes: &str, clients: &[&str], grant: Grant) -> Rule {
        Rule {
            volumes: vec![volumes.parse().unwrap()],
            clients: clients.iter().map(|text| text.parse().unwrap()).collect(),
            grant,
        }
    }

    #[test]
    fn the_first_rule_for_volume_and_client_decides() {
        let access = Access {
            listing: Listing::Unix,
            rules: vec![
                rule("tenant/secret", &["unix"], Grant::Read),
                rule("tenant/*", &["10.9.0.0/16"], Grant::None),
                rule("tenant/*", &["10.0.0.0/8", "fd00::/8"], Grant::Write),
                rule("tenant/*", &["192.168.1.7"], Grant::Read),
            ],
        };
        let rows = [
            ("other", "1.2.3.4", Grant::Write),
            ("tenant/a", "10.1.2.3", Grant::Write),
            ("tenant/a", "10.9.2.3", Grant::None),
            ("tenant/a", "11.0.0.1", Grant::None),
            ("tenant/a", "192.168.1.7", Grant::Read),
            ("tenant/a", "192.168.1.6", Grant::None),
            ("tenant/a", "::ffff:10.1.2.3", Grant::Write),
            ("tenant/a", "fd12::1", Grant::Write),
            ("tenant/a", "fe80::1", Grant::None),
            ("tenant/secret", "10.1.2.3", Grant::Write),
            ("tenantother", "11.0.0.1", Grant::Write),
        ];
        for (volume, client, grant) in rows {
            let client: IpAddr = client.parse().unwrap();
            assert_eq!(
                access.grant(volume, Some(client)),
                grant,
                "{volume} {client}"
            );
            assert!(!access.lists_to(Some(client)));
        }
        assert_eq!(access.grant("tenant/secret", None), Grant::Read);
        assert_eq!(access.grant("tenant/a", None), Grant::None);
        assert!(access.lists_to(None));
        assert_eq!(Access::default().grant("any", None), Grant::Write);
    }

    #[test]
    fn patterns_are_read_as_they_are_shown_or_refused() {
        for text in ["unix", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::1/128"] {
            assert_eq!(text.parse::<Clients>().unwrap().to_string(), text);
        }
        assert_eq!(
            "10.0.0.7".parse::<Clients>().unwrap().to_string(),
            "10.0.0.7/32"
        );
        let bad = [
            "",
            "host",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/-1",
            "::ffff:1.2.3.4",
        ];
        for text in bad {
            assert!(text.parse::<Clients>().is_err(), "{text}");
        }
        for text in ["", "a*b", "**", "v@s"] {
            assert!(text.parse::<Names>().is_err(), "{text}");
        }
        assert!("*".parse::<Names>().unwrap().cover("anything"));
    }
}
