//! Negotiated sessions end to end: our client against our server in memory, hostile bytes, and
//! both sides against tools that others wrote, over unix sockets.
//!
//! A tool that is not installed is named on standard error and its test passes.

mod clients;
mod driver;
mod hostile;
mod round_trips;
#[path = "../foreign/server.rs"]
mod server;
mod servers;
mod session;
mod splitmix;
