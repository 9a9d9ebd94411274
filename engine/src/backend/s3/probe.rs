//! What a server really does, found by trying it on scratch keys.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::failure::{Failure, Remedy};
use super::leftovers::{FOLDER, leftovers};
use super::requests::{Attempt, Condition, Requests, crc_header};
use super::retry::{Repeat, Retries};
use super::tally::Verb;
use crate::backend::{ConditionalWrites, Probe};
use crate::error::{Error, ErrorKind, Result};

/// Creators that race for one key. SeaweedFS lets each loser wait a second, so there are few.
const RACERS: usize = 3;
/// Races that may end without a winner.
const RACES_MAX: usize = 8;

/// So many objects that earlier probes left are removed at most.
const LEFTOVERS_MAX: usize = 100;

/// All of a probe ends within this: some sixteen requests, each of which may take its 15 s.
const PROBE_TIME: Duration = Duration::from_secs(240);

const FIRST: Bytes = Bytes::from_static(b"taipan probe: the first body");
const SECOND: Bytes = Bytes::from_static(b"taipan probe: another body");
const THIRD: Bytes = Bytes::from_static(b"taipan probe: a body that must not be stored");

/// A probe under way.
pub(super) struct Trial {
    requests: Arc<Requests>,
    retries: Retries,
    /// Folder of the scratch keys, its name random.
    folder: String,
    /// Keys of scratch objects that may be there.
    used: BTreeSet<String>,
    notes: Vec<String>,
}

/// Tries everything and removes the scratch keys again. What may happen twice is repeated after an
/// error as any request is; a creation whose outcome is not known is tried under another key.
pub(super) async fn probe(requests: Arc<Requests>, retries: Retries) -> Result<Probe> {
    let mut name = [0; 8];
    getrandom::fill(&mut name)
        .map_err(|e| Error::new(ErrorKind::Io, "no random bytes").with_source(e))?;
    let mut trial = Trial {
        requests,
        retries,
        folder: format!("{FOLDER}/{:016x}", u64::from_be_bytes(name)),
        used: BTreeSet::new(),
        notes: Vec::new(),
    };
    let tried = tokio::time::timeout(PROBE_TIME, trial.run()).await;
    let late = || {
        let seconds = PROBE_TIME.as_secs();
        Failure::unknown(format!("the probe took more than {seconds} s"))
    };
    let tried = tried.map_err(|_| late()).flatten();
    let cleaned = trial.clean(tried.is_ok()).await;
    let conditional_writes = tried.map_err(|failure| failure.error)?;
    if let Err(failure) = cleaned {
        let folder = &trial.folder;
        let note = format!("scratch objects are left in {folder}: {}", failure.error);
        trial.notes.push(note);
    }
    Ok(Probe {
        conditional_writes,
        notes: trial.notes,
    })
}

