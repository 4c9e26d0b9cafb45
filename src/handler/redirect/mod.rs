//! `redirect`: sends the client elsewhere.
//!
//! ```yaml
//! redirect: { to: "https://$host/users/$id", status: 308 }
//! ```
//!
//! ```yaml
//! redirect: { file: moved.txt, status: 301 }
//! ```
//!
//! nginx: `return 308 https://...`; with a file, a `map` in front of it. The target is percent-encoded where it is not a URI,
//! so that a decoded `$uri` can neither end the header nor break the link.

mod table;

use std::path::PathBuf;

use http::{HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::Build;
use crate::exchange::vars::{Stage, Text, View};
use crate::exchange::{Failure, Reply, escape};
use crate::http::header::location;
use crate::issue::At;
use crate::value::FromShort;

use table::Table;

/// Where to send the client; `redirect: URL` is short for `redirect: { to: URL }`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The new place, with variables: a URL, or a path on the same host. This or `file`. `$uri` and groups of the route's regex,
    /// which are decoded, are encoded again.
    #[serde(default)]
    pub to: Option<String>,
    /// A text file with a redirect in each line: `/from /to`, and perhaps its own status. A `*` at the end of both stands for
    /// the rest of the path. The route takes only requests for what is in it; all others go on to the next route.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// 301 and 308 are permanent; 307 and 308 keep method and body, the others let the client turn POST into GET;
    /// 303 makes it GET. Default 302.
    #[serde(default = "found")]
    #[schemars(extend("enum" = [301, 302, 303, 307, 308]))]
    pub status: u16,
}

fn found() -> u16 {
    302
}

impl FromShort for Config {
    fn from_short(to: &str) -> Result<Config, String> {
        Ok(Config {
            to: Some(to.to_owned()),
            file: None,
            status: found(),
        })
    }
}

#[derive(Debug)]
pub struct Redirect {
    status: StatusCode,
    to: To,
}

#[derive(Debug)]
enum To {
    /// Each path elsewhere.
    Table(Table),
    Fixed(HeaderValue),
    Text(Text),
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Redirect> {
        let status = redirecting(self.status);
        if status.is_none() {
            b.error(
                &at.key("status"),
                format!("`{}` does not redirect", self.status),
            )
            .hint(STATUSES);
        }
        let to = match (&self.to, &self.file) {
            (Some(to), None) => To::compile(&at.key("to"), to, b),
            (None, Some(file)) => {
                let at = at.key("file");
                let path = b.sources.input(&at, file);
                Table::read(&path, status.unwrap_or_default(), &at, b).map(To::Table)
            }
            _ => {
                b.error(at, "needs either `to` or `file`");
                None
            }
        };
        Some(Redirect {
            status: status?,
            to: to?,
        })
    }
}

impl To {
    fn compile(at: &At<'_>, to: &str, b: &mut Build<'_>) -> Option<To> {
        let whole = to.starts_with(['/', '$', '?', '#']) || to.contains("://");
        if !whole {
            b.error(at, format!("`{to}` is neither a URL nor a path"))
                .hint("begin it with `https://` or `/`");
        }
        match to.contains('$') {
            true => Text::compile_for(Stage::Request, at, to, b).map(To::Text),
            false => Some(To::Fixed(location(to))),
        }
    }
}

const STATUSES: &str = "301, 302, 303, 307 and 308 do";

fn redirecting(status: u16) -> Option<StatusCode> {
    let redirects = matches!(status, 301 | 302 | 303 | 307 | 308);
    StatusCode::from_u16(status).ok().filter(|_| redirects)
}

impl Redirect {
    /// Whether there is a place for requests of this path.
    pub fn takes(&self, path: &str) -> bool {
        match &self.to {
            To::Table(table) => table.find(path).is_some(),
            To::Fixed(_) | To::Text(_) => true,
        }
    }

    /// Whether that depends on the path.
    pub fn is_choosy(&self) -> bool {
        matches!(self.to, To::Table(_))
    }

    pub fn reply(&self, view: &View<'_>) -> Result<Reply, Failure> {
        let (status, to) = match &self.to {
            To::Fixed(to) => (self.status, to.clone()),
            To::Text(text) => (self.status, location(&escape::url(text, false, view))),
            To::Table(table) => {
                // It was there when the route was chosen, but a `rewrite` may have changed the path since.
                let found = table.find(&view.cx.path).ok_or(Failure::NoRoute)?;
                (
                    found.status(),
                    location(&found.to(view.request.uri.query())),
                )
            }
        };
        let mut reply = Reply::empty(status);
        reply
            .head
            .insert_header("Location", to)
            .map_err(|_| Failure::Internal)?;
        Ok(reply)
    }

    /// What `weir route` says about it.
    pub fn summary(&self) -> String {
        match &self.to {
            To::Table(table) => format!("redirect ({} paths in a file)", table.len()),
            _ => format!("redirect ({})", self.status.as_u16()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Instant, SystemTime};

    use pingora::http::RequestHeader;

    use super::*;
    use crate::exchange::Cx;
    use crate::exchange::cx::Connection;
    use crate::issue::Sources;
    use crate::value::Short;

    #[test]
    fn the_client_is_sent_elsewhere() {
        let found = reply("/new", "/old");
        assert_eq!(found.head.status, 302);
        assert_eq!(found.head.headers["location"], "/new");
        let moved = reply("{ to: 'https://$host$uri', status: 308 }", "/a b");
        assert_eq!(moved.head.status, 308);
        assert_eq!(moved.head.headers["location"], "https://shop.example/a%20b");
    }

    #[test]
    fn what_a_path_holds_stays_a_part_of_it() {
        let found = reply("https://$host$uri?from=$uri&$arg_x", "/100%/a?b&c");
        assert_eq!(
            found.head.headers["location"],
            "https://shop.example/100%25/a%3Fb&c?from=/100%25/a%3Fb%26c&"
        );
    }

    #[test]
    fn a_path_cannot_add_a_header() {
        let reply = reply("https://$host$uri", "/\r\nSet-Cookie: a=b");
        assert_eq!(
            reply.head.headers["location"],
            "https://shop.example/%0D%0ASet-Cookie:%20a=b"
        );
    }

    fn reply(yaml: &str, path: &str) -> Reply {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let config: Short<Config> = serde_yaml::from_str(yaml).unwrap();
        let handler = config.compile(&At::Root, &mut b).unwrap();
        assert_eq!(b.issues.0.len(), 0, "{:?}", b.issues);
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.host = "shop.example".to_owned();
        cx.path = path.to_owned();
        let view = View {
            cx: &cx,
            request: &RequestHeader::build("GET", b"/", None).unwrap(),
            response: None,
            wall: SystemTime::UNIX_EPOCH,
        };
        handler.reply(&view).unwrap()
    }
}
