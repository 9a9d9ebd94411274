//! The volumes that this daemon serves, shared by all its threads.

mod bitmaps;
mod view;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use taipan_engine::api::{Lineage, VolumeState};
use taipan_engine::identity::VolumeId;
use taipan_engine::manifest::Manifest;
use taipan_engine::registry::LocalHead;
use taipan_engine::shard::VolumeSlot;
use taipan_engine::snapshot::QualifiedImage;
use taipan_engine::volume::{OnLostCache, VolumeName, VolumeSettings};
use taipan_nbd::{ExportDirectory, ExportInfo, LookupError};

use crate::access::{Access, Client, Grant};
use crate::connection::CONTEXTS;
use crate::throttle::Throttle;

pub use bitmaps::{Bitmap, Bitmaps, Bookmark, HeldBitmap, is_since};
pub use view::View;

/// What an operator is told of a volume whose answered writes may be gone.
pub(crate) const LOST_CACHE: &str = "the host crashed: writes answered after the last FLUSH of \
                                     their client may be missing; decide with `taipan volume set \
                                     --on-lost-cache`";

/// One served volume.
#[derive(Debug)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// Its identity.
    pub id: VolumeId,
    /// Its index in the tables of the cores.
    pub slot: VolumeSlot,
    /// Its settings now.
    pub settings: RwLock<VolumeSettings>,
    /// How fast clients may use it.
    pub throttle: Throttle,
    /// Open connections on all cores.
    pub connections: AtomicU32,
    /// Refuse writes.
    pub read_only: AtomicBool,
    /// No new connections: it is being deleted.
    pub closing: AtomicBool,
    /// Last committed cut.
    pub committed_epoch: AtomicU64,
    /// Last committed manifest.
    pub manifest: AtomicU64,
    /// Writer generation.
    pub generation: AtomicU64,
    /// Committed blocks that hold data.
    pub mapped_blocks: AtomicU64,
    /// Chunk objects with live blocks.
    pub chunks: AtomicU64,
    /// Bytes of these objects, and of what is live in them.
    pub chunk_bytes: AtomicU64,
    /// Bytes of live blocks.
    pub live_bytes: AtomicU64,
    /// Chunks whose live share is under the threshold of compaction.
    pub sparse_chunks: AtomicU64,
    /// Chunks that compaction could not read.
    pub unreadable_chunks: AtomicU64,
    /// Heap bytes of the committed index.
    pub index_bytes: AtomicU64,
    /// Milliseconds of the daemon's clock at the last commit; 0: none yet.
    pub last_commit_ms: AtomicU64,
    /// Answered writes may be gone since a start, and nobody has decided what that means.
    broken: AtomicBool,
    /// Whether it is served, and why not.
    pub state: RwLock<(VolumeState, Option<String>)>,
    /// What has changed since its snapshots, for clients.
    pub bitmaps: Bitmaps,
    /// Set if this is no volume but a snapshot of one, opened for reading.
    pub view: Option<View>,
}

impl Volume {
    /// A volume that was just opened for writing.
    pub fn serving(slot: VolumeSlot, local: &LocalHead, was_clean: bool) -> Self {
        Self {
            name: local.name.clone(),
            id: local.id,
            slot,
            settings: RwLock::new(local.settings.clone()),
            throttle: Throttle::of(&local.settings),
            connections: AtomicU32::new(0),
            read_only: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            committed_epoch: AtomicU64::new(local.committed_epoch.0),
            manifest: AtomicU64::new(local.head.0),
            generation: AtomicU64::new(local.generation.0),
            mapped_blocks: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
            chunk_bytes: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            sparse_chunks: AtomicU64::new(0),
            unreadable_chunks: AtomicU64::new(0),
            index_bytes: AtomicU64::new(0),
            last_commit_ms: AtomicU64::new(0),
            broken: AtomicBool::new(!was_clean),
            state: RwLock::new((VolumeState::Online, None)),
            bitmaps: Bitmaps::default(),
            view: None,
        }
    }

    /// Answered writes may be gone: how it is served follows its policy.
    pub fn note_lost_cache(&mut self) {
        let state = match self.settings().on_lost_cache {
            OnLostCache::Continue => VolumeState::Online,
            OnLostCache::ReadOnly => VolumeState::ReadOnly,
            OnLostCache::Refuse => VolumeState::Refused,
        };
        *self.read_only.get_mut() = state != VolumeState::Online;
        self.set_state(state, Some(LOST_CACHE.to_owned()));
    }

