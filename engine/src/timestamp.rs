//! Points of wall-clock time as people write them: RFC 3339.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const DAY_MS: u64 = 86_400_000;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: u64 = 719_468;
const ERA_DAYS: u64 = 146_097;

/// Milliseconds since 1970, in UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

/// `2026-11-21T20:00:00Z`, with milliseconds if there are any.
impl fmt::Display for UnixMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of(self.0 / DAY_MS);
        let (seconds, millis) = (self.0 % DAY_MS / 1000, self.0 % 1000);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        match millis {
            0 => f.write_str("Z"),
            _ => write!(f, ".{millis:03}Z"),
        }
    }
}

impl FromStr for UnixMs {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            let start: String = text.chars().take(64).collect();
            Error::invalid(format!(
                "{start:?} is no time; write it as in 2026-11-21T20:00:00Z"
            ))
        })
    }
}

/// Year, month and day so many days after 1970-01-01, after Howard Hinnant's `civil_from_days`.
pub fn date_of(days: u64) -> (u64, u64, u64) {
    let shifted = days + EPOCH_DAYS;
    let (era, of_era) = (shifted / ERA_DAYS, shifted % ERA_DAYS);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    (year + era * 400 + u64::from(month <= 2), month, day)
}

/// Days since 1970; undoes [`date_of`].
fn days_to(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year - u64::from(month <= 2);
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let (era, of_era) = (year / 400, year % 400);
    let days = of_era * 365 + of_era / 4 - of_era / 100 + of_year + era * ERA_DAYS;
    let days = days.checked_sub(EPOCH_DAYS)?;
    // There is such a day.
    (date_of(days).2 == day).then_some(days)
}

fn parse(text: &str) -> Option<UnixMs> {
    let bytes = text.as_bytes();
    let number = |at: usize, len: usize| -> Option<u64> {
        let digits = bytes.get(at..at + len)?;
        let all = digits.iter().all(u8::is_ascii_digit);
        all.then(|| digits.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
    };
    let is = |at: usize, wanted: &[u8]| bytes.get(at).is_some_and(|b| wanted.contains(b));
    let separated = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let fits = (1970..=9999).contains(&year) && (1..=12).contains(&month) && day > 0;
    if !separated || !fits || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut at = 19;
    let mut millis = 0;
    if is(at, b".") {
        let digits = bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit());
        let len = digits.count();
        if len == 0 {
            return None;
        }
        let shown = number(at + 1, len.min(3))?;
        millis = shown * [0, 100, 10, 1][len.min(3)];
        at += 1 + len;
    }
    let seconds = hour * 3600 + minute * 60 + second;
    let local = days_to(year, month, day)? * DAY_MS + seconds * 1000 + millis;
    let offset = match bytes.len() - at {
        1 if is(at, b"Zz") => return Some(UnixMs(local)),
        6 if is(at, b"+-") && is(at + 3, b":") => (number(at + 1, 2)?, number(at + 4, 2)?),
        _ => return None,
    };
    if offset.0 > 23 || offset.1 > 59 {
        return None;
    }
    let offset_ms = (offset.0 * 60 + offset.1) * 60_000;
    let utc = match bytes[at] {
        b'+' => local.checked_sub(offset_ms)?,
        _ => local + offset_ms,
    };
    Some(UnixMs(utc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_795_291_200_000, "2026-11-21T20:00:00Z"),
            (1_795_291_200_050, "2026-11-21T20:00:00.050Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(UnixMs(ms).to_string(), text);
            assert_eq!(text.parse::<UnixMs>().unwrap(), UnixMs(ms));
        }
        for text in [
            "2026-11-21T21:30:00+01:30",
            "2026-11-21t12:00:00-08:00",
            "2026-11-21 20:00:00.0009z",
        ] {
            assert_eq!(text.parse::<UnixMs>().unwrap(), UnixMs(1_795_291_200_000));
        }
        assert_eq!(
            "2026-11-21T20:00:00.5Z".parse::<UnixMs>().unwrap().0 % 1000,
            500
        );
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in (0..=ERA_DAYS).map(|day| UnixMs(day * DAY_MS)) {
            assert_eq!(day.to_string().parse::<UnixMs>().unwrap(), day);
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "20:00",
            "2026-11-21",
            "2026-11-21T20:00:00",
            "2026-11-21T20:00Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-00T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "2026-11-21T20:00:00+1:00",
            "2026-11-21T20:00:00.Z",
            "2026-11-21T20:00:00ZZ",
            "2026-11-21T20:00:0äZ",
        ] {
            let error = text.parse::<UnixMs>().unwrap_err().to_string();
            assert!(error.contains("is no time"), "{text}: {error}");
        }
    }
}
