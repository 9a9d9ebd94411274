//! A new WAL file in the place of a damaged one, which is kept under another name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{WalFiles, fill, open_direct, shard_path};
use crate::block::ShardId;
use crate::error::{Error, Result};
use crate::wal::config::{BootId, LogConfig};

impl WalFiles {
    /// Makes a new, empty file for a shard beside its present one, which stays in place until
    /// [`WalFiles::replace`]. One that an earlier attempt left is made again.
    ///
    /// # Errors
    /// `Full` or `Io`.
    pub fn create_replacement(
        &self,
        dir: &Path,
        shard: ShardId,
        config: &LogConfig,
    ) -> Result<File> {
        let path = replacement_path(dir, shard);
        let _ = fs::remove_file(&path);
        let identity = self.identity(shard, BootId([0; 16]));
        let made = open_direct(&path, true).and_then(|file| {
            let first = crate::wal::LogIdentity {
                incarnation: crate::identity::Incarnation(0),
                ..identity
            };
            fill(&file, config, &first)?;
            Ok(file)
        });
        made.map_err(|e| Error::io("writing a new WAL file", e).with_path(&path))
    }

    /// Puts the file made by [`WalFiles::create_replacement`] in its place, at once and durably.
    /// The former one is kept; its new path is returned. Nothing is ever without a file.
    ///
    /// # Errors
    /// `Io`; the former file is in its place then, or the new one is.
    pub fn replace(&self, dir: &Path, shard: ShardId) -> Result<PathBuf> {
        let (path, new) = (shard_path(dir, shard), replacement_path(dir, shard));
        let context = |e| Error::io("replacing a damaged WAL file", e).with_path(&path);
        let mut number = 1;
        let aside = loop {
            let aside = path.with_extension(format!("wal.damaged-{number}"));
            match fs::hard_link(&path, &aside) {
                Ok(()) => break aside,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(context(e)),
            }
        };
        let sync_dir = || File::open(dir).and_then(|dir| dir.sync_all());
        sync_dir().map_err(context)?;
        fs::rename(&new, &path).map_err(context)?;
        sync_dir().map_err(context)?;
        Ok(aside)
    }
}

fn replacement_path(dir: &Path, shard: ShardId) -> PathBuf {
    shard_path(dir, shard).with_extension("wal.new")
}
