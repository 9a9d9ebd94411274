//! CRC32C of blocks.

/// CRC32C (Castagnoli, RFC 3720 appendix B.4) of a block. For pieces of 4 KiB and more it takes
/// half the time of the `crc32c` crate where the CPU multiplies carry-less in wide registers, and
/// every block is summed at least twice on its way (docs/internals/performance.md).
#[inline]
pub fn crc32c(block: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(block)
}

#[cfg(test)]
mod tests {
    /// The check value of RFC 3720, and agreement with the other implementation at every length.
    #[test]
    fn it_is_the_crc_of_the_headers_too() {
        assert_eq!(super::crc32c(b"123456789"), 0xE306_9283);
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(9000).collect();
        for len in (0..600).chain([4095, 4096, 4097, 8192, 9000]) {
            assert_eq!(super::crc32c(&bytes[..len]), crc32c::crc32c(&bytes[..len]));
        }
    }
}
