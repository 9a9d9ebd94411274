//! Certificates and keys in PEM files, under the names that QEMU, libnbd and nbdkit use.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::TlsError;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Where one side of a connection has its certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The own certificate, and those between it and the authority's, in order.
    pub certificate: PathBuf,
    /// The key that belongs to it.
    pub key: PathBuf,
    /// Certificates of the authorities that the other side's certificate may come from.
    pub authorities: Option<PathBuf>,
}

impl CertificateFiles {
    /// A server's files in a directory: `server-cert.pem`, `server-key.pem`, and `ca-cert.pem` if
    /// that is there.
    pub fn of_server(directory: &Path) -> Self {
        let authorities = directory.join("ca-cert.pem");
        Self {
            certificate: directory.join("server-cert.pem"),
            key: directory.join("server-key.pem"),
            authorities: authorities.exists().then_some(authorities),
        }
    }

    /// All files.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Path> {
        [&self.certificate, &self.key]
            .into_iter()
            .chain(&self.authorities)
            .map(PathBuf::as_path)
    }

    /// The own certificate with its key.
    pub(crate) fn own(&self) -> Result<Own, TlsError> {
        let certificates = certificates(&self.certificate)?;
        let text = read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            TlsError::new("holds no private key in PEM form")
                .at(&self.key)
                .because(error)
        })?;
        Ok(Own { certificates, key })
    }
}

/// What one side shows.
pub(crate) struct Own {
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// The authorities in a file.
pub(crate) fn authorities(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| {
            TlsError::new("holds a certificate that is no authority's")
                .at(path)
                .because(error)
        })?;
    }
    Ok(Arc::new(roots))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| match error {
        pem::Error::MissingSectionEnd { .. } => {
            TlsError::new("is not whole: a section has no end").at(path)
        }
        error => TlsError::new("is not in PEM form").at(path).because(error),
    })?;
    match found.is_empty() {
        true => Err(TlsError::new("holds no certificate in PEM form").at(path)),
        false => Ok(found),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let file = File::open(path);
    file.and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|error| TlsError::new("cannot be read").at(path).because(error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_file_is_said_to_be_that() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("server-cert.pem");
        let told = |text: &str| {
            std::fs::write(&path, text).expect("a file");
            certificates(&path).expect_err("no certificate").to_string()
        };
        let begin = "-----BEGIN CERTIFICATE-----\nMIIBhTCCASugAwIBAgIU";
        assert!(told(begin).ends_with("is not whole: a section has no end"));
        assert!(told("").ends_with("holds no certificate in PEM form"));
    }
}
