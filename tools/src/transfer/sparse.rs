//! Finds the zeros in what is copied, so that holes stay holes.

use std::ops::Range;

/// Smallest run of zeros that is told apart, in bytes.
pub(crate) const GRAIN_BYTES: usize = 4096;
/// Largest grain: the largest minimum block size of an NBD server.
pub(crate) const GRAIN_BYTES_MAX: usize = 65536;

/// Zeros to compare with; comparing is a `memcmp`, much faster than a look at every byte.
static ZEROS: [u8; GRAIN_BYTES_MAX] = [0; GRAIN_BYTES_MAX];

/// A stretch of bytes that is all zeros, or none of whose grains is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where it lies within the piece.
    pub(crate) range: Range<usize>,
    /// All zeros?
    pub(crate) zero: bool,
}

/// Cuts `data` into alternating runs of data and zeros. Inner borders are multiples of `grain`,
/// a power of two up to [`GRAIN_BYTES_MAX`].
pub(crate) fn runs(data: &[u8], grain: usize) -> impl Iterator<Item = Run> {
    assert!(grain.is_power_of_two() && grain <= GRAIN_BYTES_MAX);
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let zero = is_zero(grain_at(data, at, grain)?);
        while let Some(bytes) = grain_at(data, at, grain) {
            if is_zero(bytes) != zero {
                break;
            }
            at += bytes.len();
        }
        let range = start..at;
        Some(Run { range, zero })
    })
}

/// The grain that begins at `at`; the last one may be short, beyond it there is none.
fn grain_at(data: &[u8], at: usize, grain: usize) -> Option<&[u8]> {
    let rest = data.get(at..)?;
    (!rest.is_empty()).then(|| &rest[..grain.min(rest.len())])
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first byte decides nearly always.
    bytes.first().is_none_or(|b| *b == 0) && bytes == &ZEROS[..bytes.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_alternate_and_cover_everything() {
        let mut data = vec![0; 10 * 4096 + 100];
        data[2 * 4096 + 4095] = 1;
        data[3 * 4096] = 1;
        data[10 * 4096 + 99] = 1;
        let found: Vec<(usize, usize, bool)> = runs(&data, 4096)
            .map(|r| (r.range.start, r.range.end, r.zero))
            .collect();
        assert_eq!(
            found,
            [
                (0, 8192, true),
                (8192, 16384, false),
                (16384, 40960, true),
                (40960, 41060, false)
            ]
        );
    }

    #[test]
    fn edges() {
        assert_eq!(runs(&[], 4096).count(), 0);
        let all: Vec<Run> = runs(&[0; 70000], 65536).collect();
        let whole = Run {
            range: 0..70000,
            zero: true,
        };
        assert_eq!(all, [whole]);
        assert!(runs(&[7], 4096).all(|r| !r.zero && r.range == (0..1)));
    }
}
