//! `mirror`: sends a copy of requests to another pool, to try out there what comes in.
//!
//! ```yaml
//! mirror: { pool: shadow, share: 10% }
//! ```
//!
//! ```yaml
//! mirror: [{ pool: shadow }, { pool: next, share: 10% }]
//! ```
//!
//! The copy is of what a backend gets: method and path after `rewrite`, the headers with all that policies and the
//! forwarding add, and the body. Its answer is read and thrown away; it counts for the health and the figures of the
//! other pool and leaves no line in the access log. A copy of a request that changes something changes it there too:
//! give that pool a database of its own.
//!
//! The original never waits. The body is copied while it passes, and what the other pool has not taken yet is kept up
//! to `buffer`: nginx reads all of it first, which holds up the original. A copy that falls further behind is given up,
//! and where `max` are on their way there is none. How often that happens is told in the log, once in a minute.
//!
//! It goes out when the request does, once, however often that is tried again; so where no backend can be reached there
//! is none. Requests that another policy answers or refuses are not copied, nor those for another protocol, as a
//! WebSocket. Where the action answers by itself (`files`, `respond` and so on) nobody reads the body: requests without
//! one are copied there too.
//!
//! A list sends copies to several pools, each with a share, a number and a buffer of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Version, header};
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use pingora::{Error, ErrorSource};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::{Cx, Failure};
use crate::issue::At;
use crate::net::crowd::Occasions;
use crate::pool::ask::Asker;
use crate::pool::ask::copy::{self, Body, Feed, Unfed};
use crate::pool::{Choice, Ends, Needs, Pool};
use crate::value::{FromShort, OneOrMany, Ratio, Short, Size, Span};

/// Where copies of requests go: to one pool, or a list of them; a name alone is short for `{ pool: NAME }`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(OneOrMany<Short<TargetConfig>>);

#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// Name of the pool that gets the copies. nginx: `mirror`.
    pool: String,
    /// Of how many requests, chosen at random. Default `100%`. nginx: `split_clients`.
    share: Option<Ratio>,
    /// How many copies may be on their way at a time; of a request beyond there is none. Default 100.
    max: Option<usize>,
    /// How much of a body is kept for a pool that takes it more slowly than it comes, for each copy; at least 128KiB.
    /// Default 1MiB.
    buffer: Option<Size>,
    /// How long a copy may take in all; the limits of the pool count as well. Default 60s.
    timeout: Option<Span>,
}

const DEFAULT_SHARE: Ratio = Ratio::percent(100);
const DEFAULT_MAX: usize = 100;
/// What a body may bring in a millisecond, for which a pool may well be late.
const DEFAULT_BUFFER: Size = Size::new(1024 * 1024);
const LEAST_BUFFER: Size = Size::new(128 * 1024);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How much later a copy is cut off than the pool is to give it up, which then knows whose fault it was.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Mirror(Box<[Target]>);

#[derive(Debug)]
struct Target {
    pool: Arc<Pool>,
    share: f64,
    max: usize,
    buffer: usize,
    timeout: Duration,
    asker: Arc<Asker>,
    copies: Arc<Copies>,
}

impl Filter for Mirror {
    async fn request(&self, cx: &mut Cx, _request: &RequestHeader, _wall: SystemTime) -> Flow {
        // that of a route whose action led on to another one
        cx.slots.take::<Slot>();
        let drawn = self
            .0
            .iter()
            .map(|target| match is_chosen(target.share, fastrand::f64()) {
                true => Progress::Chosen,
                false => Progress::Over,
            });
        let copies: Box<[Progress]> = drawn.collect();
        if copies.iter().any(Progress::is_chosen) {
            cx.slots.put(Slot(Mutex::new(copies)));
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
        let Some(Slot(copies)) = cx.slots.get() else {
            return;
        };
        for (target, progress) in self.0.iter().zip(copies.lock().iter_mut()) {
            if progress.is_chosen() {
                *progress = match target.start(cx, upstream) {
                    Some(feed) => Progress::Going { feed, passed: 0 },
                    None => Progress::Over,
                };
            }
        }
    }

    fn request_body(&self, cx: &Cx, body: &mut Option<Bytes>, end: bool) -> Result<(), Failure> {
        if let Some(Slot(copies)) = cx.slots.get() {
            for (target, progress) in self.0.iter().zip(copies.lock().iter_mut()) {
                target.pass(progress, cx, body.as_ref(), end);
            }
        }
        Ok(())
    }
}

/// Whether a number from 0 to 1, without 1, is within the share.
fn is_chosen(share: f64, drawn: f64) -> bool {
    drawn < share
}

/// What there is of the copies of one request, one for each target.
struct Slot(Mutex<Box<[Progress]>>); // nobody waits for the lock: it only makes sharable what is not shared

enum Progress {
    /// The request is to be copied.
    Chosen,
    /// The copy is on its way; so many bytes of the body have passed to it.
    Going {
        feed: Feed,
        passed: u64,
    },
    Over,
}

impl Progress {
    fn is_chosen(&self) -> bool {
        matches!(self, Progress::Chosen)
    }
}

impl Target {
    /// Sends the copy on its way; what is returned takes its body, if it has one.
    fn start(&self, cx: &Cx, upstream: &RequestHeader) -> Option<Feed> {
        let request = copied(upstream)?;
        let Some(place) = Copies::enter(&self.copies, self.max) else {
            self.lost(&self.copies.refused, || {
                format!("{} copies are on their way", self.max)
            });
            return None;
        };
        let (feed, body) = match cx.has_body {
            true => {
                let (feed, body) = copy::body(self.buffer);
                (Some(feed), body)
            }
            false => (None, Body::none()),
        };
        let sending = Sending {
            pool: self.pool.clone(),
            asker: self.asker.clone(),
            timeout: self.timeout,
            request,
            body,
            place,
        };
        let ends = cx.connection.peer.zip(cx.connection.local);
        let ends = ends.map(|(client, server)| Ends { client, server });
        let choice = Choice {
            client: cx.client,
            ..Choice::any(Instant::now(), fastrand::u64(..))
        };
        tokio::spawn(sending.send(choice, ends));
        feed
    }

