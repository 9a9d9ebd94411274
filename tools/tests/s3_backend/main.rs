//! The `s3` backend against servers: the fake one with scripted faults, and SeaweedFS as
//! `tools/setup` installed it.

mod command;
mod fake;
mod seaweed;
mod servers;
