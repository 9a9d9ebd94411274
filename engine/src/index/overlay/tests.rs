//! The overlay against a map that holds the newest record of every block.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BLOCKS: u64 = 64;

#[derive(Clone, Debug)]
enum Record {
    Data { local: u64, lsn: u64 },
    Zero { start: u64, len: u64, lsn: u64 },
}

fn point(lsn: u64, place: u64) -> Point {
    Point {
        lsn: Lsn(lsn),
        place: Place {
            batch: BatchNum(place),
            page: (place % 251) as u16,
        },
        crc: (lsn * 31 + place) as u32,
    }
}

/// Newest record per block: LSN, and the batch for data.
type Model = BTreeMap<u64, (u64, Option<u64>)>;

fn apply(model: &mut Model, overlay: &mut Overlay, record: &Record, batch: u64) {
    let mut note = |local, lsn, data| {
        let newest = model.entry(local).or_insert((lsn, data));
        if newest.0 <= lsn {
            *newest = (lsn, data);
        }
    };
    match *record {
        Record::Data { local, lsn } => {
            note(local, lsn, Some(batch));
            overlay.insert_point(LocalBlock(local), point(lsn, batch));
        }
        Record::Zero { start, len, lsn } => {
            (start..start + len).for_each(|local| note(local, lsn, None));
            overlay.insert_zero(start..start + len, Lsn(lsn));
        }
    }
}

fn check(model: &Model, overlay: &Overlay) {
    for local in 0..BLOCKS * 2 {
        let expected = model.get(&local).map(|&(lsn, batch)| match batch {
            Some(batch) => Hit::Data(point(lsn, batch)),
            None => Hit::Zero(Lsn(lsn)),
        });
        assert_eq!(overlay.lookup(LocalBlock(local)), expected, "block {local}");
    }
    let winners = overlay.winners();
    assert!(winners.points.is_sorted_by(|a, b| a.0 < b.0));
    assert!(winners.zeros.is_sorted_by(|a, b| a.end < b.start));
    let zeroed = |local| winners.zeros.iter().any(|zero| zero.contains(&local));
    let data: BTreeMap<_, _> = winners.points.into_iter().collect();
    for local in 0..BLOCKS * 2 {
        match model.get(&local) {
            None => assert!(!zeroed(local) && !data.contains_key(&LocalBlock(local))),
            Some(&(lsn, Some(batch))) => {
                assert_eq!(data.get(&LocalBlock(local)), Some(&point(lsn, batch)));
            }
            Some((_, None)) => assert!(zeroed(local) && !data.contains_key(&LocalBlock(local))),
        }
    }
    assert_eq!(overlay.is_empty(), model.is_empty());
}

/// Records in any order, each with its own LSN, as replay of a WAL and a memory region gives them.
fn records() -> impl Strategy<Value = Vec<Record>> {
    let kind = (any::<bool>(), 0..BLOCKS, 1..BLOCKS);
    prop::collection::vec(kind, 0..40)
        .prop_map(|kinds| {
            let record = |(i, (data, start, len)): (usize, (bool, u64, u64))| {
                let lsn = i as u64 + 1;
                match data {
                    true => Record::Data { local: start, lsn },
                    false => Record::Zero { start, len, lsn },
                }
            };
            kinds
                .into_iter()
                .enumerate()
                .map(record)
                .collect::<Vec<_>>()
        })
        .prop_shuffle()
}

proptest! {
    #[test]
    fn the_greatest_lsn_wins_in_any_order(records in records()) {
        let (mut model, mut overlay) = (Model::new(), Overlay::new());
        for (batch, record) in records.iter().enumerate() {
            apply(&mut model, &mut overlay, record, batch as u64);
        }
        check(&model, &overlay);
    }

    #[test]
    fn absorbing_layers_in_any_order_equals_one_overlay(records in records(), cut in 0..40usize) {
        let (mut model, mut first, mut second) = (Model::new(), Overlay::new(), Overlay::new());
        for (batch, record) in records.iter().enumerate() {
            let layer = if batch < cut { &mut first } else { &mut second };
            apply(&mut model, layer, record, batch as u64);
        }
        let mut merged = Overlay::new();
        merged.absorb(&second);
        merged.absorb(&first);
        check(&model, &merged);
    }
}

#[test]
fn the_same_record_appended_again_takes_its_new_place() {
    let mut overlay = Overlay::new();
    overlay.insert_point(LocalBlock(5), point(9, 1));
    overlay.insert_point(LocalBlock(5), point(9, 2));
    assert_eq!(overlay.lookup(LocalBlock(5)), Some(Hit::Data(point(9, 2))));
    assert_eq!(overlay.points_len(), 1);
}

