//! Kinds of workloads, sizes of requests and the places they prefer, in fio's words.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use taipan_engine::size;

use crate::random::SplitMix64;

/// Kinds of workloads, named as fio names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub(crate) enum Rw {
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Reads at random offsets
    RandRead,
    /// Writes at random offsets
    RandWrite,
    /// Sequential reads and writes, mixed by --rwmixread
    #[serde(rename = "rw")]
    #[value(name = "rw", alias = "readwrite")]
    SequentialMixed,
    /// Reads and writes at random offsets, mixed by --rwmixread
    #[serde(rename = "randrw")]
    #[value(name = "randrw")]
    Mixed,
    /// Sequential trims
    Trim,
    /// Trims at random offsets
    RandTrim,
    /// WRITE_ZEROES, sequential
    Zeroes,
    /// WRITE_ZEROES at random offsets
    RandZeroes,
}

impl Rw {
    /// Whether requests of the workload store data.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite) || self.mixed()
    }

    /// Whether requests of the workload discard data.
    pub(crate) fn trims(self) -> bool {
        matches!(self, Self::Trim | Self::RandTrim)
    }

    /// Whether requests of the workload write zeros without sending them.
    pub(crate) fn zeroes(self) -> bool {
        matches!(self, Self::Zeroes | Self::RandZeroes)
    }

    /// Whether requests carry data in one direction.
    pub(crate) fn moves_data(self) -> bool {
        !self.trims() && !self.zeroes()
    }

    /// Whether reads and writes take turns.
    pub(crate) fn mixed(self) -> bool {
        matches!(self, Self::Mixed | Self::SequentialMixed)
    }

    /// Whether offsets rise.
    pub(crate) fn sequential(self) -> bool {
        matches!(
            self,
            Self::Read | Self::Write | Self::Trim | Self::Zeroes | Self::SequentialMixed
        )
    }
}

impl fmt::Display for Rw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no kind is hidden");
        f.write_str(value.get_name())
    }
}

/// Request sizes in bytes: multiples of `min` up to `max`, evenly distributed or as weighted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestBytes {
    /// Smallest request and grain of all offsets.
    pub(crate) min: u32,
    /// Largest request.
    pub(crate) max: u32,
    /// Sizes with their shares in percent, 100 together; empty for an even distribution.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) split: Vec<(u32, u8)>,
}

/// Largest request in bytes: what NBD servers accept in practice.
pub(crate) const REQUEST_BYTES_MAX: u32 = 64 << 20;

impl RequestBytes {
    fn new(min: u64, max: u64, split: Vec<(u32, u8)>) -> Result<Self> {
        ensure!(min > 0, "a request has at least one byte");
        ensure!(min <= max, "the range starts with its smaller end");
        ensure!(
            max <= u64::from(REQUEST_BYTES_MAX),
            "requests are at most 64MiB"
        );
        Ok(Self {
            min: min as u32,
            max: max as u32,
            split,
        })
    }

    /// Reads fio's `bssplit`, `SIZE/PERCENT:SIZE/PERCENT…`; a share left out is what is left.
    pub(crate) fn from_split(text: &str) -> Result<Self> {
        let mut sizes = Vec::new();
        for part in text.split(':') {
            let (bytes, share) = part.split_once('/').unwrap_or((part, ""));
            let bytes = size::parse(bytes)?;
            ensure!(
                (1..=u64::from(REQUEST_BYTES_MAX)).contains(&bytes),
                "requests are from 1 byte to 64MiB"
            );
            let share = match share {
                "" => None,
                share => Some(percent(share)?),
            };
            sizes.push((bytes as u32, share));
        }
        let shares = fill_shares(&sizes.iter().map(|(_, share)| *share).collect::<Vec<_>>())?;
        let split: Vec<_> = sizes.iter().map(|(bytes, _)| *bytes).zip(shares).collect();
        let bytes = || split.iter().map(|(bytes, _)| *bytes);
        let (min, max) = (bytes().min(), bytes().max());
        let (min, max) = min.zip(max).context("bssplit names no size")?;
        ensure!(
            bytes().all(|bytes| bytes.is_multiple_of(min)),
            "the sizes of bssplit are multiples of the smallest, {}",
            size::exact(min.into())
        );
        Self::new(min.into(), max.into(), split)
    }

    /// The size of the next request.
    #[inline]
    pub(crate) fn pick(&self, random: &mut SplitMix64) -> u64 {
        let (min, steps) = (u64::from(self.min), u64::from(self.max / self.min));
        if steps == 1 {
            return min;
        }
        if self.split.is_empty() {
            return min * (1 + random.below(steps));
        }
        let mut left = random.below(100);
        for &(bytes, share) in &self.split {
            match left.checked_sub(share.into()) {
                Some(rest) => left = rest,
                None => return bytes.into(),
            }
        }
        self.max.into()
    }
}

/// Shares that were left out get equal parts of what is left of 100 percent.
fn fill_shares(shares: &[Option<u8>]) -> Result<Vec<u8>> {
    let known: u32 = shares.iter().flatten().map(|&share| u32::from(share)).sum();
    ensure!(known <= 100, "the shares are {known} percent together");
    let open = shares.iter().filter(|share| share.is_none()).count() as u32;
    let rest = 100 - known;
    ensure!(
        open > 0 || rest == 0,
        "the shares are {known} percent together, not 100"
    );
    let mut given = 0;
    let fill = |share: &Option<u8>| {
        share.unwrap_or_else(|| {
            given += 1;
            let part = rest * given / open - rest * (given - 1) / open;
            part as u8
        })
    };
    Ok(shares.iter().map(fill).collect())
}

