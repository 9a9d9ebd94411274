//! Points in time as S3 writes them, from the proleptic Gregorian calendar.

use std::time::{SystemTime, UNIX_EPOCH};

use taipan_engine::timestamp::date_of;

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

struct Moment {
    year: u64,
    month: u64,
    day: u64,
    weekday: usize,
    second_of_day: u64,
    millis: u32,
}

fn moment(time: SystemTime) -> Moment {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let days = since.as_secs() / 86_400;
    let (year, month, day) = date_of(days);
    Moment {
        year,
        month,
        day,
        weekday: (days % 7) as usize,
        second_of_day: since.as_secs() % 86_400,
        millis: since.subsec_millis(),
    }
}

/// As in `Last-Modified`: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn http_date(time: SystemTime) -> String {
    let at = moment(time);
    let (hour, minute, second) = clock(&at);
    format!(
        "{}, {:02} {} {} {hour:02}:{minute:02}:{second:02} GMT",
        WEEKDAYS[at.weekday],
        at.day,
        MONTHS[at.month as usize - 1],
        at.year,
    )
}

/// As in listings: `1994-11-06T08:49:37.000Z`.
pub fn iso_date(time: SystemTime) -> String {
    let at = moment(time);
    let (hour, minute, second) = clock(&at);
    format!(
        "{}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        at.year, at.month, at.day, at.millis,
    )
}

fn clock(at: &Moment) -> (u64, u64, u64) {
    let second = at.second_of_day;
    (second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn known_dates() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(http_date(at(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(iso_date(at(784_111_777)), "1994-11-06T08:49:37.000Z");
        assert_eq!(http_date(at(0)), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(iso_date(at(951_782_400)), "2000-02-29T00:00:00.000Z");
        assert_eq!(iso_date(at(1_735_689_599)), "2024-12-31T23:59:59.000Z");
    }
}
