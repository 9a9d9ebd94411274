//! The backend as recovery and takeover see it: faults, and late requests of dead lives that land
//! in between.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;

use super::dice::Dice;
use crate::backend::{Backend, BoxFuture, Listed, MemBackend, Probe, Put};
use crate::error::{Error, ErrorKind, Result};
use crate::object::ObjectKey;

/// A request that the backend has and nobody waits for.
#[derive(Clone, Debug)]
pub(super) enum Late {
    Put(ObjectKey, Bytes),
    Delete(ObjectKey),
}

impl Late {
    pub(super) fn land(self, objects: &MemBackend) {
        let landed = match self {
            Self::Put(key, body) => objects
                .put_if_absent(&key, body)
                .now_or_never()
                .map(|put| put.map(|_| ())),
            Self::Delete(key) => objects.delete(&key).now_or_never(),
        };
        landed
            .expect("memory answers at once")
            .expect("memory does not fail");
    }
}

struct Weather {
    dice: Dice,
    fails: u32,
    late: Vec<Late>,
    landed: u64,
    failed: u64,
    /// Lists that did not show the newest manifests.
    behind: u64,
}

/// The backend during a boot.
pub(super) struct Bucket {
    objects: MemBackend,
    weather: Mutex<Weather>,
}

impl Bucket {
    pub(super) fn new(objects: MemBackend, dice: Dice, fails: u32, late: Vec<Late>) -> Self {
        let weather = Weather {
            dice,
            fails,
            late,
            landed: 0,
            failed: 0,
            behind: 0,
        };
        Self {
            objects,
            weather: Mutex::new(weather),
        }
    }

    /// What has not landed; how many have; how many lists were behind.
    pub(super) fn into_rest(self) -> (Vec<Late>, u64, u64) {
        let weather = self
            .weather
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        (weather.late, weather.landed, weather.behind)
    }

    pub(super) fn failed(&self) -> u64 {
        self.weather().failed
    }

    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets late requests land, and decides whether this one fails (before or after its effect).
    fn request(&self) -> (bool, bool) {
        let mut weather = self.weather();
        while !weather.late.is_empty() && weather.dice.chance(100) {
            let count = weather.late.len() as u64;
            let index = weather.dice.below(count) as usize;
            weather.late.remove(index).land(&self.objects);
            weather.landed += 1;
        }
        let fails = weather.fails;
        let (before, after) = (weather.dice.chance(fails), weather.dice.chance(fails));
        weather.failed += u64::from(before || after);
        (before, after)
    }

    /// How many of the newest manifests a list does not show. An opening may give up on that, as on
    /// a failure.
    fn hidden(&self, prefix: &str) -> usize {
        let mut weather = self.weather();
        let chance = weather.fails;
        if !prefix.ends_with("/manifests/") || !weather.dice.chance(chance) {
            return 0;
        }
        weather.failed += 1;
        weather.behind += 1;
        weather.dice.range(1..=12) as usize
    }

    async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let (before, after) = self.request();
        if before {
            return Err(lost());
        }
        let result = work.await;
        if after { Err(lost()) } else { result }
    }
}

/// A request whose outcome the client does not get to know.
pub(super) fn lost() -> Error {
    Error::new(ErrorKind::Transient, "the simulated backend did not answer")
}

impl Backend for Bucket {
    fn put_if_absent<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<Put>> {
        Box::pin(self.run(self.objects.put_if_absent(key, body)))
    }

    fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.run(self.objects.put(key, body)))
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(self.run(self.objects.get(key)))
    }

    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(self.run(self.objects.get_range(key, offset, len)))
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
        Box::pin(self.run(self.objects.head(key)))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let hidden = self.hidden(prefix);
        Box::pin(async move {
            let mut page = self.run(self.objects.list(prefix, after, max)).await?;
            page.truncate(page.len().saturating_sub(hidden));
            Ok(page)
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.run(self.objects.delete(key)))
    }

    fn probe(&self) -> BoxFuture<'_, Result<Probe>> {
        self.objects.probe()
    }

    fn describe(&self) -> String {
        "the simulator's backend".to_owned()
    }
}
