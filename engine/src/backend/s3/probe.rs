//! What a server really does, found by trying it on scratch keys.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::failure::{Failure, Remedy};
use super::requests::{Attempt, Condition, Requests, crc_header};
use super::retry::Retries;
use crate::backend::{ConditionalWrites, Probe};
use crate::error::{Error, ErrorKind, Result};

/// Creators that race for one key. SeaweedFS lets each loser wait a second, so there are few.
const RACERS: usize = 3;
/// Races that may end without a winner.
const RACES_MAX: usize = 8;

/// All of a probe ends within this: some fifteen requests, each of which may take its 15 s.
const PROBE_TIME: Duration = Duration::from_secs(240);

const FIRST: Bytes = Bytes::from_static(b"taipan probe: the first body");
const SECOND: Bytes = Bytes::from_static(b"taipan probe: another body");

/// A probe under way.
pub(super) struct Trial {
    requests: Arc<Requests>,
    retries: Retries,
    /// Folder of the scratch keys, its name random.
    folder: String,
    notes: Vec<String>,
}

/// Tries everything and removes the scratch keys again. Each request is made once: a server that
/// is away fails the probe at once.
pub(super) async fn probe(requests: Arc<Requests>, retries: Retries) -> Result<Probe> {
    let mut name = [0; 8];
    getrandom::fill(&mut name)
        .map_err(|e| Error::new(ErrorKind::Io, "no random bytes").with_source(e))?;
    let mut trial = Trial {
        requests,
        retries,
        folder: format!("v1/probe/{:016x}", u64::from_be_bytes(name)),
        notes: Vec::new(),
    };
    let tried = tokio::time::timeout(PROBE_TIME, trial.run()).await;
    let cleaned = trial.clean().await;
    let late = || {
        Failure::unknown(format!(
            "the probe took more than {} s",
            PROBE_TIME.as_secs()
        ))
    };
    let conditional_writes = tried
        .map_err(|_| late())
        .flatten()
        .map_err(|failure| failure.error)?;
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
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    async fn once<T>(&self, attempt: impl Future<Output = Attempt<T>>) -> Attempt<T> {
        let tally = &self.requests.tally;
        self.retries.limited(tally, 0, attempt).await
    }

    async fn put(
        &self,
        name: &str,
        body: Bytes,
        condition: Condition<'_>,
    ) -> Attempt<Option<String>> {
        let (key, crc) = (self.key(name), crc_header(&body));
        self.once(self.requests.put(&key, body, &crc, condition))
            .await
    }

    async fn run(&mut self) -> Attempt<ConditionalWrites> {
        let conditional_writes = self.try_conditions().await?;
        self.try_checksum().await?;
        self.try_range().await?;
        self.try_list().await?;
        Ok(conditional_writes)
    }

    async fn try_conditions(&mut self) -> Attempt<ConditionalWrites> {
        let tag = match self.put("a", FIRST, Condition::Absent).await {
            Ok(tag) => tag,
            Err(failure) if refuses_conditions(&failure) => {
                self.note("If-None-Match is refused");
                self.put("a", FIRST, Condition::Always).await?;
                return Ok(ConditionalWrites::None);
            }
            Err(failure) => return Err(failure),
        };
        if !was_refused(self.put("a", SECOND, Condition::Absent).await)? {
            self.note("If-None-Match is ignored: a second writer replaced the object");
            return Ok(ConditionalWrites::None);
        }
        let key = self.key("a");
        if self.once(self.requests.get(&key, None)).await? != FIRST {
            self.note("If-None-Match is answered as refused, but the object was replaced");
            return Ok(ConditionalWrites::None);
        }
        if !self.one_racer_wins().await? {
            self.note("If-None-Match is not atomic: several racing creators succeeded");
            return Ok(ConditionalWrites::None);
        }
        let bogus = Condition::Matches("\"00000000000000000000000000000000\"");
        let refuses_bogus = match self.put("a", SECOND, bogus).await {
            Err(failure) if refuses_conditions(&failure) => {
                return Ok(ConditionalWrites::CreateOnly);
            }
            outcome => was_refused(outcome)?,
        };
        let Some(tag) = tag.filter(|_| refuses_bogus) else {
            return Ok(ConditionalWrites::CreateOnly);
        };
        match self.put("a", SECOND, Condition::Matches(&tag)).await {
            Ok(_) => Ok(ConditionalWrites::Full),
            Err(failure) if failure.remedy == Remedy::Again => Err(failure),
            Err(_) => Ok(ConditionalWrites::CreateOnly),
        }
    }

    /// Whether never more than one of several creators succeeds. A server may answer all of them
    /// with a conflict (409): then nothing was created, and they race again.
    async fn one_racer_wins(&self) -> Attempt<bool> {
        for _ in 0..RACES_MAX {
            let race = (0..RACERS).map(|racer| {
                let body = Bytes::from(vec![racer as u8; 64]);
                self.put("race", body, Condition::Absent)
            });
            let mut winners = 0;
            for outcome in join_all(race).await {
                winners += usize::from(!was_refused(outcome)?);
            }
            if winners > 0 {
                return Ok(winners == 1);
            }
        }
        let text = format!("{RACES_MAX} races of {RACERS} creators, and none ever succeeded");
        Err(Failure::unknown(text))
    }

    async fn try_checksum(&mut self) -> Attempt<()> {
        let (key, crc) = (self.key("b"), crc_header(&FIRST));
        // The right checksum of another body.
        let put = self.requests.put(&key, SECOND, &crc, Condition::Always);
        match self.once(put).await {
            Ok(_) => self.note("checksums unverified: a body with a wrong CRC32C was stored"),
            Err(failure) if failure.error.to_string().contains("answers 4") => {}
            Err(failure) => return Err(failure),
        }
        self.put("b", FIRST, Condition::Always).await.map(|_| ())
    }

    async fn try_range(&mut self) -> Attempt<()> {
        let key = self.key("b");
        match self.once(self.requests.get(&key, Some((7, 5)))).await {
            Ok(body) if body == FIRST.slice(7..12) => {}
            Err(failure) if failure.remedy == Remedy::Again => return Err(failure),
            _ => self.note("reads of ranges are wrong: this server cannot be used"),
        }
        Ok(())
    }

    async fn try_list(&mut self) -> Attempt<()> {
        self.put("c", FIRST, Condition::Always).await?;
        let prefix = format!("{}/", self.folder);
        let after = self.key("a");
        let page = self.requests.list(&prefix, Some(&after), None, 1);
        let page = self.once(page).await?;
        let wanted = self.key("b");
        let found = page.objects.first().map(|object| object.key.as_str());
        let is_one = page.objects.len() == 1 && found == Some(&wanted) && page.next.is_some();
        let next = self.requests.list(&prefix, None, page.next, 1);
        let next = self.once(next).await?;
        let wanted = self.key("c");
        if !is_one || next.objects.first().map(|object| &object.key) != Some(&wanted) {
            self.note("lists are wrong in order or paging: this server cannot be used");
        }
        Ok(())
    }

    /// Removes the scratch keys, all at once if the server can.
    async fn clean(&mut self) -> Attempt<()> {
        let keys = ["a", "b", "c", "race"].map(|name| self.key(name));
        match self.once(self.requests.delete_many(&keys)).await {
            Ok(()) => {}
            Err(failure) if failure.remedy == Remedy::Unsent => return Ok(()),
            Err(_) => {
                for key in &keys {
                    self.once(self.requests.delete(key)).await?;
                }
                self.note("objects are deleted one by one: DeleteObjects is not supported");
            }
        }
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

/// Whether the server says that it does not know conditions.
fn refuses_conditions(failure: &Failure) -> bool {
    let text = failure.error.to_string();
    failure.remedy == Remedy::Final
        && ["NotImplemented", "answers 501"]
            .iter()
            .any(|t| text.contains(t))
}
