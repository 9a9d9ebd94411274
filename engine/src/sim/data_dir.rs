//! The data directory: WAL files, head records, copies of metadata. How it is made and lost.

use std::sync::Arc;

use super::disk::WalFile;
use super::heads_dir::HeadsDir;
use super::world::World;
use crate::backend::LocalMetadata;
use crate::block::{PAGE_BYTES, ShardId};
use crate::identity::{BatchNum, Incarnation};
use crate::wal::WalId;
use crate::wal::format::LogHead;

impl World {
    /// Copies are of what passes to and from the present bucket.
    pub(super) fn keep_copies(&mut self) {
        let objects = Arc::new(self.objects.clone());
        let dir = self.copies_dir.as_ref().map(HeadsDir::path);
        self.copies = dir.map(|dir| LocalMetadata::new(objects, dir));
    }

    /// Creates the WAL files as `wal::files` does.
    pub(super) fn make_files(&mut self) {
        let bytes = self.plan.log.file_bytes() as usize;
        self.files = ShardId::all()
            .map(|shard| {
                let mut file = WalFile::new(bytes);
                for sequence in [0, 1] {
                    let head = self.first_head(shard, sequence);
                    let mut page = vec![0; PAGE_BYTES];
                    head.encode(&mut page);
                    file.format(head.file_offset() as usize, &page);
                }
                file
            })
            .collect();
    }

    fn first_head(&self, shard: ShardId, sequence: u64) -> LogHead {
        LogHead {
            shard,
            wal: self.wal_id,
            incarnation: Incarnation(0),
            first: BatchNum(1),
            sequence,
            segment_bytes: self.plan.log.segment_bytes,
            segments: self.plan.log.segments,
            durable_through: BatchNum(0),
            released_before: BatchNum(1),
            end: None,
        }
    }

    /// The data directory and all memory are gone; a new one is made.
    pub(super) fn lose_disk(&mut self) {
        self.regions.clear();
        self.new_wal();
        for id in &self.ids {
            self.heads.remove(*id).expect("the directory is sound");
        }
        if let Some(copies) = &self.copies_dir {
            copies.clear();
        }
        self.takes_all = true;
    }

    pub(super) fn new_wal(&mut self) {
        self.wal_id = WalId(self.dice.number());
        self.incarnation = 0;
        self.make_files();
    }
}
