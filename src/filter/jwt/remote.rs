//! Keys that somebody else publishes and exchanges from time to time: fetched from a pool, in the background.
//!
//! No request waits for a fetch. What was fetched last stays in use when the next one fails, and over a reload. A token signed by
//! a key that is not known has the set fetched at once, but no more often than every [`PATIENCE`]: so a new key is known within a
//! second of its first token, and made up names of keys do not make weir ask for each.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::uri::PathAndQuery;
use http::{Method, header};
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::Notify;

use super::keys::{self, Key};
use crate::build::Build;
use crate::issue::At;
use crate::pool::ask::{Asker, ENOUGH};
use crate::pool::{Choice, Needs, Pool};
use crate::value::Span;

/// Where a JWK set is fetched.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the pool that publishes it; how to reach it, by TLS and with which names, stands there.
    pool: String,
    /// Path of the set: `/.well-known/jwks.json`.
    path: String,
    /// What `Host` to send. Default: the name of the pool.
    host: Option<String>,
    /// How often it is fetched. Default 10m.
    every: Option<Span>,
}

const DEFAULT_EVERY: Duration = Duration::from_secs(10 * 60);
/// The least time between two fetches.
const PATIENCE: Duration = Duration::from_secs(10);
/// For one fetch.
const LIMIT: Duration = Duration::from_secs(10);

pub struct Remote {
    pool: Arc<Pool>,
    question: RequestHeader,
    every: Duration,
    asker: Arc<Asker>,
    known: Arc<Known>,
}

/// What outlives a reload.
#[derive(Default)]
struct Known {
    keys: ArcSwapOption<Vec<Key>>,
    wanted: Notify,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Remote> {
        let pool = b.pool(&at.key("pool"), &self.pool);
        let is_path = self.path.starts_with('/') && self.path.parse::<PathAndQuery>().is_ok();
        let question = RequestHeader::build(Method::GET, self.path.as_bytes(), Some(4));
        if !is_path || question.is_err() {
            b.error(&at.key("path"), format!("`{}` is not a path", self.path))
                .hint("a path begins with `/` and is encoded as in a request");
        }
        let mut question = question.ok().filter(|_| is_path)?;
        let host = self.host.as_ref().unwrap_or(&self.pool);
        if question.insert_header(header::HOST, host.as_str()).is_err() {
            b.error(&at.key("host"), format!("`{host}` is not a host"));
            return None;
        }
        let _ =
            question.insert_header(header::ACCEPT, "application/jwk-set+json, application/json");
        let every = self.every.map_or(DEFAULT_EVERY, Span::get);
        if every < PATIENCE {
            let least = Span::new(PATIENCE);
            b.error(&at.key("every"), format!("must be at least {least}"));
        }
        let name = format!("jwks {} {} {host}", self.pool, self.path);
        Some(Remote {
            pool: pool?,
            question,
            every,
            asker: b.carry("asker".to_owned(), |_| true, Asker::default),
            known: b.carry(name, |_| true, Known::default),
        })
    }
}

impl Remote {
    /// The keys that were fetched last.
    pub fn keys(&self) -> Option<Arc<Vec<Key>>> {
        self.known.keys.load_full()
    }

    /// Some token is signed by a key that is not among them.
    pub fn want(&self) {
        self.known.wanted.notify_one();
    }

    /// Fetches the keys again and again.
    pub async fn follow(&self) {
        loop {
            match self.fetch().await {
                Ok(keys) => {
                    log::debug!("jwt: {} keys from pool `{}`", keys.len(), self.pool.name());
                    self.known.keys.store(Some(Arc::new(keys)));
                }
                Err(why) => log::warn!("jwt: no keys from pool `{}`: {why}", self.pool.name()),
            }
            tokio::time::sleep(PATIENCE).await;
            // Without any, the next try is due at once.
            if self.known.keys.load().is_some() {
                tokio::select! {
                    () = tokio::time::sleep(self.every - PATIENCE) => {}
                    () = self.known.wanted.notified() => {}
                }
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let choice = Choice::any(Instant::now(), fastrand::u64(..));
        let needs = Needs {
            patient: true,
            ..Needs::default()
        };
        let asked = self
            .asker
            .ask(&self.pool, &self.question, choice, needs, Instant::now);
        let answer = tokio::time::timeout(LIMIT, asked)
            .await
            .map_err(|_| format!("no answer within {}", Span::new(LIMIT)))?
            .map_err(|e| e.to_string())?;
        if answer.head.status != 200 {
            return Err(format!("status {}", answer.head.status));
        }
        if answer.body.len() > ENOUGH {
            return Err("the set is too long".to_owned());
        }
        let text = std::str::from_utf8(&answer.body).map_err(|_| "not UTF-8".to_owned())?;
        keys::parse(text)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("pool", &self.pool.name())
            .finish_non_exhaustive()
    }
}
