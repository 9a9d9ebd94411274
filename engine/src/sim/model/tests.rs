//! Every scenario holds, and every deliberate bug is found by the rule that is meant for it.

use super::{Happens, Mutation, Scenario, Step, explore};

/// More than the scenarios have.
const STATES_MAX: usize = 100_000;

#[test]
fn two_writers_keep_every_rule_in_every_order() {
    for scenario in Scenario::all(false) {
        let found = explore(&scenario, None, STATES_MAX);
        if let Some((broken, path)) = found.broken {
            panic!("{}: {broken:?} after {path:?}", scenario.name);
        }
        assert!(found.states > 5, "{}: {found:?}", scenario.name);
    }
}

/// The rule by which a bug is found first, over all scenarios in their order.
fn found_by(mutation: Mutation) -> Option<&'static str> {
    let broken = |scenario: Scenario| explore(&scenario, Some(mutation), STATES_MAX).broken;
    let mut all = Scenario::all(false).into_iter();
    all.find_map(broken).map(|(broken, _)| broken.rule)
}

#[test]
fn a_bucket_without_conditions_is_found() {
    let rule = found_by(Mutation::UnconditionalManifests);
    assert_eq!(rule, Some("the chain is linear"));
}

#[test]
fn a_delete_before_its_commit_is_found() {
    let rule = found_by(Mutation::DeleteBeforeCommit);
    assert_eq!(rule, Some("only what is condemned is deleted"));
}

#[test]
fn a_late_delete_of_a_paused_compactor_is_harmless_and_a_wrong_one_is_found() {
    let compactor = Scenario::compactor(0);
    let found = explore(&compactor, None, STATES_MAX);
    assert_eq!(found.broken, None);
    assert!(found.states > 5, "{found:?}");
    let early = explore(&compactor, Some(Mutation::DeleteBeforeCommit), STATES_MAX);
    let (broken, _) = early.broken.expect("a source is deleted too early");
    assert_eq!(broken.rule, "only what is condemned is deleted");
}

#[test]
fn a_merge_of_a_lost_lineage_is_found() {
    let rule = found_by(Mutation::ReplayQuarantined);
    assert_eq!(rule, Some("a log merges only what continues the image"));
}

#[test]
fn new_records_that_look_like_copied_out_ones_are_found() {
    let rule = found_by(Mutation::StampsTooLow);
    assert_eq!(rule, Some("nothing answered is forgotten"));
}

#[test]
fn manifests_that_are_removed_are_found_to_fork_the_chain() {
    let rule = found_by(Mutation::PrunesManifests);
    assert_eq!(rule, Some("the chain is linear"), "by a paused opening");
    let [old_list, _] = Scenario::old_lists(0);
    let found = explore(&old_list, Some(Mutation::PrunesManifests), STATES_MAX);
    let (broken, path) = found.broken.expect("an old list hides the head");
    assert_eq!(broken.rule, "the chain is linear");
    let is_behind = |step: &Step| matches!(step, Step::Serve(.., Happens::Behind));
    assert!(path.iter().any(is_behind), "{path:?}");
}

#[test]
fn taking_another_manifest_for_ones_own_is_found() {
    let rule = found_by(Mutation::ExistsIsOurs);
    assert_eq!(rule, Some("only what is committed is published"));
}
