//! Who may use which volume: rules of the configuration, by name of the volume, and address and
//! certificate of the client.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use taipan_tls::{Identity, Kind, Name};

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

/// Certificates that were verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// All.
    Any,
    /// Those with such a name: this text, or with a `*` at one end, such that begin or end so.
    Named {
        /// Where the name stands.
        kind: Kind,
        /// The text.
        text: String,
    },
}

/// A client as rules see it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Client<'a> {
    /// Its address; `None`: it came over the unix socket.
    pub address: Option<IpAddr>,
    /// Whom its certificate names, if it has shown one.
    pub identity: Option<&'a Identity>,
    /// It could start TLS, and has not.
    pub may_start_tls: bool,
}

/// What some clients may do with some volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Any of these volumes.
    pub volumes: Vec<Names>,
    /// Any of these clients; empty: all.
    pub clients: Vec<Clients>,
    /// And any of these certificates; empty: whether they have shown one or not.
    pub certificates: Vec<Certificates>,
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
    /// What a client may do with a volume: the first rule for both decides; if there are only rules
    /// for other clients, nothing.
    pub fn grant(&self, volume: &str, client: &Client<'_>) -> Grant {
        let mut grant = Grant::Write;
        for rule in self.rules_of(volume) {
            if rule.reaches(client.address) && rule.knows(client.identity) {
                return rule.grant;
            }
            grant = Grant::None;
        }
        grant
    }

    /// Whether a client that may do nothing with a volume should start TLS and show a certificate:
    /// a rule is for its address and some certificate.
    pub fn asks_for_certificate(&self, volume: &str, client: &Client<'_>) -> bool {
        let mut rules = self.rules_of(volume);
        client.may_start_tls
            && rules.any(|rule| rule.reaches(client.address) && !rule.certificates.is_empty())
    }

    fn rules_of(&self, volume: &str) -> impl Iterator<Item = &Rule> {
        let covers = move |rule: &&Rule| rule.volumes.iter().any(|names| names.cover(volume));
        self.rules.iter().filter(covers)
    }

    /// Whether a client is told the names of its volumes.
    pub fn lists_to(&self, client: &Client<'_>) -> bool {
        match self.listing {
            Listing::All => true,
            Listing::Unix => client.address.is_none(),
            Listing::None => false,
        }
    }
}

impl Rule {
    fn reaches(&self, address: Option<IpAddr>) -> bool {
        let mut clients = self.clients.iter();
        self.clients.is_empty() || clients.any(|clients| clients.cover(address))
    }

    fn knows(&self, identity: Option<&Identity>) -> bool {
        let mut known = self.certificates.iter();
        self.certificates.is_empty()
            || identity.is_some_and(|identity| known.any(|known| known.cover(identity)))
    }
}

impl Certificates {
    fn cover(&self, identity: &Identity) -> bool {
        match self {
            Self::Any => true,
            Self::Named { kind, text } => {
                let mut names = identity.names().iter();
                names.any(|name| name.kind == *kind && is_like(name, text))
            }
        }
    }
}

/// Whether a name is the text, or begins or ends as it says. Names of hosts have no case.
fn is_like(name: &Name, pattern: &str) -> bool {
    let same_case = |text: &str| match name.kind {
        Kind::Dns => text.to_ascii_lowercase(),
        Kind::Common | Kind::Uri => text.to_owned(),
    };
    let (text, pattern) = (same_case(&name.text), same_case(pattern));
    if let Some(begin) = pattern.strip_suffix('*') {
        text.starts_with(begin)
    } else if let Some(end) = pattern.strip_prefix('*') {
        text.ends_with(end)
    } else {
        text == pattern
    }
}

impl FromStr for Certificates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let why = || {
            format!(
                "{text:?} is no certificate; write cn:, dns: or uri: and a name, which may begin \
                 or end in a *, or just *"
            )
        };
        let (word, name) = text.split_once(':').ok_or_else(why)?;
        let kinds = [Kind::Common, Kind::Dns, Kind::Uri];
        let kind = kinds.into_iter().find(|kind| kind.word() == word);
        let stars = name.matches('*').count();
        let at_an_end = name.starts_with('*') || name.ends_with('*');
        match kind {
            Some(kind) if !name.is_empty() && (stars == 0 || stars == 1 && at_an_end) => {
                let text = name.to_owned();
                Ok(Self::Named { kind, text })
            }
            _ => Err(why()),
        }
    }
}

