//! Requests whose shards live on several cores.

use super::rig::{BLOCK, Rig, SLOT, is_barrier, is_write};
use crate::block::BlockNum;
use crate::core::{Failure, Progress};
use crate::wal::MarkKind;

#[test]
fn unaligned_writes_zeroes_and_reads_agree_with_a_model_on_one_to_five_cores() {
    for cores in 1..=5 {
        let mut rig = Rig::new(cores);
        let mut model = vec![0u8; 64 * BLOCK as usize];
        let mut seed = 0x1234_5678_u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for step in 0..120 {
            let core = next(cores as u64) as usize;
            let offset = next(60 * BLOCK);
            let len = 1 + next((64 * BLOCK - offset).min(20 * BLOCK));
            let range = offset as usize..(offset + len) as usize;
            match next(4) {
                0 => {
                    rig.mark(offset, len, MarkKind::Zero);
                    rig.settle();
                    model[range].fill(0);
                }
                1 => {
                    let read = rig.read_on(core, offset, len);
                    rig.settle();
                    assert!(
                        rig.done[&read].data == model[range],
                        "{cores} cores, step {step}"
                    );
                }
                _ => {
                    let data = vec![1 + next(255) as u8; len as usize];
                    let write = rig.write_on(core, offset, &data, next(3) == 0);
                    rig.settle();
                    assert_eq!(rig.result(write), Some(Ok(())));
                    model[range].copy_from_slice(&data);
                }
            }
        }
        assert!(rig.data(0, 64 * BLOCK) == model);
        assert!(rig.cores.iter().all(|core| core.unanswered() == 0));
    }
}

/// What the model of throughput over cores counts (docs/internals/performance.md).
#[test]
fn a_request_of_another_cores_shard_takes_two_messages_and_no_other_takes_any() {
    const REQUESTS: usize = 1600;
    for cores in [1, 2, 4, 8, 16] {
        let mut rig = Rig::new(cores);
        let mut seed = 0x8765_4321_u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let (before, mut crossing) = (rig.messages, 0);
        for request in 0..REQUESTS {
            let (core, block) = (request % cores, next(64));
            crossing += usize::from(BlockNum(block).shard().core(cores) != core);
            match next(2) {
                0 => rig.read_on(core, block * BLOCK, BLOCK),
                _ => rig.write_on(core, block * BLOCK, &[1; BLOCK as usize], false),
            };
            rig.settle();
        }
        assert_eq!(rig.messages - before, 2 * crossing, "{cores} cores");
        let share = crossing as f64 / REQUESTS as f64;
        let expected = 1.0 - 1.0 / cores as f64;
        assert!((share - expected).abs() < 0.05, "{cores} cores: {share}");
    }
}

#[test]
fn a_flush_covers_what_other_connections_wrote_on_other_cores() {
    let mut rig = Rig::new(4);
    let write = rig.write_on(1, 6 * BLOCK, &[1; BLOCK as usize], false);
    assert_eq!(rig.result(write), Some(Ok(())));
    let flush = rig.flush_on(3);
    assert_eq!(rig.result(flush), None);
    assert_eq!(rig.end_some(is_write, None), 1);
    assert_eq!(rig.result(flush), None);
    assert_eq!(rig.end_some(is_barrier, None), 1);
    assert_eq!(rig.result(flush), Some(Ok(())));
}

#[test]
fn a_fua_write_waits_for_the_shards_of_every_core() {
    let mut rig = Rig::new(2);
    let write = rig.write_on(0, 0, &[1; 2 * BLOCK as usize], true);
    rig.end_some(is_write, None);
    let of_one = |io: &crate::core::Io| matches!(io, crate::core::Io::Barrier { shards: 2, .. });
    assert_eq!(rig.end_some(of_one, None), 1);
    assert_eq!(rig.result(write), None, "shard 0 is not durable");
    rig.settle();
    assert_eq!(rig.result(write), Some(Ok(())));
}

#[test]
fn a_failing_peer_fails_the_flush() {
    let mut rig = Rig::new(2);
    rig.write_on(0, 0, &[1; 2 * BLOCK as usize], false);
    let flush = rig.flush_on(0);
    let of_peer = |io: &crate::core::Io| match io {
        crate::core::Io::WalWrite { shard, .. } => shard.index() == 1,
        _ => false,
    };
    for _ in 0..5 {
        rig.end_some(of_peer, Some(5));
    }
    rig.settle();
    assert_eq!(rig.result(flush), Some(Err(Failure::Io)));
}

#[test]
fn a_cancel_reaches_the_parts_on_other_cores() {
    let mut rig = Rig::new(2);
    // Fill the log of shard 1, which core 1 owns.
    for i in 0..2000 {
        let ticket = rig.write(16 * i + 1, 2);
        rig.flush_on(0);
        rig.settle();
        if rig.result(ticket).is_none() {
            break;
        }
    }
    let (ticket, origin) = rig.origin();
    let data = [0xAA; BLOCK as usize];
    let Progress::Pending(key) = rig.cores[0].write(origin, SLOT, BLOCK, &data, false) else {
        panic!("asked of a peer");
    };
    rig.turn();
    assert_eq!(rig.result(ticket), None);
    rig.cores[0].cancel(key);
    rig.turn();
    assert_eq!(rig.result(ticket), Some(Err(Failure::Gone)));
    let cut = rig.cut();
    rig.commit(cut, 0, &[]);
    let read = rig.read_on(0, BLOCK, 1);
    rig.settle();
    assert_ne!(rig.done[&read].data, [0xAA], "the cancelled write landed");
}
