//! The command as a person or script runs it: against a scripted control API, and against `nbdkit`
//! as a foreign NBD server.

mod control;
mod copies;
mod inspect;
mod inspect_log;
mod rig;
mod verify;
