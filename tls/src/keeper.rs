//! What a server shows and trusts, kept up to date with the files while connections come.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use crate::error::TlsError;
use crate::files::{CertificateFiles, authorities};

/// What is asked of clients. Their certificates must come from the authorities in the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clients {
    /// No certificate: the authorities do not matter.
    Any,
    /// A certificate, if they have one; a bad one is refused.
    MayShow,
    /// A certificate.
    #[default]
    MustShow,
}

/// What a look at the files came to.
#[derive(Debug)]
pub enum Look {
    /// They are as they were.
    Same,
    /// New connections get what they hold now.
    Loaded,
    /// They changed and cannot be used: new connections get what was there before.
    Refused(TlsError),
}

/// The certificates of a server.
#[derive(Debug)]
pub struct Keeper {
    files: CertificateFiles,
    clients: Clients,
    current: RwLock<Arc<ServerConfig>>,
    seen: Mutex<Vec<Option<Stamp>>>,
}

/// What tells a file from the one that was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Keeper {
    /// Loads the files; an error names the one that is wrong.
    pub fn load(files: CertificateFiles, clients: Clients) -> Result<Self, TlsError> {
        // First, so that a change while they are read is seen as one later.
        let seen = stamps(&files);
        let config = server_config(&files, clients)?;
        Ok(Self {
            files,
            clients,
            current: RwLock::new(config),
            seen: Mutex::new(seen),
        })
    }

    /// For a connection that starts now.
    pub fn current(&self) -> Arc<ServerConfig> {
        let current = self.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// Loads the files again if they have changed, or in any case (`anyway`). Reads files: not for
    /// a thread that serves.
    pub fn look(&self, anyway: bool) -> Look {
        let now = stamps(&self.files);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now && !anyway {
            return Look::Same;
        }
        // Also when they are refused, which is said once.
        *seen = now;
        match server_config(&self.files, self.clients) {
            Ok(config) => {
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *current = config;
                Look::Loaded
            }
            Err(error) => Look::Refused(error),
        }
    }
}

fn stamps(files: &CertificateFiles) -> Vec<Option<Stamp>> {
    let stamp = |path: &Path| path.metadata().ok().map(|found| Stamp::of(&found));
    files.all().map(stamp).collect()
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            inode: found.ino(),
            bytes: found.len(),
            // The change of the inode: also that of a file that was put there with an old date.
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

fn server_config(
    files: &CertificateFiles,
    clients: Clients,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = match (clients, &files.authorities) {
        (Clients::Any, _) => WebPkiClientVerifier::no_client_auth(),
        (_, None) => {
            let text = "client certificates are asked for, and no authority's is configured";
            return Err(TlsError::new(text));
        }
        (_, Some(path)) => {
            let roots = authorities(path)?;
            let mut builder =
                WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
            if clients == Clients::MayShow {
                builder = builder.allow_unauthenticated();
            }
            let built = builder.build();
            built.map_err(|error| TlsError::new("cannot be trusted").at(path).because(error))?
        }
    };
    let own = files.own()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.certificates, own.key)
        .map_err(|error| {
            TlsError::new("cannot be used with its key")
                .at(&files.certificate)
                .because(error)
        })?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
