//! What holds of every volume's chain of manifests, whoever wrote it and whatever crashed: the
//! rules that the code checks when it reads a chain, and that the model of two writers
//! ([`crate::sim::model`](crate::sim)) checks after every step. `docs/internals/manifest.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::commit::Publication;
use crate::error::{Error, Result};
use crate::identity::ManifestNum;
use crate::manifest::Manifest;
use crate::object::SealedRef;

/// What a chain says about sealed objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    live: BTreeSet<SealedRef>,
    condemned: BTreeMap<SealedRef, ManifestNum>,
    dropped: BTreeSet<SealedRef>,
}

impl Objects {
    /// Objects that a reader of the chain's head may want: they are stored.
    pub fn live(&self) -> impl Iterator<Item = &SealedRef> {
        self.live.iter()
    }

    /// Whether the chain allows anybody to delete `object`, at any time.
    pub fn may_delete(&self, object: &SealedRef) -> bool {
        self.condemned.contains_key(object)
    }

    /// Takes up the next manifest.
    fn follow(&mut self, manifest: &Manifest) -> std::result::Result<(), String> {
        let chunks = manifest.added.iter().map(|c| SealedRef::Chunk(c.key));
        let root = manifest.checkpoint.map(|root| SealedRef::Index(root.key));
        for object in chunks.chain(root) {
            if self.condemned.contains_key(&object) {
                return Err(format!("it names {}, which is condemned", object.object()));
            }
            if !self.live.insert(object) {
                return Err(format!("{} is added twice", object.object()));
            }
        }
        for object in &manifest.condemned {
            self.live.remove(object);
            if self.condemned.insert(*object, manifest.number).is_some() {
                return Err(format!("{} is condemned twice", object.object()));
            }
        }
        for object in &manifest.dropped {
            let same = self.condemned.get(object) == Some(&manifest.number);
            if same || !self.dropped.insert(*object) {
                return Err(format!("{} is dropped too early or twice", object.object()));
            }
        }
        Ok(())
    }
}

/// Checks a chain of consecutive manifests, oldest first: it is linear, its generations never go
/// back, nothing condemned is named again, no name is used twice. `Corrupt` says which rule fails.
///
/// The chain may begin anywhere; what came before is then unknown and no rule is applied to it.
pub fn check_chain(chain: &[Manifest]) -> Result<Objects> {
    let mut objects = Objects::default();
    for (at, manifest) in chain.iter().enumerate() {
        if let Some(before) = at.checked_sub(1) {
            manifest.check_follows(&chain[before])?;
        }
        objects.follow(manifest).map_err(|why| {
            Error::corrupt(format!("manifest {}: {why}", manifest.number))
                .with_volume(manifest.volume)
        })?;
    }
    Ok(objects)
}

/// Whether a publication may reach the shards (and release their logs): `stored` is what the bucket
/// has under its number, `writer` a manifest of the session that publishes.
pub fn may_publish(publication: &Publication, stored: &Manifest, writer: &Manifest) -> bool {
    stored.same_writer(writer)
        && (stored.number, stored.epoch) == (publication.head, publication.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Epoch, Generation, VolumeId, WriterToken};
    use crate::manifest::ManifestKind;
    use crate::object::IndexKey;
    use crate::volume::{VolumeName, VolumeSettings};

    fn first() -> Manifest {
        let name = VolumeName::parse("v").unwrap();
        let settings = VolumeSettings::with_size(1 << 20);
        Manifest::first(VolumeId(1), name, settings, WriterToken(1))
    }

    fn object(sequence: u64) -> SealedRef {
        SealedRef::Index(IndexKey {
            volume: VolumeId(1),
            generation: Generation(1),
            sequence,
            random: 1,
        })
    }

    fn condemning(before: &Manifest, objects: &[SealedRef]) -> Manifest {
        Manifest {
            condemned: objects.to_vec(),
            ..before.successor(ManifestKind::Commit)
        }
    }

    #[test]
    fn a_chain_must_be_linear_and_keep_its_generations() {
        let first = first();
        let opened = first.opened_by(WriterToken(2));
        assert!(check_chain(&[first.clone(), opened.clone()]).is_ok());
        assert!(check_chain(&[opened.clone(), first.clone()]).is_err());
        let mut back = opened.successor(ManifestKind::Commit);
        back.generation = Generation(0);
        assert!(check_chain(&[first, opened, back]).is_err());
    }

    #[test]
    fn condemned_is_final_and_needed_for_a_delete() {
        let opened = first().opened_by(WriterToken(2));
        let next = condemning(&opened, &[object(1)]);
        let objects = check_chain(&[opened.clone(), next.clone()]).unwrap();
        assert!(objects.may_delete(&object(1)) && !objects.may_delete(&object(2)));
        let twice = condemning(&next, &[object(1)]);
        assert!(check_chain(&[opened, next, twice]).is_err());
    }

    #[test]
    fn an_object_is_dropped_after_it_was_condemned_and_once() {
        let opened = first().opened_by(WriterToken(2));
        let mut next = condemning(&opened, &[object(1)]);
        let mut dropping = next.successor(ManifestKind::Commit);
        dropping.dropped.push(object(1));
        let mut again = dropping.successor(ManifestKind::Commit);
        assert!(check_chain(&[opened.clone(), next.clone(), dropping.clone()]).is_ok());
        again.dropped.push(object(1));
        assert!(check_chain(&[next.clone(), dropping, again]).is_err());
        next.dropped.push(object(1));
        assert!(check_chain(&[opened, next]).is_err());
    }

    #[test]
    fn a_publication_needs_its_own_manifest_in_the_bucket() {
        let opened = first().opened_by(WriterToken(2));
        let mut stored = opened.successor(ManifestKind::Commit);
        stored.epoch = Epoch(4);
        let publication = Publication {
            volume: stored.volume,
            epoch: Epoch(4),
            leaves: Vec::new(),
            head: stored.number,
            chunks: 0,
            chunk_bytes: 0,
        };
        assert!(may_publish(&publication, &stored, &opened));
        stored.token = WriterToken(3);
        assert!(!may_publish(&publication, &stored, &opened));
    }
}
