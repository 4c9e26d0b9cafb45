//! `redirect`: sends the client elsewhere.
//!
//! ```yaml
//! redirect: { to: "https://$host/users/$id", status: 308 }
//! ```
//!
//! nginx: `return 308 https://...`. The target is percent-encoded where it is not a URI, so that a decoded `$uri` can
//! neither end the header nor break the link.

use http::{HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::Build;
use crate::exchange::vars::{Stage, Text, View};
use crate::exchange::{Failure, Reply};
use crate::http::header::location;
use crate::issue::At;
use crate::value::FromShort;

/// Where to send the client; `redirect: URL` is short for `redirect: { to: URL }`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The new place, with variables: a URL, or a path on the same host.
    pub to: String,
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
            to: to.to_owned(),
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
    Fixed(HeaderValue),
    Text(Text),
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Redirect> {
        let status = StatusCode::from_u16(self.status)
            .ok()
            .filter(|status| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308));
        if status.is_none() {
            b.error(
                &at.key("status"),
                format!("`{}` does not redirect", self.status),
            )
            .hint("301, 302, 303, 307 and 308 do");
        }
        let at = at.key("to");
        let whole = self.to.starts_with(['/', '$', '?', '#']) || self.to.contains("://");
        if !whole {
            b.error(&at, format!("`{}` is neither a URL nor a path", self.to))
                .hint("begin it with `https://` or `/`");
        }
        let to = if self.to.contains('$') {
            Text::compile_for(Stage::Request, &at, &self.to, b).map(To::Text)
        } else {
            Some(To::Fixed(location(&self.to)))
        };
        Some(Redirect {
            status: status?,
            to: to?,
        })
    }
}

impl Redirect {
    pub fn reply(&self, view: &View<'_>) -> Result<Reply, Failure> {
        let to = match &self.to {
            To::Fixed(to) => to.clone(),
            To::Text(text) => location(&text.render(view)),
        };
        let mut reply = Reply::empty(self.status);
        reply
            .head
            .insert_header("Location", to)
            .map_err(|_| Failure::Internal)?;
        Ok(reply)
    }

    /// What `weir route` says about it.
    pub fn summary(&self) -> String {
        format!("redirect ({})", self.status.as_u16())
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