    /// A volume that cannot be served, with the reason.
    pub fn refused(
        slot: VolumeSlot,
        (name, id): (VolumeName, VolumeId),
        settings: VolumeSettings,
        cause: String,
    ) -> Self {
        let local = LocalHead::named(id, name, settings);
        let volume = Self::serving(slot, &local, true);
        volume.set_state(VolumeState::Refused, Some(cause));
        volume
    }

    /// A volume that another appliance owns.
    pub fn elsewhere(slot: VolumeSlot, head: &Manifest) -> Self {
        let identity = (head.name.clone(), head.volume);
        let volume = Self::refused(slot, identity, head.settings.clone(), String::new());
        volume
            .generation
            .store(head.generation.0, Ordering::Relaxed);
        volume.manifest.store(head.number.0, Ordering::Relaxed);
        let cause = format!(
            "another appliance owns it (generation {}); `taipan volume takeover` takes it over",
            head.generation
        );
        volume.set_state(VolumeState::Elsewhere, Some(cause));
        volume
    }

    /// Whether this daemon serves it, for reading at least.
    pub fn is_served(&self) -> bool {
        match self.state().0 {
            VolumeState::Online | VolumeState::ReadOnly | VolumeState::Unverified => true,
            VolumeState::Refused
            | VolumeState::Fenced
            | VolumeState::Elsewhere
            | VolumeState::Deleting => false,
        }
    }

    /// The settings now.
    pub fn settings(&self) -> VolumeSettings {
        self.settings
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The state now, with its cause.
    pub fn state(&self) -> (VolumeState, Option<String>) {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the state.
    pub fn set_state(&self, state: VolumeState, cause: Option<String>) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = (state, cause);
    }

    /// A commit was stored: the volume is still ours.
    pub fn verified(&self) {
        if self.state().0 == VolumeState::Unverified {
            tracing::info!(volume = %self.name, "verified: a commit was stored");
            let is_broken = self.lineage() == Lineage::Broken;
            self.set_state(
                VolumeState::Online,
                is_broken.then(|| LOST_CACHE.to_owned()),
            );
        }
    }

    /// Whether answered writes may be missing, as long as that is undecided.
    pub fn lineage(&self) -> Lineage {
        match self.broken.load(Ordering::Relaxed) {
            true => Lineage::Broken,
            false => Lineage::Intact,
        }
    }

    /// An operator decided to go on with what there is.
    pub fn accept_loss(&self) {
        self.broken.store(false, Ordering::Relaxed);
    }

    /// What a client is told about the volume.
    pub fn export(&self) -> Result<ExportInfo, LookupError> {
        let (state, cause) = self.state();
        let why = || cause.unwrap_or_else(|| "see the server's status".to_owned());
        match state {
            VolumeState::Refused | VolumeState::Fenced | VolumeState::Elsewhere => {
                return Err(LookupError::Policy(why()));
            }
            VolumeState::Deleting => return Err(LookupError::Unknown),
            VolumeState::Online | VolumeState::ReadOnly | VolumeState::Unverified => {}
        }
        // A snapshot that was looked up stays; `enter` has the last word.
        if self.view.is_none() && self.closing.load(Ordering::Acquire) {
            return Err(LookupError::Unknown);
        }
        let settings = self.settings();
        let mut info = ExportInfo::new(self.label(), settings.size_bytes);
        info.preferred_block = settings.block_size_bytes.max(4096);
        info.read_only = self.read_only.load(Ordering::Acquire);
        info.description = match self.view {
            None => format!("Taipan volume {}", self.id),
            Some(_) => format!("Taipan snapshot {}", self.id),
        };
        Ok(info)
    }
}

/// All volumes by name.
#[derive(Debug, Default)]
pub struct Directory {
    volumes: RwLock<BTreeMap<VolumeName, Arc<Volume>>>,
    /// Snapshots that are open for reading.
    views: RwLock<BTreeMap<QualifiedImage, Arc<Volume>>>,
    stopping: AtomicBool,
    access: Access,
    /// Since when and why it is not known which volumes the backend has.
    unlisted: RwLock<Option<(Instant, String)>>,
}

impl Directory {
    /// A directory without volumes, to which these rules apply.
    pub fn with_access(access: Access) -> Self {
        Self {
            access,
            ..Self::default()
        }
    }

