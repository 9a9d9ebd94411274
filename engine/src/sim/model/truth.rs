//! The bucket of the model, and what is known to be true of it: which image each manifest must
//! have. Everything that changes the bucket passes here and is judged at once.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use futures::executor::block_on;

use super::Mutation;
use super::desk::{Answer, Ask};
use crate::backend::{Backend, MemBackend, Put};
use crate::block::{BlockNum, BlockSize};
use crate::chunk::verify_slot;
use crate::error::{Error, Result};
use crate::identity::{Epoch, ManifestNum, VolumeId, WriterToken};
use crate::index::rebuild::rebuild;
use crate::invariant::{Objects, check_chain};
use crate::manifest::{Manifest, ManifestKind};
use crate::object::{ChunkKey, IndexKey, ObjectKey, SealedRef, number_of};
use crate::registry::read_history;
use crate::volume::{VolumeName, VolumeSettings};

/// The only volume.
pub(super) const VOLUME: VolumeId = VolumeId(0xAB);

/// Number of the write that each block holds; absent blocks are zeros.
pub(super) type Image = BTreeMap<u64, u64>;

/// What a block holds after write `value`.
pub(super) fn content(block: u64, value: u64) -> Vec<u8> {
    let mut unit = [0; 16];
    unit[..8].copy_from_slice(&block.to_le_bytes());
    unit[8..].copy_from_slice(&value.to_le_bytes());
    unit.repeat(BlockSize::MIN.bytes() / 16)
}

/// A rule that was broken: its name, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// One of the names listed in `docs/internals/testing-simulator.md`.
    pub rule: &'static str,
    /// What was seen.
    pub what: String,
}

pub(super) fn broken(rule: &'static str, what: impl Into<String>) -> Broken {
    let what = what.into();
    Broken { rule, what }
}

pub(super) type Verdict = std::result::Result<(), Broken>;

/// The bucket.
pub(super) struct Truth {
    pub(super) bucket: MemBackend,
    pub(super) mutation: Option<Mutation>,
    /// All manifests, from number 1.
    pub(super) chain: Vec<Manifest>,
    /// The image that each must have.
    images: Vec<Image>,
    /// A hash of the chain up to each, without what is random.
    hashes: Vec<u64>,
    /// What each session's cuts hold.
    cuts: BTreeMap<(u64, Epoch), Image>,
    /// Every name that was ever given, and its body.
    names: BTreeMap<String, u64>,
    /// Which writer made a token, and as which of its tokens.
    tokens: BTreeMap<u64, (usize, u32)>,
    pub(super) deletes: u64,
}

impl Truth {
    /// A bucket with one fresh volume.
    pub(super) fn new(mutation: Option<Mutation>) -> Self {
        let bucket = MemBackend::new();
        let name = VolumeName::parse("vol0").expect("a good name");
        let settings = VolumeSettings::with_size(1 << 20);
        let first = Manifest::first(VOLUME, name, settings, WriterToken(1));
        block_on(bucket.put_if_absent(&first.object(), first.encode())).expect("in memory");
        Self {
            bucket,
            mutation,
            chain: vec![first],
            images: vec![Image::new()],
            hashes: vec![0],
            cuts: BTreeMap::new(),
            names: BTreeMap::new(),
            tokens: BTreeMap::new(),
            deletes: 0,
        }
    }

    pub(super) fn head(&self) -> &Manifest {
        self.chain.last().expect("a volume has a manifest")
    }

    /// The image that a manifest has.
    pub(super) fn image(&self, number: ManifestNum) -> &Image {
        &self.images[number.0 as usize - 1]
    }

    pub(super) fn hash_at(&self, number: ManifestNum) -> u64 {
        self.hashes[number.0 as usize - 1]
    }

    /// Whether sessions with these tokens, which follow each other from manifest `after` on,
    /// committed everything that they stamped up to `epoch`.
    pub(super) fn holds(&self, tokens: &BTreeSet<u64>, after: ManifestNum, epoch: Epoch) -> bool {
        let later = self.chain.iter().filter(|m| m.number > after);
        let mut own = later.take_while(|m| tokens.contains(&m.token.0));
        own.any(|m| m.kind == ManifestKind::Commit && m.epoch >= epoch)
    }

