//! Certificates made up on the spot, for tests.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::CertificateDer;

/// An authority with a key of its own.
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is wanted for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Common name.
    pub name: String,
    /// Names and addresses of hosts.
    pub hosts: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
    /// For a server; else for a client.
    pub server: bool,
    /// Not valid any more.
    pub expired: bool,
}

impl Wanted {
    /// A server on this machine.
    pub fn server() -> Self {
        Self {
            name: "a taipand".to_owned(),
            hosts: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            server: true,
            ..Self::default()
        }
    }

    /// A client of that common name.
    pub fn client(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }
}

/// A certificate with its key.
pub struct Issued {
    certificate: Certificate,
    key: KeyPair,
}

impl Authority {
    /// A new authority.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate as wanted.
    pub fn issue(&self, wanted: &Wanted) -> Issued {
        let mut params = CertificateParams::new(wanted.hosts.clone()).expect("names of hosts");
        for uri in &wanted.uris {
            let uri = uri.as_str().try_into().expect("a URI");
            params.subject_alt_names.push(SanType::URI(uri));
        }
        let name = wanted.name.as_str();
        params.distinguished_name.push(DnType::CommonName, name);
        // QEMU wants the second one, whatever the kind of key.
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![match wanted.server {
            true => ExtendedKeyUsagePurpose::ServerAuth,
            false => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.not_after = match wanted.expired {
            true => date_time_ymd(2001, 1, 1),
            // GnuTLS does not care for the year 4096.
            false => date_time_ymd(2049, 1, 1),
        };
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Issued { certificate, key }
    }

    /// Writes the authority's certificate into a directory, under the name that clients and servers
    /// look for.
    pub fn write(&self, directory: &Path) {
        let path = directory.join("ca-cert.pem");
        fs::write(path, self.certificate.pem()).expect("a file");
    }

    /// Writes everything into a directory that a server of this machine, or a client of that common
    /// name, needs.
    pub fn equip(&self, directory: &Path, wanted: &Wanted) {
        fs::create_dir_all(directory).expect("a directory");
        self.write(directory);
        let role = if wanted.server { "server" } else { "client" };
        self.issue(wanted).write(directory, role);
    }
}

impl Issued {
    /// The certificate.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    /// Writes `ROLE-cert.pem` and `ROLE-key.pem`.
    pub fn write(&self, directory: &Path, role: &str) {
        let put = |what: &str, text: String| {
            let path = directory.join(format!("{role}-{what}.pem"));
            fs::write(path, text).expect("a file");
        };
        put("cert", self.certificate.pem());
        put("key", self.key.serialize_pem());
    }
}