    /// A piece of the body is on its way to a backend. A try that is not the first begins with pieces that the copy has.
    fn pass(&self, progress: &mut Progress, cx: &Cx, body: Option<&Bytes>, end: bool) {
        let Progress::Going { feed, passed } = progress else {
            return;
        };
        if let Some(piece) = body.and_then(|piece| news(piece, cx.body_received, *passed)) {
            *passed = cx.body_received;
            if let Err(why) = feed.push(piece) {
                if why == Unfed::Full {
                    self.lost(&self.copies.slow, || {
                        "it takes the body too slowly".to_owned()
                    });
                }
                *progress = Progress::Over;
                return;
            }
        }
        if end && let Progress::Going { feed, .. } = std::mem::replace(progress, Progress::Over) {
            feed.end();
        }
    }

    fn lost(&self, occasions: &Occasions, why: impl FnOnce() -> String) {
        lost(&self.pool, occasions, why);
    }
}

/// What of a piece of a body that ends at `to` comes behind the first `passed` bytes.
fn news(piece: &Bytes, to: u64, passed: u64) -> Option<Bytes> {
    let new = usize::try_from(to.checked_sub(passed)?).ok()?;
    let old = piece.len().saturating_sub(new);
    (old < piece.len()).then(|| piece.slice(old..))
}

/// The request as any member may get it, whatever protocol it speaks; `None` for one that is not copied.
fn copied(upstream: &RequestHeader) -> Option<RequestHeader> {
    if upstream.headers.contains_key(header::UPGRADE) {
        return None;
    }
    let mut request = upstream.clone();
    request.set_version(Version::HTTP_11);
    request.remove_header(&header::TRANSFER_ENCODING);
    if let Some(authority) = upstream.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).ok()?;
        request.insert_header("Host", host).ok()?;
    }
    if !upstream.raw_path().starts_with(b"/")
        && let Some(path) = upstream.uri.path_and_query()
    {
        request.set_raw_path(path.as_str().as_bytes()).ok()?;
    }
    Some(request)
}

/// One copy on its way.
struct Sending {
    pool: Arc<Pool>,
    asker: Arc<Asker>,
    timeout: Duration,
    request: RequestHeader,
    body: Body,
    place: Place,
}

impl Sending {
    async fn send(self, choice: Choice, ends: Option<Ends>) {
        let needs = Needs {
            patient: true,
            deadline: Some(choice.now + self.timeout),
            ends,
            ..Needs::default()
        };
        let Place(copies) = &self.place;
        let told = self.asker.tell(
            &self.pool,
            &self.request,
            self.body,
            choice,
            needs,
            Instant::now,
        );
        match tokio::time::timeout(self.timeout + GRACE, told).await {
            Ok(Ok(())) => {}
            // The client's, or given up: who did that has told it.
            Ok(Err(e)) if *e.esource() == ErrorSource::Downstream => {}
            Ok(Err(e)) => lost(&self.pool, &copies.failed, || text(&e)),
            Err(_) => lost(&self.pool, &copies.failed, || {
                format!("no answer within {}", Span::new(self.timeout))
            }),
        }
    }
}

fn text(e: &Error) -> String {
    let mut text = e.to_string();
    if let Some((cut, _)) = text.char_indices().nth(400) {
        text.truncate(cut);
    }
    text
}

