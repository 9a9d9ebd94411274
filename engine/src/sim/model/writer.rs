//! One machine of the model: its disk, and the process on it. The process is the code that ships:
//! `open_for_writing`, `rebuild`, `LocalHead::fate`, `VolumeCommit`; requests, log and shards are
//! reduced.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::LocalBoxFuture;

use super::desk::{Answer, Ask, Desk};
use super::disk::{Disk, Record, name_of};
use super::truth::{Image, Truth, VOLUME, Verdict, broken, content, hash_of};
use super::{Broken, Happens, Mutation};
use crate::backend::Put;
use crate::block::{BlockNum, BlockSize, ShardId};
use crate::chunk::ChunkRef;
use crate::commit::{
    CommitConfig, CompactionPolicy, Effect, Event, Publication, Random, VolumeCommit,
};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{BatchNum, Epoch, Lsn, ManifestNum, WriterToken};
use crate::index::rebuild::{Rebuilt, rebuild};
use crate::index::{Overlay, Point};
use crate::invariant::may_publish;
use crate::pack::PackPlan;
use crate::registry::{LocalHead, OpenedVolume, RecordFate, open_for_writing};
use crate::wal::place::Place;

/// Longer than every backoff: retries are never held.
const STEP_MS: u64 = 1_000_000;

/// A writer.
pub(super) struct Writer {
    pub(super) index: usize,
    pub(super) disk: Disk,
    pub(super) process: Process,
    /// Processes so far.
    lives: u64,
}

pub(super) enum Process {
    Down,
    Opening(Opening),
    Serving(Box<Session>),
    /// It was fenced and serves nothing.
    Fenced,
}

type Opened = Result<(OpenedVolume, Rebuilt)>;

/// An opening under way.
pub(super) struct Opening {
    future: LocalBoxFuture<'static, Opened>,
    desk: Desk,
    /// Hash of the answers so far.
    trail: u64,
    /// It met a fault, so it may fail.
    excused: bool,
}

/// An open volume.
pub(super) struct Session {
    commit: VolumeCommit,
    local: LocalHead,
    token: u64,
    /// The manifest by which it opened.
    opened: ManifestNum,
    /// The epoch that stamps now.
    epoch: Epoch,
    /// Records that no publication released.
    pending: Vec<Record>,
    /// What a reader gets.
    content: Image,
    /// Records of a lost lineage wait to be copied out.
    to_copy: Vec<u64>,
    pub(super) out: Vec<Out>,
    trail: u64,
    pub(super) cuts: u32,
    compactions: u32,
}

/// An effect under way.
pub(super) struct Out {
    pub(super) asks: Vec<Ask>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Chunk(usize, ChunkRef),
    Index,
    Manifest,
    Got,
    Deleted,
}

/// Names of writes: writer and count, by value.
pub(super) type Names = Vec<(usize, u64)>;

/// Whatever is not wholly live is rewritten.
const POLICY: CompactionPolicy = CompactionPolicy {
    threshold_percent: 100,
    freed_percent: 0,
    chunks_max: 1,
};

fn config() -> CommitConfig {
    CommitConfig {
        chunks_in_flight: 1,
        checkpoint_commits: 1,
        checkpoint_chunks: 1,
        ..CommitConfig::default()
    }
}

impl Writer {
    pub(super) fn new(index: usize) -> Self {
        Self {
            index,
            disk: Disk::new(),
            process: Process::Down,
            lives: 0,
        }
    }

    /// Starts the process.
    pub(super) fn start(&mut self) {
        self.lives += 1;
        let desk = Desk::default();
        let (heads, stamped) = (self.disk.heads.clone(), self.disk.stamped());
        let backend = desk.clone();
        let future = Box::pin(async move {
            let opened = open_for_writing(&backend, &heads, VOLUME, stamped).await?;
            let rebuilt = rebuild(&backend, &opened.history.manifests).await?;
            Ok((opened, rebuilt))
        });
        self.process = Process::Opening(Opening {
            future,
            desk,
            trail: self.lives,
            excused: false,
        });
    }

    /// Ends it; returns the requests that the backend may still carry out.
    pub(super) fn crash(&mut self) -> Vec<Ask> {
        let asks = self.requests().into_iter().flatten();
        let late = asks.filter(Ask::changes).collect();
        self.process = Process::Down;
        late
    }

