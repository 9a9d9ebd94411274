//! Who the owner of a verified certificate is: the names that its authority vouches for.

use std::fmt;

use rustls_pki_types::CertificateDer;

/// Most names of a certificate that count; a rule for a further one never applies.
const NAMES_MAX: usize = 64;

/// Tags of DER, and the object identifier 2.5.4.3.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Where a name stands in a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Common name of the subject.
    Common,
    /// Subject alternative name for a host.
    Dns,
    /// Subject alternative name that is a URI.
    Uri,
}

impl Kind {
    /// As rules and log lines write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Common => "cn",
            Self::Dns => "dns",
            Self::Uri => "uri",
        }
    }
}

/// One name of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Where it stands.
    pub kind: Kind,
    /// The name.
    pub text: String,
}

/// The owner of a certificate that was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    names: Vec<Name>,
}

impl Identity {
    /// The identity in a certificate. What cannot be read of it names nobody.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else {
            return Self::default();
        };
        let common = common_names(parsed.subject());
        let common = common.into_iter().map(|text| (Kind::Common, text));
        let dns = parsed.valid_dns_names().map(|text| (Kind::Dns, text));
        let uris = parsed.valid_uri_names().map(|text| (Kind::Uri, text));
        let names = common.chain(dns).chain(uris).take(NAMES_MAX);
        let names = names.map(|(kind, text)| Name {
            kind,
            text: text.to_owned(),
        });
        Self {
            names: names.collect(),
        }
    }

    /// An identity of these names.
    pub fn named(names: Vec<Name>) -> Self {
        Self { names }
    }

    /// Its names, common names first.
    pub fn names(&self) -> &[Name] {
        &self.names
    }
}

/// `cn:backup dns:backup.example`, with what does not belong into a log line escaped.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str("without a name");
        }
        for (index, name) in self.names.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{}:{}", name.kind.word(), name.text.escape_debug())?;
        }
        Ok(())
    }
}

/// The common names in a subject: a sequence of sets of pairs (type, text), without its own header.
pub(crate) fn common_names(mut subject: &[u8]) -> Vec<&str> {
    let mut found = Vec::new();
    while let Some((SET, mut set, behind)) = element(subject) {
        subject = behind;
        while let Some((SEQUENCE, pair, behind)) = element(set) {
            set = behind;
            if let Some((OBJECT_IDENTIFIER, COMMON_NAME, value)) = element(pair)
                && let Some((UTF8_STRING | PRINTABLE_STRING | IA5_STRING, text, [])) =
                    element(value)
                && let Ok(text) = std::str::from_utf8(text)
            {
                found.push(text);
            }
        }
    }
    found
}

/// The first element of DER: tag, content, and what stands behind it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&len, rest) = rest.split_first()?;
            (usize::from(len), rest)
        }
        0x82 => {
            let (len, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        // Longer than any certificate that a handshake takes.
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(len)?;
    Some((tag, content, behind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, Wanted};

    #[test]
    fn an_identity_has_the_names_that_the_authority_vouches_for() {
        let authority = Authority::new("an authority");
        let wanted = Wanted {
            hosts: vec!["vm1.example".into(), "10.0.0.7".into()],
            uris: vec!["spiffe://example/vm1".into()],
            ..Wanted::client("vm 1")
        };
        let identity = Identity::of(&authority.issue(&wanted).certificate());
        assert_eq!(
            identity.to_string(),
            "cn:vm 1 dns:vm1.example uri:spiffe://example/vm1"
        );
        let nobody = Identity::of(&CertificateDer::from(vec![0x30, 0]));
        assert_eq!(nobody.to_string(), "without a name");
    }

    #[test]
    fn names_are_shown_without_what_would_forge_a_log_line() {
        let names = vec![Name {
            kind: Kind::Common,
            text: "a\nb\u{1b}".into(),
        }];
        assert_eq!(Identity::named(names).to_string(), "cn:a\\nb\\u{1b}");
    }

    #[test]
    fn a_subject_cut_anywhere_or_changed_gives_no_other_name() {
        let pair = |text: &[u8]| {
            let mut pair = vec![
                OBJECT_IDENTIFIER,
                3,
                0x55,
                4,
                3,
                UTF8_STRING,
                text.len() as u8,
            ];
            pair.extend_from_slice(text);
            let sequence = [&[SEQUENCE, pair.len() as u8][..], &pair].concat();
            [&[SET, sequence.len() as u8][..], &sequence].concat()
        };
        let subject = [pair(b"one"), pair(b"two")].concat();
        assert_eq!(common_names(&subject), ["one", "two"]);
        for end in 0..subject.len() {
            let names = common_names(&subject[..end]);
            let whole: &[&str] = if end < subject.len() / 2 {
                &[]
            } else {
                &["one"]
            };
            assert_eq!(names, whole, "{end}");
        }
        for at in 0..subject.len() {
            for byte in 0..=255 {
                let mut changed = subject.clone();
                changed[at] = byte;
                assert!(common_names(&changed).len() <= 2);
            }
        }
        assert!(common_names(&pair(b"\xff")).is_empty(), "not UTF-8");
    }
}
