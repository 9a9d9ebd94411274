//! When cuts are made, and that only whole cuts are handed out.

use super::*;
use crate::block::LocalBlock;
use crate::identity::{BatchNum, Lsn};
use crate::index::{Hit, Point};
use crate::snapshot::{SnapshotId, SnapshotName};
use crate::wal::place::Place;

const A: VolumeId = VolumeId(1);
const B: VolumeId = VolumeId(2);

fn coordinator() -> Coordinator {
    Coordinator::new(CutPolicy::default(), Epoch(5))
}

fn load(pending_bytes: u64, wal_percent: u8) -> Load {
    Load {
        volumes: vec![(A, pending_bytes)],
        wal_percent,
    }
}

fn layer(lsn: u64) -> Arc<Overlay> {
    let mut overlay = Overlay::new();
    let place = Place {
        batch: BatchNum(lsn),
        page: 1,
    };
    let lsn = Lsn(lsn);
    overlay.insert_point(LocalBlock(0), Point { lsn, place, crc: 0 });
    Arc::new(overlay)
}

fn shard(index: u8) -> ShardId {
    ShardId::new(index).unwrap()
}

/// All shards seal; shard 3 has changes of these volumes.
fn seal(coordinator: &mut Coordinator, cut: &Cut, volumes: &[(VolumeId, u64)]) {
    for id in ShardId::all() {
        let dirty = if id == shard(3) { volumes } else { &[] };
        let layers = dirty.iter().map(|&(volume, lsn)| (volume, layer(lsn)));
        let complete = coordinator.sealed(cut.epoch, id, layers);
        assert_eq!(complete, id == shard(15));
    }
}

fn demand(coordinator: &mut Coordinator, now_ms: u64) -> Option<Cut> {
    coordinator.demand_cut();
    coordinator.tick(now_ms, &load(0, 0))
}

#[test]
fn a_cut_is_made_for_each_reason_and_not_without_one() {
    // (pending bytes, WAL percent, demanded, ms since they wait) → reason.
    let cases = [
        (0, 0, false, 1 << 40, None),
        (0, 99, false, 1 << 40, None),
        (1, 0, false, 29_999, None),
        (1, 0, false, 30_000, Some(CutReason::Interval)),
        ((64 << 20) - 1, 49, false, 0, None),
        (64 << 20, 0, false, 2999, None),
        (64 << 20, 0, false, 3000, Some(CutReason::Bytes)),
        ((2 << 30) - 1, 0, false, 0, None),
        (2 << 30, 0, false, 0, Some(CutReason::Bytes)),
        (4096, 50, false, 0, Some(CutReason::Wal)),
        (0, 0, true, 0, Some(CutReason::Demand)),
    ];
    for (bytes, wal, demanded, waited, reason) in cases {
        let mut coordinator = coordinator();
        // The first look starts the wait of pending bytes.
        if bytes > 0 && waited > 0 {
            assert_eq!(coordinator.tick(1000, &load(bytes.min(1), 0)), None);
        }
        if demanded {
            coordinator.demand_cut();
        }
        let cut = coordinator.tick(1000 + waited, &load(bytes, wal));
        assert_eq!(
            cut.as_ref().map(|cut| cut.reason),
            reason,
            "{bytes} {wal} {demanded} {waited}"
        );
        if let Some(cut) = cut {
            assert_eq!((cut.epoch, coordinator.epoch()), (Epoch(5), Epoch(6)));
        }
    }
}

#[test]
fn the_interval_counts_from_the_first_pending_byte() {
    let mut coordinator = coordinator();
    assert_eq!(coordinator.next_wake_ms(), None);
    assert_eq!(coordinator.tick(0, &load(0, 0)), None);
    assert_eq!(coordinator.tick(50_000, &load(1, 0)), None);
    assert_eq!(coordinator.next_wake_ms(), Some(80_000));
    assert_eq!(coordinator.tick(79_999, &load(9, 0)), None);
    let cut = coordinator.tick(80_000, &load(9, 0)).unwrap();
    seal(&mut coordinator, &cut, &[]);
    // Nothing sealed: nothing to commit, and idle volumes make no more cuts.
    assert!(coordinator.next_volume().is_none() && coordinator.is_idle());
    assert_eq!(coordinator.tick(10 << 20, &load(0, 0)), None);
}

