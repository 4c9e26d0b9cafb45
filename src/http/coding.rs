//! Content codings: in which one an answer is (`Content-Encoding`, RFC 9110 section 8.4), and in which one a client wants it
//! (`Accept-Encoding`, section 12.5.3).

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http::{HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use super::accept;

/// A content coding that weir knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    Br,
    Zstd,
    Gzip,
}

impl Coding {
    pub const fn name(self) -> &'static str {
        match self {
            Coding::Br => "br",
            Coding::Zstd => "zstd",
            Coding::Gzip => "gzip",
        }
    }

    /// What a file in this coding has at the end of its name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Coding::Br => ".br",
            Coding::Zstd => ".zst",
            Coding::Gzip => ".gz",
        }
    }

    fn is(self, name: &[u8]) -> bool {
        name.eq_ignore_ascii_case(self.name().as_bytes())
            // an old name of the same (RFC 9110 section 8.4.1.3)
            || self == Coding::Gzip && name.eq_ignore_ascii_case(b"x-gzip")
    }
}

/// The weights of a request's `Accept-Encoding`, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
struct Weights {
    br: Option<u16>,
    zstd: Option<u16>,
    gzip: Option<u16>,
    identity: Option<u16>,
    anything: Option<u16>,
}

/// What is not listed is not wanted, but that no coding at all is always possible.
const LEAST: u16 = 1;

/// Those of `offered` that the client would rather have than no coding, best first. Among those that it likes as well the
/// order of `offered` counts.
///
/// Without the header any coding may be sent (RFC 9110), but a client that decodes one says so; it gets none.
pub fn preferred(headers: &HeaderMap, offered: &[Coding]) -> Vec<Coding> {
    let Some(weights) = Weights::read(headers) else {
        return Vec::new();
    };
    let identity = weights.identity.or(weights.anything).unwrap_or(LEAST);
    let mut ranked: Vec<(u16, Coding)> = offered
        .iter()
        .map(|coding| (weights.of(*coding), *coding))
        .filter(|(weight, _)| *weight > 0 && *weight >= identity)
        .collect();
    // stable: among equals the order stays
    ranked.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    ranked.into_iter().map(|(_, coding)| coding).collect()
}

/// The first of [`preferred`].
pub fn best(headers: &HeaderMap, offered: &[Coding]) -> Option<Coding> {
    let weights = Weights::read(headers)?;
    let identity = weights.identity.or(weights.anything).unwrap_or(LEAST);
    let mut best: Option<(u16, Coding)> = None;
    for coding in offered {
        let weight = weights.of(*coding);
        let is_better = best.is_none_or(|(known, _)| weight > known);
        if weight > 0 && weight >= identity && is_better {
            best = Some((weight, *coding));
        }
    }
    best.map(|(_, coding)| coding)
}

/// Whether the client can read an answer in this coding. Without the header it can read none, as in [`preferred`].
pub fn is_accepted(headers: &HeaderMap, coding: Coding) -> bool {
    Weights::read(headers).is_some_and(|weights| weights.of(coding) > 0)
}

/// The coding of an answer, if it is in one that weir knows and in no other.
pub fn of(headers: &HeaderMap) -> Option<Coding> {
    let mut lines = headers.get_all(CONTENT_ENCODING).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let name = line.as_bytes().trim_ascii();
    let known = [Coding::Br, Coding::Zstd, Coding::Gzip];
    known.into_iter().find(|coding| coding.is(name))
}

impl Weights {
    /// `None`: there is no such header.
    fn read(headers: &HeaderMap) -> Option<Weights> {
        let mut lines = headers.get_all(ACCEPT_ENCODING).iter().peekable();
        lines.peek()?;
        let mut weights = Weights::default();
        for element in lines
            .map(HeaderValue::as_bytes)
            .flat_map(|line| line.split(|&byte| byte == b','))
        {
            let mut parts = element.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let weight = parts.find_map(accept::weight).unwrap_or(1000);
            if let Some(place) = weights.place(name) {
                *place = Some(weight);
            }
        }
        Some(weights)
    }

    fn place(&mut self, name: &[u8]) -> Option<&mut Option<u16>> {
        match name {
            b"*" => Some(&mut self.anything),
            name if name.eq_ignore_ascii_case(b"identity") => Some(&mut self.identity),
            name if Coding::Br.is(name) => Some(&mut self.br),
            name if Coding::Zstd.is(name) => Some(&mut self.zstd),
            name if Coding::Gzip.is(name) => Some(&mut self.gzip),
            _ => None,
        }
    }

