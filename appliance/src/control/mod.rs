//! The control plane: what operators ask of the running daemon, over HTTP.
//!
//! The control API (JSON, described in `docs/operations/api.md`) is served on a unix socket whose
//! permissions are the only access control; `/metrics` and `/healthz` on a TCP address.

mod bounded;
mod health;
mod model;
mod routes;
mod server;

pub use model::Appliance;
pub use server::Servers;

#[cfg(test)]
mod pretended;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use pretended::Pretended;