#[test]
fn one_cut_at_a_time() {
    let mut coordinator = coordinator();
    let cut = demand(&mut coordinator, 0).unwrap();
    assert_eq!(demand(&mut coordinator, 1), None, "sealing");
    assert!(!coordinator.is_idle());
    seal(&mut coordinator, &cut, &[(A, 1), (B, 2)]);
    assert_eq!(demand(&mut coordinator, 2), None, "two volumes wait");
    let first = coordinator.next_volume().unwrap();
    let second = coordinator.next_volume().unwrap();
    assert_eq!((first.volume, second.volume), (A, B));
    assert_eq!((first.epoch, first.layers.len()), (Epoch(5), 1));
    assert!(coordinator.next_volume().is_none());
    coordinator.volume_done(A);
    assert_eq!(demand(&mut coordinator, 3), None, "one volume commits");
    coordinator.volume_done(B);
    assert_eq!(demand(&mut coordinator, 4).unwrap().epoch, Epoch(6));
}

#[test]
fn a_half_sealed_cut_is_not_handed_out() {
    let mut coordinator = coordinator();
    let cut = demand(&mut coordinator, 0).unwrap();
    assert!(!coordinator.sealed(cut.epoch, shard(0), [(A, layer(1))]));
    assert!(coordinator.next_volume().is_none());
    for id in ShardId::all().skip(1) {
        coordinator.sealed(cut.epoch, id, []);
    }
    assert_eq!(coordinator.next_volume().unwrap().volume, A);
}

#[test]
fn a_stuck_volume_holds_up_nobody_and_its_cuts_merge() {
    let mut coordinator = coordinator();
    let cut = demand(&mut coordinator, 0).unwrap();
    seal(&mut coordinator, &cut, &[(A, 1), (B, 2)]);
    coordinator.next_volume().unwrap();
    coordinator.next_volume().unwrap();
    coordinator.volume_done(B);
    coordinator.volume_stuck(A);
    for round in 0..3 {
        let cut = demand(&mut coordinator, 10 + round).unwrap();
        seal(&mut coordinator, &cut, &[(A, 10 + round), (B, 20 + round)]);
        let next = coordinator.next_volume().unwrap();
        assert_eq!((next.volume, next.layers.len()), (B, 1));
        assert!(
            coordinator.next_volume().is_none(),
            "A still commits its first cut"
        );
        coordinator.volume_done(B);
    }
    coordinator.volume_done(A);
    let merged = coordinator.next_volume().unwrap();
    assert_eq!(
        (merged.volume, merged.epoch, merged.layers.len()),
        (A, Epoch(8), 3)
    );
    let newest = merged.layers.last().unwrap().1.lookup(LocalBlock(0));
    assert!(matches!(newest, Some(Hit::Data(point)) if point.lsn == Lsn(12)));
    // It is not stuck any more: the next cut waits for it.
    assert_eq!(demand(&mut coordinator, 20), None);
    coordinator.volume_done(A);
    assert!(demand(&mut coordinator, 21).is_some());
}

#[test]
fn a_forgotten_volume_is_not_handed_out_again() {
    let mut coordinator = coordinator();
    let cut = demand(&mut coordinator, 0).unwrap();
    seal(&mut coordinator, &cut, &[(A, 1)]);
    coordinator.next_volume().unwrap();
    coordinator.forget_volume(A);
    assert!(coordinator.is_idle());
    // A shard that had not heard of it yet seals it once more.
    let cut = demand(&mut coordinator, 1).unwrap();
    seal(&mut coordinator, &cut, &[(A, 2)]);
    assert!(coordinator.next_volume().is_none() && coordinator.is_idle());
    coordinator.volume_done(A);
    coordinator.readmit_volume(A);
    let cut = demand(&mut coordinator, 2).unwrap();
    seal(&mut coordinator, &cut, &[(A, 3)]);
    assert_eq!(coordinator.next_volume().unwrap().volume, A);
}

#[test]
fn cuts_by_bytes_keep_their_distance() {
    let mut coordinator = coordinator();
    let cut = coordinator.tick(100, &load(1 << 30, 100)).unwrap();
    seal(&mut coordinator, &cut, &[]);
    assert_eq!(coordinator.tick(101, &load(1 << 30, 100)), None);
    assert!(coordinator.tick(120, &load(1 << 30, 100)).is_some());
}

