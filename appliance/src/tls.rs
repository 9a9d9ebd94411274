//! TLS of this daemon: what its sockets ask of clients, and the certificates, looked at again while
//! it serves.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use taipan_engine::error::{Error, Result};
use taipan_nbd::TlsPolicy;
use taipan_tls::{Keeper, Look, ServerChannel, TlsError};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Tls;

/// How often the files of certificates are looked at; SIGHUP does it at once.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What connections need for TLS.
#[derive(Debug)]
pub struct TlsService {
    keeper: Keeper,
    tcp: TlsPolicy,
    unix: TlsPolicy,
}

impl TlsService {
    /// Loads the certificates; an error names the file that is wrong.
    pub fn load(settings: &Tls) -> std::result::Result<Self, TlsError> {
        Ok(Self {
            keeper: Keeper::load(settings.files.clone(), settings.clients)?,
            tcp: settings.tcp,
            unix: settings.unix,
        })
    }

    /// Whether TLS is offered to a client with that address (`None`: of the unix socket).
    pub fn policy(&self, address: Option<IpAddr>) -> TlsPolicy {
        match address {
            Some(_) => self.tcp,
            None => self.unix,
        }
    }

    /// TLS for a connection that starts it now.
    pub fn channel(&self) -> std::result::Result<ServerChannel, TlsError> {
        ServerChannel::new(self.keeper.current())
    }

    fn look(&self, anyway: bool) {
        match self.keeper.look(anyway) {
            Look::Same => {}
            Look::Loaded => tracing::info!("new certificates are in use for new connections"),
            Look::Refused(error) => tracing::error!(
                %error,
                "the new certificates cannot be used: new connections get the old ones"
            ),
        }
    }
}

/// Starts what the settings ask for, and the thread that looks at the files again. Without TLS that
/// thread only sees to it that SIGHUP, which asks for a look, ends nothing.
pub fn start(settings: Option<&Tls>) -> Result<Option<Arc<TlsService>>> {
    let load = |settings| TlsService::load(settings).map(Arc::new);
    let service = settings.map(load).transpose();
    let service = service.map_err(|error| Error::invalid(format!("TLS: {error}")))?;
    watch(service.clone()).map_err(|error| Error::io("watching for SIGHUP", error))?;
    Ok(service)
}

fn watch(service: Option<Arc<TlsService>>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut hangup = {
        let _inside = runtime.enter();
        signal(SignalKind::hangup())?
    };
    let look = async move {
        loop {
            let asked = tokio::select! {
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK_EVERY), if service.is_some() => false,
            };
            if asked {
                tracing::info!("SIGHUP: certificates are loaded again, nothing else is");
            }
            if let Some(service) = &service {
                service.look(asked);
            }
        }
    };
    let run = move || runtime.block_on(look);
    std::thread::Builder::new()
        .name("certificates".to_owned())
        .spawn(run)?;
    Ok(())
}
