//! `security_headers`: what browsers are told to be careful about.
//!
//! ```yaml
//! security_headers: strict
//! ```
//!
//! ```yaml
//! security_headers: { preset: basic, frame_options: off, content_security_policy: "default-src 'self'" }
//! ```
//!
//! Adds headers to every answer that passes the route, errors included, where the answer has none of that name: a
//! backend that says something itself knows better. `basic` hardly breaks a site; `strict` is for one that brings all
//! that it needs itself.
//!
//! A level that names a `preset` begins anew; one that does not changes single headers of the farther level's.

use std::collections::BTreeMap;
use std::time::SystemTime;

use http::{HeaderValue, header};
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use super::Filter;
use crate::build::Build;
use crate::exchange::Cx;
use crate::http::header::Name;
use crate::issue::At;
use crate::value::{FromShort, OrOff, Short};

/// A preset alone, `basic` or `strict`, or a map, in which each header has a value or is `off`; what it does not name is
/// the preset's.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(from = "Short<Fields>")]
#[schemars(with = "Short<Fields>")]
pub struct Config(Fields);

impl From<Short<Fields>> for Config {
    fn from(Short(fields): Short<Fields>) -> Config {
        Config(fields)
    }
}

/// Values of headers, each of them or `off`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// Where to begin: `basic` (default), which hardly breaks a site, or `strict`, for one that brings all that it needs
    /// itself.
    pub preset: Option<Preset>,
    /// `X-Content-Type-Options`. Both presets: `nosniff`.
    pub content_type_options: Option<OrOff<String>>,
    /// `X-Frame-Options`. `basic`: `SAMEORIGIN`; `strict`: `DENY`.
    pub frame_options: Option<OrOff<String>>,
    /// `Referrer-Policy`. `basic`: `strict-origin-when-cross-origin`; `strict`: `no-referrer`.
    pub referrer_policy: Option<OrOff<String>>,
    /// `Strict-Transport-Security`, over TLS only. `strict`: `max-age=31536000; includeSubDomains`.
    pub strict_transport_security: Option<OrOff<String>>,
    /// `Content-Security-Policy`. `strict`: `default-src 'self'; object-src 'none'; base-uri 'self'; frame-ancestors
    /// 'none'`.
    pub content_security_policy: Option<OrOff<String>>,
    /// `Permissions-Policy`. `strict`: `camera=(), geolocation=(), microphone=()`.
    pub permissions_policy: Option<OrOff<String>>,
    /// `Cross-Origin-Opener-Policy`. `strict`: `same-origin`.
    pub cross_origin_opener_policy: Option<OrOff<String>>,
    /// `Cross-Origin-Resource-Policy`. `strict`: `same-origin`.
    pub cross_origin_resource_policy: Option<OrOff<String>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    #[default]
    Basic,
    Strict,
}

impl FromShort for Fields {
    fn short_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Preset>()
    }

    fn from_short(text: &str) -> Result<Fields, String> {
        let preset = match text {
            "basic" => Preset::Basic,
            "strict" => Preset::Strict,
            _ => {
                return Err(format!(
                    "expected `off`, `basic`, `strict` or a map, found `{text}`"
                ));
            }
        };
        Ok(Fields {
            preset: Some(preset),
            ..Fields::default()
        })
    }
}

const BASIC: [(&str, &str); 3] = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "strict-origin-when-cross-origin"),
];

const STRICT: [(&str, &str); 8] = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    (
        "Strict-Transport-Security",
        "max-age=31536000; includeSubDomains",
    ),
    (
        "Content-Security-Policy",
        "default-src 'self'; object-src 'none'; base-uri 'self'; frame-ancestors 'none'",
    ),
    (
        "Permissions-Policy",
        "camera=(), geolocation=(), microphone=()",
    ),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
];

#[derive(Debug)]
pub struct SecurityHeaders {
    preset: Option<Preset>,
    /// What the levels say themselves, by header.
    own: BTreeMap<&'static str, OrOff<HeaderValue>>,
    /// What comes of both.
    lines: Vec<(Name, HeaderValue)>,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<SecurityHeaders> {
        let fields = &self.0;
        let mut own = BTreeMap::new();
        for (key, name, value) in [
            (
                "content_type_options",
                "X-Content-Type-Options",
                &fields.content_type_options,
            ),
            ("frame_options", "X-Frame-Options", &fields.frame_options),
            (
                "referrer_policy",
                "Referrer-Policy",
                &fields.referrer_policy,
            ),
            (
                "strict_transport_security",
                "Strict-Transport-Security",
                &fields.strict_transport_security,
            ),
            (
                "content_security_policy",
                "Content-Security-Policy",
                &fields.content_security_policy,
            ),
            (
                "permissions_policy",
                "Permissions-Policy",
                &fields.permissions_policy,
            ),
            (
                "cross_origin_opener_policy",
                "Cross-Origin-Opener-Policy",
                &fields.cross_origin_opener_policy,
            ),
            (
                "cross_origin_resource_policy",
                "Cross-Origin-Resource-Policy",
                &fields.cross_origin_resource_policy,
            ),
        ] {
            let value = match value {
                None => continue,
                Some(OrOff::Off) => OrOff::Off,
                Some(OrOff::On(text)) => match HeaderValue::from_str(text) {
                    Ok(value) if !value.is_empty() => OrOff::On(value),
                    _ => {
                        b.error(
                            &at.key(key),
                            "the value of a header is one line without control characters",
                        )
                        .hint("`off` leaves the header out");
                        continue;
                    }
                },
            };
            own.insert(name, value);
        }
        Some(SecurityHeaders::new(fields.preset, own))
    }
}