#[test]
#[should_panic(expected = "sealed twice")]
fn a_shard_seals_a_cut_once() {
    let mut coordinator = coordinator();
    let cut = demand(&mut coordinator, 0).unwrap();
    coordinator.sealed(cut.epoch, shard(0), []);
    coordinator.sealed(cut.epoch, shard(0), []);
}

/// Bytes of several volumes.
fn loads(volumes: &[(VolumeId, u64)]) -> Load {
    Load {
        volumes: volumes.to_vec(),
        wal_percent: 0,
    }
}

fn only(volumes: &[VolumeId]) -> CutScope {
    CutScope::Only(Arc::new(volumes.iter().copied().collect()))
}

fn pace(seconds: u64) -> VolumePace {
    VolumePace {
        commit_interval_ms: seconds * 1000,
        ..VolumePace::default()
    }
}

#[test]
fn each_volume_has_its_own_interval() {
    let mut coordinator = coordinator();
    coordinator.set_pace(A, pace(5));
    let both = loads(&[(A, 1), (B, 1)]);
    assert_eq!(coordinator.tick(0, &both), None);
    assert_eq!(coordinator.next_wake_ms(), Some(5000));
    let cut = coordinator.tick(5000, &both).unwrap();
    assert_eq!(cut.scope, only(&[A]));
    seal(&mut coordinator, &cut, &[(A, 1)]);
    coordinator.next_volume().unwrap();
    // B is due while A commits.
    assert_eq!(coordinator.next_wake_ms(), Some(30_000));
    let cut = coordinator.tick(30_000, &loads(&[(A, 1), (B, 1)])).unwrap();
    assert_eq!((cut.scope.clone(), cut.epoch), (only(&[B]), Epoch(6)));
    seal(&mut coordinator, &cut, &[(B, 2)]);
    assert_eq!(coordinator.next_volume().unwrap().volume, B);
    coordinator.volume_done(B);
    // A would be due again, but its commit does not end: an outage is no reason to spin.
    assert_eq!(coordinator.tick(90_000, &loads(&[(A, 9)])), None);
    assert_eq!(coordinator.next_wake_ms(), None);
    coordinator.volume_done(A);
    let cut = coordinator.tick(90_001, &loads(&[(A, 9)])).unwrap();
    assert_eq!(cut.scope, only(&[A]));
}

#[test]
fn all_that_want_a_volume_committed_share_a_cut_and_late_ones_the_next() {
    let mut coordinator = coordinator();
    coordinator.want(A, Epoch(5));
    coordinator.want(A, Epoch(5));
    let cut = coordinator.tick(0, &loads(&[(A, 1), (B, 1)])).unwrap();
    assert_eq!(
        (cut.scope.clone(), cut.reason),
        (only(&[A]), CutReason::Demand)
    );
    coordinator.want(A, Epoch(6));
    seal(&mut coordinator, &cut, &[(A, 1)]);
    assert_eq!(coordinator.fulfilled(), []);
    coordinator.next_volume().unwrap();
    assert_eq!(coordinator.tick(1, &loads(&[(B, 1)])), None, "A commits");
    coordinator.volume_done(A);
    assert_eq!(coordinator.covered(A), Epoch(5));
    assert_eq!(coordinator.fulfilled(), [], "more is wanted");
    let cut = coordinator.tick(2, &loads(&[(B, 1)])).unwrap();
    assert_eq!((cut.scope.clone(), cut.epoch), (only(&[A]), Epoch(6)));
    // Nothing of it has changed: it is covered without a commit.
    seal(&mut coordinator, &cut, &[]);
    assert_eq!(coordinator.fulfilled(), [(A, Epoch(6))]);
    assert_eq!(coordinator.fulfilled(), [], "told once");
    assert_eq!(coordinator.tick(3, &loads(&[(B, 1)])), None);
}

#[test]
fn a_cut_of_others_covers_nothing() {
    let mut coordinator = coordinator();
    coordinator.want(A, Epoch(5));
    let cut = coordinator.tick(0, &loads(&[(B, 1)])).unwrap();
    seal(&mut coordinator, &cut, &[]);
    assert_eq!(
        (coordinator.covered(A), coordinator.covered(B)),
        (Epoch(5), Epoch(0))
    );
}

