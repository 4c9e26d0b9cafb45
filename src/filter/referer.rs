//! `referer`: serves only what is asked for from a page of certain hosts, against pictures and downloads that others
//! embed.
//!
//! ```yaml
//! referer: { allow: [self, "*.example.com"], empty: true }
//! ```
//!
//! Anything else is answered with 403. What `Referer` says is the client's word: it keeps browsers from embedding, and
//! nobody out.

use std::time::SystemTime;

use http::header;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::{Cx, Failure};
use crate::http::host;
use crate::issue::At;
use crate::value::OneOrMany;

/// From whose pages may be asked.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Hosts: `self` for the one that is asked, `shop.example`, or `*.shop.example` for every name below. nginx:
    /// `server_names`, names.
    pub allow: OneOrMany<String>,
    /// Whether one may ask without saying from where: a bookmark, a program, a page that keeps it to itself. Default true.
    /// nginx: `none`.
    #[serde(default = "yes")]
    pub empty: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug)]
pub struct Referer {
    allow: Vec<Host>,
    empty: bool,
}

#[derive(Debug, PartialEq)]
enum Host {
    Own,
    Is(String),
    /// With the dot before it.
    Below(String),
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Referer> {
        let key = at.key("allow");
        if self.allow.0.is_empty() && !self.empty {
            b.error(&key, "nobody may ask");
        }
        let mut allow = Vec::new();
        for (i, written) in self.allow.0.iter().enumerate() {
            match Host::parse(written) {
                Some(host) => allow.push(host),
                None => {
                    b.error(&key.index(i), format!("`{written}` is not a host"))
                        .hint("write `self`, `shop.example` or `*.shop.example`");
                }
            }
        }
        Some(Referer {
            allow,
            empty: self.empty,
        })
    }
}

impl Host {
    fn parse(written: &str) -> Option<Host> {
        if written == "self" {
            return Some(Host::Own);
        }
        let (name, is_wildcard) = match written.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (written, false),
        };
        let mut host = String::new();
        host::normalise_into(name.as_bytes(), &mut host).ok()?;
        // no port, no path, no other wildcard
        let is_name = !host.is_empty()
            && host.eq_ignore_ascii_case(name.trim_end_matches('.'))
            && !host.contains('*');
        match (is_name, is_wildcard) {
            (false, _) => None,
            (true, false) => Some(Host::Is(host)),
            (true, true) => Some(Host::Below(format!(".{host}"))),
        }
    }

    fn takes(&self, host: &str, own: &str) -> bool {
        match self {
            Host::Own => host == own,
            Host::Is(name) => host == name,
            Host::Below(domain) => host.len() > domain.len() && host.ends_with(domain.as_str()),
        }
    }
}

impl Filter for Referer {
    async fn request(&self, cx: &mut Cx, request: &RequestHeader, _wall: SystemTime) -> Flow {
        let referer = request.headers.get(header::REFERER);
        let may_ask = match referer.map(|value| value.as_bytes().trim_ascii()) {
            None | Some(b"") => self.empty,
            Some(referer) => host_of(referer).is_some_and(|host| {
                self.allow
                    .iter()
                    .any(|allowed| allowed.takes(&host, &cx.host))
            }),
        };
        match may_ask {
            true => Flow::Continue,
            false => Flow::Fail(Failure::Referer),
        }
    }
}

/// The host of a page.
fn host_of(referer: &[u8]) -> Option<String> {
    let referer = std::str::from_utf8(referer).ok()?;
    let (scheme, rest) = referer.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let authority = rest.split(['/', '?', '#', '\\']).next()?;
    let authority = authority.rsplit('@').next()?;
    let mut host = String::new();
    host::normalise_into(authority.as_bytes(), &mut host).ok()?;
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue::Sources;

    #[test]
    fn hosts_of_pages_are_compared_as_hosts() {
        let hosts =
            ["self", "Shop.example", "*.cdn.example"].map(|written| Host::parse(written).unwrap());
        for (referer, expected) in [
            ("https://own.example/page?x", true),
            ("http://SHOP.example:8080", true),
            ("https://shop.example./", true),
            ("https://a.cdn.example/x", true),
            ("https://cdn.example/", false),
            ("https://evilcdn.example/", false),
            ("https://shop.example.evil/", false),
            ("https://shop.example@evil/", false),
            ("https://evil/?https://shop.example/", false),
            ("https://evil\\\\.cdn.example/", false),
            ("ftp://shop.example/", false),
            ("shop.example", false),
            ("https://", false),
        ] {
            let host = host_of(referer.as_bytes());
            let taken =
                host.is_some_and(|host| hosts.iter().any(|own| own.takes(&host, "own.example")));
            assert_eq!(taken, expected, "{referer}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let yaml = "{ allow: [self, '', '*', 'a:80', 'https://a', 'a/b', '*.*.a'], empty: false }";
        let config: Config = serde_yaml::from_str(yaml).unwrap();
        config.compile(&At::Root.key("referer"), &mut b);
        let places: Vec<_> = b
            .issues
            .0
            .iter()
            .map(|issue| issue.path.to_string())
            .collect();
        assert_eq!(
            places,
            (1..7)
                .map(|i| format!("referer.allow[{i}]"))
                .collect::<Vec<_>>()
        );
    }
}