    /// Requests without an answer, in the order of their sending.
    pub(super) fn requests(&self) -> Vec<Vec<Ask>> {
        match &self.process {
            Process::Opening(opening) => {
                opening.desk.asked().into_iter().map(|a| vec![a]).collect()
            }
            Process::Serving(session) => session.out.iter().map(|out| out.asks.clone()).collect(),
            Process::Down | Process::Fenced => Vec::new(),
        }
    }

    /// Lets request `at` happen; returns what is carried out later.
    pub(super) fn serve(
        &mut self,
        at: usize,
        happens: Happens,
        truth: &mut Truth,
    ) -> std::result::Result<Vec<Ask>, Broken> {
        let asks = self.requests().swap_remove(at);
        let mut last = Ok(Answer::Done);
        for ask in asks.iter().filter(|_| happens != Happens::Hangs) {
            last = match happens {
                Happens::Behind => truth.list_of_the_past(ask),
                _ => truth.carry_out(ask)?,
            };
        }
        if matches!(happens, Happens::Lost | Happens::Hangs) {
            last = Err(Error::new(ErrorKind::Transient, "no answer"));
        }
        let said = hash_of(&(truth.canon_ask(&asks[0]), canon_answer(&asks[0], &last)));
        match &mut self.process {
            Process::Opening(opening) => {
                opening.trail = hash_of(&(opening.trail, said));
                opening.excused |= happens != Happens::Fine;
                opening.desk.answer(at, last);
            }
            Process::Serving(session) => {
                let out = session.out.remove(at);
                // A failure changes nothing but when it is tried again.
                if last.is_ok() {
                    session.trail = hash_of(&(session.trail, said));
                }
                let event = event_of(out.kind, last, truth.mutation);
                session.commit.handle(event, 0);
            }
            Process::Down | Process::Fenced => unreachable!("it has no requests"),
        }
        let late = asks.into_iter().filter(|_| happens == Happens::Hangs);
        Ok(late.collect())
    }

    /// Does all that needs no decision.
    pub(super) fn settle(&mut self, truth: &mut Truth, names: &mut Names) -> Verdict {
        loop {
            self.read_manifests(truth)?;
            match &mut self.process {
                Process::Opening(opening) => {
                    let mut context = Context::from_waker(Waker::noop());
                    let Poll::Ready(opened) = opening.future.as_mut().poll(&mut context) else {
                        if self.read_manifests(truth)? {
                            continue;
                        }
                        for ask in self.requests().concat() {
                            self.disk.tokens.extend(truth.meet(self.index, &ask));
                        }
                        return Ok(());
                    };
                    let excused = opening.excused;
                    self.opened(opened, excused, truth, names)?;
                }
                Process::Serving(session) => {
                    if !session.run(&mut self.disk, truth)? {
                        return Ok(());
                    }
                    if session.commit.fenced_by().is_some() {
                        self.process = Process::Fenced;
                    }
                }
                Process::Down | Process::Fenced => return Ok(()),
            }
        }
    }

    /// Manifests never change, so reading one that is there needs no decision.
    fn read_manifests(&mut self, truth: &mut Truth) -> std::result::Result<bool, Broken> {
        let is_manifest = |ask: &Ask| match ask {
            Ask::Get(key) => key.as_str().contains("manifests/"),
            _ => false,
        };
        let mut any = false;
        while let Some(at) = self
            .requests()
            .iter()
            .position(|asks| asks.iter().all(is_manifest))
        {
            self.serve(at, Happens::Fine, truth)?;
            any = true;
        }
        Ok(any)
    }

