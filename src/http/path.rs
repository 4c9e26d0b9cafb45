//! Paths of requests, in the one form that sites, routes and files are matched in: nginx's `$uri`.
//!
//! Every request's path passes through [`normalise_into`] once, before it is routed; whatever looks at a path later
//! (router, filters, static files) sees the same text, so that no spelling of a path can be allowed by one and mean
//! something else to another. The upstream still receives what the client sent.

use std::borrow::Cow;
use std::fmt;
use std::mem;

use percent_encoding::{AsciiSet, CONTROLS, PercentEncode, utf8_percent_encode};

/// The path and the query of a request target, as the client sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub path: &'a str,
    /// What follows the first question mark; `Some("")` when nothing does.
    pub query: Option<&'a str>,
}

/// Splits a request target: `/a?b` (origin form), `http://host/a?b` (absolute form) or `*`.
///
/// The path of `OPTIONS *` is `*` and that of `CONNECT host:port` is `host:port`; neither is one of a site, and [`normalise`]
/// refuses them. A fragment has no business in a request (RFC 9112 section 3.2) and is dropped, as nginx and Pingora do.
pub fn split_target(target: &str) -> Target<'_> {
    let target = target.split_once('#').map_or(target, |(target, _)| target);
    let local = after_authority(target).unwrap_or(target);
    let (path, query) = match local.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (local, None),
    };
    // `http://host` and `http://host?query` ask for the root (RFC 9110 section 4.2.3)
    let path = if path.is_empty() { "/" } else { path };
    Target { path, query }
}

/// Path and query of a target in absolute form.
fn after_authority(target: &str) -> Option<&str> {
    if target.starts_with('/') {
        return None;
    }
    let (scheme, rest) = target.split_once("://")?;
    if scheme.is_empty() || !scheme.bytes().all(is_scheme_byte) {
        return None;
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    Some(&rest[end..])
}

fn is_scheme_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// Why a path cannot be normalised; each is the client's fault (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// It does not begin with a slash.
    NotAbsolute,
    /// A percent sign without two hexadecimal digits.
    Encoding,
    /// It holds a NUL byte.
    Nul,
    /// Its `..` segments lead above the root.
    Outside,
    /// It decodes to bytes that are not UTF-8.
    NotText,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathError::NotAbsolute => "the path does not begin with a slash",
            PathError::Encoding => "the path holds an invalid percent-encoding",
            PathError::Nul => "the path holds a NUL byte",
            PathError::Outside => "the path leaves the root",
            PathError::NotText => "the path is not UTF-8",
        })
    }
}

impl std::error::Error for PathError {}

/// The normal form of a raw path: percent-decoded once, `.` and `..` resolved, empty segments merged.
///
/// As in nginx, decoding comes first, so that `%2e%2e` climbs and `%2F` separates like the plain spelling. A backslash
/// is an ordinary character.
pub fn normalise(raw: &str) -> Result<Cow<'_, str>, PathError> {
    if is_normal(raw) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut out = String::new();
    rewrite(raw, &mut out)?;
    Ok(Cow::Owned(out))
}

/// [`normalise`] into a string whose capacity is reused. `out` is empty after an error.
pub fn normalise_into(raw: &str, out: &mut String) -> Result<(), PathError> {
    if is_normal(raw) {
        out.clear();
        out.push_str(raw);
        return Ok(());
    }
    rewrite(raw, out)
}

/// Whether there is nothing to do. A segment that begins with a dot counts as work: most are rare enough.
fn is_normal(raw: &str) -> bool {
    let mut after_slash = false;
    for byte in raw.bytes() {
        match byte {
            b'%' | b'\0' => return false,
            b'/' | b'.' if after_slash => return false,
            _ => after_slash = byte == b'/',
        }
    }
    raw.starts_with('/')
}

fn rewrite(raw: &str, out: &mut String) -> Result<(), PathError> {
    let mut bytes = mem::take(out).into_bytes();
    bytes.clear();
    decode(raw, &mut bytes)?;
    resolve(&mut bytes)?;
    *out = String::from_utf8(bytes).map_err(|_| PathError::NotText)?;
    Ok(())
}

fn decode(raw: &str, out: &mut Vec<u8>) -> Result<(), PathError> {
    out.reserve(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => match (rest.next().and_then(nibble), rest.next().and_then(nibble)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(PathError::Encoding),
            },
            plain => plain,
        };
        if byte == 0 {
            return Err(PathError::Nul);
        }
        out.push(byte);
    }
    Ok(())
}

fn nibble(digit: u8) -> Option<u8> {
    // a hexadecimal digit is below 16
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Resolves the segments in place: what is kept never grows past what was read.
fn resolve(path: &mut Vec<u8>) -> Result<(), PathError> {
    if path.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    // path[..kept] is the result so far; between two segments it ends with a slash
    let mut kept = 1;
    let mut read = 1;
    while read < path.len() {
        let slash = path[read..].iter().position(|&byte| byte == b'/');
        let end = slash.map_or(path.len(), |length| read + length);
        match &path[read..end] {
            b"" | b"." => {}
            b".." => kept = parent(&path[..kept]).ok_or(PathError::Outside)?,
            segment => {
                let length = segment.len();
                path.copy_within(read..end, kept);
                kept += length;
                if slash.is_some() {
                    path[kept] = b'/';
                    kept += 1;
                }
            }
        }
        read = end + 1;
    }
    path.truncate(kept);
    Ok(())
}

/// Length of the folder that holds `folder`; both end with a slash.
fn parent(folder: &[u8]) -> Option<usize> {
    let (_slash, name) = folder.split_last()?;
    name.iter()
        .rposition(|&byte| byte == b'/')
        .map(|slash| slash + 1)
}

/// What RFC 3986 does not let stand in a path as it is, and the backslash, which browsers take for a slash.
const NOT_IN_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A normalised path as it can stand in a URI: the inverse of [`normalise`].
pub fn encode(path: &str) -> PercentEncode<'_> {
    utf8_percent_encode(path, NOT_IN_PATH)
}

