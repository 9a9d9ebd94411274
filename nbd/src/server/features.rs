//! Which options beyond the plain protocol a server offers.

/// Smallest DF limit that the protocol allows, in bytes.
const DF_BYTES_MIN: u32 = 64 << 10;

/// What the embedding program offers. The default is nothing: options that are not offered get
/// UNSUP, as any unknown one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// STRUCTURED_REPLY: the driver answers READ with [`ReadReply`](crate::ReadReply).
    pub structured_replies: bool,
    /// EXTENDED_HEADERS: the driver reads [`Request`](crate::Request)s of 32 bytes and answers
    /// everything in chunks.
    pub extended_headers: bool,
    /// LIST_META_CONTEXT and SET_META_CONTEXT: the directory names contexts, the driver serves
    /// BLOCK_STATUS.
    pub meta_contexts: bool,
    /// With extended headers, BLOCK_STATUS may name the contexts that it is about.
    pub block_status_payload: bool,
    /// Longest READ with the DF flag, in bytes; a longer one is EOVERFLOW. The protocol asks for
    /// 64 KiB at least, which is what less is taken for.
    pub df_bytes_max: u32,
}

impl Features {
    /// Everything, DF up to 1 MiB.
    pub const ALL: Self = Self {
        structured_replies: true,
        extended_headers: true,
        meta_contexts: true,
        block_status_payload: true,
        df_bytes_max: 1 << 20,
    };

    /// The limit that holds.
    pub(crate) fn df_bytes(&self) -> u32 {
        self.df_bytes_max.max(DF_BYTES_MIN)
    }
}
