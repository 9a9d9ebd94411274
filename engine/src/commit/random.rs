//! Seeded randomness for object names, salts and jitter: the same seed gives the same run.

/// xoshiro256++ (Blackman and Vigna, public domain). Production seeds it from the operating system;
/// a simulator must give each incarnation its own seed, because names must not repeat.
#[derive(Clone, Debug)]
pub struct Random([u64; 4]);

impl Random {
    /// A source with this seed.
    pub fn new(seed: [u64; 4]) -> Self {
        // The all-zero state is the one that never leaves itself.
        Self(if seed == [0; 4] { [1; 4] } else { seed })
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Sixteen random bytes.
    pub fn salt(&mut self) -> [u8; 16] {
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&self.next_u64().to_le_bytes());
        salt[8..].copy_from_slice(&self.next_u64().to_le_bytes());
        salt
    }

    /// A number between half of `value` and `value`.
    pub fn jittered(&mut self, value: u64) -> u64 {
        let half = value / 2;
        half + self.next_u64() % (value - half + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_repeats_and_others_differ() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            [random.next_u64(), random.next_u64(), random.next_u64()]
        };
        assert_eq!(draw([1, 2, 3, 4]), draw([1, 2, 3, 4]));
        assert_ne!(draw([1, 2, 3, 4]), draw([1, 2, 3, 5]));
        assert_ne!(draw([0; 4])[0], draw([0; 4])[1]);
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let mut random = Random::new([7; 4]);
        for value in [0, 1, 2, 3, 100, u64::from(u32::MAX)] {
            for _ in 0..100 {
                assert!((value / 2..=value).contains(&random.jittered(value)));
            }
        }
    }
}
