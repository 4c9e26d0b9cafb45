//! Conditional requests (RFC 9110 section 13): whether a client that names the version it knows needs another one.

use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::date;

/// The version of a representation that exists.
#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    /// The entity tag as it stands in `ETag`: `"x"` or `W/"x"`.
    pub etag: &'a [u8],
    /// When it was last modified, in seconds since 1970, as it stands in `Last-Modified`.
    pub modified: Option<u64>,
}

/// What the preconditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer as if there were none.
    Proceed,
    /// 304: the client has this version already.
    NotModified,
    /// 412: the client does not want to act on this version.
    Failed,
}

/// Evaluates the preconditions in the order of section 13.2.2, all but `If-Range`.
pub fn evaluate(method: &Method, headers: &HeaderMap, version: &Version<'_>) -> Verdict {
    if headers.contains_key(IF_MATCH) {
        if !lists(headers, IF_MATCH, version.etag, strong_match) {
            return Verdict::Failed;
        }
    } else if let (Some(date), Some(modified)) =
        (date_of(headers, IF_UNMODIFIED_SINCE), version.modified)
        && modified > date
    {
        return Verdict::Failed;
    }
    let reads = method == Method::GET || method == Method::HEAD;
    if headers.contains_key(IF_NONE_MATCH) {
        return match lists(headers, IF_NONE_MATCH, version.etag, weak_match) {
            false => Verdict::Proceed,
            true if reads => Verdict::NotModified,
            true => Verdict::Failed,
        };
    }
    if reads
        && let (Some(date), Some(modified)) =
            (date_of(headers, IF_MODIFIED_SINCE), version.modified)
        && modified <= date
    {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// Whether a `Range` header counts: there is no `If-Range`, or it names this version (section 13.1.5).
///
/// A date must be the very one of `Last-Modified`. That the file did not change twice within that second cannot be
/// known; clients that care send the entity tag, which they were given too.
pub fn range_applies(headers: &HeaderMap, version: &Version<'_>) -> bool {
    let Some(known) = headers.get(IF_RANGE) else {
        return true;
    };
    let text = known.as_bytes();
    if text.starts_with(b"\"") || text.starts_with(b"W/") {
        return strong_match(text, version.etag);
    }
    matches!((date::parse(known), version.modified), (Some(date), Some(modified)) if date == modified)
}

fn date_of(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    date::parse(headers.get(name)?)
}

/// Whether a header that is `*` or lists entity tags names `etag`; `*` is any version that exists.
fn lists(
    headers: &HeaderMap,
    name: HeaderName,
    etag: &[u8],
    matches: fn(&[u8], &[u8]) -> bool,
) -> bool {
    headers
        .get_all(name)
        .iter()
        .map(HeaderValue::as_bytes)
        .any(|value| value == b"*" || Tags(value).any(|tag| matches(tag, etag)))
}

/// Section 8.8.3.2: a weak tag equals nothing.
fn strong_match(a: &[u8], b: &[u8]) -> bool {
    a == b && !a.starts_with(b"W/")
}

fn weak_match(a: &[u8], b: &[u8]) -> bool {
    opaque(a) == opaque(b)
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The entity tags of a list. A comma may stand inside of a tag, so that splitting at commas would not do. At the first
/// thing that is no entity tag the list ends: what follows cannot be told apart.
struct Tags<'a>(&'a [u8]);

impl<'a> Iterator for Tags<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let separators = |byte: &u8| matches!(byte, b' ' | b'\t' | b',');
        let start = self.0.iter().position(|byte| !separators(byte))?;
        let list = &self.0[start..];
        let quoted = opaque(list).strip_prefix(b"\"")?;
        let before = list.len() - quoted.len();
        let length = before + quoted.iter().position(|&byte| byte == b'"')? + 1;
        let (tag, rest) = list.split_at(length);
        self.0 = rest;
        Some(tag)
    }
}

#[cfg(test)]
mod tests {
    use http::header::HeaderName;
    use proptest::prelude::*;

    use super::*;

