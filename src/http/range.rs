//! The `Range` header: which parts of a representation a client wants (RFC 9110 section 14).

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
    /// At least two parts, none empty, no two of which touch, in the order in which they were asked for.
    Parts(Vec<Range<u64>>),
    /// 416.
    Nothing,
}

/// As many ranges as one request may list; more are no use that a client could have, and the whole is sent instead.
const MOST: usize = 100;

/// Reads the `Range` header for a representation of `size` bytes.
///
/// One that is malformed, too long or in another unit is ignored, as section 14.2 allows. Ranges that overlap or touch
/// become one (section 15.3.7.2), so that no byte is sent twice, whatever is asked for. Those that hold nothing of the
/// representation are left out as long as there are others.
pub fn wanted(headers: &HeaderMap, size: u64) -> Wanted {
    let mut lines = headers.get_all(RANGE).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => {
            parse(line.as_bytes()).map_or(Wanted::Whole, |specs| of(&specs, size))
        }
        // a header that may stand once only
        _ => Wanted::Whole,
    }
}

fn of(specs: &[Spec], size: u64) -> Wanted {
    let parts = specs.iter().filter_map(|spec| spec.of(size)).collect();
    let mut parts = coalesced(parts);
    match parts.len() {
        0 => Wanted::Nothing,
        1 => Wanted::Part(parts.remove(0)),
        _ => Wanted::Parts(parts),
    }
}

/// `parts` without overlaps; each stands where the first of what became it stood.
fn coalesced(parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut sorted: Vec<(usize, Range<u64>)> = parts.into_iter().enumerate().collect();
    sorted.sort_by_key(|(_, part)| part.start);
    let mut merged: Vec<(usize, Range<u64>)> = Vec::with_capacity(sorted.len());
    for (place, part) in sorted {
        match merged.last_mut() {
            Some((first, last)) if part.start <= last.end => {
                last.end = last.end.max(part.end);
                *first = place.min(*first);
            }
            _ => merged.push((place, part)),
        }
    }
    merged.sort_by_key(|(place, _)| *place);
    merged.into_iter().map(|(_, part)| part).collect()
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
    /// What it is of a representation of `size` bytes, if anything.
    fn of(self, size: u64) -> Option<Range<u64>> {
        let part = match self {
            Spec::From(first) => first..size,
            Spec::FromTo(first, last) => first..size.min(last.saturating_add(1)),
            Spec::Last(length) => size.saturating_sub(length)..size,
        };
        (!part.is_empty()).then_some(part)
    }
}

fn parse(header: &[u8]) -> Option<Vec<Spec>> {
    let (unit, list) = header.split_at_checked("bytes=".len())?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let mut specs = Vec::new();
    for element in list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
        // empty elements of a list mean nothing (RFC 9110 section 5.6.1.2)
        if element.is_empty() {
            continue;
        }
        if specs.len() == MOST {
            return None;
        }
        specs.push(parse_one(element)?);
    }
    (!specs.is_empty()).then_some(specs)
}

fn parse_one(range: &[u8]) -> Option<Spec> {
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
            ("bytes=1-2,", 1..3),
            // what becomes one
            ("bytes=0-1,2-3", 0..4),
            ("bytes=50-, 40-60 ,-1", 40..100),
            ("bytes=0-,0-,0-,0-", 0..100),
            ("bytes=200-,5-5,-0", 5..6),
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
            "bytes=100-,-0,200-300",
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
            "bytes=,",
            "bytes=0-1,x",
            "bytes=0-1,3-2",
            "bytes=0-1;3-4",
            "lines=0-1",
            "bytes=0x1-2",
        ] {
            assert_eq!(of(header, 100), Wanted::Whole, "{header}");
        }
    }

    #[test]
    fn several_parts() {
        for (header, parts) in [
            ("bytes=0-1,3-4", vec![0..2, 3..5]),
            ("bytes=-1,0-0", vec![99..100, 0..1]),
            ("bytes=0-0, ,50-60,2-3", vec![0..1, 50..61, 2..4]),
            ("bytes=90-,5-10,8-20,200-", vec![90..100, 5..21]),
            ("bytes=8-20,90-,5-10", vec![5..21, 90..100]),
        ] {
            assert_eq!(of(header, 100), Wanted::Parts(parts), "{header}");
        }
    }

    #[test]
    fn too_many_ranges_are_ignored() {
        let list = |count: u64| {
            let ranges: Vec<_> = (0..count).map(|i| format!("{0}-{0}", 2 * i)).collect();
            format!("bytes={}", ranges.join(","))
        };
        let most = of(&list(MOST as u64), 1000);
        assert!(matches!(most, Wanted::Parts(parts) if parts.len() == MOST));
        assert_eq!(of(&list(MOST as u64 + 1), 1000), Wanted::Whole);
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
        fn parts_are_disjoint_and_hold_what_was_asked_for(
            ranges in proptest::collection::vec((0u64..60, 0u64..10), 1..12),
        ) {
            let size = 50;
            let list: Vec<_> = ranges.iter().map(|(at, more)| format!("{at}-{}", at + more)).collect();
            let parts = match of(&format!("bytes={}", list.join(",")), size) {
                Wanted::Parts(parts) => parts,
                Wanted::Part(part) => vec![part],
                _ => vec![],
            };
            for byte in 0..size {
                let asked = ranges.iter().any(|(at, more)| (*at..=at + more).contains(&byte));
                let times = parts.iter().filter(|part| part.contains(&byte)).count();
                prop_assert_eq!(times, usize::from(asked));
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