impl fmt::Display for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Named { kind, text } => write!(f, "{}:{text}", kind.word()),
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
            certificates: Vec::new(),
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
            let address = Some(client.parse().unwrap());
            let client = Client {
                address,
                ..Client::default()
            };
            assert_eq!(access.grant(volume, &client), grant, "{volume} {client:?}");
            assert!(!access.lists_to(&client));
        }
        let unix = Client::default();
        assert_eq!(access.grant("tenant/secret", &unix), Grant::Read);
        assert_eq!(access.grant("tenant/a", &unix), Grant::None);
        assert!(access.lists_to(&unix));
        assert_eq!(Access::default().grant("any", &unix), Grant::Write);
    }

    fn identity(names: &[(Kind, &str)]) -> Identity {
        let names = names.iter().map(|(kind, text)| Name {
            kind: *kind,
            text: (*text).to_owned(),
        });
        Identity::named(names.collect())
    }

    #[test]
    fn certificates_decide_beside_addresses() {
        let certified = |volumes, clients: &[&str], certificates: &[&str], grant| Rule {
            certificates: certificates.iter().map(|c| c.parse().unwrap()).collect(),
            ..rule(volumes, clients, grant)
        };
        let access = Access {
            listing: Listing::All,
            rules: vec![
                certified("a", &[], &["cn:backup"], Grant::Read),
                certified(
                    "a",
                    &["10.0.0.0/8"],
                    &["dns:*.vm.example", "uri:spiffe://x/*"],
                    Grant::Write,
                ),
                certified("b", &["10.0.0.0/8"], &["*"], Grant::Write),
                rule("b", &["10.0.0.0/8"], Grant::Read),
            ],
        };
        let (near, far) = ("10.0.0.1", "11.0.0.1");
        let (cn, dns, uri) = (Kind::Common, Kind::Dns, Kind::Uri);
        type Row<'a> = (&'a str, &'a str, Option<(Kind, &'a str)>, Grant, bool);
        let rows: [Row<'_>; 15] = [
            ("a", far, Some((cn, "backup")), Grant::Read, true),
            ("a", far, Some((cn, "backup2")), Grant::None, true),
            ("a", far, Some((cn, "Backup")), Grant::None, true),
            ("a", far, Some((dns, "backup")), Grant::None, true),
            ("a", far, None, Grant::None, true),
            ("a", near, Some((dns, "n1.VM.example")), Grant::Write, true),
            ("a", near, Some((cn, "n1.vm.example")), Grant::None, true),
            ("a", far, Some((dns, "n1.vm.example")), Grant::None, true),
            ("a", near, Some((uri, "spiffe://x/y")), Grant::Write, true),
            ("a", near, Some((uri, "spiffe://X/y")), Grant::None, true),
            ("a", near, None, Grant::None, true),
            ("b", near, Some((cn, "anybody")), Grant::Write, true),
            ("b", near, None, Grant::Read, true),
            ("b", far, Some((cn, "anybody")), Grant::None, false),
            ("c", far, None, Grant::Write, false),
        ];
        for (volume, address, name, grant, asks) in rows {
            let identity = name.map(|name| identity(&[(cn, "other"), name]));
            let mut client = Client {
                address: Some(address.parse().unwrap()),
                identity: identity.as_ref(),
                may_start_tls: true,
            };
            assert_eq!(access.grant(volume, &client), grant, "{volume} {client:?}");
            assert_eq!(access.asks_for_certificate(volume, &client), asks);
            client.may_start_tls = false;
            assert!(!access.asks_for_certificate(volume, &client));
        }
    }

    #[test]
    fn certificates_are_read_as_they_are_shown_or_refused() {
        for text in ["*", "cn:a b", "dns:*.example", "uri:spiffe://a/*", "cn:*"] {
            assert_eq!(text.parse::<Certificates>().unwrap().to_string(), text);
        }
        for text in ["", "cn:", "backup", "ou:x", "dns:a*b", "dns:**", "cn:*a*"] {
            assert!(text.parse::<Certificates>().is_err(), "{text}");
        }
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
