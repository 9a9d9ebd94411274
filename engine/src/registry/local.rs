//! The local head record of each volume: what this appliance last knew of the volume's image, and
//! what it intended. Decides after a restart which WAL records still count.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Epoch, Generation, ManifestNum, VolumeId, WriterToken};
use crate::manifest::Manifest;
use crate::volume::{OnLostCache, VolumeName, VolumeSettings};

const SCHEMA: u32 = 1;
/// Beside the records: when the daemon swept orphans last, in seconds since 1970, as text.
pub const LAST_SWEEP_FILE: &str = "last-sweep";
/// Unresolved intents kept; an older one can only turn "replay" into "quarantine".
const INTENTS_MAX: usize = 16;

/// A takeover that was about to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The generation that it would open.
    pub generation: Generation,
    /// Its token.
    pub token: WriterToken,
    /// The head that it would follow.
    pub predecessor: ManifestNum,
    /// That head's CRC.
    pub predecessor_crc: u32,
}

/// Epochs whose WAL records were found to be of a lost lineage: copied out, never merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuarantineRange {
    /// Records up to here are in the image.
    pub after: Epoch,
    /// The last epoch stamped before the verdict.
    pub through: Epoch,
    /// They were copied out; the range stays, because their WAL segments may still be there.
    pub copied: bool,
}

/// What replay does with a WAL record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFate {
    /// It is in the image already.
    Skip,
    /// Another writer took the volume over before it was committed: copy it out and report it.
    Quarantine,
    /// It counts.
    Replay,
}

/// The local head record of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalHead {
    schema: u32,
    crc32c: u32,
    /// The volume.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its settings.
    pub settings: VolumeSettings,
    /// Our last confirmed generation.
    pub generation: Generation,
    /// Its token.
    pub token: WriterToken,
    /// The last manifest known to be stored.
    pub head: ManifestNum,
    /// Its CRC.
    pub head_crc: u32,
    /// Records of ours up to this epoch are in the image.
    pub committed_epoch: Epoch,
    /// Closed in order: no answered write is outside the WAL and the image.
    pub clean: bool,
    /// A host crash took answered writes, and nobody has decided yet what that means.
    #[serde(default)]
    pub lost_cache: bool,
    /// Takeovers whose outcome is not known, oldest first.
    pub intents: Vec<Intent>,
    /// WAL records that must not be merged, and whether they were copied out.
    pub quarantine: Option<QuarantineRange>,
    /// The epoch at which the last process that served it began to stamp. Zero, and not in the
    /// file, if none did since the field exists.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stamped_from: Epoch,
    /// An operator wants it independent of the volume that it was cloned from, which it is not yet.
    /// Not in the file otherwise.
    #[serde(default, skip_serializing_if = "is_false")]
    pub flattening: bool,
}

impl LocalHead {
    /// The record of a volume that this appliance never wrote before.
    pub fn unknown(head: &Manifest) -> Self {
        Self::named(head.volume, head.name.clone(), head.settings.clone())
    }

    /// A record that names a volume and knows nothing else of it: of one that cannot be opened.
    pub fn named(id: VolumeId, name: VolumeName, settings: VolumeSettings) -> Self {
        Self {
            schema: SCHEMA,
            crc32c: 0,
            id,
            name,
            settings,
            generation: Generation(0),
            token: WriterToken(0),
            head: ManifestNum(0),
            head_crc: 0,
            committed_epoch: Epoch(0),
            clean: true,
            lost_cache: false,
            intents: Vec::new(),
            quarantine: None,
            stamped_from: Epoch(0),
            flattening: false,
        }
    }

    /// Whether `head` continues what this appliance wrote: its own writer's manifest, one that an
    /// unresolved intent of ours made, or the one that such an intent meant to follow.
    pub fn is_own(&self, head: &Manifest) -> bool {
        let writer = (head.generation, head.token);
        let by_writer = self.head.0 > 0 && writer == (self.generation, self.token);
        by_writer
            || self.intents.iter().any(|intent| {
                writer == (intent.generation, intent.token)
                    || (head.number == intent.predecessor && head.crc() == intent.predecessor_crc)
            })
    }

