//! A failpoint that fails for one thread, once: for simulated processes, of which there are many in
//! one.

use std::cell::Cell;
use std::io;

#[derive(Clone, Copy)]
enum Script {
    None,
    Next(&'static str),
    Fired,
}

thread_local! {
    static SCRIPT: Cell<Script> = const { Cell::new(Script::None) };
}

/// The next pass of this failpoint by this thread fails, and every one after it until
/// [`fail_none`]: the simulated process is dead.
pub(crate) fn fail_next(name: &'static str) {
    assert!(super::NAMES.contains(&name), "{name:?} is no failpoint");
    SCRIPT.set(Script::Next(name));
}

/// Nothing fails any more.
pub(crate) fn fail_none() {
    SCRIPT.set(Script::None);
}

/// Whether it has failed since [`fail_next`].
pub(crate) fn has_fired() -> bool {
    matches!(SCRIPT.get(), Script::Fired)
}

pub(super) fn pass(name: &'static str) -> io::Result<()> {
    match SCRIPT.get() {
        Script::None => return Ok(()),
        Script::Next(next) if next != name => return Ok(()),
        Script::Next(_) | Script::Fired => {}
    }
    SCRIPT.set(Script::Fired);
    Err(io::Error::other("the simulated process dies here"))
}
