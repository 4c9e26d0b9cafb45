//! HTTP dates (RFC 9110 section 5.6.7). A point in time is whole seconds since 1970 here: headers know no finer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

/// The last second of the year 9999: the format has four digits for the year.
const LAST: u64 = 253_402_300_799;

/// `Sun, 06 Nov 1994 08:49:37 GMT`; `None` for a time that the format cannot express.
pub fn format(seconds: u64) -> Option<HeaderValue> {
    if seconds > LAST {
        return None;
    }
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    HeaderValue::try_from(httpdate::fmt_http_date(time)).ok()
}

/// Reads any of the three formats of RFC 9110; `None` when it is none of them, or before 1970.
pub fn parse(header: &HeaderValue) -> Option<u64> {
    let time = httpdate::parse_http_date(header.to_str().ok()?).ok()?;
    seconds(time)
}

/// A time as headers have it; `None` before 1970.
pub fn seconds(time: SystemTime) -> Option<u64> {
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_formats_are_read() {
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(
                parse(&HeaderValue::from_static(date)),
                Some(784_111_777),
                "{date}"
            );
        }
    }

    #[test]
    fn what_the_format_cannot_express_is_none() {
        assert_eq!(format(0).unwrap(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(format(LAST).unwrap(), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(format(LAST + 1), None);
        assert_eq!(seconds(UNIX_EPOCH - Duration::from_secs(1)), None);
        assert_eq!(seconds(UNIX_EPOCH + Duration::from_millis(1999)), Some(1));
    }

    proptest! {
        #[test]
        fn dates_round_trip(seconds in 0..=LAST) {
            prop_assert_eq!(parse(&format(seconds).unwrap()), Some(seconds));
        }

        #[test]
        fn any_text_is_read(text in "[A-Za-z0-9:, -]{0,32}") {
            let _ = parse(&HeaderValue::from_str(&text).unwrap());
        }
    }
}
