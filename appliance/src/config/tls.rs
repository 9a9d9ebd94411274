//! Settings of TLS: certificates, and which sockets and clients they are for.

use std::fmt::{self, Write};

use taipan_nbd::TlsPolicy;
use taipan_tls::{CertificateFiles, Clients, Keeper};

use super::document::Document;
use super::print::{path, word};
use super::settings::Config;

const MODES: [(&str, TlsPolicy); 3] = [
    ("off", TlsPolicy::Off),
    ("allow", TlsPolicy::Allow),
    ("require", TlsPolicy::Require),
];
const CLIENTS: [(&str, Clients); 3] = [
    ("none", Clients::Any),
    ("optional", Clients::MayShow),
    ("require", Clients::MustShow),
];

/// TLS that is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// What the daemon shows, and the authorities of its clients.
    pub files: CertificateFiles,
    /// What its clients must show.
    pub clients: Clients,
    /// Over TCP.
    pub tcp: TlsPolicy,
    /// Over the unix socket.
    pub unix: TlsPolicy,
}

/// Reads the keys; `None`: TLS is off.
pub(super) fn read(doc: &mut Document) -> Option<Tls> {
    let directory = doc.path("tls.certificates");
    let of_directory = directory.as_deref().map(CertificateFiles::of_server);
    let (certificate, key) = (doc.path("tls.certificate"), doc.path("tls.key"));
    let authorities = doc.path("tls.client_ca");
    let (mode, unix) = (
        doc.choice("tls.mode", &MODES),
        doc.choice("tls.unix", &MODES),
    );
    let clients = doc.choice("tls.client_certificate", &CLIENTS);
    // Whoever has certificates wants them used: plain connections must be asked for.
    let default = match directory.is_some() || certificate.is_some() || key.is_some() {
        true => TlsPolicy::Require,
        false => TlsPolicy::Off,
    };
    let tcp = mode.unwrap_or(default);
    // Who may open the unix socket is said by its mode; nobody listens in between.
    let unix = unix.unwrap_or_else(|| tcp.min(TlsPolicy::Allow));
    if tcp == TlsPolicy::Off && unix == TlsPolicy::Off {
        return None;
    }
    let of_directory = of_directory.as_ref();
    let certificate = certificate.or_else(|| Some(of_directory?.certificate.clone()));
    let key = key.or_else(|| Some(of_directory?.key.clone()));
    let authorities = authorities.or_else(|| of_directory?.authorities.clone());
    let (Some(certificate), Some(key)) = (certificate, key) else {
        let text = "tls: needs a certificate: set tls.certificates, or tls.certificate and tls.key";
        doc.problem(text.to_owned());
        return None;
    };
    let default = match authorities {
        Some(_) => Clients::MustShow,
        None => Clients::Any,
    };
    Some(Tls {
        files: CertificateFiles {
            certificate,
            key,
            authorities,
        },
        clients: clients.unwrap_or(default),
        tcp,
        unix,
    })
}

/// Reports certificates that cannot be used, and rules that need some and can never apply.
pub(super) fn check(doc: &mut Document, config: &Config) {
    let asks = config.tls.as_ref().map_or(Clients::Any, |tls| tls.clients);
    let rules = &config.access.rules;
    if asks == Clients::Any && rules.iter().any(|rule| !rule.certificates.is_empty()) {
        let text = "access: a rule names certificates, but clients are asked for none; see [tls]";
        doc.problem(text.to_owned());
    }
    let Some(tls) = &config.tls else {
        return;
    };
    if let Err(error) = Keeper::load(tls.files.clone(), tls.clients) {
        doc.problem(format!("tls: {error}"));
    }
}

/// Prints the section.
pub(super) fn print(out: &mut String, tls: Option<&Tls>) -> fmt::Result {
    writeln!(out, "\n[tls]")?;
    let Some(tls) = tls else {
        return writeln!(out, "mode = \"off\"");
    };
    writeln!(out, "certificate = {}", path(&tls.files.certificate))?;
    writeln!(out, "key = {}", path(&tls.files.key))?;
    if let Some(authorities) = &tls.files.authorities {
        writeln!(out, "client_ca = {}", path(authorities))?;
    }
    writeln!(out, "mode = {}", word(&MODES, tls.tcp))?;
    writeln!(out, "unix = {}", word(&MODES, tls.unix))?;
    writeln!(out, "client_certificate = {}", word(&CLIENTS, tls.clients))
}
