//! The objects of the bucket, and enough of their past to answer a stale listing.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::checksum::etag_of;
use super::conditions::Conditions;
use super::multipart::Upload;
use super::reply::Refusal;

/// Changes that a stale listing can go back by.
const HISTORY_MAX: usize = 10_000;

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) body: Bytes,
    pub(crate) etag: String,
    pub(crate) crc32c: u32,
    pub(crate) modified: SystemTime,
    pub(crate) metadata: Vec<(String, String)>,
}

impl Object {
    /// An object of these bytes, as of now.
    pub(crate) fn of(body: Bytes) -> Self {
        let crc32c = crc32c::crc32c(&body);
        Self {
            etag: etag_of(&body, crc32c),
            crc32c,
            body,
            modified: SystemTime::now(),
            metadata: Vec::new(),
        }
    }

    fn listed(&self, key: &str) -> Listed {
        Listed {
            key: key.to_owned(),
            bytes: self.body.len(),
            etag: self.etag.clone(),
            modified: self.modified,
        }
    }
}

/// An object as listings show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub bytes: usize,
    /// Its ETag without quotes.
    pub etag: String,
    /// When it was stored.
    pub modified: SystemTime,
}

/// How far back a listing looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// Before the last so many changes.
    Changes(usize),
    /// As it was this long ago.
    Ago(Duration),
}

#[derive(Debug)]
struct Change {
    at: Instant,
    key: String,
    before: Option<Listed>,
}

/// All objects and open uploads, under one lock: what is checked still holds when it is done.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<String, Object>,
    history: VecDeque<Change>,
    pub(crate) uploads: BTreeMap<String, Upload>,
    pub(crate) uploads_begun: u64,
}

impl Store {
    /// One object.
    pub(crate) fn get(&self, key: &str) -> Option<&Object> {
        self.objects.get(key)
    }

    /// Stores an object if the conditions hold; its ETag.
    pub(crate) fn put_if(
        &mut self,
        key: &str,
        object: Object,
        conditions: &Conditions,
    ) -> Result<String, Refusal> {
        self.check_write(key, conditions)?;
        let etag = object.etag.clone();
        self.put(key, object);
        Ok(etag)
    }

    /// Whether the conditions of a write hold.
    pub(crate) fn check_write(&self, key: &str, conditions: &Conditions) -> Result<(), Refusal> {
        let etag = self.objects.get(key).map(|object| object.etag.as_str());
        conditions.check_write(etag)
    }

    /// Stores an object whatever is there.
    pub(crate) fn put(&mut self, key: &str, object: Object) {
        let before = self.objects.insert(key.to_owned(), object);
        self.remember(key, before.as_ref());
    }

    /// Removes an object; one that is not there is removed already.
    pub(crate) fn delete(&mut self, key: &str) {
        let before = self.objects.remove(key);
        if before.is_some() {
            self.remember(key, before.as_ref());
        }
    }

    fn remember(&mut self, key: &str, before: Option<&Object>) {
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(Change {
            at: Instant::now(),
            key: key.to_owned(),
            before: before.map(|object| object.listed(key)),
        });
    }

    /// Objects from `from` on, in order of their keys.
    pub(crate) fn from<'a>(&'a self, from: &str) -> impl Iterator<Item = Listed> + use<'a> {
        let range = self.objects.range(from.to_owned()..);
        range.map(|(key, object)| object.listed(key))
    }

    /// Everything under a prefix.
    pub(crate) fn listed(&self, prefix: &str) -> Vec<Listed> {
        let under = |listed: &Listed| listed.key.starts_with(prefix);
        self.from(prefix).take_while(under).collect()
    }

    /// All objects as they once were, as far back as is remembered.
    pub(crate) fn past(&self, past: Past) -> BTreeMap<String, Listed> {
        let mut then: BTreeMap<String, Listed> = self
            .from("")
            .map(|listed| (listed.key.clone(), listed))
            .collect();
        let now = Instant::now();
        for (back, change) in self.history.iter().rev().enumerate() {
            let reached = match past {
                Past::Changes(changes) => back >= changes,
                Past::Ago(ago) => now.duration_since(change.at) >= ago,
            };
            if reached {
                break;
            }
            match &change.before {
                Some(before) => then.insert(change.key.clone(), before.clone()),
                None => then.remove(&change.key),
            };
        }
        then
    }

    /// Ids of uploads neither completed nor aborted.
    pub(crate) fn open_uploads(&self) -> Vec<String> {
        self.uploads.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(then: &BTreeMap<String, Listed>) -> Vec<(&str, usize)> {
        then.values()
            .map(|one| (one.key.as_str(), one.bytes))
            .collect()
    }

    #[test]
    fn the_past_comes_back_change_by_change() {
        let mut store = Store::default();
        store.put("a", Object::of(Bytes::from_static(b"1")));
        store.put("a", Object::of(Bytes::from_static(b"22")));
        store.put("b", Object::of(Bytes::from_static(b"333")));
        store.delete("a");
        store.delete("never there");
        assert_eq!(keys(&store.past(Past::Changes(0))), [("b", 3)]);
        assert_eq!(keys(&store.past(Past::Changes(1))), [("a", 2), ("b", 3)]);
        assert_eq!(keys(&store.past(Past::Changes(2))), [("a", 2)]);
        assert_eq!(keys(&store.past(Past::Changes(3))), [("a", 1)]);
        assert_eq!(keys(&store.past(Past::Changes(9))), []);
        assert_eq!(keys(&store.past(Past::Ago(Duration::from_secs(3600)))), []);
        assert_eq!(keys(&store.past(Past::Ago(Duration::ZERO))), [("b", 3)]);
    }

    #[test]
    fn the_past_is_bounded() {
        let mut store = Store::default();
        for number in 0..HISTORY_MAX + 10 {
            store.put(&format!("{number}"), Object::of(Bytes::new()));
        }
        assert_eq!(store.history.len(), HISTORY_MAX);
        assert_eq!(store.past(Past::Changes(usize::MAX)).len(), 10);
    }
}
