//! Dates as text for variables and logs, made once per second and thread: a busy server writes the same second
//! thousands of times.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Local};

/// The spellings of one second.
#[derive(Default)]
struct Second {
    /// Seconds since 1970; `None` before the first use.
    unix: Option<u64>,
    common: String,
    iso8601: String,
    utc: String,
}

thread_local! {
    static LAST: RefCell<Second> = RefCell::default();
}

/// Local time as in nginx's `$time_local`: `22/Nov/2026:15:43:45 +0000`.
pub fn common(wall: SystemTime, out: &mut Vec<u8>) {
    with_second(wall, |second| {
        out.extend_from_slice(second.common.as_bytes())
    });
}

/// Local time as in nginx's `$time_iso8601`: `2026-11-22T15:43:45+00:00`.
pub fn iso8601(wall: SystemTime, out: &mut Vec<u8>) {
    with_second(wall, |second| {
        out.extend_from_slice(second.iso8601.as_bytes())
    });
}

/// UTC with milliseconds (RFC 3339): `2026-11-22T15:43:45.123Z`.
pub fn utc_millis(wall: SystemTime, out: &mut Vec<u8>) {
    with_second(wall, |second| out.extend_from_slice(second.utc.as_bytes()));
    fraction(since_epoch(wall).subsec_millis(), out);
    out.push(b'Z');
}

/// Seconds with milliseconds, as nginx writes times: `0.042`.
pub fn seconds(duration: Duration, out: &mut Vec<u8>) {
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(digits.format(duration.as_secs()).as_bytes());
    fraction(duration.subsec_millis(), out);
}

/// The time since 1970; a clock that stands before that counts as 1970.
pub fn since_epoch(wall: SystemTime) -> Duration {
    wall.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn fraction(millis: u32, out: &mut Vec<u8>) {
    let digit = |n: u32| b'0' + (n % 10) as u8;
    out.extend_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis)]);
}

fn with_second(wall: SystemTime, use_it: impl FnOnce(&Second)) {
    let unix = since_epoch(wall).as_secs();
    LAST.with_borrow_mut(|second| {
        if second.unix != Some(unix) {
            *second = spell(unix);
        }
        use_it(second);
    });
}

fn spell(unix: u64) -> Second {
    // a second that the calendar does not reach (the year 262142) is written as 1970
    let utc = DateTime::from_timestamp(unix.try_into().unwrap_or(0), 0).unwrap_or_default();
    let local = utc.with_timezone(&Local);
    Second {
        unix: Some(unix),
        common: local.format("%d/%b/%Y:%H:%M:%S %z").to_string(),
        iso8601: local.format("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        utc: utc.format("%Y-%m-%dT%H:%M:%S").to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dates_follow_the_second_they_are_asked_for() {
        let wall = UNIX_EPOCH + Duration::from_millis(1_795_362_225_007);
        assert_eq!(
            text(|out| utc_millis(wall, out)),
            "2026-11-22T15:43:45.007Z"
        );
        let later = wall + Duration::from_secs(61);
        assert_eq!(
            text(|out| utc_millis(later, out)),
            "2026-11-22T15:44:46.007Z"
        );
    }

    #[test]
    fn local_dates_name_the_same_instant() {
        let wall = UNIX_EPOCH + Duration::from_secs(1_795_362_225);
        let iso = text(|out| iso8601(wall, out));
        assert_eq!(
            DateTime::parse_from_rfc3339(&iso).unwrap().timestamp(),
            1_795_362_225
        );
        let common = text(|out| common(wall, out));
        let parsed = DateTime::parse_from_str(&common, "%d/%b/%Y:%H:%M:%S %z").unwrap();
        assert_eq!(parsed.timestamp(), 1_795_362_225);
    }

    #[test]
    fn clocks_out_of_range_are_written_somehow() {
        let before = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(
            text(|out| utc_millis(before, out)),
            "1970-01-01T00:00:00.000Z"
        );
        let beyond = UNIX_EPOCH + Duration::from_secs(1 << 60);
        assert_eq!(
            text(|out| utc_millis(beyond, out)),
            "1970-01-01T00:00:00.000Z"
        );
    }

    #[test]
    fn seconds_have_three_decimals() {
        assert_eq!(text(|out| seconds(Duration::ZERO, out)), "0.000");
        assert_eq!(
            text(|out| seconds(Duration::from_micros(42_999), out)),
            "0.042"
        );
        assert_eq!(
            text(|out| seconds(Duration::from_millis(12_305), out)),
            "12.305"
        );
    }
}
