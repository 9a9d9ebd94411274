//! A thread that finishes what could not be done at once: copies the tail of a fenced volume out of
//! the WAL, and looks for the backend's volumes after a start without the backend.

mod again;
mod lacking;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::bounded;
use taipan_engine::api::{ShardStatus, VolumeState};
use taipan_engine::backend::Backend;
use taipan_engine::block::SHARD_COUNT;
use taipan_engine::core::EpochClock;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::{Generation, VolumeId};
use taipan_engine::manifest::ManifestKind;
use taipan_engine::registry::quarantine::QuarantineHeader;
use taipan_engine::registry::{
    self, LocalHead, LocalHeads, NamedVolume, QuarantineRange, RecordFate,
};

use crate::config::VolumeConfig;
use crate::directory::{Directory, Volume};
use crate::fetcher::ChunkTables;
use crate::inbox::{CoreAddress, CoreMessage};
use crate::ownership::Ownership;
use crate::patience::{QUESTION_SILENCE_MAX, block_while_answering};
use crate::quarantine::{Quarantine, oldest_ms, unix_ms};
use crate::tail::{LiveLogs, ScannedLog};
use crate::uploader::{Request, UploaderAddress};

pub(crate) use again::Again;
pub(crate) use lacking::Lacking;

/// How often it looks around.
const TURN: Duration = Duration::from_secs(1);
/// After a failure it waits so long.
const PAUSE: Duration = Duration::from_secs(5);
/// How long the cores may take to report.
const REPORT_WAIT: Duration = Duration::from_secs(2);

/// What the caretaker works with.
pub(crate) struct Caretaker {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) heads: LocalHeads,
    pub(crate) heads_dir: PathBuf,
    pub(crate) directory: Arc<Directory>,
    pub(crate) clock: Arc<EpochClock>,
    pub(crate) cores: Vec<CoreAddress>,
    pub(crate) uploader: UploaderAddress,
    pub(crate) quarantine: Quarantine,
    pub(crate) logs: LiveLogs,
    /// Set while the backend's volumes were not listed yet.
    pub(crate) unlisted: Option<Unlisted>,
    /// What is tried again until it is decided.
    pub(crate) again: Again,
    /// Where readers note that objects are not there.
    pub(crate) tables: Arc<ChunkTables>,
    pub(crate) lacking: Lacking,
}

/// What a start leaves to be done.
pub(crate) struct Left {
    /// The backend's volumes were not listed; what was decided about them.
    pub(crate) ownership: Option<Ownership>,
    pub(crate) again: Again,
}

/// What is left to do once the backend can be asked.
pub(crate) struct Unlisted {
    pub(crate) ownership: Ownership,
    /// Volumes to be created unless they exist.
    pub(crate) configured: Vec<VolumeConfig>,
}

/// How far the copy of a fenced volume's tail is.
#[derive(Clone, Copy)]
enum Tail {
    /// The cores have heard of it; what is on its way between them comes within a turn.
    Seen(Instant),
    /// What can hold its records is known; it is written within a turn.
    Known(Instant, Last),
    /// The copy failed; tried again then.
    Failed(Instant, Last),
    Done,
}

/// The last that can be of a fenced volume, however late it is copied out.
#[derive(Clone, Copy)]
struct Last {
    batches: [u64; SHARD_COUNT],
    /// None of its records is newer.
    at: SystemTime,
}

impl Caretaker {
    /// Starts the thread, which ends with the process.
    pub(crate) fn start(self) -> io::Result<()> {
        if self.unlisted.is_some() {
            let why = "it could not be reached at the start".to_owned();
            self.directory.note_unlisted(why);
        }
        std::thread::Builder::new()
            .name("caretaker".to_owned())
            .spawn(move || self.run())
            .map(drop)
    }