fn percent(text: &str) -> Result<u8> {
    let number: u8 = text
        .trim_end_matches('%')
        .parse()
        .with_context(|| format!("{text:?} is no percentage"))?;
    ensure!(number <= 100, "{number} is more than 100 percent");
    Ok(number)
}

impl FromStr for RequestBytes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        Self::new(size::parse(min)?, size::parse(max)?, Vec::new())
    }
}

impl fmt::Display for RequestBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.split.is_empty() {
            for (index, (bytes, share)) in self.split.iter().enumerate() {
                let comma = if index == 0 { "" } else { ":" };
                write!(f, "{comma}{}/{share}", size::exact((*bytes).into()))?;
            }
            return Ok(());
        }
        f.write_str(&size::exact(self.min.into()))?;
        if self.max != self.min {
            write!(f, "-{}", size::exact(self.max.into()))?;
        }
        Ok(())
    }
}

/// Which places of the area random requests prefer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Distribution {
    /// All alike.
    #[default]
    Random,
    /// The place of rank k is asked for in proportion to 1 / k^θ; the ranks are scattered.
    Zipf(f64),
    /// Zones from the area's begin on: share of the requests and share of the area, in percent.
    Zoned(Vec<(u8, u8)>),
}

/// Largest exponent: beyond it nearly all requests go to one place.
const THETA_MAX: f64 = 10.0;

impl FromStr for Distribution {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "random" if rest.is_empty() => Ok(Self::Random),
            "zipf" => {
                let theta: f64 = rest.parse().context("zipf:THETA, such as zipf:1.2")?;
                ensure!(
                    theta > 0.0 && theta <= THETA_MAX,
                    "THETA is above 0 and at most {THETA_MAX}"
                );
                Ok(Self::Zipf(theta))
            }
            "zoned" => {
                let zone = |part: &str| -> Result<(u8, u8)> {
                    let (requests, area) = part
                        .split_once('/')
                        .context("zones are REQUESTS/AREA in percent, such as zoned:90/10:10/90")?;
                    Ok((percent(requests)?, percent(area)?))
                };
                let zones = rest.split(':').map(zone).collect::<Result<Vec<_>>>()?;
                let sum = |of: fn(&(u8, u8)) -> u8| -> u32 {
                    zones.iter().map(|zone| u32::from(of(zone))).sum()
                };
                ensure!(
                    (sum(|zone| zone.0), sum(|zone| zone.1)) == (100, 100),
                    "the zones' requests and areas are 100 percent each"
                );
                ensure!(
                    zones.iter().all(|zone| zone.1 > 0 || zone.0 == 0),
                    "a zone without area takes no requests"
                );
                Ok(Self::Zoned(zones))
            }
            _ => anyhow::bail!("random, zipf:THETA or zoned:REQUESTS/AREA:…, not {text:?}"),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Zipf(theta) => write!(f, "zipf:{theta}"),
            Self::Zoned(zones) => {
                let zones: Vec<_> = zones.iter().map(|(r, a)| format!("{r}/{a}")).collect();
                write!(f, "zoned:{}", zones.join(":"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_sizes_are_read_as_one_size_or_a_range() {
        let range = |text: &str| text.parse::<RequestBytes>();
        let sizes = |min, max| RequestBytes {
            min,
            max,
            split: Vec::new(),
        };
        assert_eq!(range("4k").unwrap(), sizes(4096, 4096));
        assert_eq!(range("512-256KiB").unwrap(), sizes(512, 262_144));
        for bad in ["0", "8k-4k", "65MiB", "4k-", "many"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_split_of_sizes_is_followed() {
        let sizes = RequestBytes::from_split("4k/60:64k/30:8k/").unwrap();
        assert_eq!(sizes.split, [(4096, 60), (65536, 30), (8192, 10)]);
        assert_eq!((sizes.min, sizes.max), (4096, 65536));
        let mut random = SplitMix64::of(&[1]);
        let mut seen = [0u32; 3];
        for _ in 0..10_000 {
            let bytes = sizes.pick(&mut random);
            let place = sizes
                .split
                .iter()
                .position(|&(b, _)| u64::from(b) == bytes)
                .unwrap();
            seen[place] += 1;
        }
        for (seen, share) in seen.iter().zip([6000u32, 3000, 1000]) {
            assert!(seen.abs_diff(share) < 200, "{seen} of {share}");
        }
        for bad in ["4k/60:8k/50", "4k/60", "4k/60:6k/40", "4k/x:8k", ""] {
            assert!(RequestBytes::from_split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn distributions_are_read_and_written_alike() {
        for text in ["random", "zipf:1.2", "zoned:90/10:10/90"] {
            assert_eq!(text.parse::<Distribution>().unwrap().to_string(), text);
        }
        for bad in [
            "zipf",
            "zipf:0",
            "zipf:11",
            "zoned:90/10",
            "zoned:100/0:0/100",
            "pareto:1",
        ] {
            assert!(bad.parse::<Distribution>().is_err(), "{bad}");
        }
    }
}
