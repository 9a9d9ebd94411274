//! A rebuild from a damaged bucket says so; it never gives a wrong index.

use futures::executor::block_on;

use super::rig::{VOLUME, World, eager};
use crate::backend::{Backend, Fault, FaultRule, Operation};
use crate::chunk::ChunkRef;
use crate::error::{Error, ErrorKind};
use crate::identity::ManifestNum;
use crate::index::rebuild::rebuild;
use crate::manifest::{Manifest, ManifestKind};
use crate::object::{ChunkKey, ObjectKey, SealedRef};
use crate::registry::read_history;

/// A volume whose last manifests follow a checkpoint.
fn world() -> (World, Vec<Manifest>) {
    let mut world = World::new();
    let mut rig = world.open(eager());
    loop {
        world.write(0..40);
        rig.commit_and_verify(&mut world);
        let history = block_on(read_history(&world.backend, VOLUME, None)).unwrap();
        let chain = history.manifests;
        if chain.len() > 1 && chain[0].checkpoint.is_some() {
            return (world, chain);
        }
    }
}

fn failure(world: &World, chain: &[Manifest]) -> Error {
    match block_on(rebuild(&world.backend, chain)) {
        Ok(_) => panic!("a damaged bucket gave an index"),
        Err(error) => error,
    }
}

fn last_chunk(chain: &[Manifest]) -> ChunkRef {
    chain.last().unwrap().added[0]
}

#[test]
fn every_flipped_byte_of_what_a_rebuild_reads_is_found() {
    let (world, chain) = world();
    assert!(block_on(rebuild(&world.backend, &chain)).is_ok());
    let chunk = last_chunk(&chain);
    let root = chain[0].checkpoint.unwrap();
    let objects = [
        (chunk.key.object(), u64::from(chunk.head_bytes)),
        (root.key.object(), root.bytes),
    ];
    for (key, bytes) in objects {
        for at in (0..bytes as usize).step_by(3) {
            assert!(world.backend.rot(&key, at));
            assert_eq!(
                failure(&world, &chain).kind(),
                ErrorKind::Corrupt,
                "{key} at {at}"
            );
            // Flipping it once more heals it.
            assert!(world.backend.rot(&key, at));
        }
    }
    assert!(block_on(rebuild(&world.backend, &chain)).is_ok());
}

/// Replies that are wrong once, as if a bit flipped on the way: whatever is read at an opening is
/// asked for once more, and a second wrong reply is damage.
#[test]
fn what_was_damaged_on_its_way_is_read_once_more() {
    let (world, chain) = world();
    let open = || {
        let history = block_on(read_history(&world.backend, VOLUME, None))?;
        assert_eq!(history.manifests, chain);
        block_on(rebuild(&world.backend, &history.manifests))
    };
    let reads = [
        (Operation::Get, "/manifests/"),
        (Operation::Get, "/index/"),
        (Operation::GetRange, "/chunks/"),
    ];
    for (operation, part) in reads {
        let before = world.backend.count(operation);
        open().unwrap();
        let usual = world.backend.count(operation) - before;
        let wrong = |times| FaultRule {
            times,
            ..FaultRule::once(operation, part, Fault::CorruptByte(20))
        };
        world.backend.script(wrong(1));
        let before = world.backend.count(operation);
        open().unwrap_or_else(|error| panic!("{part}: {error}"));
        assert_eq!(world.backend.count(operation) - before, usual + 1, "{part}");
        world.backend.script(wrong(u32::MAX));
        assert_eq!(open().err().unwrap().kind(), ErrorKind::Corrupt, "{part}");
        world.backend.clear_script();
    }
}

#[test]
fn a_missing_chunk_is_an_error() {
    let (world, chain) = world();
    block_on(world.backend.delete(&last_chunk(&chain).key.object())).unwrap();
    assert_eq!(failure(&world, &chain).kind(), ErrorKind::NotFound);
}

#[test]
fn a_chain_with_a_hole_or_without_a_start_is_refused() {
    let (world, chain) = world();
    assert!(failure(&world, &[]).to_string().contains("has a manifest"));
    assert!(
        failure(&world, &chain[1..])
            .to_string()
            .contains("neither the first")
    );
    let mut later = chain.last().unwrap().successor(ManifestKind::Commit);
    later.number = ManifestNum(later.number.0 + 1);
    let holed = [chain.as_slice(), &[later]].concat();
    failure(&world, &holed);
}

/// Manifests that contradict the index, though each byte is as it was written.
#[test]
fn manifests_that_contradict_the_index_are_corrupt() {
    let (world, chain) = world();
    let head = chain.last().unwrap();
    let in_use = last_chunk(&chain);
    let unknown = ChunkKey {
        random: in_use.key.random ^ 1,
        ..in_use.key
    };
    let with = |change: &dyn Fn(&mut Manifest)| {
        let mut next = head.successor(ManifestKind::Commit);
        change(&mut next);
        failure(&world, &[chain.as_slice(), &[next]].concat()).to_string()
    };
    let condemn = |key| with(&|next| next.condemned.push(SealedRef::Chunk(key)));
    assert!(condemn(in_use.key).contains("in use"));
    assert!(condemn(unknown).contains("not known"));
    assert!(with(&|next| next.added.push(in_use)).contains("added twice"));
    let other_size = ChunkRef {
        bytes: in_use.bytes + 1,
        ..in_use
    };
    // The same object under another description, in a chain that does not have it yet.
    let mut tail = chain.clone();
    tail.last_mut().unwrap().added[0] = other_size;
    assert!(
        failure(&world, &tail)
            .to_string()
            .contains("not what its manifest says")
    );
    let huge = ChunkRef {
        head_bytes: u32::MAX,
        ..in_use
    };
    tail.last_mut().unwrap().added[0] = huge;
    assert!(failure(&world, &tail).to_string().contains("a head of"));
}

/// A root part that another manifest wrote is not this manifest's checkpoint.
#[test]
fn a_checkpoint_of_another_manifest_is_corrupt() {
    let (world, chain) = world();
    let mut liar = chain[1].clone();
    liar.checkpoint = chain[0].checkpoint;
    assert!(
        failure(&world, &[liar])
            .to_string()
            .contains("belongs to manifest")
    );
    let key = ObjectKey::manifest(VOLUME, chain[0].number);
    assert!(block_on(world.backend.head(&key)).unwrap().is_some());
}