#[test]
fn limits_of_loss_make_cuts_early() {
    let mut coordinator = coordinator();
    let limits = VolumePace {
        rpo_ms: 10_000,
        rpo_bytes: 1 << 20,
        ..VolumePace::default()
    };
    coordinator.set_pace(A, limits);
    assert_eq!(coordinator.tick(0, &loads(&[(A, 1)])), None);
    assert_eq!(coordinator.next_wake_ms(), Some(5000));
    let cut = coordinator.tick(100, &loads(&[(A, 512 << 10)])).unwrap();
    assert_eq!(cut.reason, CutReason::Bytes);
    seal(&mut coordinator, &cut, &[]);
    assert_eq!(coordinator.tick(200, &loads(&[(A, 1)])), None);
    let cut = coordinator.tick(5200, &loads(&[(A, 1)])).unwrap();
    assert_eq!(cut.reason, CutReason::Interval);
}

#[test]
fn a_budget_of_requests_delays_what_the_interval_makes_due_and_nothing_else() {
    let mut coordinator = coordinator();
    let mut limits = VolumePace {
        commit_interval_ms: 1000,
        requests_per_hour: 60,
        ..VolumePace::default()
    };
    coordinator.set_pace(A, limits);
    let (little, much) = (loads(&[(A, 1)]), loads(&[(A, 512 << 20)]));
    coordinator.spend(A, 2, 0);
    assert_eq!(coordinator.spent(A, 0), (2, 120_000));
    assert_eq!(coordinator.tick(0, &little), None);
    assert_eq!(coordinator.next_wake_ms(), Some(120_000));
    assert_eq!(coordinator.tick(119_999, &little), None);
    let cut_for = |now_ms, load: &Load, coordinator: &mut Coordinator| {
        let cut = coordinator.tick(now_ms, load).unwrap();
        seal(coordinator, &cut, &[]);
        coordinator.spend(A, 1, now_ms);
        cut.reason
    };
    let reason = cut_for(119_999, &much, &mut coordinator);
    assert_eq!(reason, CutReason::Bytes);
    coordinator.want(A, coordinator.epoch());
    let reason = cut_for(120_000, &little, &mut coordinator);
    assert_eq!(reason, CutReason::Demand);
    assert_eq!(coordinator.spent(A, 120_000), (4, 120_000));
    assert_eq!(coordinator.tick(120_001, &little), None);
    limits.rpo_ms = 10_000;
    coordinator.set_pace(A, limits);
    let reason = cut_for(125_001, &little, &mut coordinator);
    assert_eq!(reason, CutReason::Interval, "a promise counts for more");
    assert_eq!(coordinator.spent(B, 0), (0, 0));
}

#[test]
fn a_held_volume_is_neither_cut_nor_committed_and_the_others_are() {
    let mut coordinator = coordinator();
    coordinator.hold(A);
    coordinator.want(A, Epoch(5));
    coordinator.want(B, Epoch(5));
    let cut = coordinator.tick(0, &loads(&[(A, 1), (B, 1)])).unwrap();
    assert_eq!(cut.scope, only(&[B]));
    seal(&mut coordinator, &cut, &[(B, 1)]);
    coordinator.next_volume().unwrap();
    coordinator.volume_done(B);
    coordinator.demand_cut();
    assert_eq!(
        coordinator.tick(1, &loads(&[(A, 1)])),
        None,
        "a drain waits for it"
    );
    coordinator.unhold(A);
    let cut = coordinator.tick(2, &loads(&[(A, 1)])).unwrap();
    assert_eq!((cut.scope.clone(), cut.epoch), (CutScope::All, Epoch(6)));
    seal(&mut coordinator, &cut, &[(A, 2)]);
    assert!(!coordinator.is_drained(Epoch(6)));
    coordinator.hold(A);
    assert!(
        coordinator.next_volume().is_none(),
        "cut before it was held"
    );
    coordinator.unhold(A);
    coordinator.next_volume().unwrap();
    coordinator.volume_done(A);
    assert!(coordinator.is_drained(Epoch(6)));
}