/// Counts a copy that did not come to its end, and tells it now and then.
fn lost(pool: &Pool, occasions: &Occasions, why: impl FnOnce() -> String) {
    if occasions.note(Instant::now()) {
        let (pool, count) = (pool.name(), occasions.count());
        log::warn!(
            "mirror: a copy for pool `{pool}` was lost, {count} so far: {}",
            why()
        );
    }
}

/// The copies on their way, and those that were lost.
#[derive(Debug, Default)]
struct Copies {
    count: AtomicUsize,
    /// There were too many.
    refused: Occasions,
    /// The pool took the body too slowly.
    slow: Occasions,
    /// The pool did not answer.
    failed: Occasions,
}

/// One of the copies on their way.
struct Place(Arc<Copies>);

impl Copies {
    fn enter(copies: &Arc<Copies>, max: usize) -> Option<Place> {
        let place = Place(copies.clone());
        (copies.count.fetch_add(1, Ordering::Relaxed) < max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Mirror> {
        if !b.is_filled(at, &self.0, "pool") {
            return None;
        }
        let targets = self.0.map_at(at, |target, at| target.compile(at, b));
        let targets: Option<Vec<_>> = targets.into_iter().collect();
        targets.map(|targets| Mirror(targets.into()))
    }
}

impl FromShort for TargetConfig {
    const EXPECTING: &'static str = "a pool, a map or a list of them";

    fn from_short(pool: &str) -> Result<TargetConfig, String> {
        Ok(TargetConfig {
            pool: pool.to_owned(),
            share: None,
            max: None,
            buffer: None,
            timeout: None,
        })
    }
}

impl TargetConfig {
    fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Target> {
        let pool = b.pool(&at.key("pool"), &self.pool);
        let share = self.share.unwrap_or(DEFAULT_SHARE);
        let max = self.max.unwrap_or(DEFAULT_MAX);
        if max == 0 {
            b.error(&at.key("max"), "must be at least 1")
                .hint("`mirror: off` copies nothing");
        }
        let buffer = self.buffer.unwrap_or(DEFAULT_BUFFER);
        if buffer < LEAST_BUFFER {
            b.error(
                &at.key("buffer"),
                format!("`{buffer}` is less than what comes at once"),
            )
            .hint(format!("give at least `{LEAST_BUFFER}`"));
        }
        let timeout = self.timeout.map_or(DEFAULT_TIMEOUT, Span::get);
        if timeout.is_zero() {
            b.error(&at.key("timeout"), "`timeout` must be longer than zero");
        }
        let name = at.to_path().to_string();
        Some(Target {
            pool: pool?,
            share: share.get(),
            max,
            buffer: usize::try_from(buffer.get()).unwrap_or(usize::MAX),
            timeout,
            asker: b.carry("asker".to_owned(), |_| true, Asker::default),
            copies: b.carry(name, |_| true, Copies::default),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_none_all_or_in_between() {
        assert!(!is_chosen(0.0, 0.0));
        assert!(is_chosen(0.1, 0.099));
        assert!(!is_chosen(0.1, 0.1));
        assert!(is_chosen(1.0, 0.999_999));
    }

    #[test]
    fn only_news_of_a_body_pass() {
        let piece = Bytes::from_static(b"abcd");
        let new = |to, passed| news(&piece, to, passed);
        assert_eq!(new(4, 0).as_deref(), Some(&b"abcd"[..]));
        assert_eq!(new(14, 10).as_deref(), Some(&b"abcd"[..]));
        assert_eq!(new(14, 11).as_deref(), Some(&b"bcd"[..]));
        assert_eq!(new(14, 14), None);
        assert_eq!(new(14, 20), None);
    }

    #[test]
    fn a_copy_suits_any_protocol() {
        let mut upstream = RequestHeader::build("POST", b"/a?b", None).unwrap();
        upstream.set_version(Version::HTTP_2);
        upstream.set_uri("https://host.example:1/a?b".parse().unwrap());
        upstream.insert_header("X-A", "1").unwrap();
        let copy = copied(&upstream).unwrap();
        assert_eq!(copy.version, Version::HTTP_11);
        assert_eq!(copy.headers["host"], "host.example:1");
        assert_eq!(copy.raw_path(), b"/a?b");
        assert_eq!(copy.headers["x-a"], "1");
        upstream.insert_header("Upgrade", "websocket").unwrap();
        assert!(copied(&upstream).is_none());
    }

    #[test]
    fn so_many_are_on_their_way() {
        let copies = Arc::default();
        let one = Copies::enter(&copies, 2);
        let two = Copies::enter(&copies, 2);
        assert!(one.is_some() && two.is_some());
        assert!(Copies::enter(&copies, 2).is_none());
        drop(one);
        assert!(Copies::enter(&copies, 2).is_some());
    }
}
