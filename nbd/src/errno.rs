//! The errors of the transmission phase, and how those of the operating system become them.

/// An error as a reply carries it. Discriminants are the numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: the export is read-only.
    Perm = 1,
    /// The medium failed.
    Io = 5,
    /// Out of memory.
    NoMem = 12,
    /// The request makes no sense, or was not negotiated.
    Inval = 22,
    /// No space: full, or a write beyond the end.
    NoSpc = 28,
    /// Too large to answer in one piece.
    Overflow = 75,
    /// Cannot be done fast; the answer to FAST_ZERO only.
    NotSup = 95,
    /// The server is going away for good.
    Shutdown = 108,
}

impl Errno {
    /// All of them, by rising number.
    pub const ALL: [Self; 8] = [
        Self::Perm,
        Self::Io,
        Self::NoMem,
        Self::Inval,
        Self::NoSpc,
        Self::Overflow,
        Self::NotSup,
        Self::Shutdown,
    ];

    /// The number in a reply.
    #[inline]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The error of a reply's number: `None` for 0 (success); a number that the protocol does not
    /// know is to be treated as EINVAL.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::Perm),
            5 => Some(Self::Io),
            12 => Some(Self::NoMem),
            28 => Some(Self::NoSpc),
            75 => Some(Self::Overflow),
            95 => Some(Self::NotSup),
            108 => Some(Self::Shutdown),
            _ => Some(Self::Inval),
        }
    }

    /// The protocol's error for a Linux `errno`. Everything without a place of its own is
    /// [`Errno::Io`]: a peer that sees an unknown failure must not believe the data safe.
    pub fn from_os(errno: i32) -> Self {
        match errno {
            // EPERM, EACCES, EROFS
            1 | 13 | 30 => Self::Perm,
            // ENOMEM
            12 => Self::NoMem,
            // EINVAL
            22 => Self::Inval,
            // EFBIG, ENOSPC, EDQUOT
            27 | 28 | 122 => Self::NoSpc,
            // EOVERFLOW
            75 => Self::Overflow,
            // EOPNOTSUPP
            95 => Self::NotSup,
            // ESHUTDOWN
            108 => Self::Shutdown,
            _ => Self::Io,
        }
    }

    /// The name that the protocol's text gives it, without the `NBD_` prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Perm => "EPERM",
            Self::Io => "EIO",
            Self::NoMem => "ENOMEM",
            Self::Inval => "EINVAL",
            Self::NoSpc => "ENOSPC",
            Self::Overflow => "EOVERFLOW",
            Self::NotSup => "ENOTSUP",
            Self::Shutdown => "ESHUTDOWN",
        }
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_unknown_ones_are_einval() {
        for errno in Errno::ALL {
            assert_eq!(Errno::from_code(errno.code()), Some(errno));
        }
        assert_eq!(Errno::from_code(0), None);
        assert_eq!(Errno::from_code(2), Some(Errno::Inval));
        assert_eq!(Errno::from_code(u32::MAX), Some(Errno::Inval));
    }

    #[test]
    fn the_systems_errors_find_their_place() {
        for (os, errno) in [
            (1, Errno::Perm),
            (30, Errno::Perm),
            (5, Errno::Io),
            (12, Errno::NoMem),
            (22, Errno::Inval),
            (27, Errno::NoSpc),
            (28, Errno::NoSpc),
            (122, Errno::NoSpc),
            (75, Errno::Overflow),
            (95, Errno::NotSup),
            (108, Errno::Shutdown),
            (110, Errno::Io),
            (0, Errno::Io),
            (-1, Errno::Io),
        ] {
            assert_eq!(Errno::from_os(os), errno, "errno {os}");
        }
    }
}