#[test]
fn a_trim_of_the_largest_range_is_one_entry() {
    let mut overlay = Overlay::new();
    overlay.insert_zero(0..1 << 30, Lsn(1));
    overlay.insert_point(LocalBlock(77), point(2, 1));
    overlay.insert_zero(1 << 29..1 << 30, Lsn(3));
    assert_eq!(overlay.zeros_len(), 2);
    assert_eq!(overlay.lookup(LocalBlock(77)), Some(Hit::Data(point(2, 1))));
    assert_eq!(
        overlay.lookup(LocalBlock((1 << 30) - 1)),
        Some(Hit::Zero(Lsn(3)))
    );
    let winners = overlay.winners();
    assert_eq!(winners.zeros, std::slice::from_ref(&(0..1 << 30)));
    assert_eq!(winners.points.len(), 1);
}

#[test]
fn packed_places_keep_their_extremes() {
    let mut overlay = Overlay::new();
    let extreme = Point {
        lsn: Lsn(u64::MAX),
        place: Place {
            batch: BatchNum(BATCH_LIMIT - 1),
            page: u16::MAX,
        },
        crc: u32::MAX,
    };
    overlay.insert_point(LocalBlock(u64::from(u32::MAX)), extreme);
    let hit = overlay.lookup(LocalBlock(u64::from(u32::MAX)));
    assert_eq!(hit, Some(Hit::Data(extreme)));
}

#[test]
fn a_block_costs_at_most_58_bytes() {
    // 24 bytes and a control byte per bucket; a table that just doubled is 7/16 full.
    let mut overlay = Overlay::new();
    assert_eq!(overlay.heap_bytes(), 0);
    for local in 0..100_000u64 {
        overlay.insert_point(LocalBlock(local * 7), point(local, local));
        let len = overlay.points_len();
        if len > 1000 {
            assert!(
                overlay.heap_bytes() <= len * 58,
                "{len}: {}",
                overlay.heap_bytes()
            );
        }
    }
}

/// Strided numbers must not pile up in few buckets or tags.
#[test]
fn the_hash_spreads_strides() {
    for stride in [1u32, 16, 64, 1 << 12, 1 << 18] {
        let (mut low, mut tags) = ([0u32; 1024], [0u32; 128]);
        let keys = (0..1u32 << 13).map(|i| i.wrapping_mul(stride).wrapping_add(i >> 14));
        for hash in keys.map(hash) {
            low[hash as usize % 1024] += 1;
            tags[(hash >> 57) as usize] += 1;
        }
        assert!(
            low.iter().all(|&n| n <= 64),
            "stride {stride}: {:?}",
            low.iter().max()
        );
        assert!(
            tags.iter().all(|&n| n <= 512),
            "stride {stride}: {:?}",
            tags.iter().max()
        );
    }
}

#[test]
fn a_scan_tells_what_lookups_tell_as_far_as_it_goes() {
    let mut seed = 7u64;
    let mut below = |limit: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % limit
    };
    for round in 0..60 {
        let mut overlay = Overlay::new();
        let blocks = [200, 5000, 1 << 30][round % 3];
        for lsn in 1..400 {
            let at = below(blocks);
            if below(4) == 0 {
                overlay.insert_zero(at..at + 1 + below(30), Lsn(lsn));
            } else {
                overlay.insert_point(LocalBlock(at), point(lsn, lsn));
            }
        }
        for _ in 0..20 {
            let start = below(blocks);
            let longest = [8, blocks.min(5000)][below(2) as usize];
            let range = start..start + 1 + below(longest);
            let most = [1, 3, 50, 4096][below(4) as usize];
            let scan = overlay.scan(range.clone(), most);
            assert!(scan.end > range.start && scan.end <= range.end);
            assert!(scan.points.len() <= most && scan.zeros.len() <= most);
            assert!(most < 4096 || scan.end == range.end);
            assert!(scan.points.is_sorted_by(|a, b| a.0 < b.0));
            for local in range.start..scan.end {
                let told = scan.points.iter().find(|(at, _)| at.0 == local);
                let zeroed = scan.zeros.iter().any(|zero| zero.contains(&local));
                match overlay.lookup(LocalBlock(local)) {
                    Some(Hit::Data(point)) => assert_eq!(told.map(|t| t.1), Some(point)),
                    Some(Hit::Zero(_)) => assert!(told.is_none() && zeroed),
                    None => assert!(told.is_none() && !zeroed),
                }
            }
        }
    }
}