    fn of(&self, coding: Coding) -> u16 {
        let named = match coding {
            Coding::Br => self.br,
            Coding::Zstd => self.zstd,
            Coding::Gzip => self.gzip,
        };
        named.or(self.anything).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::Coding::{Br, Gzip, Zstd};
    use super::*;

    const OFFERED: [Coding; 3] = [Br, Zstd, Gzip];

    fn of(lines: &[&str], offered: &[Coding]) -> Vec<Coding> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_str(line).unwrap());
        }
        preferred(&headers, offered)
    }

    #[test]
    fn what_the_client_prefers_comes_first() {
        for (line, codings) in [
            ("gzip", &[Gzip][..]),
            ("gzip, deflate, br, zstd", &[Br, Zstd, Gzip]),
            ("br;q=0.5, gzip;q=0.9, zstd;q=0.7", &[Gzip, Zstd, Br]),
            ("GZIP;Q=1.0 , Br", &[Br, Gzip]),
            ("x-gzip", &[Gzip]),
            ("*", &[Br, Zstd, Gzip]),
            ("*;q=0.5, gzip", &[Gzip, Br, Zstd]),
            ("br;q=0, *", &[Zstd, Gzip]),
            ("gzip;q=0.001", &[Gzip]),
            // no coding is liked better, or as well
            ("gzip;q=0.5, identity", &[]),
            ("gzip;q=0.5, identity;q=0.5", &[Gzip]),
            ("gzip;q=0.5, br;q=0.9, identity;q=0.7", &[Br]),
            ("gzip;q=0.5, *;q=0.7", &[Br, Zstd]),
            ("identity;q=0, gzip;q=0.1", &[Gzip]),
            ("*;q=0, gzip;q=0.1", &[Gzip]),
            // nothing of ours
            ("", &[]),
            ("identity", &[]),
            ("deflate", &[]),
            ("gzip;q=0", &[]),
            ("*;q=0", &[]),
            ("identity;q=0", &[]),
            ("gzip;q=2", &[]),
            ("gzip;q=", &[]),
            ("gzipped, brotli", &[]),
            (", ;q=1, ,", &[]),
        ] {
            assert_eq!(of(&[line], &OFFERED), codings, "{line}");
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, line.parse().unwrap())]);
            assert_eq!(best(&headers, &OFFERED), codings.first().copied(), "{line}");
        }
        assert_eq!(of(&["br", "gzip"], &OFFERED), [Br, Gzip]);
        assert_eq!(of(&[], &OFFERED), []);
    }

    #[test]
    fn an_answer_is_in_one_coding_that_is_accepted_or_not() {
        let head = |name: HeaderName, lines: &[&str]| {
            let lines = lines.iter().map(|line| line.parse().unwrap());
            HeaderMap::from_iter(lines.map(|line| (name.clone(), line)))
        };
        for (lines, coding) in [
            (&["gzip"][..], Some(Gzip)),
            (&[" X-GZip "], Some(Gzip)),
            (&["br"], Some(Br)),
            (&["deflate"], None),
            (&["identity"], None),
            (&["gzip, br"], None),
            (&["gzip", "br"], None),
            (&[], None),
        ] {
            assert_eq!(
                super::of(&head(CONTENT_ENCODING, lines)),
                coding,
                "{lines:?}"
            );
        }
        for (lines, accepted) in [
            (&["br, gzip;q=0.1"][..], true),
            (&["*"], true),
            (&["identity", "gzip"], true),
            (&["*, gzip;q=0"], false),
            (&["br"], false),
            (&[], false),
        ] {
            let head = head(ACCEPT_ENCODING, lines);
            assert_eq!(is_accepted(&head, Gzip), accepted, "{lines:?}");
        }
    }

    #[test]
    fn among_equals_the_order_of_the_server_counts() {
        assert_eq!(of(&["br, gzip, zstd"], &[Gzip, Br]), [Gzip, Br]);
        assert_eq!(of(&["*"], &[Zstd]), [Zstd]);
        assert_eq!(of(&["gzip"], &[Br]), []);
    }

    proptest! {
        #[test]
        fn any_header_is_read(line in "[a-z*;=,q. 01\\-]{0,40}") {
            let codings = of(&[&line], &OFFERED);
            prop_assert!(codings.len() <= OFFERED.len());
        }
    }
}
