//! Actions: what finally answers a request, one file each.
//!
//! A route has exactly one. `proxy` hands the request to a pool; the others return a `Reply`, which leaves through
//! `phases/send.rs` like every answer that weir makes itself.

pub mod files;
pub mod proxy;
pub mod redirect;
pub mod respond;
pub mod status;

use schemars::JsonSchema;
use serde::de::MapAccess;

use crate::build::Build;
use crate::issue::At;
use crate::value::Short;
use crate::value::keys::Keyed;

use files::Files;
use proxy::Proxy;
use redirect::Redirect;
use respond::Respond;

/// The actions that a route gives. That it is one and no more is checked when the route is compiled, so that the
/// mistake is reported beside all others.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Actions {
    /// Passes the request on to a pool.
    pub proxy: Option<Short<proxy::Config>>,
    /// Answers with files from a folder.
    pub files: Option<Short<files::Config>>,
    /// Sends the client elsewhere.
    pub redirect: Option<Short<redirect::Config>>,
    /// Gives a fixed answer.
    pub respond: Option<Short<respond::Config>>,
    /// Answers with a page about the running server, in JSON.
    pub status: Option<status::Config>,
}

/// What answers the requests of one route.
pub enum Handler {
    Proxy(Proxy),
    Files(Box<Files>),
    Redirect(Redirect),
    Respond(Respond),
    Status,
}

impl Handler {
    /// Whether it has something for requests of this path, which the route's match takes; else they go on to the next
    /// route.
    pub fn takes(&self, path: &str) -> bool {
        match self {
            Handler::Redirect(redirect) => redirect.takes(path),
            _ => true,
        }
    }

    /// Whether that depends on the path.
    pub fn is_choosy(&self) -> bool {
        matches!(self, Handler::Redirect(redirect) if redirect.is_choosy())
    }

    /// Whether it never takes a backend to answer, whatever the request.
    pub fn answers_itself(&self) -> bool {
        match self {
            Handler::Proxy(_) => false,
            Handler::Files(files) => !files.leads_on(),
            Handler::Redirect(_) | Handler::Respond(_) | Handler::Status => true,
        }
    }
}

impl Keyed for Actions {
    const EXPECTING: &'static str = "an action";
    const KEYS: &'static [&'static str] = &["proxy", "files", "redirect", "respond", "status"];

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "proxy" => self.proxy = Some(map.next_value()?),
            "files" => self.files = Some(map.next_value()?),
            "redirect" => self.redirect = Some(map.next_value()?),
            "respond" => self.respond = Some(map.next_value()?),
            "status" => self.status = Some(map.next_value()?),
            _ => unreachable!("`{key}` is not one of KEYS"),
        }
        Ok(())
    }
}

impl Actions {
    /// The handler of the one action; `at` is the route.
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Handler> {
        let given: Vec<&str> = [
            self.proxy.as_ref().map(|_| "proxy"),
            self.files.as_ref().map(|_| "files"),
            self.redirect.as_ref().map(|_| "redirect"),
            self.respond.as_ref().map(|_| "respond"),
            self.status.as_ref().map(|_| "status"),
        ]
        .into_iter()
        .flatten()
        .collect();
        match given.as_slice() {
            [] => {
                b.error(at, "this route has no action")
                    .hint("give one of proxy, files, redirect, respond, status");
            }
            [_] => {}
            [first, second, ..] => {
                b.error(
                    &at.key(second),
                    format!("a route has one action, but here are `{first}` and `{second}`"),
                )
                .on_key()
                .hint("make two routes of it");
            }
        }

        let mut handler = None;
        if let Some(Short(config)) = &self.proxy {
            handler = config.compile(&at.key("proxy"), b).map(Handler::Proxy);
        }
        if let Some(Short(config)) = &self.files {
            handler = config
                .compile(&at.key("files"), b)
                .map(|files| Handler::Files(Box::new(files)));
        }
        if let Some(Short(config)) = &self.redirect {
            handler = config
                .compile(&at.key("redirect"), b)
                .map(Handler::Redirect);
        }
        if let Some(Short(config)) = &self.respond {
            handler = config.compile(&at.key("respond"), b).map(Handler::Respond);
        }
        if self.status.is_some() {
            handler = Some(Handler::Status);
        }
        handler
    }
}

impl Handler {
    /// What `weir route` says about it.
    pub fn summary(&self) -> String {
        match self {
            Handler::Proxy(proxy) => format!("proxy to pool {}", proxy.pool.name()),
            Handler::Files(_) => "files".to_owned(),
            Handler::Redirect(redirect) => redirect.summary(),
            Handler::Respond(respond) => respond.summary(),
            Handler::Status => "status".to_owned(),
        }
    }
}