    fn run(mut self) {
        let mut tails: HashMap<VolumeId, Tail> = HashMap::new();
        let mut ask_at = Instant::now();
        loop {
            std::thread::sleep(TURN);
            let volumes = self.directory.all();
            let fenced = |volume: &&Arc<Volume>| volume.state().0 == VolumeState::Fenced;
            tails.retain(|id, _| volumes.iter().filter(fenced).any(|v| v.id == *id));
            for volume in volumes.iter().filter(fenced) {
                let tail = tails.remove(&volume.id);
                tails.insert(volume.id, self.care_for(volume, tail));
                if volume.state().0 == VolumeState::Refused {
                    self.again.readmit(volume.id);
                }
            }
            self.try_again(&volumes);
            self.look_at_heads(&volumes);
            if self.unlisted.is_some() && Instant::now() >= ask_at {
                match self.list_again() {
                    Ok(()) => self.directory.note_listed(),
                    Err(error) => {
                        tracing::debug!(%error, "the backend cannot be asked yet");
                        self.directory.note_unlisted(error.to_string());
                    }
                }
                ask_at = Instant::now() + PAUSE;
            }
        }
    }

    /// One step for a volume that was fenced while it was served.
    fn care_for(&self, volume: &Volume, tail: Option<Tail>) -> Tail {
        let now = Instant::now();
        match tail {
            None => Tail::Seen(now),
            Some(Tail::Seen(at)) if now >= at + TURN => match self.last() {
                Some(last) => Tail::Known(now, last),
                None => Tail::Seen(now),
            },
            Some(Tail::Known(at, last)) if now >= at + TURN => self.try_copy(volume, last),
            Some(Tail::Failed(at, last)) if now >= at + PAUSE => self.try_copy(volume, last),
            Some(waits) => waits,
        }
    }

    fn try_copy(&self, volume: &Volume, last: Last) -> Tail {
        match self.copy_tail(volume, &last) {
            Ok(()) => Tail::Done,
            Err(error) => {
                tracing::error!(
                    volume = %volume.name, %error,
                    "the tail of a fenced volume is not copied out yet; the WAL keeps it"
                );
                Tail::Failed(Instant::now(), last)
            }
        }
    }

    /// The last batch with content of every shard; `None` if a core does not report.
    fn last(&self) -> Option<Last> {
        let mut batches = [None; SHARD_COUNT];
        for shard in self.shards() {
            batches[usize::from(shard.shard)] = Some(shard.last_batch);
        }
        let known: Vec<u64> = batches.into_iter().collect::<Option<_>>()?;
        let batches = known.try_into().ok()?;
        let at = SystemTime::now();
        Some(Last { batches, at })
    }

    fn shards(&self) -> Vec<ShardStatus> {
        let (reply, answers) = bounded(self.cores.len());
        for core in &self.cores {
            core.send(CoreMessage::Report(reply.clone()));
        }
        drop(reply);
        let deadline = Instant::now() + REPORT_WAIT;
        let mut shards = Vec::new();
        while let Ok(report) = answers.recv_deadline(deadline) {
            shards.extend(report.shards);
        }
        shards
    }

    /// Copies the records that no manifest of ours holds, then lets the WAL go.
    fn copy_tail(&self, volume: &Volume, last: &Last) -> Result<()> {
        let id = volume.id;
        let Some(mut local) = self.heads.load(id)? else {
            return Ok(());
        };
        let head = self.ask(registry::read_head(&*self.backend, id, None))?;
        let logs = self.logs.scan()?;
        let unwritten =
            |log: &&ScannedLog| log.found.next_batch.0 <= last.batches[log.shard.index()];
        if let Some(log) = logs.iter().find(unwritten) {
            let text = "the WAL does not hold everything yet";
            return Err(Error::new(ErrorKind::Transient, text).with_shard(log.shard));
        }
        if local.is_own(&head) {
            let cause = "a commit of this appliance was stored whose answer it never got; nothing \
                         is lost: the volume is opened again from there";
            tracing::warn!(volume = %volume.name, cause, "volume refused for a moment");
            volume.set_state(VolumeState::Refused, Some(cause.to_owned()));
            return Ok(());
        }
        let former = local.clone();
        local.disown(self.clock.now());
        self.keep_apart(&former, &mut local, &logs, last.at)?;
        for core in &self.cores {
            core.send(CoreMessage::ForgetVolume { id });
        }
        // The backend will never have it, and it is not here any more: nothing is at risk.
        self.clock.exposures().forget(id);
        if head.kind == ManifestKind::Tombstone {
            // What we stored after it was freed is to be freed, too.
            self.ask(registry::mark_again(&*self.backend, &head))?;
            self.uploader.free(id);
        }
        let held = self.quarantine.held(id).unwrap_or_default();
        let cause = format!(
            "another appliance took it over (generation {}); {} bytes of answered writes are in \
             quarantine; `taipan volume takeover` takes it back",
            head.generation, held.bytes
        );
        volume.set_state(VolumeState::Fenced, Some(cause));
        Ok(())
    }