    fn opened(
        &mut self,
        opened: Opened,
        excused: bool,
        truth: &mut Truth,
        names: &mut Names,
    ) -> Verdict {
        let (opened, rebuilt) = match opened {
            Ok(opened) => opened,
            Err(_) if excused => {
                self.process = Process::Down;
                return Ok(());
            }
            Err(error) => return Err(broken("an opening succeeds", error.to_string())),
        };
        let head = opened.history.head().clone();
        let local = opened.local;
        self.disk.tokens.insert(head.token.0);
        let replayed = self.replay(&local, truth)?;
        let mut served = truth.image(head.number).clone();
        served.extend(replayed.0.iter().map(|record| (record.block, record.value)));
        let before = head.number.0 - 1;
        self.check_served(&served, truth, ManifestNum(before))?;
        let trail = hash_of(&(
            truth.hash_at(head.number),
            self.lives,
            named(&served, names),
            replayed.0.len(),
        ));
        let judged = match truth.mutation {
            Some(Mutation::StampsTooLow) => head.epoch,
            _ => local.judged_through(),
        };
        let epoch = judged.max(self.disk.stamped()).next();
        let random = Random::new([self.index as u64 + 1, self.lives, 3, 4]);
        let mut session = Session {
            token: head.token.0,
            opened: head.number,
            commit: VolumeCommit::new(head, rebuilt, config(), random),
            local,
            epoch,
            pending: replayed.0,
            content: served,
            to_copy: replayed.1,
            out: Vec::new(),
            trail,
            cuts: 0,
            compactions: 0,
        };
        session.write(self.index, &mut self.disk, names);
        self.process = Process::Serving(Box::new(session));
        Ok(())
    }

    /// What replay takes, and what it wants copied out.
    fn replay(
        &self,
        local: &LocalHead,
        truth: &Truth,
    ) -> std::result::Result<(Vec<Record>, Vec<u64>), Broken> {
        let (mut replayed, mut lost) = (Vec::new(), Vec::new());
        for record in &self.disk.log {
            let mut fate = local.fate(record.epoch);
            if truth.mutation == Some(Mutation::ReplayQuarantined) && fate == RecordFate::Quarantine
            {
                fate = RecordFate::Replay;
            }
            match fate {
                RecordFate::Replay => replayed.push(*record),
                RecordFate::Quarantine => lost.push(record.value),
                RecordFate::Skip => {
                    let held = truth.holds(&self.disk.tokens, record.opened, record.epoch);
                    if !held && !self.disk.quarantine.contains(&record.value) {
                        let what = format!("{record:?} is in no image and not copied out");
                        return Err(broken("nothing answered is forgotten", what));
                    }
                }
            }
        }
        Ok((replayed, lost))
    }

    /// What a reader gets after an opening: the image, and every answered write of this disk that
    /// continues it; never one that another writer's takeover ended.
    fn check_served(&self, served: &Image, truth: &Truth, before: ManifestNum) -> Verdict {
        let mut expected = truth.image(before).clone();
        for record in &self.disk.log {
            if self.disk.continues(record, truth, before)
                && record.epoch > truth.chain[before.0 as usize - 1].epoch
            {
                expected.insert(record.block, record.value);
            }
        }
        if *served == expected {
            return Ok(());
        }
        let what = format!("it serves {served:?}, it should be {expected:?}");
        Err(broken("a log merges only what continues the image", what))
    }

    /// Whether a cut may begin: no other one is under way, and the session has made fewer.
    pub(super) fn may_cut(&self, cuts_max: u32) -> bool {
        match &self.process {
            Process::Serving(session) => {
                let free = session.commit.is_idle() && session.to_copy.is_empty();
                free && session.cuts < cuts_max
            }
            _ => false,
        }
    }

    /// Whether a compaction may begin.
    pub(super) fn may_compact(&self, compactions_max: u32) -> bool {
        match &self.process {
            Process::Serving(session) => {
                let free = session.commit.is_idle() && session.to_copy.is_empty();
                let left = session.compactions < compactions_max;
                free && left && session.commit.choose_compaction(&POLICY).is_some()
            }
            _ => false,
        }
    }

    /// Reads sources and begins to commit them; if another writer has let them be deleted, nothing.
    pub(super) fn compact(&mut self, truth: &Truth) {
        let Process::Serving(session) = &mut self.process else {
            unreachable!("only an open volume is compacted");
        };
        session.compactions += 1;
        session.trail = hash_of(&(session.trail, "compact"));
        let job = session.commit.choose_compaction(&POLICY);
        let job = job.expect("it was asked before");
        if let Ok(read) = block_on(job.read(&truth.bucket)) {
            let _begun = session.commit.start_compaction(read);
        }
    }

    pub(super) fn may_start(&self) -> bool {
        matches!(self.process, Process::Down)
    }

    pub(super) fn may_crash(&self) -> bool {
        !self.may_start()
    }

