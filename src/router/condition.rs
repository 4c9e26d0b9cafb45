//! Conditions of a route beside the path.

use std::fmt;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Method};

use super::config::Match;
use crate::build::Build;
use crate::http::query;
use crate::issue::At;
use crate::value::Cidr;

/// What routing looks at in a request, beside its host.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    pub method: &'a Method,
    /// Decoded and normalised.
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    /// As the client sent it.
    pub query: Option<&'a str>,
    /// `None` on a unix socket.
    pub client: Option<IpAddr>,
}

#[derive(Debug, Default)]
pub struct Conditions {
    methods: Vec<Method>,
    headers: Vec<(HeaderName, String)>,
    query: Vec<(String, String)>,
    client: Vec<Cidr>,
}

impl Conditions {
    /// `None` if the file asks for none.
    pub fn compile(config: &Match, at: &At<'_>, b: &mut Build<'_>) -> Option<Conditions> {
        let mut methods = Vec::new();
        if let Some(written) = &config.methods {
            let at = at.key("methods");
            if written.0.is_empty() {
                b.error(&at, "an empty list matches no request");
            }
            for (i, name) in written.0.iter().enumerate() {
                methods.extend(method(&at.index(i), name, b));
            }
        }
        let mut headers = Vec::new();
        for (name, value) in &config.headers {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => headers.push((name, value.clone())),
                Err(_) => {
                    b.error(
                        &at.key("headers").key(name),
                        format!("`{name}` is not a header name"),
                    )
                    .on_key();
                }
            }
        }
        let client = config.client.as_ref().map_or(&[][..], |client| &client.0);
        if config.client.is_some() && client.is_empty() {
            b.error(&at.key("client"), "an empty list matches no request");
        }
        let query = config.query.iter();
        let conditions = Conditions {
            methods,
            headers,
            query: query
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            client: client.to_vec(),
        };
        (!conditions.is_empty()).then_some(conditions)
    }

    fn is_empty(&self) -> bool {
        self.methods.is_empty()
            && self.headers.is_empty()
            && self.query.is_empty()
            && self.client.is_empty()
    }

    /// The key of a condition that does not hold; `None` if all hold.
    pub fn failing(&self, facts: &RequestFacts<'_>) -> Option<&'static str> {
        if !self.methods.is_empty() && !self.has_method(facts.method) {
            return Some("methods");
        }
        if !self.headers.iter().all(|(name, value)| {
            let mut lines = facts.headers.get_all(name).iter();
            lines.any(|line| line == value)
        }) {
            return Some("headers");
        }
        let query = facts.query.unwrap_or_default();
        if !self
            .query
            .iter()
            .all(|(name, value)| has_parameter(query, name, value))
        {
            return Some("query");
        }
        let inside = |client| self.client.iter().any(|network| network.contains(client));
        if !self.client.is_empty() && !facts.client.is_some_and(inside) {
            return Some("client");
        }
        None
    }

    fn has_method(&self, method: &Method) -> bool {
        // RFC 9110 section 9.3.2: HEAD is GET without the body
        self.methods.contains(method)
            || (*method == Method::HEAD && self.methods.contains(&Method::GET))
    }
}

/// As it is written in the configuration.
impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.methods.is_empty() {
            let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
            parts.push(format!("methods {}", methods.join(" ")));
        }
        parts.extend(
            self.headers
                .iter()
                .map(|(name, value)| format!("header {name}: {value}")),
        );
        parts.extend(
            self.query
                .iter()
                .map(|(name, value)| format!("query {name}={value}")),
        );
        if !self.client.is_empty() {
            let client: Vec<String> = self.client.iter().map(Cidr::to_string).collect();
            parts.push(format!("client {}", client.join(" ")));
        }
        f.write_str(&parts.join(", "))
    }
}

fn method(at: &At<'_>, name: &str, b: &mut Build<'_>) -> Option<Method> {
    let upper = name.to_ascii_uppercase();
    if upper != name {
        b.error(
            at,
            format!("`{name}` is not a method: methods have capital letters"),
        )
        .hint(format!("did you mean `{upper}`?"));
        return None;
    }
    let method = Method::from_bytes(name.as_bytes()).ok();
    if method.is_none() {
        b.error(at, format!("`{name}` is not a method"));
    }
    method
}

/// Whether one of the parameters of a query has this name and value.
fn has_parameter(whole: &str, name: &str, value: &str) -> bool {
    query::parameters(whole)
        .any(|(_, n, v)| query::decodes_to(n, name) && query::decodes_to(v, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_compared_decoded() {
        for (query, found) in [
            ("v=2", true),
            ("a=1&v=2", true),
            ("v=1&v=2", true),
            ("%76=%32", true),
            ("v=22", false),
            ("v", false),
            ("", false),
            ("xv=2", false),
        ] {
            assert_eq!(has_parameter(query, "v", "2"), found, "{query}");
        }
        assert!(has_parameter("q=a+b%2Bc", "q", "a b+c"));
        assert!(has_parameter("q=+", "q", " "));
        assert!(has_parameter("debug", "debug", ""));
        assert!(!has_parameter("q=%zz", "q", "zz"));
    }
}
