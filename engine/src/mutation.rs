//! Bugs that tests put into the protocol, to show that the tests of its rules find them. In
//! programs there are none. Which test finds which: `docs/internals/testing-mutations.md`.

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Garbage collection does not ask what snapshots need.
    SnapshotsKeepNothing,
    /// Nor which points in time are in the window, or in use.
    PointsKeepNothing,
    /// A rollback takes back what a manifest has condemned.
    CondemnedIsNamedAgain,
    /// A manifest or an entry of pins that is there already is taken for one's own.
    ExistsIsOurs,
    /// One's own manifest, of a put whose answer was lost, is taken for another writer's.
    LostIsForeign,
    /// A fenced writer does not mark what it stored for a volume that was deleted meanwhile.
    NoMark,
    /// Objects of a volume are freed without a look at its head.
    FreesTheLiving,
    /// A sweep judges while a commit is under way.
    SweepsBesideCommits,
    /// A group is complete although one of its snapshots is lost.
    HalfIsComplete,
}

#[cfg(test)]
pub(crate) use scripted::put_in;

/// Whether a test has put this bug in.
#[inline]
#[cfg(test)]
pub(crate) fn is_in(mutation: Mutation) -> bool {
    scripted::is_in(mutation)
}

/// Whether a test has put this bug in; this is none.
#[inline]
#[cfg(not(test))]
pub(crate) const fn is_in(_: Mutation) -> bool {
    false
}

#[cfg(test)]
mod scripted {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static IN: Cell<&'static [Mutation]> = const { Cell::new(&[]) };
    }

    /// Bugs that are in until this is dropped.
    pub(crate) struct PutIn(());

    /// Puts bugs in, for this thread.
    pub(crate) fn put_in(mutations: &'static [Mutation]) -> PutIn {
        IN.set(mutations);
        PutIn(())
    }

    impl Drop for PutIn {
        fn drop(&mut self) {
            IN.set(&[]);
        }
    }

    pub(super) fn is_in(mutation: Mutation) -> bool {
        IN.get().contains(&mutation)
    }
}