#[test]
fn after_a_volume_of_a_later_epoch_is_opened_stamps_are_above_it() {
    let mut coordinator = Coordinator::new(CutPolicy::default(), Epoch(5));
    coordinator.raise(Epoch(100));
    let cut = coordinator.tick(0, &Load::default()).expect("a cut is due");
    assert_eq!((cut.epoch, coordinator.epoch()), (Epoch(100), Epoch(101)));
    for shard in ShardId::all() {
        coordinator.sealed(cut.epoch, shard, std::iter::empty());
    }
    coordinator.raise(Epoch(100));
    assert!(coordinator.tick(1, &Load::default()).is_none(), "it is");
    assert_eq!(coordinator.epoch(), Epoch(101));
}

fn wish(number: u64) -> SnapshotWish {
    SnapshotWish {
        id: SnapshotId(number),
        name: SnapshotName::parse(&number.to_string()).unwrap(),
        taken_ms: number,
        group: None,
    }
}

/// What is asked, and what is taken.
fn pending(coordinator: &Coordinator) -> (Vec<u64>, Vec<u64>) {
    let pending = coordinator.pending_snapshots(A);
    let (taken, asked): (Vec<_>, Vec<_>) = pending.partition(|(_, taken)| *taken);
    let numbers = |list: Vec<(&SnapshotWish, bool)>| list.iter().map(|(w, _)| w.id.0).collect();
    (numbers(asked), numbers(taken))
}

#[test]
fn a_snapshot_is_taken_at_once_even_of_nothing() {
    let mut coordinator = coordinator();
    coordinator.snapshot(A, wish(1));
    coordinator.snapshot(A, wish(2));
    assert_eq!(pending(&coordinator), (vec![1, 2], vec![]));
    let cut = coordinator.tick(0, &loads(&[(B, 1)])).unwrap();
    assert_eq!(
        (cut.scope.clone(), cut.reason),
        (only(&[A]), CutReason::Demand)
    );
    coordinator.snapshot(A, wish(3));
    assert_eq!(
        pending(&coordinator),
        (vec![3, 1, 2], vec![]),
        "not sealed yet"
    );
    seal(&mut coordinator, &cut, &[]);
    assert_eq!(pending(&coordinator), (vec![3], vec![1, 2]));
    let sealed = coordinator.next_volume().unwrap();
    assert_eq!(
        (sealed.volume, sealed.epoch, sealed.layers.len()),
        (A, Epoch(5), 0)
    );
    assert_eq!(sealed.snapshots, [wish(1), wish(2)]);
    assert!(coordinator.next_volume().is_none());
    coordinator.volume_done(A);
    assert_eq!(pending(&coordinator), (vec![3], vec![]));
    assert_eq!(coordinator.covered(A), Epoch(5));
}

#[test]
fn a_snapshot_waits_beside_a_commit_and_no_later_cut_merges_with_it() {
    let mut coordinator = coordinator();
    let cut = demand(&mut coordinator, 0).unwrap();
    seal(&mut coordinator, &cut, &[(A, 1)]);
    assert!(coordinator.next_volume().unwrap().snapshots.is_empty());
    // The backend is away: the commit does not end. The snapshot is taken all the same.
    coordinator.snapshot(A, wish(1));
    let cut = coordinator.tick(1, &loads(&[(A, 1)])).unwrap();
    assert_eq!((cut.scope.clone(), cut.epoch), (only(&[A]), Epoch(6)));
    seal(&mut coordinator, &cut, &[(A, 2)]);
    assert_eq!(pending(&coordinator), (vec![], vec![1]));
    assert!(coordinator.next_volume().is_none(), "A commits");
    // Not another one, and nothing else, may join it, not even if the commit is stuck.
    coordinator.snapshot(A, wish(2));
    coordinator.want(A, Epoch(7));
    assert_eq!(coordinator.tick(2, &loads(&[(A, 9)])), None);
    coordinator.volume_stuck(A);
    assert_eq!(coordinator.tick(3, &loads(&[(A, 9)])), None);
    assert!(
        demand(&mut coordinator, 4).is_none(),
        "a drain waits for it"
    );
    coordinator.volume_done(A);
    let sealed = coordinator.next_volume().unwrap();
    assert_eq!((sealed.epoch, sealed.layers.len()), (Epoch(6), 1));
    assert_eq!(sealed.snapshots, [wish(1)]);
    assert_eq!(coordinator.covered(A), Epoch(5));
    coordinator.volume_done(A);
    assert_eq!(coordinator.covered(A), Epoch(6));
    let cut = coordinator.tick(5, &loads(&[(A, 9)])).unwrap();
    seal(&mut coordinator, &cut, &[(A, 3)]);
    assert_eq!(coordinator.next_volume().unwrap().snapshots, [wish(2)]);
}

