//! Random places of requests: evenly spread, by Zipf's law, or by zones.

use crate::pattern::Distribution;
use crate::random::SplitMix64;

/// Draws places `0..count` of a changing `count`, which is the number of grains at which a request
/// may begin.
#[derive(Clone, Debug)]
pub(crate) enum Places {
    /// All alike.
    Even,
    /// By Zipf's law over all places.
    Zipf(Zipf),
    /// By zones, in the order of the area.
    Zoned(Vec<Zone>),
}

/// A part of the area.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zone {
    /// Requests of this zone and of those before it, in percent.
    requests_until: u64,
    /// Begin and end in percent of the area.
    from: u64,
    to: u64,
}

impl Places {
    /// Places by `distribution` among at most `count`.
    pub(crate) fn new(distribution: &Distribution, count: u64) -> Self {
        match distribution {
            Distribution::Random => Self::Even,
            Distribution::Zipf(theta) => Self::Zipf(Zipf::new(*theta, count)),
            Distribution::Zoned(zones) => {
                let (mut requests_until, mut to) = (0, 0);
                let zone = |&(requests, area): &(u8, u8)| {
                    requests_until += u64::from(requests);
                    let from = to;
                    to += u64::from(area);
                    Zone {
                        requests_until,
                        from,
                        to,
                    }
                };
                Self::Zoned(zones.iter().map(zone).collect())
            }
        }
    }

    /// A place below `count`.
    #[inline]
    pub(crate) fn pick(&self, random: &mut SplitMix64, count: u64) -> u64 {
        match self {
            Self::Even => random.below(count),
            // A longer request that would end behind the area moves to its end.
            Self::Zipf(zipf) => zipf.place(random).min(count - 1),
            Self::Zoned(zones) => {
                let share = random.below(100);
                let zone = zones.iter().find(|zone| share < zone.requests_until);
                let zone = zone.expect("the shares are 100 percent together");
                let at = |percent: u64| (u128::from(count) * u128::from(percent) / 100) as u64;
                let (from, to) = (at(zone.from), at(zone.to));
                // A zone smaller than one place still has its first.
                (from + random.below((to - from).max(1))).min(count - 1)
            }
        }
    }
}

/// Ranks by Zipf's law, drawn by rejection-inversion (Hörmann and Derflinger, 1996): a few
/// operations a draw, no tables. Ranks are spread over the places by a multiplication.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    theta: f64,
    count: u64,
    /// Values of the integral of the density at the first and last rank.
    first: f64,
    last: f64,
    /// Draws this close below a rank need no second look.
    sure: f64,
    /// Coprime to `count`.
    factor: u64,
}

impl Zipf {
    fn new(theta: f64, count: u64) -> Self {
        let mut zipf = Self {
            theta,
            count,
            first: 0.0,
            last: 0.0,
            sure: 0.0,
            factor: coprime(count),
        };
        zipf.first = zipf.integral(1.5) - 1.0;
        zipf.last = zipf.integral(count as f64 + 0.5);
        zipf.sure = 2.0 - zipf.inverse(zipf.integral(2.5) - 2f64.powf(-theta));
        zipf
    }

    /// Integral of x^-θ, zero at 1.
    fn integral(&self, x: f64) -> f64 {
        let power = 1.0 - self.theta;
        if power.abs() < 1e-9 {
            x.ln()
        } else {
            (x.powf(power) - 1.0) / power
        }
    }

    fn inverse(&self, y: f64) -> f64 {
        let power = 1.0 - self.theta;
        if power.abs() < 1e-9 {
            y.exp()
        } else {
            (1.0 + y * power).max(0.0).powf(power.recip())
        }
    }

    /// A rank from 1.
    fn rank(&self, random: &mut SplitMix64) -> u64 {
        loop {
            let u = self.last + random.unit() * (self.first - self.last);
            let x = self.inverse(u);
            let rank = x.round().clamp(1.0, self.count as f64);
            let surely = rank - x <= self.sure;
            if surely || u >= self.integral(rank + 0.5) - rank.powf(-self.theta) {
                return rank as u64;
            }
        }
    }

    fn place(&self, random: &mut SplitMix64) -> u64 {
        let rank = self.rank(random) - 1;
        (u128::from(rank) * u128::from(self.factor) % u128::from(self.count)) as u64
    }
}

/// A number near the golden section of `count` that has no divisor in common with it.
fn coprime(count: u64) -> u64 {
    let golden = (count as f64 * 0.618_033_988_749_895) as u64;
    let divides = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a > 1
    };
    (golden.max(1)..)
        .find(|&factor| !divides(factor, count))
        .expect("there are larger primes")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Shares of the ranks 1, 2, … as drawn.
    fn shares(theta: f64, count: u64, draws: u32) -> Vec<f64> {
        let zipf = Zipf::new(theta, count);
        let mut random = SplitMix64::of(&[7]);
        let mut seen = vec![0u32; count as usize];
        for _ in 0..draws {
            seen[zipf.rank(&mut random) as usize - 1] += 1;
        }
        seen.iter()
            .map(|&n| f64::from(n) / f64::from(draws))
            .collect()
    }

    #[test]
    fn ranks_follow_zipfs_law() {
        for theta in [0.5, 0.99, 1.0, 1.2, 2.5] {
            let drawn = shares(theta, 1000, 200_000);
            let norm: f64 = (1..=1000).map(|k| f64::from(k).powf(-theta)).sum();
            for rank in [1usize, 2, 3, 10, 100] {
                let expected = (rank as f64).powf(-theta) / norm;
                let error = (drawn[rank - 1] - expected).abs();
                assert!(
                    error < 0.003 + expected * 0.03,
                    "θ {theta}, rank {rank}: {} and not {expected}",
                    drawn[rank - 1]
                );
            }
        }
    }

    #[test]
    fn every_rank_has_its_own_place() {
        for count in [1, 2, 10, 997, 1000, 4096] {
            let zipf = Zipf::new(1.1, count);
            let place = |rank| u128::from(rank) * u128::from(zipf.factor) % u128::from(count);
            let places: BTreeSet<_> = (0..count).map(place).collect();
            assert_eq!(places.len() as u64, count);
        }
    }

    #[test]
    fn hot_and_cold_zones_get_their_shares() {
        let zones: Distribution = "zoned:90/10:10/90".parse().unwrap();
        let places = Places::new(&zones, 1000);
        let mut random = SplitMix64::of(&[3]);
        let draws = 20_000;
        let hot = (0..draws)
            .filter(|_| places.pick(&mut random, 1000) < 100)
            .count();
        assert!(hot.abs_diff(18_000) < 300, "{hot} of {draws} are hot");
        for count in [1, 2, 3] {
            assert!(places.pick(&mut random, count) < count);
        }
    }

    #[test]
    fn places_stay_below_the_count_of_longer_requests() {
        let places = Places::new(&Distribution::Zipf(0.8), 1000);
        let mut random = SplitMix64::of(&[9]);
        assert!((0..5000).all(|_| places.pick(&mut random, 900) < 900));
    }
}
