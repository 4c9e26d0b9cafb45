//! `location`: where backends send clients, in the words of the outside.
//!
//! ```yaml
//! location: { from: "http://backend/", to: "https://$host/" }
//! ```
//!
//! A backend that does not know how it is reached redirects to its own name. This rewrites `Location` and `Refresh` of the
//! answers of backends; the redirects that weir makes itself are right already.

use std::time::SystemTime;

use http::{HeaderName, HeaderValue, header};
use pingora::http::{RequestHeader, ResponseHeader};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Filter;
use crate::build::Build;
use crate::exchange::Cx;
use crate::exchange::vars::{Stage, Text, View};
use crate::http::header::location;
use crate::issue::At;
use crate::value::{OneOrMany, pattern};

const REFRESH: HeaderName = HeaderName::from_static("refresh");

/// One rule, or a list of which the first that fits counts.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(OneOrMany<Rule>);

/// One URL in place of another.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// How the URL begins, a text with variables; or `~REGEX`, `~*REGEX` in any case.
    pub from: String,
    /// What stands there instead: a text with variables, groups of the regex among them. A regex replaces what it matches.
    pub to: String,
}

#[derive(Debug)]
pub struct Location {
    rules: Vec<(From, Text)>,
}

#[derive(Debug)]
enum From {
    Beginning(Text),
    Regex(Regex),
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Location> {
        if self.0.0.is_empty() {
            b.error(at, "needs a rule")
                .hint("such as `{ from: \"http://backend/\", to: \"https://$host/\" }`");
        }
        let rules = self.0.0.iter().enumerate();
        let rules = rules.filter_map(|(i, rule)| rule.compile(&at.index(i), b));
        Some(Location {
            rules: rules.collect(),
        })
    }
}

impl Rule {
    fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<(From, Text)> {
        let at_from = at.key("from");
        let Some(regex) = self.from.strip_prefix('~') else {
            if self.from.is_empty() {
                b.error(&at_from, "needs the beginning of a URL");
            }
            let from = Text::compile_for(Stage::Response, &at_from, &self.from, b);
            let to = Text::compile_for(Stage::Response, &at.key("to"), &self.to, b);
            return Some((From::Beginning(from?), to?));
        };
        let regex = match regex.strip_prefix('*') {
            Some(regex) => pattern::regex(&format!("(?i){regex}")),
            None => pattern::regex(regex),
        };
        let regex = match regex {
            Ok(regex) => regex,
            Err(error) => {
                b.error(&at_from, format!("not a regular expression: {error}"));
                return None;
            }
        };
        // The groups of the route's regex are out of reach here: two lists of captures would be one too many.
        let outer = std::mem::replace(&mut b.captures, pattern::capture_names(&regex).collect());
        let to = Text::compile_for(Stage::Response, &at.key("to"), &self.to, b);
        b.captures = outer;
        Some((From::Regex(regex), to?))
    }
}

impl Filter for Location {
    fn response(
        &self,
        cx: &Cx,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        wall: SystemTime,
    ) {
        if cx.tries.is_empty() {
            return;
        }
        let view = View {
            cx,
            request,
            response: Some(response),
            wall,
        };
        let value = |name: &HeaderName| response.headers.get(name)?.to_str().ok();
        let to = value(&header::LOCATION).and_then(|url| self.change(url, &view));
        let refresh = value(&REFRESH).and_then(|value| {
            // `5; url=http://backend/`
            let at = value.to_ascii_lowercase().find("url=")? + "url=".len();
            let mut new = value.as_bytes()[..at].to_vec();
            new.extend_from_slice(self.change(&value[at..], &view)?.as_bytes());
            HeaderValue::from_bytes(&new).ok()
        });
        let mut set = |name: &'static str, value: Option<HeaderValue>| {
            if let Some(value) = value {
                // It replaces one that is there.
                let _ = response.insert_header(name, value);
            }
        };
        set("Location", to);
        set("Refresh", refresh);
    }
}