    /// A session sealed this.
    pub(super) fn note_cut(&mut self, token: WriterToken, epoch: Epoch, image: Image) {
        self.cuts.insert((token.0, epoch), image);
    }

    /// A writer asks for something: its tokens become known. Returns the token, if there is one.
    pub(super) fn meet(&mut self, writer: usize, ask: &Ask) -> Option<u64> {
        let Ask::Create(key, body) = ask else {
            return None;
        };
        let manifest = manifest_in(key, body)?;
        let count = self.tokens.values().filter(|(of, _)| *of == writer).count();
        self.tokens
            .entry(manifest.token.0)
            .or_insert((writer, count as u32));
        Some(manifest.token.0)
    }

    /// A token without what is random about it.
    pub(super) fn name_of(&self, token: u64) -> (usize, u32) {
        self.tokens.get(&token).copied().unwrap_or((9, 0))
    }

    /// Carries a request out and judges it.
    pub(super) fn carry_out(&mut self, ask: &Ask) -> std::result::Result<Result<Answer>, Broken> {
        self.judge_before(ask)?;
        let manifest = match ask {
            Ask::Create(key, body) => manifest_in(key, body),
            _ => None,
        };
        let unconditional =
            manifest.is_some() && self.mutation == Some(Mutation::UnconditionalManifests);
        let answer = ask.carry_out(&self.bucket, unconditional);
        let created = matches!(answer, Ok(Answer::Put(Put::Created)));
        if created && let Some(manifest) = manifest {
            self.created(manifest)?;
        }
        if ask.changes() {
            self.check_objects()?;
        }
        Ok(answer)
    }

    /// What a list would have shown after the first opening.
    pub(super) fn list_of_the_past(&self, ask: &Ask) -> Result<Answer> {
        let mut answer = ask.carry_out(&self.bucket, false)?;
        if let Answer::Listed(listed) = &mut answer {
            listed.retain(|one| number_of(&one.key).is_some_and(|number| number <= 2));
        }
        Ok(answer)
    }

    fn judge_before(&mut self, ask: &Ask) -> Verdict {
        match ask {
            Ask::Create(key, body) if sealed(key).is_some() => {
                let hash = hash_of(&body);
                let known = *self.names.entry(key.to_string()).or_insert(hash);
                if known != hash {
                    return Err(broken("names are never reused", key.to_string()));
                }
            }
            Ask::Delete(key) => {
                self.deletes += 1;
                // A compaction that was given up takes back what no manifest ever named.
                let own = |o: &SealedRef| !self.chain.iter().any(|m| m.adds(o));
                let allowed = |o| self.objects().may_delete(&o) || own(&o);
                let allowed = sealed(key).is_some_and(allowed);
                if !allowed {
                    let what = format!("{key} is deleted and not condemned");
                    return Err(broken("only what is condemned is deleted", what));
                }
            }
            Ask::Replace(key, _) => {
                return Err(broken("objects are immutable", key.to_string()));
            }
            _ => {}
        }
        Ok(())
    }

    fn objects(&self) -> Objects {
        check_chain(&self.chain).expect("it was checked when it grew")
    }

    /// A manifest is in the bucket: the chain is sound, and its image is what it must be.
    fn created(&mut self, manifest: Manifest) -> Verdict {
        let linear = |what: String| broken("the chain is linear", what);
        if manifest.number <= self.head().number {
            return Err(linear(format!("manifest {} is replaced", manifest.number)));
        }
        let image = match manifest.kind {
            // Else it is a compaction, which changes nothing.
            ManifestKind::Commit if manifest.epoch > self.head().epoch => {
                let cut = (manifest.token.0, manifest.epoch);
                let image = self.cuts.get(&cut);
                let what = || format!("epoch {} is no cut of its writer", manifest.epoch);
                image
                    .cloned()
                    .ok_or_else(|| broken("the image is a cut", what()))?
            }
            _ => self.image(self.head().number).clone(),
        };
        self.chain.push(manifest);
        check_chain(&self.chain).map_err(|error| linear(error.to_string()))?;
        self.images.push(image);
        let hash = hash_of(&(self.hashes.last(), self.canon(self.head())));
        self.hashes.push(hash);
        let found = block_on(self.read_image())
            .map_err(|error| broken("the head can be read", error.to_string()))?;
        let expected = self.image(self.head().number);
        if found != *expected {
            let what = format!(
                "manifest {} of generation {} holds {found:?}, its writer had {expected:?}",
                self.head().number,
                self.head().generation
            );
            return Err(broken("the image is a cut", what));
        }
        if self.mutation == Some(Mutation::PrunesManifests) {
            self.prune();
        }
        Ok(())
    }

