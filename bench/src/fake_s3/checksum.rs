//! CRC32C as S3 writes it: big endian in base64.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The value of `x-amz-checksum-crc32c` for a body.
pub fn checksum_header(body: &[u8]) -> String {
    base64_of(crc32c::crc32c(body))
}

/// The value of `x-amz-checksum-crc32c` for `crc`.
pub(crate) fn base64_of(crc: u32) -> String {
    let mut text = String::with_capacity(8);
    for group in crc.to_be_bytes().chunks(3) {
        let mut bits = [0; 3];
        bits[..group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes([0, bits[0], bits[1], bits[2]]);
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) & 0x3f;
            let filler = place > group.len();
            text.push(if filler {
                '='
            } else {
                char::from(ALPHABET[index as usize])
            });
        }
    }
    text
}

/// An ETag that depends on content alone: CRCs of the whole and of its second half, and the length.
/// (S3's own is opaque, too.)
pub(crate) fn etag_of(body: &[u8], crc: u32) -> String {
    let half = crc32c::crc32c(&body[body.len() / 2..]);
    format!("{crc:08x}{half:08x}{:016x}", body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_check_value() {
        let crc = crc32c::crc32c(b"123456789");
        assert_eq!(crc, 0xe306_9283);
        assert_eq!(checksum_header(b"123456789"), "4waSgw==");
        assert_eq!(base64_of(0), "AAAAAA==");
    }

    #[test]
    fn an_etag_tells_contents_apart() {
        let tag = |body: &[u8]| etag_of(body, crc32c::crc32c(body));
        assert_eq!(tag(b"ab"), tag(b"ab"));
        assert_ne!(tag(b"ab"), tag(b"ba"));
        assert_eq!(tag(b"").len(), 32);
    }
}