/// What of both volumes is asked, and what is taken.
fn both_pending(coordinator: &Coordinator) -> Vec<(u64, bool)> {
    let of = |volume| coordinator.pending_snapshots(volume);
    let all = of(A).chain(of(B)).map(|(wish, taken)| (wish.id.0, taken));
    all.collect()
}

#[test]
fn a_group_is_one_cut_of_all_its_volumes_or_none() {
    let mut coordinator = coordinator();
    let cut = demand(&mut coordinator, 0).unwrap();
    seal(&mut coordinator, &cut, &[(A, 1)]);
    assert_eq!(coordinator.next_volume().unwrap().volume, A);
    coordinator.snapshot(A, wish(9));
    let cut = coordinator.tick(1, &loads(&[])).unwrap();
    seal(&mut coordinator, &cut, &[]);
    // A snapshot of A waits behind its commit, so B waits with the group, and is not cut for it.
    coordinator.snapshot_group(vec![(A, wish(1)), (B, wish(2))]);
    assert_eq!(coordinator.tick(2, &loads(&[])), None);
    assert_eq!(
        both_pending(&coordinator),
        [(9, true), (1, false), (2, false)]
    );
    coordinator.want(B, coordinator.epoch());
    let cut = coordinator.tick(3, &loads(&[(B, 1)])).unwrap();
    assert_eq!(cut.scope, only(&[B]));
    seal(&mut coordinator, &cut, &[(B, 1)]);
    assert_eq!(coordinator.next_volume().unwrap().snapshots, []);
    coordinator.volume_done(A);
    assert_eq!(coordinator.next_volume().unwrap().snapshots, [wish(9)]);
    // Both may be cut beside their commits.
    let cut = coordinator.tick(4, &loads(&[])).unwrap();
    assert_eq!(cut.scope, only(&[A, B]));
    assert_eq!(
        both_pending(&coordinator),
        [(9, true), (1, false), (2, false)]
    );
    seal(&mut coordinator, &cut, &[(B, 1)]);
    assert_eq!(
        both_pending(&coordinator),
        [(9, true), (1, true), (2, true)]
    );
    coordinator.volume_done(A);
    coordinator.volume_done(B);
    let taken: Vec<_> = std::iter::from_fn(|| coordinator.next_volume()).collect();
    let taken: Vec<_> = taken.iter().map(|s| (s.epoch, &s.snapshots[..])).collect();
    assert_eq!(
        taken,
        [(cut.epoch, &[wish(1)][..]), (cut.epoch, &[wish(2)][..])]
    );
}

#[test]
fn a_group_of_a_held_volume_waits_and_of_a_forgotten_one_is_none() {
    let mut coordinator = coordinator();
    coordinator.hold(B);
    coordinator.snapshot_group(vec![(A, wish(1)), (B, wish(2))]);
    assert_eq!(coordinator.tick(0, &loads(&[])), None);
    coordinator.unhold(B);
    let cut = coordinator.tick(1, &loads(&[])).unwrap();
    assert_eq!(cut.scope, only(&[A, B]));
    seal(&mut coordinator, &cut, &[]);
    coordinator.snapshot_group(vec![(A, wish(3)), (B, wish(4))]);
    coordinator.forget_volume(B);
    assert_eq!(both_pending(&coordinator), [(1, true)]);
    coordinator.snapshot_group(vec![(A, wish(5)), (B, wish(6))]);
    assert_eq!(both_pending(&coordinator), [(1, true)]);
}

#[test]
fn snapshots_of_a_held_or_forgotten_volume_are_not_taken() {
    let mut coordinator = coordinator();
    coordinator.hold(A);
    coordinator.snapshot(A, wish(1));
    assert_eq!(coordinator.tick(0, &loads(&[])), None);
    coordinator.unhold(A);
    let cut = coordinator.tick(1, &loads(&[])).unwrap();
    coordinator.forget_volume(A);
    seal(&mut coordinator, &cut, &[]);
    assert!(coordinator.is_idle() && coordinator.next_volume().is_none());
    coordinator.snapshot(A, wish(2));
    assert_eq!(pending(&coordinator), (vec![], vec![]));
}
