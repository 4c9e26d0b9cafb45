//! The `Range` header: which part of a representation a client wants (RFC 9110 section 14).

use std::ops::Range;

use http::header::RANGE;
use http::{HeaderMap, HeaderValue};

/// What to answer to a `Range` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everything (200): there is no header, or it asks for no range that is understood.
    Whole,
    /// These bytes (206); never empty.
    Part(Range<u64>),
    /// 416.
    Nothing,
}

/// Reads the `Range` header for a representation of `size` bytes.
///
/// One that is malformed or in another unit is ignored, as section 14.2 allows. So is one that lists several
/// ranges: a server may always answer with the whole, and only a few clients read `multipart/byteranges`.
pub fn wanted(headers: &HeaderMap, size: u64) -> Wanted {
    let mut lines = headers.get_all(RANGE).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => parse(line.as_bytes()).map_or(Wanted::Whole, |spec| spec.of(size)),
        // two lines are a list of ranges
        _ => Wanted::Whole,
    }
}

/// `Content-Range` of an answer with a part.
pub fn content_range(part: &Range<u64>, size: u64) -> HeaderValue {
    value(format!("bytes {}-{}/{size}", part.start, part.end - 1))
}

/// `Content-Range` of a 416.
pub fn content_range_unsatisfied(size: u64) -> HeaderValue {
    value(format!("bytes */{size}"))
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("letters, digits and punctuation make a header value")
}

#[derive(Clone, Copy)]
enum Spec {
    From(u64),
    /// The last byte is included.
    FromTo(u64, u64),
    Last(u64),
}

impl Spec {
    fn of(self, size: u64) -> Wanted {
        let part = match self {
            Spec::From(first) => first..size,
            Spec::FromTo(first, last) => first..size.min(last.saturating_add(1)),
            Spec::Last(length) => size.saturating_sub(length)..size,
        };
        if part.is_empty() {
            Wanted::Nothing
        } else {
            Wanted::Part(part)
        }
    }
}

fn parse(header: &[u8]) -> Option<Spec> {
    let (unit, range) = header.split_at_checked("bytes=".len())?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let range = range.trim_ascii();
    let dash = range.iter().position(|&byte| byte == b'-')?;
    match (&range[..dash], &range[dash + 1..]) {
        (b"", length) => Some(Spec::Last(number(length)?)),
        (first, b"") => Some(Spec::From(number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Spec::FromTo(first, last))
        }
    }
}

/// Digits only; a number too great for any file is as good as the greatest.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        Some(value.saturating_mul(10).saturating_add(digit.into()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(header: &str, size: u64) -> Wanted {
        let header = HeaderValue::from_str(header).unwrap();
        wanted(&HeaderMap::from_iter([(RANGE, header)]), size)
    }

    #[test]
    fn parts() {
        for (header, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-99", 0..100),
            ("bytes=10-19", 10..20),
            ("bytes=10-", 10..100),
            ("bytes=99-", 99..100),
            ("bytes=-1", 99..100),
            ("bytes=-100", 0..100),
            ("bytes=-101", 0..100),
            ("bytes=50-1000", 50..100),
            ("bytes=50-99999999999999999999999", 50..100),
            ("bytes=0-18446744073709551615", 0..100),
            ("bytes=-99999999999999999999999", 0..100),
            ("Bytes= 1-2", 1..3),
        ] {
            assert_eq!(of(header, 100), Wanted::Part(part), "{header}");
        }
    }

    #[test]
    fn unsatisfiable() {
        for header in [
            "bytes=100-",
            "bytes=100-200",
            "bytes=-0",
            "bytes=99999999999999999999999-",
        ] {
            assert_eq!(of(header, 100), Wanted::Nothing, "{header}");
        }
        for header in ["bytes=0-", "bytes=0-0", "bytes=-5"] {
            assert_eq!(of(header, 0), Wanted::Nothing, "{header} of nothing");
        }
    }

    #[test]
    fn ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=2-1",
            "bytes=1-2-3",
            "bytes=+1-2",
            "bytes=1 - 2",
            "bytes =1-2",
            "bytes=0-1,3-4",
            "bytes=0-1,",
            "lines=0-1",
            "bytes=0x1-2",
        ] {
            assert_eq!(of(header, 100), Wanted::Whole, "{header}");
        }
    }

    #[test]
    fn several_lines_are_ignored() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers, 100), Wanted::Whole);
        headers.append(RANGE, HeaderValue::from_static("bytes=0-1"));
        headers.append(RANGE, HeaderValue::from_static("bytes=5-6"));
        assert_eq!(wanted(&headers, 100), Wanted::Whole);
    }

    #[test]
    fn content_ranges() {
        assert_eq!(content_range(&(0..1), 10), "bytes 0-0/10");
        assert_eq!(content_range_unsatisfied(0), "bytes */0");
    }

    proptest! {
        #[test]
        fn a_part_lies_within(header in "bytes=[0-9]{0,21}-[0-9]{0,21}", size in any::<u64>()) {
            if let Wanted::Part(part) = of(&header, size) {
                prop_assert!(part.start < part.end && part.end <= size);
            }
        }

        #[test]
        fn any_header_is_read(header in "\\PC{0,30}", size in any::<u64>()) {
            if let Ok(header) = HeaderValue::from_str(&header) {
                let _ = wanted(&HeaderMap::from_iter([(RANGE, header)]), size);
            }
        }
    }
}
