//! What a server says of an export, where it looks exports up, and the transmission flags.

use std::fmt;

/// Largest payload that a server advertises, in bytes: 32 MiB.
pub const PAYLOAD_BYTES_ADVERTISED: u32 = 32 << 20;
/// Largest payload that is accepted all the same, in bytes: 64 MiB. Common clients send no more.
pub const PAYLOAD_BYTES_ACCEPTED: u32 = 64 << 20;

/// The 16 flags that a server sends with the size of an export.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct TransmissionFlags(u16);

impl TransmissionFlags {
    /// No flag at all.
    pub const NONE: Self = Self(0);
    /// Always set.
    pub const HAS_FLAGS: Self = Self(1 << 0);
    /// Nothing may be written.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// FLUSH is served.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// The FUA flag is honoured.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// The medium rotates.
    pub const ROTATIONAL: Self = Self(1 << 4);
    /// TRIM is served.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// WRITE_ZEROES is served.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// The DF flag is honoured (structured replies only).
    pub const SEND_DF: Self = Self(1 << 7);
    /// Several connections see one coherent, commonly flushed export.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// CACHE is served.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// The FAST_ZERO flag is honoured.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);
    /// BLOCK_STATUS may name contexts in a payload (extended headers only).
    pub const BLOCK_STATUS_PAYLOAD: Self = Self(1 << 12);

    /// Everything that this crate's [`validate`](crate::validate) can let through.
    pub const FULL_SERVICE: Self = Self(
        Self::SEND_FLUSH.0
            | Self::SEND_FUA.0
            | Self::SEND_TRIM.0
            | Self::SEND_WRITE_ZEROES.0
            | Self::CAN_MULTI_CONN.0
            | Self::SEND_CACHE.0
            | Self::SEND_FAST_ZERO.0,
    );

    /// Flags from their bits on the wire; unknown bits are kept.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The bits on the wire.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Are all flags of `other` set?
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and those of `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These except those of `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Flag names in bit order, joined by `|`.
    fn names(self) -> impl Iterator<Item = &'static str> {
        const NAMES: [(TransmissionFlags, &str); 12] = [
            (TransmissionFlags::HAS_FLAGS, "HAS_FLAGS"),
            (TransmissionFlags::READ_ONLY, "READ_ONLY"),
            (TransmissionFlags::SEND_FLUSH, "SEND_FLUSH"),
            (TransmissionFlags::SEND_FUA, "SEND_FUA"),
            (TransmissionFlags::ROTATIONAL, "ROTATIONAL"),
            (TransmissionFlags::SEND_TRIM, "SEND_TRIM"),
            (TransmissionFlags::SEND_WRITE_ZEROES, "SEND_WRITE_ZEROES"),
            (TransmissionFlags::SEND_DF, "SEND_DF"),
            (TransmissionFlags::CAN_MULTI_CONN, "CAN_MULTI_CONN"),
            (TransmissionFlags::SEND_CACHE, "SEND_CACHE"),
            (TransmissionFlags::SEND_FAST_ZERO, "SEND_FAST_ZERO"),
            (
                TransmissionFlags::BLOCK_STATUS_PAYLOAD,
                "BLOCK_STATUS_PAYLOAD",
            ),
        ];
        NAMES
            .into_iter()
            .filter(move |(flag, _)| self.contains(*flag))
            .map(|(_, name)| name)
    }
}

impl fmt::Debug for TransmissionFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)?;
        for (index, name) in self.names().enumerate() {
            write!(f, "{}{name}", if index == 0 { " " } else { "|" })?;
        }
        Ok(())
    }
}

/// The three block sizes of an export, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Every offset and length is a multiple of this; a power of two up to 65536.
    pub minimum: u32,
    /// What is served best; a power of two, at least 512 and the minimum.
    pub preferred: u32,
    /// Largest payload of a read or write.
    pub maximum_payload: u32,
}

/// An export as the server describes it to one client. It stays as it is for the whole connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Bytes of the export.
    pub size: u64,
    /// One line for people; not sent when empty.
    pub description: String,
    /// The name that the export goes by, whatever the client called it.
    pub canonical_name: String,
    /// Refuse everything that changes content.
    pub read_only: bool,
    /// Smallest unit of offset and length in bytes, a power of two up to 65536. Above 1, requests
    /// off that grid are EINVAL and the client must ask for block sizes.
    pub min_block: u32,
    /// Unit that is served best, in bytes.
    pub preferred_block: u32,
    /// Largest payload advertised, in bytes. [`PAYLOAD_BYTES_ACCEPTED`] is what is enforced.
    pub max_payload: u32,
    /// What the export can do, out of [`TransmissionFlags::FULL_SERVICE`]. What is missing here is
    /// neither advertised nor accepted.
    pub features: TransmissionFlags,
}