    /// Prepares a takeover after `head`: judges the WAL and enters the intent. `stamped_through` is
    /// the greatest epoch that this appliance ever stamped. Save before the takeover is tried.
    pub fn intend(&mut self, head: &Manifest, token: WriterToken, stamped_through: Epoch) {
        let never_opened = head.generation == Generation(0);
        if !never_opened && !self.is_own(head) {
            self.disown(stamped_through);
        }
        // From here on epochs above `stamped_through` and the head's are used.
        self.committed_epoch = head.epoch;
        self.name = head.name.clone();
        self.settings = head.settings.clone();
        if self.intents.len() == INTENTS_MAX {
            self.intents.remove(0);
        }
        self.intents.push(Intent {
            generation: head.generation.next(),
            token,
            predecessor: head.number,
            predecessor_crc: head.crc(),
        });
    }

    /// Notes that another writer owns the volume: records of ours that are not in the image, all
    /// stamped up to `stamped_through`, are to be copied out and never merged. Save before they are
    /// copied.
    pub fn disown(&mut self, stamped_through: Epoch) {
        let after = match self.quarantine {
            None => self.committed_epoch,
            Some(range) if range.copied => self.committed_epoch.max(range.through),
            Some(range) => range.after,
        };
        self.intents.clear();
        // Nothing that another writer stores is ever ours by this record.
        self.head = ManifestNum(0);
        self.head_crc = 0;
        if self.quarantine.is_some() && after >= stamped_through {
            return;
        }
        self.quarantine = Some(QuarantineRange {
            after,
            through: stamped_through.max(after),
            copied: false,
        });
    }

    /// Takes over a stored manifest of ours as the new head. Save before the WAL is released.
    pub fn advance(&mut self, head: &Manifest) {
        assert!(head.volume == self.id && head.number >= self.head);
        self.generation = head.generation;
        self.token = head.token;
        self.head = head.number;
        self.head_crc = head.crc();
        self.committed_epoch = head.epoch;
        self.name = head.name.clone();
        self.settings = head.settings.clone();
        self.intents.clear();
    }

    /// Notes that the volume was closed in order. That a cache was lost before is still undecided.
    pub fn close(&mut self) {
        self.clean = true;
    }

    /// An operator said expressly what the loss of a cache means: the policy in the settings. To
    /// continue ends the mark; the other policies hold until he does. The policy by which the
    /// volume is served from now on, if a cache was lost at all.
    pub fn decide(&mut self) -> Option<OnLostCache> {
        let policy = self.settings.on_lost_cache;
        let lost = self.lost_cache;
        self.lost_cache &= policy != OnLostCache::Continue;
        lost.then_some(policy)
    }

    /// Notes that all records to be quarantined were copied out, durably (or that there are none).
    pub fn quarantine_done(&mut self) {
        if let Some(range) = &mut self.quarantine {
            range.copied = true;
        }
    }

    /// The greatest epoch about whose records a verdict stands: new records must be stamped above
    /// it, or replay would take them for old ones.
    pub fn judged_through(&self) -> Epoch {
        let judged = self.quarantine.map_or(Epoch(0), |range| range.through);
        judged.max(self.committed_epoch)
    }

    /// A process that begins to serve stamps above this. The one before may have stamped more than
    /// a power loss left in the log, and a commit of it may be stored without our knowing: but it
    /// began above every earlier one, and so does the next.
    pub fn begins_above(&self) -> Epoch {
        self.judged_through().max(self.stamped_from)
    }

    /// No record stamped up to here is needed any more: its WAL space is free.
    pub fn released_through(&self) -> Epoch {
        match self.quarantine {
            Some(range) if !range.copied => range.after,
            _ => self.judged_through(),
        }
    }

    /// What replay does with a record of this volume that was stamped with `epoch`.
    pub fn fate(&self, epoch: Epoch) -> RecordFate {
        match self.quarantine {
            Some(range) if epoch <= range.after => RecordFate::Skip,
            Some(range) if epoch <= range.through && range.copied => RecordFate::Skip,
            Some(range) if epoch <= range.through => RecordFate::Quarantine,
            _ if epoch <= self.committed_epoch => RecordFate::Skip,
            _ => RecordFate::Replay,
        }
    }

    /// The file's bytes, with the CRC.
    pub fn encode(&self) -> Vec<u8> {
        let sealed = Self {
            crc32c: self.computed_crc(),
            ..self.clone()
        };
        sealed.to_json()
    }