    const MODIFIED: u64 = 784_111_777;
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
    const STRONG: Version<'static> = Version {
        etag: b"\"a\"",
        modified: Some(MODIFIED),
    };
    const WEAK: Version<'static> = Version {
        etag: b"W/\"a\"",
        modified: Some(MODIFIED),
    };
    const UNDATED: Version<'static> = Version {
        etag: b"\"a\"",
        modified: None,
    };

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn get(lines: &[(HeaderName, &str)], version: &Version<'_>) -> Verdict {
        evaluate(&Method::GET, &headers(lines), version)
    }

    #[test]
    fn without_conditions_the_request_proceeds() {
        assert_eq!(get(&[], &STRONG), Verdict::Proceed);
    }

    #[test]
    fn if_none_match_compares_weakly() {
        for value in [
            "\"a\"",
            "W/\"a\"",
            "*",
            "\"b\", \"a\"",
            "\"b,\\\",W/\"a\"",
            ",\"a\"",
        ] {
            let lines = [(IF_NONE_MATCH, value)];
            assert_eq!(get(&lines, &STRONG), Verdict::NotModified, "{value}");
            assert_eq!(get(&lines, &WEAK), Verdict::NotModified, "{value}");
            let verdict = evaluate(&Method::PUT, &headers(&lines), &STRONG);
            assert_eq!(verdict, Verdict::Failed, "PUT {value}");
        }
        for value in [
            "\"b\"",
            "a",
            "\"a",
            "W/a",
            "",
            "\"x\" junk \"a\"",
            "\"b, \"a\"",
        ] {
            assert_eq!(
                get(&[(IF_NONE_MATCH, value)], &STRONG),
                Verdict::Proceed,
                "{value}"
            );
        }
    }

    #[test]
    fn if_none_match_may_stand_on_several_lines() {
        let lines = [(IF_NONE_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")];
        assert_eq!(get(&lines, &STRONG), Verdict::NotModified);
    }

    #[test]
    fn if_match_compares_strongly() {
        assert_eq!(
            get(&[(IF_MATCH, "\"b\", \"a\"")], &STRONG),
            Verdict::Proceed
        );
        assert_eq!(get(&[(IF_MATCH, "*")], &WEAK), Verdict::Proceed);
        assert_eq!(get(&[(IF_MATCH, "\"b\"")], &STRONG), Verdict::Failed);
        assert_eq!(get(&[(IF_MATCH, "W/\"a\"")], &STRONG), Verdict::Failed);
        assert_eq!(get(&[(IF_MATCH, "W/\"a\"")], &WEAK), Verdict::Failed);
    }

    #[test]
    fn dates_compare_in_seconds() {
        for (name, date, verdict) in [
            (IF_MODIFIED_SINCE, BEFORE, Verdict::Proceed),
            (IF_MODIFIED_SINCE, THEN, Verdict::NotModified),
            (IF_MODIFIED_SINCE, AFTER, Verdict::NotModified),
            (IF_MODIFIED_SINCE, "yesterday", Verdict::Proceed),
            (IF_UNMODIFIED_SINCE, BEFORE, Verdict::Failed),
            (IF_UNMODIFIED_SINCE, THEN, Verdict::Proceed),
            (IF_UNMODIFIED_SINCE, AFTER, Verdict::Proceed),
            (IF_UNMODIFIED_SINCE, "yesterday", Verdict::Proceed),
        ] {
            assert_eq!(
                get(&[(name.clone(), date)], &STRONG),
                verdict,
                "{name}: {date}"
            );
            assert_eq!(get(&[(name, date)], &UNDATED), Verdict::Proceed);
        }
        let post = evaluate(
            &Method::POST,
            &headers(&[(IF_MODIFIED_SINCE, AFTER)]),
            &STRONG,
        );
        assert_eq!(post, Verdict::Proceed);
    }

    #[test]
    fn entity_tags_go_before_dates() {
        let lines = [(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, AFTER)];
        assert_eq!(get(&lines, &STRONG), Verdict::Proceed);
        let lines = [(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, BEFORE)];
        assert_eq!(get(&lines, &STRONG), Verdict::Proceed);
        let lines = [(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")];
        assert_eq!(get(&lines, &STRONG), Verdict::Failed);
        let lines = [(IF_MATCH, "\"a\""), (IF_NONE_MATCH, "\"a\"")];
        assert_eq!(get(&lines, &STRONG), Verdict::NotModified);
    }

    #[test]
    fn if_range() {
        assert!(range_applies(&headers(&[]), &STRONG));
        for (value, applies) in [
            ("\"a\"", true),
            ("\"b\"", false),
            ("W/\"a\"", false),
            (THEN, true),
            (BEFORE, false),
            (AFTER, false),
            ("junk", false),
        ] {
            assert_eq!(
                range_applies(&headers(&[(IF_RANGE, value)]), &STRONG),
                applies,
                "{value}"
            );
        }
        assert!(!range_applies(&headers(&[(IF_RANGE, "W/\"a\"")]), &WEAK));
        assert!(!range_applies(&headers(&[(IF_RANGE, THEN)]), &UNDATED));
    }

    proptest! {
        #[test]
        fn any_list_is_read(list in "[W/\", *a]{0,30}") {
            let _ = get(&[(IF_NONE_MATCH, &list)], &STRONG);
            let _ = get(&[(IF_MATCH, &list)], &STRONG);
            let _ = range_applies(&headers(&[(IF_RANGE, &list)]), &STRONG);
        }
    }
}