    /// The backend could not say which volumes it has.
    pub fn note_unlisted(&self, why: String) {
        let mut noted = self
            .unlisted
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let since = noted.take().map_or_else(Instant::now, |(since, _)| since);
        *noted = Some((since, why));
    }

    /// The backend has said which volumes it has.
    pub fn note_listed(&self) {
        *self
            .unlisted
            .write()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// For how long, and why, it is not known which volumes the backend has.
    pub fn unlisted(&self) -> Option<(Duration, String)> {
        let noted = self.unlisted.read().unwrap_or_else(PoisonError::into_inner);
        noted
            .as_ref()
            .map(|(since, why)| (since.elapsed(), why.clone()))
    }

    /// The directory as a client sees it.
    pub fn seen_by<'a>(&'a self, client: Client<'a>) -> Seen<'a> {
        Seen {
            directory: self,
            client,
        }
    }

    /// The volume of that name.
    pub fn get(&self, name: &VolumeName) -> Option<Arc<Volume>> {
        self.volumes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    /// All volumes, by name.
    pub fn all(&self) -> Vec<Arc<Volume>> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        volumes.values().cloned().collect()
    }

    /// Adds a volume; the name must be free.
    pub fn insert(&self, volume: Arc<Volume>) {
        let mut volumes = self.volumes.write().unwrap_or_else(PoisonError::into_inner);
        let earlier = volumes.insert(volume.name.clone(), volume);
        assert!(earlier.is_none(), "a volume name is inserted once");
    }

    /// Adds a volume in place of the one of that name, if there is one.
    pub fn replace(&self, volume: Arc<Volume>) {
        let mut volumes = self.volumes.write().unwrap_or_else(PoisonError::into_inner);
        volumes.insert(volume.name.clone(), volume);
    }

    /// Removes a volume.
    pub fn remove(&self, name: &VolumeName) {
        self.volumes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }

    /// The lowest slot that no volume has.
    pub fn free_slot(&self) -> VolumeSlot {
        let (volumes, views) = (self.all(), self.views());
        let all = volumes.iter().chain(&views);
        let taken: Vec<VolumeSlot> = all.map(|volume| volume.slot).collect();
        let free = (0..).map(VolumeSlot).find(|slot| !taken.contains(slot));
        free.expect("there are more slots than volumes")
    }

    /// Refuses every further negotiation.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The volume that a client means; an empty name means the only one there is.
    pub fn resolve(&self, name: &str) -> Result<Arc<Volume>, LookupError> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(LookupError::Shutdown);
        }
        if name.is_empty() {
            let volumes = self.all();
            return match volumes.as_slice() {
                [only] => Ok(Arc::clone(only)),
                _ => Err(LookupError::Unknown),
            };
        }
        if name.contains('@') {
            return self.resolve_view(name);
        }
        let name = VolumeName::parse(name).map_err(|_| LookupError::Unknown)?;
        self.get(&name).ok_or(LookupError::Unknown)
    }
}

impl ExportDirectory for Directory {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(LookupError::Shutdown);
        }
        for volume in self.all() {
            if let Ok(info) = volume.export() {
                visit(volume.name.as_str(), &info.description);
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        self.resolve(name)?.export()
    }

    fn awaits(&self, name: &str) -> bool {
        self.lacks_view(name)
    }

    fn awaits_context(&self, name: &str, context: &str) -> bool {
        self.lacks_bitmap(name, context)
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        self.find(name)?;
        CONTEXTS.into_iter().for_each(&mut *visit);
        self.visit_bitmaps(name, visit)
    }
}

/// What a client may know and use of a [`Directory`].
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    directory: &'a Directory,
    client: Client<'a>,
}

impl Seen<'_> {
    /// What the client may do with an export: what it may with the volume, snapshots included.
    fn grant(&self, export: &str) -> Grant {
        let volume = volume_of(export);
        self.directory.access.grant(volume, &self.client)
    }

    /// The same whether there is such a volume or not: names are not to be guessed.
    fn refuse_strangers(&self, export: &str) -> Result<Grant, LookupError> {
        match self.grant(export) {
            Grant::None
                if self
                    .directory
                    .access
                    .asks_for_certificate(volume_of(export), &self.client) =>
            {
                let text = "the volume is granted to clients with a certificate, under TLS";
                Err(LookupError::TlsRequired(text.to_owned()))
            }
            Grant::None => {
                let text = "the volume is not granted to this client";
                Err(LookupError::Policy(text.to_owned()))
            }
            grant => Ok(grant),
        }
    }
}