impl ExportInfo {
    /// A writable export with full service, any alignment, blocks of 4 KiB preferred.
    pub fn new(canonical_name: impl Into<String>, size: u64) -> Self {
        Self {
            size,
            description: String::new(),
            canonical_name: canonical_name.into(),
            read_only: false,
            min_block: 1,
            preferred_block: 4096,
            max_payload: PAYLOAD_BYTES_ADVERTISED,
            features: TransmissionFlags::FULL_SERVICE,
        }
    }

    /// The flags that go on the wire of a plain session. Read-only exports do not offer what they
    /// would refuse, and FAST_ZERO is never offered without WRITE_ZEROES. What depends on the
    /// negotiation [`Session::transmission_flags`](crate::Session::transmission_flags) adds.
    pub fn transmission_flags(&self) -> TransmissionFlags {
        type Flags = TransmissionFlags;
        let mut features = Flags::from_bits(self.features.bits() & Flags::FULL_SERVICE.bits());
        if self.read_only {
            features = features
                .without(Flags::SEND_TRIM.with(Flags::SEND_WRITE_ZEROES))
                .with(Flags::READ_ONLY);
        }
        if !features.contains(Flags::SEND_WRITE_ZEROES) {
            features = features.without(Flags::SEND_FAST_ZERO);
        }
        features.with(Flags::HAS_FLAGS)
    }

    /// The block sizes that go on the wire.
    pub fn block_sizes(&self) -> BlockSizes {
        BlockSizes {
            minimum: self.min_block,
            preferred: self.preferred_block,
            maximum_payload: self.max_payload,
        }
    }
}

/// Why a directory gives no export, or no list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LookupError {
    /// The server's configuration forbids it; the text goes to the client.
    Policy(String),
    /// The server is shutting down.
    Shutdown,
    /// Only under TLS; the text goes to the client.
    TlsRequired(String),
    /// No export of that name.
    Unknown,
}

/// What a handshake waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The export's name as the client wrote it.
    pub export: String,
    /// A metadata context of it that the client selects; `None`: the export itself.
    pub context: Option<String>,
}

/// Where the handshake looks exports up. It is asked anew for every option, so a size is never
/// older than the GO that reports it.
pub trait ExportDirectory {
    /// Calls `visit` with name and description of every export that may be named to this client.
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError>;

    /// The export of that name; the empty name asks for a default.
    fn find(&self, name: &str) -> Result<ExportInfo, LookupError>;

    /// Whether it is still to be found out if there is an export of that name. The handshake then
    /// pauses before the option that names it: see [`Advance::awaits`](crate::Advance::awaits).
    fn awaits(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Whether something is still to be done before a client may select the metadata context of
    /// that full name, such as loading what it is told from. The handshake then pauses before the
    /// SET_META_CONTEXT that names it, as for an export. Asked only for exports that are there.
    fn awaits_context(&self, name: &str, context: &str) -> bool {
        let _ = (name, context);
        false
    }

    /// Calls `visit` with the full name of every metadata context that the export of that name
    /// has, such as [`base:allocation`](crate::protocol::context::BASE_ALLOCATION), each once, in
    /// the order in which clients shall see them. Wildcards and unknown namespaces are this crate's
    /// business. An export without contexts, which is the default, visits nothing.
    ///
    /// Asked only when [`Features::meta_contexts`](crate::Features::meta_contexts) is on.
    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        let _ = visit;
        self.find(name).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_export_offers_what_the_issue_lists() {
        let flags = ExportInfo::new("v", 1).transmission_flags();
        // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN, CACHE, FAST_ZERO.
        assert_eq!(flags.bits(), 0b1101_0110_1101, "{flags:?}");
    }

    #[test]
    fn a_read_only_export_does_not_offer_changes() {
        let info = ExportInfo {
            read_only: true,
            ..ExportInfo::new("v", 1)
        };
        let flags = info.transmission_flags();
        assert!(flags.contains(TransmissionFlags::READ_ONLY));
        for change in [
            TransmissionFlags::SEND_TRIM,
            TransmissionFlags::SEND_WRITE_ZEROES,
            TransmissionFlags::SEND_FAST_ZERO,
        ] {
            assert!(!flags.contains(change), "{change:?} in {flags:?}");
        }
        assert!(flags.contains(TransmissionFlags::CAN_MULTI_CONN));
    }

    #[test]
    fn fast_zero_needs_write_zeroes_and_foreign_bits_are_not_offered() {
        let mut info = ExportInfo::new("v", 1);
        info.features = info.features.without(TransmissionFlags::SEND_WRITE_ZEROES);
        assert!(
            !info
                .transmission_flags()
                .contains(TransmissionFlags::SEND_FAST_ZERO)
        );
        info.features = TransmissionFlags::from_bits(u16::MAX);
        let flags = info.transmission_flags();
        assert!(!flags.contains(TransmissionFlags::SEND_DF), "{flags:?}");
        assert!(!flags.contains(TransmissionFlags::READ_ONLY), "{flags:?}");
    }

    #[test]
    fn flags_read_well_in_a_log() {
        let flags = TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::SEND_TRIM);
        assert_eq!(format!("{flags:?}"), "0x0021 HAS_FLAGS|SEND_TRIM");
    }
}
