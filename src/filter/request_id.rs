//! `request_id`: one identifier per request, sent to the backend, returned to the client, and `$request_id` in
//! templates and logs.
//!
//! ```yaml
//! trusted_proxies: [10.0.0.0/8]
//! defaults:
//!   request_id: { header: X-Request-Id, trust: true }
//! ```
//!
//! It has 32 hexadecimal digits, and goes to the backend and to the client; texts and logs have it as `$request_id`.
//! `request_id: {}` takes all defaults.
//!
//! One that a request brings is kept where it comes from a peer that may say so, a proxy or a gateway in front;
//! everybody else gets a new one, for a client could otherwise give many requests the same one, or that of somebody
//! else's.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use pingora::http::{RequestHeader, ResponseHeader};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::Cx;
use crate::http::header::Name;
use crate::issue::At;
use crate::value::Cidr;

/// An identifier for each request: 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The header that carries it, to the backend and to the client. Default `X-Request-Id`.
    pub header: String,
    /// From whom to keep the identifier that a request brings, if it is 1 to 128 visible ASCII characters: `true` from the peers
    /// in `trusted_proxies`, a network or a list of them from these, `false` from nobody. Default false.
    pub trust: Trust,
}

/// Whose identifiers are kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Trust {
    #[default]
    Nobody,
    /// `trusted_proxies`.
    Proxies,
    These(Vec<Cidr>),
}

impl Default for Config {
    fn default() -> Config {
        Config {
            header: "X-Request-Id".to_owned(),
            trust: Trust::Nobody,
        }
    }
}

#[derive(Debug)]
pub struct RequestId {
    header: Name,
    trusted: Arc<[Cidr]>,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<RequestId> {
        let trusted = match &self.trust {
            Trust::Nobody => Arc::default(),
            Trust::Proxies => b.trusted_proxies.clone(),
            Trust::These(networks) => networks.as_slice().into(),
        };
        if self.trust != Trust::Nobody && trusted.is_empty() {
            b.warn(&at.key("trust"), "nobody is trusted")
                .hint("`trusted_proxies` says who is, or a list of networks here");
        }
        match Name::parse(&self.header) {
            Ok(header) => Some(RequestId { header, trusted }),
            Err(message) => {
                b.error(&at.key("header"), message);
                None
            }
        }
    }
}

impl Filter for RequestId {
    async fn request(&self, cx: &mut Cx, request: &RequestHeader, _wall: SystemTime) -> Flow {
        let brought = match self.trusts(cx.connection.peer_ip()) {
            true => brought(request, &self.header),
            false => None,
        };
        match brought {
            Some(id) => cx.request_id = OnceLock::from(id.to_owned()),
            // now, so that the log tells it whatever ends the request
            None => {
                cx.request_id();
            }
        }
        Flow::Continue
    }

    fn upstream(
        &self,
        cx: &Cx,
        _request: &RequestHeader,
        upstream: &mut RequestHeader,
        _wall: SystemTime,
    ) {
        // fails only when there are more headers than a map can hold; the rest of the request is more use than none
        let _ = upstream.insert_header(self.header.written(), cx.request_id());
    }

    fn response(
        &self,
        cx: &Cx,
        _request: &RequestHeader,
        response: &mut ResponseHeader,
        _wall: SystemTime,
    ) {
        let _ = response.insert_header(self.header.written(), cx.request_id());
    }
}

impl RequestId {
    fn trusts(&self, peer: Option<IpAddr>) -> bool {
        !self.trusted.is_empty()
            && peer.is_some_and(|peer| self.trusted.iter().any(|range| range.contains(peer)))
    }
}

/// The identifier that a request brings, if there is one and it is fit for headers and logs.
fn brought<'a>(request: &'a RequestHeader, header: &Name) -> Option<&'a str> {
    let mut lines = request.headers.get_all(header.name()).iter();
    let (Some(id), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let id = id.to_str().ok()?;
    let fit = (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    fit.then_some(id)
}

impl<'de> Deserialize<'de> for Trust {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Trust, D::Error> {
        deserializer.deserialize_any(BoolOrNetworks)
    }
}

struct BoolOrNetworks;

impl<'de> Visitor<'de> for BoolOrNetworks {
    type Value = Trust;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`true`, `false` or a list of networks")
    }

    fn visit_bool<E: de::Error>(self, proxies: bool) -> Result<Trust, E> {
        Ok(match proxies {
            true => Trust::Proxies,
            false => Trust::Nobody,
        })
    }

    fn visit_str<E: de::Error>(self, network: &str) -> Result<Trust, E> {
        let network = Cidr::deserialize(network.into_deserializer())?;
        Ok(Trust::These(vec![network]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Trust, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(Trust::These)
    }
}

impl JsonSchema for Trust {
    fn schema_name() -> Cow<'static, str> {
        "Trust".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let network = generator.subschema_for::<Cidr>();
        json_schema!({
            "anyOf": [{ "type": "boolean" }, network, { "type": "array", "items": network }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_trusted_is_in_a_network() {
        let trust = |yaml: &str| serde_yaml::from_str::<Trust>(yaml).unwrap();
        assert_eq!(trust("true"), Trust::Proxies);
        assert_eq!(trust("false"), Trust::Nobody);
        let Trust::These(one) = trust("10.0.0.0/8") else {
            panic!("networks")
        };
        assert_eq!(trust("[10.0.0.0/8]"), Trust::These(one.clone()));
        let id = RequestId {
            header: Name::parse("X-Request-Id").unwrap(),
            trusted: one.into(),
        };
        assert!(id.trusts(Some("10.1.2.3".parse().unwrap())));
        assert!(!id.trusts(Some("11.1.2.3".parse().unwrap())));
        assert!(!id.trusts(None));
    }

    #[test]
    fn of_two_identifiers_none_is_kept() {
        let header = Name::parse("X-Request-Id").unwrap();
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.append_header("X-Request-Id", "a").unwrap();
        assert_eq!(brought(&request, &header), Some("a"));
        request.append_header("X-Request-Id", "b").unwrap();
        assert_eq!(brought(&request, &header), None);
    }

    #[test]
    fn a_brought_identifier_must_be_short_and_visible() {
        let header = Name::parse("X-Request-Id").unwrap();
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        assert_eq!(brought(&request, &header), None);
        for (id, fit) in [
            ("abc-1", true),
            ("", false),
            ("a b", false),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
        ] {
            request.insert_header("X-Request-Id", id).unwrap();
            assert_eq!(brought(&request, &header).is_some(), fit, "{id}");
        }
    }
}