    /// Copies what the WAL files hold of a volume that nobody writes and `local` wants quarantined,
    /// and notes that durably; `former` is what was known of the volume until now, and no record is
    /// newer than `newest`.
    fn keep_apart(
        &self,
        former: &LocalHead,
        local: &mut LocalHead,
        logs: &[ScannedLog],
        newest: SystemTime,
    ) -> Result<()> {
        let id = local.id;
        let range = local.quarantine.unwrap_or_else(|| QuarantineRange {
            after: former.committed_epoch,
            through: self.clock.now(),
            copied: true,
        });
        let header = QuarantineHeader {
            volume: id,
            name: former.name.clone(),
            block_size_bytes: former.settings.block_size_bytes,
            generation: former.generation,
            head: former.head,
            after: range.after,
            through: range.through,
            since_ms: oldest_ms(former, &self.heads_dir),
            until_ms: unix_ms(newest),
        };
        let judged = local.clone();
        let foreign = |epoch| judged.fate(epoch) == RecordFate::Quarantine;
        let records = logs.iter().flat_map(|log| log.records(id, &foreign));
        self.quarantine.copy(&header, records)?;
        local.quarantine_done();
        self.heads.save(local)
    }

    fn ask<T>(&self, question: impl Future<Output = Result<T>>) -> Result<T> {
        block_while_answering(&*self.backend, QUESTION_SILENCE_MAX, question)
    }

    /// Looks what the backend holds, after a start that could not.
    fn list_again(&mut self) -> Result<()> {
        let listing = self.ask(registry::list_volumes(&*self.backend))?;
        let Some(mut unlisted) = self.unlisted.take() else {
            return Ok(());
        };
        tracing::info!("the backend can be reached again");
        for named in listing.volumes {
            if let Err(error) = self.find(&named, unlisted.ownership.takes_all) {
                tracing::error!(volume = %named.name, %error, "a volume cannot be opened");
                self.unlisted = Some(unlisted);
                return Err(error);
            }
        }
        for wanted in std::mem::take(&mut unlisted.configured) {
            if self.directory.get(&wanted.name).is_none() {
                let (name, settings) = (wanted.name, wanted.settings);
                self.request(|reply| Request::Create {
                    name,
                    settings,
                    insists: true,
                    reply,
                });
            }
        }
        unlisted.ownership.settle()
    }

    /// One volume of the backend that is new here.
    fn find(&self, named: &NamedVolume, takes_all: bool) -> Result<()> {
        if self.directory.get(&named.name).is_some() {
            return Ok(());
        }
        let head = self.ask(registry::read_head(&*self.backend, named.id, None))?;
        if takes_all || head.generation == Generation(0) {
            let name = named.name.clone();
            self.request(|reply| Request::Takeover { name, reply });
        } else {
            let slot = self.directory.free_slot();
            let volume = Arc::new(Volume::elsewhere(slot, &head));
            self.directory.replace(volume);
        }
        Ok(())
    }

    /// Asks the uploader and waits; a failure is logged.
    fn request(&self, request: impl FnOnce(crossbeam_channel::Sender<Result<()>>) -> Request) {
        let (reply, answer) = bounded(1);
        self.uploader.request(request(reply));
        if let Ok(Err(error)) = answer.recv() {
            tracing::error!(%error, "a volume cannot be opened or created");
        }
    }
}