/// The volume of an export: of itself, or of the snapshot that it is.
fn volume_of(export: &str) -> &str {
    export.split_once('@').map_or(export, |(volume, _)| volume)
}

impl ExportDirectory for Seen<'_> {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        if !self.directory.access.lists_to(&self.client) {
            let text = "exports are not listed here";
            return Err(LookupError::Policy(text.to_owned()));
        }
        self.directory.list(&mut |name, description| {
            if self.grant(name) != Grant::None {
                visit(name, description);
            }
        })
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        if !name.is_empty() {
            self.refuse_strangers(name)?;
        }
        let mut info = self.directory.find(name)?;
        info.read_only |= self.refuse_strangers(&info.canonical_name)? == Grant::Read;
        Ok(info)
    }

    fn awaits(&self, name: &str) -> bool {
        self.grant(name) != Grant::None && self.directory.awaits(name)
    }

    fn awaits_context(&self, name: &str, context: &str) -> bool {
        self.find(name).is_ok() && self.directory.awaits_context(name, context)
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        self.find(name)?;
        self.directory.contexts(name, visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Listing, Rule};

    fn directory(listing: Listing, grant: Grant) -> Directory {
        let rule = Rule {
            volumes: vec!["tenant/*".parse().unwrap()],
            clients: vec!["10.0.0.0/8".parse().unwrap()],
            certificates: Vec::new(),
            grant,
        };
        let rules = vec![rule];
        let directory = Directory::with_access(Access { listing, rules });
        for (index, name) in ["other", "tenant/a"].into_iter().enumerate() {
            let name = VolumeName::parse(name).unwrap();
            let settings = VolumeSettings::with_size(1 << 20);
            let local = LocalHead::named(VolumeId(index as u64), name, settings);
            let volume = Volume::serving(VolumeSlot(index as u32), &local, true);
            directory.insert(Arc::new(volume));
        }
        directory
    }

    fn at(address: Option<[u8; 4]>) -> Client<'static> {
        Client {
            address: address.map(Into::into),
            ..Client::default()
        }
    }

    fn names(seen: Seen<'_>) -> Result<Vec<String>, LookupError> {
        let mut names = Vec::new();
        seen.list(&mut |name, _| names.push(name.to_owned()))?;
        Ok(names)
    }

    #[test]
    fn clients_see_what_is_granted_to_them_and_guess_nothing() {
        let directory = directory(Listing::All, Grant::Read);
        let friend = directory.seen_by(at(Some([10, 0, 0, 1])));
        assert_eq!(names(friend).unwrap(), ["other", "tenant/a"]);
        assert!(friend.find("tenant/a").unwrap().read_only);
        assert!(!friend.find("other").unwrap().read_only);
        assert!(matches!(friend.find("tenant/b"), Err(LookupError::Unknown)));
        for client in [None, Some([11, 0, 0, 1])] {
            let stranger = directory.seen_by(at(client));
            assert_eq!(names(stranger).unwrap(), ["other"]);
            for name in ["tenant/a", "tenant/b", "tenant/a@s"] {
                let refused = stranger.find(name);
                assert!(matches!(refused, Err(LookupError::Policy(_))), "{name}");
                assert!(stranger.contexts(name, &mut |_| {}).is_err());
            }
            assert!(stranger.find("other").is_ok());
        }
    }

    #[test]
    fn the_only_volume_is_not_everybodys_for_want_of_a_name() {
        let directory = directory(Listing::All, Grant::Write);
        directory.remove(&VolumeName::parse("other").unwrap());
        assert!(directory.seen_by(at(Some([10, 0, 0, 1]))).find("").is_ok());
        let stranger = directory.seen_by(at(None)).find("");
        assert!(matches!(stranger, Err(LookupError::Policy(_))));
    }

    #[test]
    fn names_are_listed_where_that_is_allowed() {
        for (listing, tcp, unix) in [
            (Listing::All, true, true),
            (Listing::Unix, false, true),
            (Listing::None, false, false),
        ] {
            let directory = directory(listing, Grant::Write);
            let client = at(Some([10, 0, 0, 1]));
            assert_eq!(names(directory.seen_by(client)).is_ok(), tcp);
            assert_eq!(names(directory.seen_by(at(None))).is_ok(), unix);
            assert!(directory.seen_by(client).find("tenant/a").is_ok());
        }
    }
}