    pub(super) fn cut(&mut self, truth: &mut Truth, names: &mut Names) {
        let Process::Serving(session) = &mut self.process else {
            unreachable!("only an open volume is cut");
        };
        session.cut(truth);
        session.write(self.index, &mut self.disk, names);
    }

    pub(super) fn may_copy_out(&self) -> bool {
        matches!(&self.process, Process::Serving(session) if !session.to_copy.is_empty())
    }

    /// Copies out what belongs to a lost lineage.
    pub(super) fn copy_out(&mut self) {
        let Process::Serving(session) = &mut self.process else {
            unreachable!("only an open volume copies out");
        };
        self.disk.quarantine.extend(session.to_copy.drain(..));
        session.local.quarantine_done();
        self.disk.heads.save(&session.local).expect("it is saved");
        session.release(&mut self.disk);
    }

    /// Starts and leaves the volume to its new owner: what the image does not have is copied out.
    pub(super) fn give_up(&mut self) {
        let disk = &mut self.disk;
        let mut local = disk.heads.load(VOLUME).expect("it is read").expect("known");
        local.disown(disk.stamped());
        disk.heads.save(&local).expect("it is saved");
        let is_lost = |r: &&Record| local.fate(r.epoch) == RecordFate::Quarantine;
        let lost = disk.log.iter().filter(is_lost).map(|record| record.value);
        disk.quarantine.extend(lost);
        local.quarantine_done();
        disk.heads.save(&local).expect("it is saved");
        let released = local.released_through();
        disk.log.retain(|r| !disk.releases || r.epoch > released);
    }

    pub(super) fn canon(&self, truth: &Truth, names: &Names) -> u64 {
        let asks: Vec<u64> = self
            .requests()
            .iter()
            .flatten()
            .map(|ask| truth.canon_ask(ask))
            .collect();
        let process = match &self.process {
            Process::Down => hash_of(&0),
            Process::Fenced => hash_of(&1),
            Process::Opening(opening) => hash_of(&(2, opening.trail, opening.excused)),
            Process::Serving(session) => hash_of(&(
                3,
                session.trail,
                (session.cuts, session.compactions),
                session.epoch,
                session.to_copy.len(),
                session.pending.len(),
            )),
        };
        hash_of(&(process, asks, self.disk.canon(truth, names), self.lives))
    }
}

impl Session {
    /// Clients write a block that both writers use, and one of their own; both are answered.
    fn write(&mut self, writer: usize, disk: &mut Disk, names: &mut Names) {
        for block in [0, 1 + writer as u64] {
            let count = names.iter().filter(|(of, _)| *of == writer).count();
            names.push((writer, count as u64));
            let record = Record {
                token: self.token,
                opened: self.opened,
                epoch: self.epoch,
                block,
                value: names.len() as u64,
            };
            disk.log.push(record);
            self.pending.push(record);
            self.content.insert(block, record.value);
        }
    }

    fn cut(&mut self, truth: &mut Truth) {
        let cut = self.epoch;
        self.epoch = cut.next();
        self.cuts += 1;
        truth.note_cut(WriterToken(self.token), cut, self.content.clone());
        let mut layers: BTreeMap<ShardId, Overlay> = BTreeMap::new();
        for record in &self.pending {
            let block = BlockNum(record.block);
            let point = Point {
                lsn: Lsn(record.value),
                place: Place {
                    batch: BatchNum(record.value),
                    page: 1,
                },
                crc: crc32c::crc32c(&content(record.block, record.value)),
            };
            layers
                .entry(block.shard())
                .or_default()
                .insert_point(block.local(), point);
        }
        let slots = self.commit.head().settings.chunk_slots();
        let layers = layers.iter().map(|(shard, layer)| (*shard, layer));
        self.commit
            .start(PackPlan::new(cut, BlockSize::MIN, slots, layers));
        self.trail = hash_of(&(self.trail, "cut"));
    }

