//! What outlives a process of the model: head record, log, and what was copied out.

use std::collections::BTreeSet;

use super::super::heads_dir::HeadsDir;
use super::truth::{Truth, VOLUME, hash_of};
use crate::identity::{Epoch, ManifestNum};
use crate::registry::{LocalHead, LocalHeads};

/// One write in the log, of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Token of the session that stamped it, and the manifest by which that session opened.
    pub(super) token: u64,
    pub(super) opened: ManifestNum,
    pub(super) epoch: Epoch,
    pub(super) block: u64,
    /// Number of the write, over all writers.
    pub(super) value: u64,
}

/// The data directory of one machine.
pub(super) struct Disk {
    pub(super) heads: LocalHeads,
    _dir: HeadsDir,
    /// Where records are not released at once, they stay for ever: a segment may stay for any time.
    pub(super) log: Vec<Record>,
    pub(super) releases: bool,
    /// Values copied out to quarantine.
    pub(super) quarantine: BTreeSet<u64>,
    /// Sessions that ran on this disk, as far as it knows.
    pub(super) tokens: BTreeSet<u64>,
}

/// A copy of it.
#[derive(Clone, Default)]
pub(super) struct DiskCopy {
    head: Option<LocalHead>,
    log: Vec<Record>,
    quarantine: BTreeSet<u64>,
    tokens: BTreeSet<u64>,
}

impl DiskCopy {
    /// The log alone: what it continues is not known any more.
    pub(super) fn without_head(self) -> Self {
        Self {
            head: None,
            tokens: BTreeSet::new(),
            ..self
        }
    }
}

impl Disk {
    pub(super) fn new() -> Self {
        let dir = HeadsDir::new("model");
        Self {
            heads: LocalHeads::open(dir.path()).expect("a directory for head records"),
            _dir: dir,
            log: Vec::new(),
            releases: false,
            quarantine: BTreeSet::new(),
            tokens: BTreeSet::new(),
        }
    }

    fn head(&self) -> Option<LocalHead> {
        self.heads.load(VOLUME).expect("head records can be read")
    }

    pub(super) fn copy(&self) -> DiskCopy {
        DiskCopy {
            head: self.head(),
            log: self.log.clone(),
            quarantine: self.quarantine.clone(),
            tokens: self.tokens.clone(),
        }
    }

    /// Puts a copy in place of what is there; an empty one is a new disk.
    pub(super) fn restore(&mut self, copy: DiskCopy) {
        match &copy.head {
            Some(head) => self.heads.save(head),
            None => self.heads.remove(VOLUME),
        }
        .expect("head records can be saved");
        self.log = copy.log;
        self.quarantine = copy.quarantine;
        self.tokens = copy.tokens;
    }

    /// The greatest epoch in the log.
    pub(super) fn stamped(&self) -> Epoch {
        let epochs = self.log.iter().map(|record| record.epoch);
        epochs.max().unwrap_or_default()
    }

    /// Whether what `record`'s session began is continued by `head`: since then only sessions of
    /// this disk wrote manifests, up to `head`.
    pub(super) fn continues(&self, record: &Record, truth: &Truth, head: ManifestNum) -> bool {
        let known = self.tokens.contains(&record.token);
        let mut since = truth
            .chain
            .iter()
            .filter(|m| m.number > record.opened && m.number <= head);
        known && since.all(|manifest| self.tokens.contains(&manifest.token.0))
    }

    pub(super) fn canon(&self, truth: &Truth, names: &[(usize, u64)]) -> u64 {
        let head = self.head().map(|head| {
            let mut json = serde_json::to_value(&head).expect("plain data");
            canon_json(&mut json, truth);
            json.to_string()
        });
        let log: Vec<_> = self
            .log
            .iter()
            .map(|r| {
                (
                    truth.name_of(r.token),
                    r.epoch,
                    r.block,
                    name_of(names, r.value),
                )
            })
            .collect();
        let copied: Vec<_> = self.quarantine.iter().map(|v| name_of(names, *v)).collect();
        let tokens: BTreeSet<_> = self.tokens.iter().map(|t| truth.name_of(*t)).collect();
        hash_of(&(head, log, copied, tokens))
    }
}

/// A write by its writer's count, so that states reached in another order are the same.
pub(super) fn name_of(names: &[(usize, u64)], value: u64) -> (usize, u64) {
    names[value as usize - 1]
}

/// Replaces tokens by what they stand for, and drops CRCs, which depend on them.
fn canon_json(json: &mut serde_json::Value, truth: &Truth) {
    match json {
        serde_json::Value::Object(fields) => {
            fields.retain(|name, _| !name.contains("crc"));
            for (name, value) in fields.iter_mut() {
                match value.as_u64() {
                    Some(token) if name == "token" => {
                        *value = format!("{:?}", truth.name_of(token)).into();
                    }
                    _ => canon_json(value, truth),
                }
            }
        }
        serde_json::Value::Array(items) => {
            items.iter_mut().for_each(|item| canon_json(item, truth));
        }
        _ => {}
    }
}
