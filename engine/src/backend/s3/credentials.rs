//! The keys of a bucket: from a file, a systemd credential, or the environment.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Permission bits that let others than the owner in.
const OTHERS: u32 = 0o077;

/// An access key with its secret. Prints neither the secret nor the token.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) access_key: String,
    pub(super) secret: String,
    pub(super) session_token: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(not shown)")
    }
}

impl Keys {
    /// Looks in the named file only, else in the systemd credential `s3`, else in the environment.
    /// `variable` reads an environment variable. Nothing is asked over the network.
    pub(super) fn find(
        file: Option<&Path>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self> {
        if let Some(file) = KeyFile::find(file, &variable) {
            return file.read();
        }
        let text = |name: &str| match variable(name).map(OsString::into_string) {
            Some(Ok(text)) if !text.is_empty() => Ok(Some(text)),
            Some(Err(_)) => Err(Error::invalid(format!("{name} is not UTF-8"))),
            _ => Ok(None),
        };
        let (access_key, secret) = (text("AWS_ACCESS_KEY_ID")?, text("AWS_SECRET_ACCESS_KEY")?);
        match (access_key, secret) {
            (Some(access_key), Some(secret)) => Ok(Self {
                access_key,
                secret,
                session_token: text("AWS_SESSION_TOKEN")?,
            }),
            (Some(_), None) => Err(Error::invalid(
                "AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not",
            )),
            (None, Some(_)) => Err(Error::invalid(
                "AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not",
            )),
            (None, None) => Err(Error::invalid(
                "no keys for the bucket: name a file with ?credentials_file=…, or give the systemd \
                 credential 's3', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )),
        }
    }

    fn read_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io("reading the keys of the bucket", e).with_path(path))?;
        Self::parse(&text).map_err(|why| Error::invalid(why).with_path(path))
    }

    /// Reads `name = value` lines; comments, empty lines and one `[section]` are left out.
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let (mut access_key, mut secret, mut session_token) = (None, None, None);
        let mut sections = 0;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with('[') {
                sections += 1;
                if sections > 1 {
                    return Err("keys of the bucket: more than one section".to_owned());
                }
                continue;
            }
            let number = index + 1;
            // The line is not repeated: it may be a secret without its name.
            let (name, value) = line
                .split_once('=')
                .ok_or_else(|| format!("keys of the bucket: line {number} is not name = value"))?;
            let (name, value) = (name.trim(), value.trim());
            let slot = match name {
                "aws_access_key_id" => &mut access_key,
                "aws_secret_access_key" => &mut secret,
                "aws_session_token" => &mut session_token,
                _ => continue,
            };
            if value.is_empty() || slot.replace(value.to_owned()).is_some() {
                return Err(format!(
                    "keys of the bucket: {name} is empty or there twice"
                ));
            }
        }
        let missing = |name: &str| format!("keys of the bucket: {name} is missing");
        Ok(Self {
            access_key: access_key.ok_or_else(|| missing("aws_access_key_id"))?,
            secret: secret.ok_or_else(|| missing("aws_secret_access_key"))?,
            session_token,
        })
    }
}

/// A file of keys.
#[derive(Clone, Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    /// Others must not be able to read it.
    is_private: bool,
}

impl KeyFile {
    /// The named file, else the systemd credential `s3` if there is one.
    pub(super) fn find(
        file: Option<&Path>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Option<Self> {
        if let Some(path) = file {
            return Some(Self {
                path: path.to_owned(),
                is_private: true,
            });
        }
        // Its permissions are systemd's business: it may let the unit's user in by an ACL.
        let path = PathBuf::from(variable("CREDENTIALS_DIRECTORY")?).join("s3");
        path.exists().then_some(Self {
            path,
            is_private: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read(&self) -> Result<Keys> {
        if self.is_private {
            refuse_readable_by_others(&self.path)?;
        }
        Keys::read_file(&self.path)
    }
}

fn refuse_readable_by_others(path: &Path) -> Result<()> {
    let metadata = std::fs::metadata(path)
        .map_err(|e| Error::io("reading the keys of the bucket", e).with_path(path))?;
    if metadata.mode() & OTHERS != 0 {
        let mode = metadata.mode() & 0o777;
        let message = format!(
            "the keys of the bucket have mode {mode:03o}: others could read them; chmod 600"
        );
        return Err(Error::invalid(message).with_path(path));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FILE: &str = "# keys\n[default]\naws_access_key_id = AK\naws_secret_access_key=SE=CRET\n";

    fn nothing(_: &str) -> Option<OsString> {
        None
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_wins_over_the_credential_and_that_over_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        write(&file, FILE, 0o600);
        write(&folder.path().join("s3"), &FILE.replace("AK", "BK"), 0o440);
        let directory = folder.path().as_os_str().to_owned();
        let everything = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => Some(directory.clone()),
            "AWS_ACCESS_KEY_ID" => Some("CK".into()),
            "AWS_SECRET_ACCESS_KEY" => Some("S".into()),
            "AWS_SESSION_TOKEN" => Some("T".into()),
            _ => None,
        };
        let found = Keys::find(Some(&file), everything).unwrap();
        assert_eq!((&*found.access_key, &*found.secret), ("AK", "SE=CRET"));
        assert_eq!(Keys::find(None, everything).unwrap().access_key, "BK");
        let environment = |name: &str| everything(name).filter(|_| name.starts_with("AWS"));
        let found = Keys::find(None, environment).unwrap();
        assert_eq!(found.access_key, "CK");
        assert_eq!(found.session_token.as_deref(), Some("T"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let none = Keys::find(None, nothing).unwrap_err().to_string();
        assert!(
            none.contains("credentials_file") && none.contains("AWS_ACCESS_KEY_ID"),
            "{none}"
        );
        let half = |name: &str| (name == "AWS_ACCESS_KEY_ID").then(|| "a".into());
        let error = Keys::find(None, half).unwrap_err().to_string();
        assert!(error.contains("AWS_SECRET_ACCESS_KEY is not"), "{error}");
        let gone = Keys::find(Some(Path::new("/nonexistent/keys")), nothing).unwrap_err();
        assert!(gone.to_string().contains("/nonexistent/keys"), "{gone}");
        for (text, why) in [
            ("aws_access_key_id=a\n", "aws_secret_access_key is missing"),
            ("aws_secret_access_key=a\n", "aws_access_key_id is missing"),
            ("hunter2\n", "line 1"),
            ("[a]\n[b]\n", "section"),
            ("aws_access_key_id=a\naws_access_key_id=b\n", "twice"),
        ] {
            let error = Keys::parse(text).unwrap_err();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        for mode in [0o640, 0o604, 0o620] {
            write(&file, FILE, mode);
            let error = Keys::find(Some(&file), nothing).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn debug_prints_no_secret() {
        let keys = Keys::parse(FILE).unwrap();
        let shown = format!("{keys:?}");
        assert!(!shown.contains("CRET") && !shown.contains("AK"), "{shown}");
    }
}
