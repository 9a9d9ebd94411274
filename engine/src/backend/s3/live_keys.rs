//! The keys of a bucket as its requests use them: a file of them is read again when it has changed,
//! so that they can be replaced while requests are made.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, future};

use super::credentials::{KeyFile, Keys};
use crate::error::Result;

/// A file is looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The keys of a bucket. Prints none of them.
pub(super) struct LiveKeys {
    /// None: they are from the environment, which stays.
    file: Option<KeyFile>,
    known: Mutex<Known>,
    look_every: Duration,
}

struct Known {
    keys: Keys,
    credentials: Credentials,
    /// The file as it was when it was read last, or could not be.
    stamp: Option<Stamp>,
    looked: Instant,
}

/// What changes with a file: inode, bytes, and the time of its last change in whole seconds and
/// nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self(
            found.ino(),
            found.len(),
            found.ctime(),
            found.ctime_nsec(),
        ))
    }
}

impl fmt::Debug for LiveKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveKeys(not shown)")
    }
}

impl LiveKeys {
    /// Reads the keys where [`Keys::find`] looks for them.
    pub(super) fn find(
        file: Option<&Path>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self> {
        let source = KeyFile::find(file, &variable);
        // Before the file is read: a change meanwhile is seen at the next look.
        let stamp = source.as_ref().and_then(|file| Stamp::of(file.path()));
        let keys = Keys::find(file, variable)?;
        Ok(Self {
            file: source,
            known: Mutex::new(Known {
                credentials: credentials_of(&keys),
                keys,
                stamp,
                looked: Instant::now(),
            }),
            look_every: LOOK_EVERY,
        })
    }

    /// The keys now.
    pub(super) fn current(&self) -> Credentials {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file
            && known.looked.elapsed() >= self.look_every
        {
            known.looked = Instant::now();
            known.look_at(file);
        }
        known.credentials.clone()
    }
}

impl Known {
    /// Reads a file that has changed. One that is of no use changes nothing: it may be half
    /// written, and what was valid may still be.
    fn look_at(&mut self, file: &KeyFile) {
        let stamp = Stamp::of(file.path());
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        match file.read() {
            Ok(keys) if keys == self.keys => {}
            Ok(keys) => {
                tracing::info!(
                    file = %file.path().display(),
                    "the keys of the bucket have changed: requests use the new ones"
                );
                self.credentials = credentials_of(&keys);
                self.keys = keys;
            }
            Err(error) => tracing::warn!(
                %error, "the changed keys of the bucket are of no use: the former ones stay in use"
            ),
        }
    }
}

impl ProvideCredentials for LiveKeys {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Ok(self.current()))
    }
}

fn credentials_of(keys: &Keys) -> Credentials {
    let token = keys.session_token.clone();
    Credentials::new(&keys.access_key, &keys.secret, token, None, "taipan")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn write(path: &Path, access_key: &str, mode: u32) {
        let text =
            format!("aws_access_key_id={access_key}\naws_secret_access_key=s-{access_key}\n");
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::rename(&new, path).unwrap();
    }

    fn live(path: &Path, look_every: Duration) -> LiveKeys {
        let keys = LiveKeys::find(Some(path), |_| None).unwrap();
        LiveKeys { look_every, ..keys }
    }

    fn used(keys: &LiveKeys) -> (String, String) {
        let now = keys.current();
        let secret = now.secret_access_key().to_owned();
        (now.access_key_id().to_owned(), secret)
    }

    fn pair(access_key: &str) -> (String, String) {
        (access_key.to_owned(), format!("s-{access_key}"))
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_useless_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("keys");
        write(&path, "first", 0o600);
        let keys = live(&path, Duration::ZERO);
        assert_eq!(used(&keys), pair("first"));
        write(&path, "other", 0o600);
        assert_eq!(used(&keys), pair("other"));
        write(&path, "third", 0o644);
        assert_eq!(used(&keys), pair("other"), "others can read it");
        std::fs::write(&path, "half of").unwrap();
        assert_eq!(used(&keys), pair("other"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(used(&keys), pair("other"));
        write(&path, "fourth", 0o600);
        assert_eq!(used(&keys), pair("fourth"));
        let shown = format!("{keys:?}");
        assert!(!shown.contains("fourth"), "{shown}");
    }

    #[test]
    fn a_file_is_not_looked_at_for_every_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        write(&path, "first", 0o600);
        let keys = live(&path, Duration::from_secs(3600));
        write(&path, "other", 0o600);
        assert_eq!(used(&keys), pair("first"));
    }
}