/// A query as it can stand in a URI. What is percent-encoded already stays as it is.
pub fn encode_query(query: &str) -> PercentEncode<'_> {
    const NOT_IN_QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');
    utf8_percent_encode(query, NOT_IN_QUERY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_without_work_is_borrowed() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a.b/c..d/e.",
            "/ü/~user/a\\b",
            "/a+b&c=d",
        ] {
            assert!(
                matches!(normalise(path), Ok(Cow::Borrowed(same)) if same == path),
                "{path}"
            );
        }
    }

    #[test]
    fn normal_forms() {
        for (raw, normal) in [
            ("//", "/"),
            ("/a//b///c", "/a/b/c"),
            ("/.", "/"),
            ("/./a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/../", "/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../c", "/a/c"),
            ("/a/b/../../c/", "/c/"),
            ("/...", "/..."),
            ("/..a/.b/c", "/..a/.b/c"),
            ("/a/%2e%2E/b", "/b"),
            ("/a%2fb", "/a/b"),
            ("/a%2F..%2fb", "/b"),
            ("/a/%2e%2e%2fb", "/b"),
            ("/%61%20%C3%BC", "/a ü"),
            ("/a%5cb", "/a\\b"),
            ("/a%25b", "/a%b"),
            ("/%252e%252e/x", "/%2e%2e/x"),
            ("/a%3Fb%23c", "/a?b#c"),
            ("/a%0d%0ab", "/a\r\nb"),
        ] {
            assert_eq!(normalise(raw).as_deref(), Ok(normal), "{raw}");
        }
    }

    #[test]
    fn refused() {
        for (raw, error) in [
            ("", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("a/b", PathError::NotAbsolute),
            ("example.com:443", PathError::NotAbsolute),
            ("/..", PathError::Outside),
            ("/../etc", PathError::Outside),
            ("/a/../..", PathError::Outside),
            ("/a/../../a", PathError::Outside),
            ("/%2e%2e/", PathError::Outside),
            ("/..%2f", PathError::Outside),
            ("/a//../../", PathError::Outside),
            ("/%00", PathError::Nul),
            ("/a\0", PathError::Nul),
            ("/%", PathError::Encoding),
            ("/%4", PathError::Encoding),
            ("/%4g", PathError::Encoding),
            ("/%+1", PathError::Encoding),
            ("/%u0041", PathError::Encoding),
            ("/%ff", PathError::NotText),
            ("/%C0%AE%C0%AE/", PathError::NotText),
        ] {
            assert_eq!(normalise(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn the_string_is_reused_and_empty_after_an_error() {
        let mut out = String::from("/something/longer/than/that");
        normalise_into("/a/b", &mut out).unwrap();
        assert_eq!(out, "/a/b");
        normalise_into("/a/../c", &mut out).unwrap();
        assert_eq!(out, "/c");
        assert!(normalise_into("/%ff", &mut out).is_err());
        assert_eq!(out, "");
    }

    #[test]
    fn targets() {
        for (target, path, query) in [
            ("/a", "/a", None),
            ("/a?", "/a", Some("")),
            ("/a?b?c", "/a", Some("b?c")),
            ("/a?b#c?d", "/a", Some("b")),
            ("/a?u=http://x/y", "/a", Some("u=http://x/y")),
            ("//x/y", "//x/y", None),
            ("http://h", "/", None),
            ("http://h?q", "/", Some("q")),
            ("HTTPS://h:1/a?q", "/a", Some("q")),
            ("?q", "/", Some("q")),
            ("://h", "://h", None),
            ("", "/", None),
            ("*", "*", None),
            ("h:443", "h:443", None),
        ] {
            assert_eq!(split_target(target), Target { path, query }, "{target}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_path_has_no_dot_segments(raw in "(/|%2[fF]|\\.|%2[eE]|%25|%5c|%00|%|a|ü|\\\\){0,24}") {
            if let Ok(path) = normalise(&format!("/{raw}")) {
                prop_assert!(path.starts_with('/'));
                prop_assert!(!path.contains("//"));
                prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
                prop_assert!(!path.contains('\0'));
            }
        }

        #[test]
        fn any_text_gives_a_path_or_an_error(raw in any::<String>(), old in any::<String>()) {
            let mut out = old;
            let into = normalise_into(&raw, &mut out);
            match normalise(&raw) {
                Ok(path) => {
                    prop_assert_eq!(into, Ok(()));
                    prop_assert_eq!(&path, &out);
                }
                Err(error) => prop_assert_eq!(into, Err(error)),
            }
            let target = split_target(&raw);
            prop_assert!(!target.path.contains('?'));
        }

        #[test]
        fn encoding_is_undone_by_normalising(raw in "/[a-z%./?#\\\\ü\r ]{0,20}") {
            if let Ok(path) = normalise(&raw) {
                let encoded = encode(&path).to_string();
                prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert_eq!(normalise(&encoded), Ok(path.clone()));
            }
        }
    }
}
