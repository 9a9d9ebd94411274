//! The control plane: what operators ask of the running daemon, over HTTP.

mod model;

pub use model::Appliance;