    /// Undoes [`LocalHead::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut head: Self = serde_json::from_slice(bytes)
            .map_err(|e| Error::corrupt("a local head record does not parse").with_source(e))?;
        if head.schema != SCHEMA || head.crc32c != head.computed_crc() {
            let message = "a local head record fails its CRC or schema";
            return Err(Error::corrupt(message).with_volume(head.id));
        }
        if !head.is_possible() {
            let message = "a local head record has values that no writer has";
            return Err(Error::corrupt(message).with_volume(head.id));
        }
        head.crc32c = 0;
        Ok(head)
    }

    /// Whether its values can be used: no number is one that nothing can follow.
    fn is_possible(&self) -> bool {
        let intents = self.intents.iter();
        let mut numbers = vec![self.generation.0, self.head.0, self.committed_epoch.0];
        numbers.push(self.stamped_from.0);
        numbers.extend(intents.flat_map(|intent| [intent.generation.0, intent.predecessor.0]));
        numbers.extend(
            self.quarantine
                .iter()
                .flat_map(|r| [r.after.0, r.through.0]),
        );
        self.intents.len() <= INTENTS_MAX
            && !numbers.contains(&u64::MAX)
            && self.settings.validate().is_ok()
    }

    /// CRC32C of the file with the field itself zero.
    fn computed_crc(&self) -> u32 {
        let zeroed = Self {
            crc32c: 0,
            ..self.clone()
        };
        crc32c::crc32c(&zeroed.to_json())
    }

    fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("a record is plain data");
        json.push(b'\n');
        json
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(epoch: &Epoch) -> bool {
    epoch.0 == 0
}

/// The directory of local head records, `<data>/volumes`. One process at a time uses it.
#[derive(Clone, Debug)]
pub struct LocalHeads {
    dir: PathBuf,
}

impl LocalHeads {
    /// Opens the directory, creating it, and removes unfinished writes of a crash.
    pub fn open(dir: &Path) -> Result<Self> {
        match fs::create_dir(dir) {
            Ok(()) => sync_dir(dir.parent().filter(|p| !p.as_os_str().is_empty()))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("creating the volumes' directory", e).with_path(dir)),
        }
        let heads = Self {
            dir: dir.to_owned(),
        };
        for path in heads.files()?.iter().filter(|path| has_end(path, "tmp")) {
            fs::remove_file(path).map_err(|e| Error::io("removing", e).with_path(path))?;
        }
        Ok(heads)
    }

    /// The record of a volume; `None` if there is none.
    pub fn load(&self, id: VolumeId) -> Result<Option<LocalHead>> {
        let path = self.path(id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("reading", e).with_path(path)),
        };
        match LocalHead::decode(&bytes) {
            Ok(head) if head.id == id => Ok(Some(head)),
            Ok(_) => Err(Error::corrupt("the record is another volume's").with_path(path)),
            Err(e) => Err(e.with_path(path)),
        }
    }

    /// All records, in the order of their ids; each that cannot be read with its error.
    pub fn load_all(&self) -> Result<Vec<(VolumeId, Result<LocalHead>)>> {
        let mut ids: Vec<VolumeId> = self
            .files()?
            .iter()
            .filter(|path| has_end(path, "json"))
            .filter_map(|path| VolumeId::parse(path.file_stem()?.to_str()?))
            .collect();
        ids.sort_unstable();
        let vanished = |id| {
            let message = "the local head record vanished while it was read";
            Error::new(ErrorKind::NotFound, message).with_volume(id)
        };
        let load = |id| match self.load(id) {
            Ok(head) => head.ok_or_else(|| vanished(id)),
            Err(e) => Err(e),
        };
        Ok(ids.into_iter().map(|id| (id, load(id))).collect())
    }

    /// Replaces a record atomically; durable when it returns.
    pub fn save(&self, head: &LocalHead) -> Result<()> {
        let path = self.path(head.id);
        let temp = path.with_extension("tmp");
        let written = write_synced(&temp, &head.encode()).and_then(|()| fs::rename(&temp, &path));
        if let Err(e) = written {
            // What is left of it is removed at the next opening, too.
            let _ = fs::remove_file(&temp);
            return Err(Error::io("saving the local head record", e).with_path(path));
        }
        sync_dir(Some(&self.dir))
    }

    /// Removes the record of a deleted volume; an absent one is fine.
    pub fn remove(&self, id: VolumeId) -> Result<()> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(Some(&self.dir)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("removing", e).with_path(path)),
        }
    }

    fn path(&self, id: VolumeId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let failed = |e| Error::io("listing", e).with_path(&self.dir);
        fs::read_dir(&self.dir)
            .map_err(failed)?
            .map(|entry| Ok(entry.map_err(failed)?.path()))
            .collect()
    }
}

fn has_end(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|end| end == extension)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_dir(dir: Option<&Path>) -> Result<()> {
    let dir = dir.unwrap_or_else(|| Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io("syncing directory", e).with_path(dir))
}

#[cfg(test)]
mod tests;