    /// The bug of removing manifests that no reader of the head needs.
    fn prune(&self) {
        let checkpoint = self.chain.iter().rposition(|m| m.checkpoint.is_some());
        for manifest in &self.chain[..checkpoint.unwrap_or(0)] {
            if !matches!(manifest.kind, ManifestKind::Created | ManifestKind::Opened) {
                block_on(self.bucket.delete(&manifest.object())).expect("in memory");
            }
        }
    }

    /// Everything that the head's readers may want is there.
    fn check_objects(&self) -> Verdict {
        let keys = self.bucket.keys();
        let missing = |object: &&SealedRef| {
            let key = object.object();
            keys.binary_search_by(|k| k.as_str().cmp(key.as_str()))
                .is_err()
        };
        match self.objects().live().find(missing) {
            None => Ok(()),
            Some(object) => {
                let what = format!("{} is gone", object.object());
                Err(broken("what the head can reach exists", what))
            }
        }
    }

    /// The image as the code reads it from the bucket alone.
    async fn read_image(&self) -> Result<Image> {
        let history = read_history(&self.bucket, VOLUME, None).await?;
        let base = rebuild(&self.bucket, &history.manifests).await?.base;
        let mut image = Image::new();
        for block in 0..super::BLOCKS {
            let Some(loc) = base.lookup(BlockNum(block)) else {
                continue;
            };
            let chunk = base
                .chunk(loc.chunk)
                .ok_or_else(|| Error::corrupt("a location without its chunk"))?
                .reference;
            let range = chunk.slot_range(BlockSize::MIN, loc.slot, 1);
            let len = range.end - range.start;
            let key = chunk.key.object();
            let slot = self.bucket.get_range(&key, range.start, len).await?;
            let bytes = verify_slot(&slot, BlockSize::MIN, BlockNum(block))?;
            let value = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
            if bytes != content(block, value) {
                return Err(Error::corrupt("a block holds what nobody wrote"));
            }
            image.insert(block, value);
        }
        Ok(image)
    }

    /// What a manifest is, without tokens and CRCs (which depend on tokens).
    fn canon(&self, manifest: &Manifest) -> u64 {
        let added: Vec<ChunkKey> = manifest.added.iter().map(|chunk| chunk.key).collect();
        let root: Option<IndexKey> = manifest.checkpoint.map(|root| root.key);
        let what = format!(
            "{} {:?} {} {:?} {} {added:?} {:?} {:?} {root:?}",
            manifest.number,
            manifest.kind,
            manifest.generation,
            self.name_of(manifest.token.0),
            manifest.epoch,
            manifest.condemned,
            manifest.dropped,
        );
        hash_of(&what)
    }

    /// A request, likewise.
    pub(super) fn canon_ask(&self, ask: &Ask) -> u64 {
        match ask {
            Ask::Create(key, body) => match manifest_in(key, body) {
                Some(manifest) => self.canon(&manifest),
                None => hash_of(&("create", key.as_str())),
            },
            other => hash_of(&format!("{other:?}")),
        }
    }

    /// All that a future can depend on.
    pub(super) fn canon_bucket(&self) -> u64 {
        let keys = self.bucket.keys();
        let sealed: Vec<&String> = keys.iter().filter(|k| !k.contains("manifests/")).collect();
        hash_of(&(self.hashes.last(), sealed))
    }
}

pub(super) fn hash_of(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

fn manifest_in(key: &ObjectKey, body: &[u8]) -> Option<Manifest> {
    key.as_str().contains("manifests/").then_some(())?;
    Some(Manifest::decode(body).expect("writers put good manifests"))
}

fn sealed(key: &ObjectKey) -> Option<SealedRef> {
    let chunk = ChunkKey::parse(key.as_str()).map(SealedRef::Chunk);
    chunk.or_else(|| IndexKey::parse(key.as_str()).map(SealedRef::Index))
}
