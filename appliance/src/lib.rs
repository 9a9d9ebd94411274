//! The appliance: configuration, control plane, data cores and uploader behind `taipand`.
//!
//! The control plane (this crate's `config`, `control`, `metrics`) talks to the data plane only
//! through [`control::Appliance`] and the counters of [`metrics`].

pub mod budget;
pub mod config;
pub mod control;
pub mod daemon;
pub mod lock;
pub mod logging;
pub mod metrics;
pub mod signals;
pub mod sockets;
