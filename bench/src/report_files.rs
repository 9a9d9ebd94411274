//! The files that reports go to: opened before anything is measured, and gone again if nothing was.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Files that were not there before; they go with this unless they are kept.
#[derive(Default)]
pub(crate) struct NewFiles(Vec<PathBuf>);

impl NewFiles {
    /// Sees to it that all can be written: better now than after hours.
    pub(crate) fn claim<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<Self> {
        let mut new = Self::default();
        for path in paths {
            let is_new = open(path).with_context(|| format!("opening {}", path.display()))?;
            if is_new {
                new.0.push(path.clone());
            }
        }
        Ok(new)
    }

    /// There is something to write.
    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            // An empty file in the way is not worth an error.
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether it was not there before.
fn open(path: &Path) -> std::io::Result<bool> {
    if File::create_new(path).is_ok() {
        return Ok(true);
    }
    // It is there, or is a link to what is not; why it cannot be opened is told by this.
    File::options().create(true).append(true).open(path)?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_files_go_and_only_if_they_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("old"), "of yesterday").unwrap();
        let paths = [path("old"), path("new")];
        drop(NewFiles::claim(&paths).unwrap());
        assert!(!path("new").exists());
        let nowhere = path("none").join("r.json");
        assert!(NewFiles::claim([&path("new"), &nowhere]).is_err());
        assert!(!path("new").exists());
        NewFiles::claim(&paths).unwrap().keep();
        assert!(path("new").exists());
        assert_eq!(fs::read_to_string(path("old")).unwrap(), "of yesterday");
    }
}