impl SecurityHeaders {
    fn new(
        preset: Option<Preset>,
        own: BTreeMap<&'static str, OrOff<HeaderValue>>,
    ) -> SecurityHeaders {
        let lines: &[(&'static str, &'static str)] = match preset.unwrap_or_default() {
            Preset::Basic => &BASIC,
            Preset::Strict => &STRICT,
        };
        let presets = lines.iter().filter(|(name, _)| !own.contains_key(name));
        let presets = presets.map(|(name, value)| (*name, HeaderValue::from_static(value)));
        let own_lines = own.iter().filter_map(|(name, value)| match value {
            OrOff::On(value) => Some((*name, value.clone())),
            OrOff::Off => None,
        });
        // All of them are names, as a test makes sure.
        let named = |(name, value): (&str, HeaderValue)| Some((Name::parse(name).ok()?, value));
        let lines = presets.chain(own_lines).filter_map(named).collect();
        SecurityHeaders { preset, own, lines }
    }
}

impl Filter for SecurityHeaders {
    /// A preset starts afresh; without one, entries add to what the farther level says.
    fn inherit(self, farther: &SecurityHeaders) -> SecurityHeaders {
        if self.preset.is_some() {
            return self;
        }
        let mut own = farther.own.clone();
        own.extend(self.own);
        SecurityHeaders::new(farther.preset, own)
    }

    fn response(
        &self,
        cx: &Cx,
        _request: &RequestHeader,
        response: &mut ResponseHeader,
        _wall: SystemTime,
    ) {
        let secure = cx.connection.tls.is_some();
        for (name, value) in &self.lines {
            // Browsers ignore it elsewhere (RFC 6797 section 7.2 forbids to send it).
            let fits = secure || *name.name() != header::STRICT_TRANSPORT_SECURITY;
            if fits && !response.headers.contains_key(name.name()) {
                // Fails only when there are more headers than a map can hold; the rest of the answer is of more use
                // than none.
                let _ = response.insert_header(name.written(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::build::testing::compiled;
    use crate::exchange::cx::{Connection, TlsFacts};
    use crate::issue::Sources;

    #[test]
    fn presets_are_known_names() {
        let basic = names(&compile("basic"), true, &[]);
        assert_eq!(
            basic,
            [
                "referrer-policy",
                "x-content-type-options",
                "x-frame-options"
            ]
        );
        let strict = compile("strict");
        assert_eq!(names(&strict, true, &[]).len(), STRICT.len());
        assert_eq!(names(&strict, false, &[]).len(), STRICT.len() - 1);
        for (name, _) in BASIC.iter().chain(&STRICT) {
            assert!(Name::parse(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn what_the_answer_says_itself_stays() {
        let headers = compile("{ frame_options: off, content_security_policy: x }");
        assert_eq!(
            names(&headers, true, &[("Referrer-Policy", "origin")]),
            [
                "content-security-policy",
                "referrer-policy",
                "x-content-type-options"
            ]
        );
        let response = respond(&headers, true, &[("Referrer-Policy", "origin")]);
        assert_eq!(response.headers["referrer-policy"], "origin");
    }

    #[test]
    fn a_nearer_level_adds_or_starts_afresh() {
        let site = compile("{ preset: strict, frame_options: SAMEORIGIN }");
        let route = compile("{ content_security_policy: off }").inherit(&site);
        let response = respond(&route, true, &[]);
        assert_eq!(response.headers["x-frame-options"], "SAMEORIGIN");
        assert_eq!(response.headers["referrer-policy"], "no-referrer");
        assert!(!response.headers.contains_key("content-security-policy"));
        let fresh = compile("basic").inherit(&route);
        assert_eq!(names(&fresh, true, &[]).len(), BASIC.len());
    }

    #[test]
    fn mistakes_are_told() {
        let error = serde_yaml::from_str::<Config>("strickt").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("expected `off`, `basic`, `strict`"),
            "{error}"
        );
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let config: Config = serde_yaml::from_str("{ frame_options: \"a\\nb\" }").unwrap();
        config.compile(&At::Root.key("x"), &mut b);
        assert_eq!(b.issues.0[0].path.to_string(), "x.frame_options");
    }

    fn compile(yaml: &str) -> SecurityHeaders {
        compiled(yaml, Config::compile)
    }

    fn respond(
        headers: &SecurityHeaders,
        secure: bool,
        lines: &[(&'static str, &str)],
    ) -> ResponseHeader {
        let connection = Connection {
            tls: secure.then(TlsFacts::default),
            ..Connection::default()
        };
        let cx = Cx::new(Instant::now(), Arc::new(connection));
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in lines {
            response.insert_header(*name, *value).unwrap();
        }
        headers.response(&cx, &request, &mut response, SystemTime::UNIX_EPOCH);
        response
    }

    fn names(
        headers: &SecurityHeaders,
        secure: bool,
        lines: &[(&'static str, &str)],
    ) -> Vec<String> {
        let response = respond(headers, secure, lines);
        let mut names: Vec<_> = response
            .headers
            .keys()
            .map(|name| name.to_string())
            .collect();
        names.sort();
        names
    }
}
