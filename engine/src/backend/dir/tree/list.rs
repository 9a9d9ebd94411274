//! Listing a directory backend in key order, in memory bounded by the page.

use std::collections::BinaryHeap;
use std::fs::{self, FileType};
use std::io;
use std::path::PathBuf;

use super::{Tree, failed, push_part, sync_dir};
use crate::backend::Listed;
use crate::error::{Error, Result};
use crate::object::ObjectKey;

/// A directory still to be read, and the start of every key below it.
struct Pending {
    dir: PathBuf,
    key_start: String,
}

impl Tree {
    /// Up to `max` objects with `prefix`, above `after`, in key order. Directories that were read
    /// are synced, so that what is listed is durable even if its creator died before it synced.
    pub(in super::super) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Listed>> {
        let mut listed: Vec<Listed> = Vec::new();
        let mut after = after.map(ToOwned::to_owned);
        // Objects that are deleted meanwhile must not make a page look like the last one.
        while listed.len() < max {
            let wanted = max - listed.len();
            let keys = self.smallest_keys(prefix, after.as_deref(), wanted)?;
            let complete = keys.len() < wanted;
            after = keys.last().cloned();
            listed.extend(self.with_sizes(keys)?);
            if complete {
                break;
            }
        }
        Ok(listed)
    }

    fn smallest_keys(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<String>> {
        let mut page = Page {
            keys: BinaryHeap::new(),
            prefix,
            after,
            max,
        };
        let mut pending = vec![self.listing_start(prefix)?];
        while let Some(Pending { dir, key_start }) = pending.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed("listing", &dir, e)),
            };
            let mut found = false;
            for entry in entries {
                let entry = entry.map_err(|e| failed("listing", &dir, e))?;
                let name = entry.file_name();
                let Some(name) = name.to_str() else { continue };
                let kind = entry.file_type();
                match step_of(name, kind, &key_start) {
                    Some(Step::Into(key_start)) if page.may_hold(&key_start) => {
                        pending.push(Pending {
                            dir: entry.path(),
                            key_start,
                        });
                    }
                    Some(Step::Object(key)) => found |= page.offer(key),
                    _ => {}
                }
            }
            if found {
                sync_dir(Some(&dir))?;
            }
        }
        Ok(page.keys.into_sorted_vec())
    }

    /// The deepest directory that holds all keys with `prefix`.
    fn listing_start(&self, prefix: &str) -> Result<Pending> {
        let parents = prefix.rfind('/').map_or("", |at| &prefix[..at]);
        let mut dir = self.root.clone();
        if parents.is_empty() {
            return Ok(Pending {
                dir,
                key_start: String::new(),
            });
        }
        if !ObjectKey::is_valid(parents) {
            let message = format!("list prefix {prefix:?} is not the start of a key");
            return Err(Error::invalid(message));
        }
        for part in parents.split('/') {
            push_part(&mut dir, part);
        }
        Ok(Pending {
            dir,
            key_start: format!("{parents}/"),
        })
    }

    fn with_sizes(&self, keys: Vec<String>) -> Result<Vec<Listed>> {
        let mut listed = Vec::with_capacity(keys.len());
        for key in keys {
            // One that was deleted meanwhile is left out.
            if let Some(bytes) = self.head(&ObjectKey::parse(&key)?)? {
                listed.push(Listed { key, bytes });
            }
        }
        Ok(listed)
    }
}

enum Step {
    /// A directory and the start of the keys below it.
    Into(String),
    /// An object's key.
    Object(String),
}

/// What a directory entry is; `None` for anything that this backend did not make.
fn step_of(name: &str, kind: io::Result<FileType>, key_start: &str) -> Option<Step> {
    let kind = kind.ok()?;
    let key = format!("{key_start}{}", name.strip_suffix('~').unwrap_or(name));
    if !ObjectKey::is_valid(&key) {
        return None;
    }
    match name.ends_with('~') {
        true if kind.is_dir() => Some(Step::Into(key)),
        false if kind.is_dir() => Some(Step::Into(key + "/")),
        false if kind.is_file() => Some(Step::Object(key)),
        _ => None,
    }
}

/// The smallest `max` keys seen.
struct Page<'a> {
    keys: BinaryHeap<String>,
    prefix: &'a str,
    after: Option<&'a str>,
    max: usize,
}

impl Page<'_> {
    /// Whether a key that starts with `start` can belong to the page.
    fn may_hold(&self, start: &str) -> bool {
        let prefixed = start.starts_with(self.prefix) || self.prefix.starts_with(start);
        let passed = |after: &str| start < after && !after.starts_with(start);
        prefixed && !self.after.is_some_and(passed)
    }

    /// Takes `key` if it belongs to the page; whether it did.
    fn offer(&mut self, key: String) -> bool {
        if !key.starts_with(self.prefix) || self.after.is_some_and(|after| *key <= *after) {
            return false;
        }
        self.keys.push(key);
        if self.keys.len() > self.max {
            self.keys.pop();
        }
        true
    }
}
