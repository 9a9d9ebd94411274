//! The engine's error: a small stable kind, the context that an operator needs, and the source.

use std::fmt;
use std::path::PathBuf;

use crate::block::ShardId;
use crate::identity::VolumeId;

/// What went wrong, in the classes on which callers decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A name or object exists already.
    AlreadyExists,
    /// In use: clients are connected, or another process holds it.
    Busy,
    /// Bytes that fail their checksum or break an invariant of the format.
    Corrupt,
    /// Another writer owns the volume now.
    Fenced,
    /// No space, for good until somebody makes room.
    Full,
    /// The caller asked for something that makes no sense.
    Invalid,
    /// The operating system or a device failed.
    Io,
    /// Not there.
    NotFound,
    /// The volume may only be read.
    ReadOnly,
    /// May succeed when tried again.
    Transient,
}

/// An error with its context. Build with [`Error::new`] and the `with_*` methods.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    volume: Option<VolumeId>,
    shard: Option<ShardId>,
    offset: Option<u64>,
    path: Option<PathBuf>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result with the engine's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind`; `message` says what was tried and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            volume: None,
            shard: None,
            offset: None,
            path: None,
            source: None,
        }))
    }

    /// An I/O error of `operation`; ENOSPC and EDQUOT become [`ErrorKind::Full`].
    pub fn io(operation: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Os;
        let kind = match source.kind() {
            Os::StorageFull | Os::QuotaExceeded | Os::FileTooLarge => ErrorKind::Full,
            Os::NotFound => ErrorKind::NotFound,
            Os::AlreadyExists => ErrorKind::AlreadyExists,
            _ => ErrorKind::Io,
        };
        Self::new(kind, operation).with_source(source)
    }

    /// Shorthand for [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Shorthand for [`ErrorKind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Names the volume.
    pub fn with_volume(mut self, volume: VolumeId) -> Self {
        self.0.volume = Some(volume);
        self
    }

    /// Names the shard.
    pub fn with_shard(mut self, shard: ShardId) -> Self {
        self.0.shard = Some(shard);
        self
    }

    /// Names the byte offset within the file or object.
    pub fn with_offset(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    /// Names the file or object.
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    /// Keeps the cause.
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The stable class.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        f.write_str(&inner.message)?;
        if let Some(path) = &inner.path {
            write!(f, " [{}]", path.display())?;
        }
        if let Some(volume) = inner.volume {
            write!(f, " (volume {volume})")?;
        }
        if let Some(shard) = inner.shard {
            write!(f, " (shard {shard})")?;
        }
        if let Some(offset) = inner.offset {
            write!(f, " at byte {offset}")?;
        }
        if let Some(source) = &inner.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|s| s as &(dyn std::error::Error + 'static))
    }
}