    /// Carries on with the commit; whether something happened.
    fn run(&mut self, disk: &mut Disk, truth: &mut Truth) -> std::result::Result<bool, Broken> {
        let Some(effect) = self.commit.next_effect(STEP_MS) else {
            return Ok(false);
        };
        let (asks, kind) = match effect {
            Effect::PutChunk(job) => {
                let built = job.build(|block, out| {
                    out.copy_from_slice(&content(block.block.0, block.place.batch.0));
                    Ok(())
                });
                let (body, reference) = built.expect("memory is sound");
                let ask = Ask::Create(reference.key.object(), body);
                (vec![ask], Kind::Chunk(job.index, reference))
            }
            Effect::PutIndex { key, body } => (vec![Ask::Create(key.object(), body)], Kind::Index),
            Effect::PutManifest { key, body } => {
                self.delete_early(&body, truth)?;
                (vec![Ask::Create(key, body)], Kind::Manifest)
            }
            Effect::GetManifest { key } => (vec![Ask::Get(key)], Kind::Got),
            Effect::SaveHead(_) => {
                self.local.advance(self.commit.head());
                let saved = disk.heads.save(&self.local);
                self.commit.handle(Event::HeadSaved(saved), 0);
                return Ok(true);
            }
            Effect::Publish(publication) => {
                self.publish(&publication, truth)?;
                self.release(disk);
                self.commit.handle(Event::Published, 0);
                return Ok(true);
            }
            Effect::Delete { objects } => {
                let asks = objects.iter().map(|o| Ask::Delete(o.object())).collect();
                (asks, Kind::Deleted)
            }
            Effect::Fenced { by } => {
                if truth.head().generation < by || truth.head().token.0 == self.token {
                    let what = format!("fenced by generation {by}, which is not there");
                    return Err(broken("only another writer fences", what));
                }
                return Ok(true);
            }
        };
        self.out.push(Out { asks, kind });
        Ok(true)
    }

    fn publish(&mut self, publication: &Publication, truth: &Truth) -> Verdict {
        let stored = truth.chain.get(publication.head.0 as usize - 1);
        if !stored.is_some_and(|stored| may_publish(publication, stored, self.commit.head())) {
            let what = format!("manifest {} is not its own", publication.head);
            return Err(broken("only what is committed is published", what));
        }
        self.pending.retain(|r| r.epoch > publication.epoch);
        Ok(())
    }

    /// Where that is wanted, the log forgets at once all that it may forget.
    fn release(&self, disk: &mut Disk) {
        if disk.releases {
            let released = self.local.released_through();
            disk.log.retain(|record| record.epoch > released);
        }
    }

    /// The bug of deleting before the commit, if that is wanted.
    fn delete_early(&self, body: &Bytes, truth: &mut Truth) -> Verdict {
        if truth.mutation != Some(Mutation::DeleteBeforeCommit) {
            return Ok(());
        }
        let draft = crate::manifest::Manifest::decode(body).expect("a good manifest");
        for object in draft.condemned {
            let _answer = truth.carry_out(&Ask::Delete(object.object()))?;
        }
        Ok(())
    }
}

fn event_of(kind: Kind, answer: Result<Answer>, mutation: Option<Mutation>) -> Event {
    match kind {
        Kind::Chunk(index, reference) => Event::ChunkPut {
            index,
            result: answer.map(|_| reference),
        },
        Kind::Index => Event::IndexPut(answer.map(|_| ())),
        Kind::Manifest => Event::ManifestPut(answer.map(|answer| match answer {
            Answer::Put(Put::Exists) if mutation == Some(Mutation::ExistsIsOurs) => Put::Created,
            Answer::Put(put) => put,
            other => unreachable!("{other:?}"),
        })),
        Kind::Got => Event::ManifestGot(answer.map(|answer| match answer {
            Answer::Bytes(bytes) => bytes,
            other => unreachable!("{other:?}"),
        })),
        Kind::Deleted => Event::Deleted(answer.map(|_| ())),
    }
}

/// What an answer tells, without what is random or follows from the request.
fn canon_answer(ask: &Ask, answer: &Result<Answer>) -> u64 {
    match (ask, answer) {
        (_, Err(error)) => hash_of(&format!("{:?}", error.kind())),
        (Ask::List(..), Ok(Answer::Listed(listed))) => {
            hash_of(&listed.iter().map(|l| l.key.clone()).collect::<Vec<_>>())
        }
        (Ask::Get(_) | Ask::Range(..), Ok(_)) => hash_of(&"read"),
        (_, Ok(other)) => hash_of(&format!("{other:?}")),
    }
}

fn named(image: &Image, names: &Names) -> Vec<(u64, (usize, u64))> {
    let named = image.iter().map(|(b, v)| (*b, name_of(names, *v)));
    named.collect()
}
