//! Each named race fails once a rule that it is about is broken, so it would find such a bug. The
//! table is in `docs/internals/testing-mutations.md`.

use std::panic::catch_unwind;

use super::races;
use crate::mutation::Mutation::{self, *};
use crate::mutation::put_in;

type Race = fn();

/// What is broken, and which race finds it.
const FOUND: [(&[Mutation], Race); 10] = [
    (
        &[SnapshotsKeepNothing, CondemnedIsNamedAgain],
        races::a_paused_writers_late_delete_after_a_rollback_elsewhere_is_harmless,
    ),
    (
        &[SnapshotsKeepNothing],
        races::a_paused_writers_late_delete_after_a_clone_elsewhere_is_harmless,
    ),
    (
        &[ExistsIsOurs],
        races::a_clones_pin_and_a_condemnation_exclude_each_other,
    ),
    (
        &[NoMark],
        races::a_clone_that_was_given_up_before_it_had_its_name_does_not_come_to_be,
    ),
    (
        &[ExistsIsOurs],
        races::a_volume_deleted_elsewhere_fences_a_paused_commit_and_is_freed_again,
    ),
    (
        &[NoMark],
        races::a_volume_deleted_elsewhere_fences_a_paused_commit_and_is_freed_again,
    ),
    (
        &[NoMark],
        races::what_is_stored_beside_the_last_look_is_freed_by_a_mark_of_its_own,
    ),
    (
        &[ExistsIsOurs],
        races::a_commit_that_comes_before_the_tombstone_fences_the_deletion,
    ),
    (
        &[FreesTheLiving],
        races::a_commit_that_comes_before_the_tombstone_fences_the_deletion,
    ),
    (
        &[LostIsForeign],
        races::lost_responses_of_condemnations_and_deletes_are_repeated_without_harm,
    ),
];

#[test]
fn every_race_finds_the_bug_that_it_is_about() {
    for (bugs, race) in FOUND {
        race();
        let scope = put_in(bugs);
        let found = catch_unwind(race).is_err();
        drop(scope);
        assert!(found, "{bugs:?}");
    }
}
