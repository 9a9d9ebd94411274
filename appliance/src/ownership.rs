//! Which of the backend's volumes a start opens for writing, and which it leaves to others.
//!
//! On an empty data directory all are taken over (this appliance takes the place of a lost one);
//! that decision holds until a start has carried it out. Afterwards only own volumes are opened, so
//! that two appliances on one backend do not steal volumes from each other at each restart.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use taipan_engine::error::{Error, Result};
use taipan_engine::registry::LocalHeads;

use crate::config::VolumesOpen;

/// A start takes over every volume and has not finished yet.
const TAKING_ALL: &str = "taking-all";
/// A start has decided before: the data directory is not empty, even without any volume.
const SETTLED: &str = "settled";

/// The decision of one start.
#[derive(Debug)]
pub struct Ownership {
    dir: PathBuf,
    /// Take over every volume, whoever owns it.
    pub takes_all: bool,
}

impl Ownership {
    /// Decides, durably: a start that is killed half way is repeated with the same decision.
    /// `dir` is that of the local head records.
    pub fn decide(wish: VolumesOpen, dir: &Path, heads: &LocalHeads) -> Result<Self> {
        let is_empty = !has(dir, SETTLED) && heads.load_all()?.is_empty();
        let takes_all = match wish {
            VolumesOpen::All => true,
            VolumesOpen::Own => false,
            VolumesOpen::Auto => has(dir, TAKING_ALL) || is_empty,
        };
        if wish == VolumesOpen::Auto && takes_all {
            mark(dir, TAKING_ALL)?;
        }
        let dir = dir.to_owned();
        Ok(Self { dir, takes_all })
    }

    /// The backend's volumes were listed and each was opened or refused: from now on only own
    /// volumes are opened.
    pub fn settle(&mut self) -> Result<()> {
        if !has(&self.dir, SETTLED) {
            mark(&self.dir, SETTLED)?;
        }
        self.takes_all = false;
        let taking = self.dir.join(TAKING_ALL);
        match fs::remove_file(&taking) {
            Ok(()) => sync(&self.dir),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("removing", e).with_path(taking)),
        }
    }
}

fn has(dir: &Path, name: &str) -> bool {
    dir.join(name).exists()
}

fn mark(dir: &Path, name: &str) -> Result<()> {
    let path = dir.join(name);
    File::create(&path)
        .and_then(|file| file.sync_all())
        .map_err(|e| Error::io("noting how volumes are opened", e).with_path(path))?;
    sync(dir)
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io("syncing directory", e).with_path(dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use taipan_engine::identity::VolumeId;
    use taipan_engine::registry::LocalHead;
    use taipan_engine::volume::{VolumeName, VolumeSettings};

    fn decide(wish: VolumesOpen, dir: &Path) -> Ownership {
        let heads = LocalHeads::open(dir).unwrap();
        Ownership::decide(wish, dir, &heads).unwrap()
    }

    fn save_a_record(dir: &Path) {
        let name = VolumeName::parse("v").unwrap();
        let head = LocalHead::named(VolumeId(1), name, VolumeSettings::with_size(512));
        LocalHeads::open(dir).unwrap().save(&head).unwrap();
    }

    #[test]
    fn an_empty_directory_takes_all_until_a_start_has_done_it() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("volumes");
        assert!(decide(VolumesOpen::Auto, &dir).takes_all);
        // Killed half way: some volumes were taken over already.
        save_a_record(&dir);
        let mut again = decide(VolumesOpen::Auto, &dir);
        assert!(again.takes_all);
        again.settle().unwrap();
        assert!(!again.takes_all && !decide(VolumesOpen::Auto, &dir).takes_all);
    }

    #[test]
    fn an_appliance_without_volumes_takes_none_when_it_is_started_again() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("volumes");
        decide(VolumesOpen::Auto, &dir).settle().unwrap();
        assert!(!decide(VolumesOpen::Auto, &dir).takes_all);
    }

    #[test]
    fn records_of_an_earlier_version_count_as_settled() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("volumes");
        fs::create_dir(&dir).unwrap();
        save_a_record(&dir);
        assert!(!decide(VolumesOpen::Auto, &dir).takes_all);
        assert!(decide(VolumesOpen::All, &dir).takes_all);
    }

    #[test]
    fn own_never_takes_any() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("volumes");
        assert!(!decide(VolumesOpen::Own, &dir).takes_all);
    }
}