impl Location {
    /// What the first rule that fits makes of a URL.
    fn change(&self, url: &str, view: &View<'_>) -> Option<HeaderValue> {
        let mut rules = self.rules.iter();
        let new = rules.find_map(|(from, to)| match from {
            From::Beginning(from) => {
                let from = from.render(view);
                let rest = url.strip_prefix(&*from).filter(|_| !from.is_empty())?;
                Some(format!("{}{rest}", to.render(view)))
            }
            From::Regex(regex) => {
                let found = regex.find(url)?;
                let mut captures = Vec::new();
                pattern::push_captures(regex, url, &mut captures);
                let mut new = url.as_bytes()[..found.start()].to_vec();
                to.write_with(&captures, view, &mut new);
                new.extend_from_slice(&url.as_bytes()[found.end()..]);
                Some(String::from_utf8_lossy(&new).into_owned())
            }
        });
        new.map(|new| location(&new))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::build::testing::{compiled, mistake};
    use crate::exchange::cx::{Connection, Try};

    #[test]
    fn urls_are_changed_by_the_first_rule_that_fits() {
        let location = compile(
            r#"
            - { from: "http://backend/", to: "https://$host/" }
            - { from: "http://$host:8080/", to: / }
            - { from: "~*^HTTP://[a-z]+[.]internal(?<port>:[0-9]+)?", to: "https://x$port" }
            - { from: "~/old/(.+)/$", to: "/$1" }
            "#,
        );
        for (url, expected) in [
            ("http://backend/a?b", "https://shop.example/a?b"),
            ("http://backend", "http://backend"),
            ("http://shop.example:8080/a", "/a"),
            ("http://app.internal:81/a", "https://x:81/a"),
            ("http://app.internal/a", "https://x/a"),
            ("/z/old/a/b/", "/z/a/b"),
            ("/other", "/other"),
        ] {
            assert_eq!(respond(&location, "location", url), expected, "{url}");
        }
        for (value, expected) in [
            ("5; url=http://backend/a", "5; url=https://shop.example/a"),
            ("0;URL=http://backend/", "0;URL=https://shop.example/"),
            ("5", "5"),
        ] {
            assert_eq!(respond(&location, "refresh", value), expected, "{value}");
        }
    }

    #[test]
    fn what_weir_answers_itself_stays() {
        let location = compile("{ from: /, to: /x/ }");
        let mut response = ResponseHeader::build(302, None).unwrap();
        response.insert_header("Location", "/a").unwrap();
        location.response(&cx(), &request(), &mut response, SystemTime::UNIX_EPOCH);
        assert_eq!(response.headers["location"], "/a");
    }

    #[test]
    fn mistakes_are_reported_at_their_keys() {
        for (yaml, expected) in [
            ("[]", "location: needs a rule"),
            (
                "{ from: '', to: / }",
                "location[0].from: needs the beginning of a URL",
            ),
            (
                "{ from: '~(', to: / }",
                "location[0].from: not a regular expression",
            ),
            (
                "{ from: /, to: $nonsuch }",
                "location[0].to: no variable named `$nonsuch`",
            ),
        ] {
            let text = mistake(yaml, "location", Config::compile);
            assert!(text.starts_with(expected), "{text}");
        }
    }

    fn compile(yaml: &str) -> Location {
        compiled(yaml, Config::compile)
    }

    fn cx() -> Cx {
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.host = "shop.example".to_owned();
        cx
    }

    fn request() -> RequestHeader {
        RequestHeader::build("GET", b"/", None).unwrap()
    }

    fn respond(location: &Location, name: &'static str, value: &str) -> String {
        let mut cx = cx();
        cx.tries.push(Try {
            backend: "127.0.0.1:9001".into(),
            started: cx.started,
            connect: None,
            header: None,
            response: None,
            status: 302,
            head: 0,
            length: 0,
        });
        let mut response = ResponseHeader::build(302, None).unwrap();
        response.insert_header(name, value).unwrap();
        location.response(&cx, &request(), &mut response, SystemTime::UNIX_EPOCH);
        response.headers[name].to_str().unwrap().to_owned()
    }
}