impl Trial {
    /// Key of a scratch object, which is removed at the end.
    fn key(&mut self, name: &str) -> String {
        let key = format!("{}/{name}", self.folder);
        self.used.insert(key.clone());
        key
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    async fn once<T>(&self, attempt: impl Future<Output = Attempt<T>>) -> Attempt<T> {
        let tally = &self.requests.tally;
        self.retries.limited(tally, 0, attempt).await
    }

    /// Repeats what may happen twice.
    async fn repeated<T, F: Future<Output = Attempt<T>>>(
        &self,
        verb: Verb,
        attempt: impl FnMut() -> F,
    ) -> Attempt<T> {
        let tally = &self.requests.tally;
        let repeat = Repeat::Freely;
        self.retries.run(tally, verb, repeat, 0, attempt).await
    }

    /// Puts, and again after an error: the caller knows what an earlier effect changes.
    async fn put(
        &self,
        key: &str,
        body: Bytes,
        condition: Condition<'_>,
    ) -> Attempt<Option<String>> {
        let crc = crc_header(&body);
        let attempt = || self.requests.put(key, body.clone(), &crc, condition);
        self.repeated(Verb::Put, attempt).await
    }

    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Attempt<Bytes> {
        let attempt = || self.requests.get(key, range);
        self.repeated(Verb::Get, attempt).await
    }

    /// Creates an object whose name begins with `stem`: each attempt has a key of its own, as an
    /// earlier one may have taken effect. Gives its key and its entity tag.
    async fn create(&mut self, stem: &str) -> Attempt<(String, Option<String>)> {
        let keys: Vec<String> = (1..=self.retries.attempts)
            .map(|n| self.key(&format!("{stem}{n}")))
            .collect();
        let (mut left, crc) = (keys.iter(), crc_header(&FIRST));
        let attempt = || {
            let key = left.next().expect("a key for each attempt");
            let put = self.requests.put(key, FIRST, &crc, Condition::Absent);
            async move { put.await.map(|tag| (key.clone(), tag)) }
        };
        let created = self.repeated(Verb::Put, attempt).await;
        for key in left {
            self.used.remove(key);
        }
        created
    }

    async fn run(&mut self) -> Attempt<ConditionalWrites> {
        let conditional_writes = self.try_conditions().await?;
        self.try_checksum().await?;
        self.try_range().await?;
        if let Some(now_secs) = self.try_list().await? {
            self.look_for_leftovers(now_secs).await;
        }
        Ok(conditional_writes)
    }

    async fn try_conditions(&mut self) -> Attempt<ConditionalWrites> {
        let (key, tag) = match self.create("a").await {
            Ok(created) => created,
            Err(failure) if refuses_conditions(&failure) => {
                self.note("If-None-Match is refused");
                return Ok(ConditionalWrites::None);
            }
            Err(failure) => return Err(failure),
        };
        if !was_refused(self.put(&key, SECOND, Condition::Absent).await)? {
            self.note("If-None-Match is ignored: a second writer replaced the object");
            return Ok(ConditionalWrites::None);
        }
        if self.get(&key, None).await? != FIRST {
            self.note("If-None-Match is answered as refused, but the object was replaced");
            return Ok(ConditionalWrites::None);
        }
        if !self.one_racer_wins().await? {
            self.note("If-None-Match is not atomic: several racing creators succeeded");
            return Ok(ConditionalWrites::None);
        }
        let bogus = Condition::Matches("\"00000000000000000000000000000000\"");
        let refuses_bogus = match self.put(&key, THIRD, bogus).await {
            Err(failure) if refuses_conditions(&failure) => {
                return Ok(ConditionalWrites::CreateOnly);
            }
            outcome => was_refused(outcome)?,
        };
        match tag.filter(|_| refuses_bogus) {
            Some(tag) if self.replaces(&key, &tag).await? => Ok(ConditionalWrites::Full),
            _ => Ok(ConditionalWrites::CreateOnly),
        }
    }

    /// Whether an object can be replaced by who names its entity tag.
    async fn replaces(&self, key: &str, tag: &str) -> Attempt<bool> {
        let condition = Condition::Matches(tag);
        let Err(failure) = self.put(key, SECOND, condition).await else {
            return Ok(true);
        };
        if !matches!(failure.remedy, Remedy::Again | Remedy::Exists) {
            return Ok(false);
        }
        // The answer of an earlier attempt may be lost, and the tag be another one now.
        match self.get(key, None).await? == SECOND {
            false if failure.remedy == Remedy::Again => Err(failure),
            is_replaced => Ok(is_replaced),
        }
    }

    /// Whether never more than one of several creators succeeds. A server may answer all of them
    /// with a conflict (409), or one of them not at all: then they race again, for another key.
    async fn one_racer_wins(&mut self) -> Attempt<bool> {
        let mut unknown = 0;
        for race in 1..=RACES_MAX {
            let key = self.key(&format!("race{race}"));
            let trial = &*self;
            let racers = (0..RACERS).map(|racer| {
                let body = Bytes::from(vec![racer as u8; 64]);
                let (crc, key) = (crc_header(&body), &key);
                async move {
                    let put = trial.requests.put(key, body, &crc, Condition::Absent);
                    was_refused(trial.once(put).await)
                }
            });
            let (ended, failed): (Vec<_>, Vec<_>) =
                join_all(racers).await.into_iter().partition(Attempt::is_ok);
            let winners = ended.iter().filter(|won| matches!(won, Ok(false))).count();
            if winners > 1 {
                return Ok(false);
            }
            let Some(failure) = failed.into_iter().find_map(Attempt::err) else {
                if winners == 1 {
                    return Ok(true);
                }
                continue;
            };
            unknown += 1;
            if unknown == self.retries.attempts || failure.remedy != Remedy::Again {
                return Err(failure);
            }
            tokio::time::sleep(self.retries.pause(unknown)).await;
        }
        let text = format!("{RACES_MAX} races of {RACERS} creators, and none ever succeeded");
        Err(Failure::unknown(text))
    }

    async fn try_checksum(&mut self) -> Attempt<()> {
        let (key, crc) = (self.key("b"), crc_header(&FIRST));
        let attempt = || {
            // The right checksum of another body.
            let put = self.requests.put(&key, SECOND, &crc, Condition::Always);
            async {
                match put.await {
                    Ok(_) => Ok(false),
                    Err(failure) if refuses_body(&failure) => Ok(true),
                    Err(failure) => Err(failure),
                }
            }
        };
        if !self.repeated(Verb::Put, attempt).await? {
            self.note("checksums unverified: a body with a wrong CRC32C was stored");
        }
        self.put(&key, FIRST, Condition::Always).await.map(|_| ())
    }

    async fn try_range(&mut self) -> Attempt<()> {
        let key = self.key("b");
        match self.get(&key, Some((7, 5))).await {
            Ok(body) if body == FIRST.slice(7..12) => {}
            Err(failure) if failure.remedy == Remedy::Again => return Err(failure),
            _ => self.note("reads of ranges are wrong: this server cannot be used"),
        }
        Ok(())
    }

    /// Gives the server's clock, in seconds since 1970, if it tells it.
    async fn try_list(&mut self) -> Attempt<Option<i64>> {
        let (wanted, last) = (self.key("b"), self.key("c"));
        self.put(&last, FIRST, Condition::Always).await?;
        let prefix = format!("{}/", self.folder);
        let before = format!("{prefix}az");
        let list = || self.requests.list(&prefix, Some(&before), None, 1);
        let page = self.repeated(Verb::List, list).await?;
        let found = page.objects.first().map(|object| &object.key);
        let is_one = page.objects.len() == 1 && found == Some(&wanted) && page.next.is_some();
        let list = || self.requests.list(&prefix, None, page.next.clone(), 1);
        let next = self.repeated(Verb::List, list).await?;
        if !is_one || next.objects.first().map(|object| &object.key) != Some(&last) {
            self.note("lists are wrong in order or paging: this server cannot be used");
            return Ok(None);
        }
        Ok(next.stored_secs.first().copied().flatten())
    }

    /// Lets what earlier probes left be removed with the scratch keys of this one. What is not
    /// found, or cannot be asked for, is left to the next probe.
    async fn look_for_leftovers(&mut self, now_secs: i64) {
        let prefix = format!("{FOLDER}/");
        let list = self.requests.list(&prefix, None, None, 1000);
        if let Ok(page) = self.once(list).await {
            let keys = leftovers(&page, now_secs).take(LEFTOVERS_MAX);
            self.used.extend(keys.map(ToOwned::to_owned));
        }
    }

    /// Removes the scratch keys, all at once if the server can. Of one that does not answer it is
    /// asked once.
    async fn clean(&mut self, answers: bool) -> Attempt<()> {
        let keys: Vec<String> = std::mem::take(&mut self.used).into_iter().collect();
        let delete = || self.requests.delete_many(&keys);
        if !answers {
            return self.once(delete()).await;
        }
        match self.repeated(Verb::DeleteMany, delete).await {
            Err(failure) if failure.remedy == Remedy::Final => {}
            outcome => return outcome,
        }
        for key in &keys {
            let delete = || self.requests.delete(key);
            self.repeated(Verb::Delete, delete).await?;
        }
        self.note("objects are deleted one by one: DeleteObjects is not supported");
        Ok(())
    }
}

/// Whether a condition kept a put from taking effect.
fn was_refused<T>(outcome: Attempt<T>) -> Attempt<bool> {
    match outcome {
        Ok(_) => Ok(false),
        // 409 is how some servers answer the loser of a race.
        Err(failure) if matches!(failure.remedy, Remedy::Exists | Remedy::Unsent) => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// Whether the server found a body wrong, as opposed to being busy.
fn refuses_body(failure: &Failure) -> bool {
    let text = failure.error.to_string();
    let says = |status: &str| text.contains(&format!("answers {status}"));
    says("4") && !["408", "425", "429"].into_iter().any(says)
}

/// Whether the server says that it does not know conditions.
fn refuses_conditions(failure: &Failure) -> bool {
    let text = failure.error.to_string();
    failure.remedy == Remedy::Final
        && ["NotImplemented", "answers 501"]
            .iter()
            .any(|t| text.contains(t))
}
