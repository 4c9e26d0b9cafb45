//! The `Accept` header, as far as pages that weir makes need it: HTML for people, JSON for programs.

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};

/// Whether the client would rather have JSON than HTML (RFC 9110 section 12.5.1).
///
/// JSON has to be asked for by name: a client that takes anything (`*/*`, or no header) gets HTML. When the weights are
/// the same, the type that is named goes before the one that a wildcard lets in; `application/json, */*` is what
/// programs send.
pub fn prefers_json(headers: &HeaderMap) -> bool {
    let lines = || headers.get_all(ACCEPT).iter().map(HeaderValue::as_bytes);
    let ranges = || lines().flat_map(|line| line.split(|&byte| byte == b','));
    let json = rank(ranges(), "application", "json");
    let (weight, precision) = json;
    weight > 0 && precision == Precision::Named && json > rank(ranges(), "text", "html")
}

/// Weight in thousandths, then how precisely the type was named.
type Rank = (u16, Precision);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    Anything,
    Family,
    Named,
}

/// The most precise media range that takes the type decides on its weight.
fn rank<'a>(ranges: impl Iterator<Item = &'a [u8]>, family: &str, subtype: &str) -> Rank {
    let mut best = (0, Precision::Anything);
    for range in ranges {
        let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let Some(precision) = parts.next().and_then(|media| takes(media, family, subtype)) else {
            continue;
        };
        let weight = parts.find_map(weight).unwrap_or(1000);
        if precision >= best.1 {
            best = (weight, precision);
        }
    }
    best
}

fn takes(media: &[u8], family: &str, subtype: &str) -> Option<Precision> {
    let slash = media.iter().position(|&byte| byte == b'/')?;
    let is = |part: &[u8], name: &str| part.eq_ignore_ascii_case(name.as_bytes());
    match (&media[..slash], &media[slash + 1..]) {
        (b"*", b"*") => Some(Precision::Anything),
        (first, b"*") if is(first, family) => Some(Precision::Family),
        (first, second) if is(first, family) && is(second, subtype) => Some(Precision::Named),
        _ => None,
    }
}

/// `q=0.5` in thousandths; a weight that is none counts as 0, for it is no wish that could be honoured.
pub(super) fn weight(parameter: &[u8]) -> Option<u16> {
    let (name, value) = parameter.split_at_checked(2)?;
    if !name.eq_ignore_ascii_case(b"q=") {
        return None;
    }
    Some(thousandths(value).unwrap_or(0))
}

/// `0`, `0.5`, `1.000`: at most three digits after the dot, at most 1 in all.
fn thousandths(value: &[u8]) -> Option<u16> {
    let (whole, decimals) = match value {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let mut sum = u16::from(whole - b'0') * 1000;
    for (digit, place) in decimals.iter().zip([100, 10, 1]) {
        // a digit is below 10
        sum += char::from(*digit).to_digit(10)? as u16 * place;
    }
    (sum <= 1000).then_some(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(lines: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, HeaderValue::from_str(line).unwrap());
        }
        prefers_json(&headers)
    }

    #[test]
    fn programs_get_json() {
        for accept in [
            "application/json",
            "Application/JSON",
            "application/json, text/plain, */*",
            "application/json;q=0.9, text/html;q=0.8",
            "text/*;q=0.5, application/json",
            "*/*;q=0.1, application/json;q=0.2",
            "application/json;charset=utf-8;q=0.5",
            "text/html;q=0, application/json;q=0.001",
        ] {
            assert!(json(&[accept]), "{accept}");
        }
        assert!(json(&["text/html;q=0.1", "application/json"]));
    }

    #[test]
    fn everyone_else_gets_html() {
        for accept in [
            "",
            "*/*",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "text/html, application/json",
            "application/json;q=0.5, */*",
            "application/json;q=0",
            "application/json;q=2",
            "application/json;q=0.0001",
            "application/*",
            "text/*, application/json;q=0.5",
            "image/png",
            "json",
        ] {
            assert!(!json(&[accept]), "{accept}");
        }
        assert!(!json(&[]));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[a-z*/;,=q. 0-9]{0,40}") {
            json(&[&text]);
        }
    }
}
