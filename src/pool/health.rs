//! Active health checks: members are probed at an interval, whether or not requests come.
//!
//! Pingora's `LoadBalancer` runs them (all members of a pool at once, first as soon as the pool starts) and counts to
//! `rise` and `fall`; here is what it runs. Its own `HttpHealthCheck` and `TcpHealthCheck` are not used: each instance
//! loads the system's certificates (the HTTP one twice: 2.3 MiB), which a plain probe never needs and a thousand pools
//! would pay for; they limit each read but not the whole probe, and take a `103` for the answer.

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use http::HeaderValue;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::uri::{Authority, PathAndQuery};
use pingora::http::RequestHeader;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::reason;
use super::roster::Roster;
use super::selection::member_of;
use super::status::State;
use super::{Expect, Member};
use crate::issue::{At, Issues};
use crate::value::{OneOrMany, Span};

/// How to find out which members can serve. Exactly one of `http` and `tcp`.
///
/// ```yaml
/// health:
///   http: { path: /healthz, host: app.internal, expect: [200-299] }
///   interval: 5s
///   timeout: 1s
///   rise: 2
///   fall: 3
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A member passes when it answers a GET request completely, with an expected status.
    pub http: Option<HttpConfig>,
    /// A member passes when it accepts a connection: `tcp: {}`. Also for unix sockets.
    pub tcp: Option<TcpConfig>,
    /// Time from the start of one round of probes to the start of the next one. Default 5s.
    #[serde(default = "default_interval")]
    pub interval: Span,
    /// How long one probe may take in all. Default 1s.
    #[serde(default = "default_timeout")]
    pub timeout: Span,
    /// Passed probes in a row after which a member that is down is up. Default 2.
    #[serde(default = "default_rise")]
    pub rise: NonZeroU32,
    /// Failed probes in a row after which a member that is up is down. Default 3.
    #[serde(default = "default_fall")]
    pub fall: NonZeroU32,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// What to ask for: a path, with a query if need be. Default `/`.
    #[serde(default = "default_path")]
    pub path: String,
    /// The request's `Host`. Default: the backend's own address as written, or `localhost` for a unix socket.
    pub host: Option<String>,
    /// Which statuses pass: `200`, `200-299` or a list of such. Default `200-299`.
    #[serde(default = "default_expect")]
    pub expect: OneOrMany<Expect>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpConfig {}

fn default_interval() -> Span {
    Span::new(Duration::from_secs(5))
}

fn default_timeout() -> Span {
    Span::new(Duration::from_secs(1))
}

fn default_rise() -> NonZeroU32 {
    const { NonZeroU32::new(2).unwrap() }
}

fn default_fall() -> NonZeroU32 {
    const { NonZeroU32::new(3).unwrap() }
}

fn default_path() -> String {
    "/".to_owned()
}

fn default_expect() -> OneOrMany<Expect> {
    OneOrMany(vec![Expect::SUCCESS])
}

impl Config {
    pub fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Checks> {
        for (key, span) in [("interval", self.interval), ("timeout", self.timeout)] {
            if span.get().is_zero() {
                issues.error(&at.key(key), format!("`{key}` must be longer than zero"));
            }
        }
        let probe = match (&self.http, &self.tcp) {
            (Some(http), None) => http.compile(&at.key("http"), issues)?,
            (None, Some(TcpConfig {})) => Probe::Tcp,
            (Some(_), Some(_)) => {
                issues
                    .error(&at.key("tcp"), "`http` and `tcp` are both given")
                    .hint("`http` includes that the connection stands");
                return None;
            }
            (None, None) => {
                issues
                    .error(at, "neither `http` nor `tcp` says what to check")
                    .hint("`http: { path: / }` or `tcp: {}`");
                return None;
            }
        };
        Some(Checks {
            probe,
            interval: self.interval.get(),
            timeout: self.timeout.get(),
            rise: self.rise.get(),
            fall: self.fall.get(),
        })
    }
}

impl HttpConfig {
    fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Probe> {
        let host = match &self.host {
            Some(host) => Some(compile_host(host, &at.key("host"), issues)?),
            None => None,
        };
        if self.expect.0.is_empty() {
            issues.error(
                &at.key("expect"),
                "no status is expected, so no member would be up",
            );
            return None;
        }
        // a fragment is no part of a request; the parser would drop it silently
        let is_path = self.path.starts_with('/') && !self.path.contains('#');
        let request = match RequestHeader::build("GET", self.path.as_bytes(), Some(4)) {
            Ok(request) if is_path && self.path.parse::<PathAndQuery>().is_ok() => request,
            _ => {
                issues
                    .error(&at.key("path"), format!("`{}` is not a path", self.path))
                    .hint("a path starts with `/` and has spaces and the like percent-encoded");
                return None;
            }
        };
        Some(Probe::Http {
            request: Box::new(request),
            host,
            expect: self.expect.0.clone().into(),
        })
    }
}

fn compile_host(host: &str, at: &At<'_>, issues: &mut Issues) -> Option<HeaderValue> {
    let is_host = host.parse::<Authority>().is_ok() && !host.contains('@');
    match HeaderValue::from_str(host) {
        Ok(value) if is_host => Some(value),
        _ => {
            issues
                .error(at, format!("`{host}` is not a host"))
                .hint("a name or an address, with or without port");
            None
        }
    }
}

/// Health checks, ready to run.
pub struct Checks {
    probe: Probe,
    pub interval: Duration,
    timeout: Duration,
    rise: u32,
    fall: u32,
}

enum Probe {
    Tcp,
    Http {
        /// Without the headers.
        request: Box<RequestHeader>,
        host: Option<HeaderValue>,
        expect: Box<[Expect]>,
    },
}

impl Probe {
    async fn run(&self, member: &Member) -> Result<(), String> {
        let stream = connect(member.address())
            .await
            .map_err(|error| reason::of_io(&error))?;
        let Probe::Http {
            request,
            host,
            expect,
        } = self
        else {
            return Ok(());
        };
        let mut request = request.clone();
        let headers = match host {
            Some(host) => request.insert_header(HOST, host.clone()),
            None => request.insert_header(HOST, &**member.authority()),
        };
        headers
            .and_then(|()| request.insert_header(USER_AGENT, "weir (health check)"))
            // each probe also checks that new connections are taken
            .and_then(|()| request.insert_header(CONNECTION, "close"))
            .map_err(|error| reason::of_error(&error))?;
        let mut session = HttpSession::new(Box::new(stream));
        let status = ask(&mut session, request)
            .await
            .map_err(|error| reason::of_error(&error))?;
        if !expect.iter().any(|range| range.contains(status)) {
            return Err(format!("status {status}, expected {}", Expected(expect)));
        }
        drain(&mut session)
            .await
            .map_err(|error| reason::of_error(&error))
    }
}

async fn connect(address: &SocketAddr) -> io::Result<Stream> {
    match address {
        SocketAddr::Inet(address) => Ok(TcpStream::connect(address).await?.into()),
        SocketAddr::Unix(address) => {
            let path = address.as_pathname().ok_or(io::ErrorKind::InvalidInput)?;
            Ok(UnixStream::connect(path).await?.into())
        }
    }
}

/// The status of the answer.
async fn ask(session: &mut HttpSession, request: Box<RequestHeader>) -> pingora::Result<u16> {
    session.write_request_header(request).await?;
    loop {
        session.read_response().await?;
        match session.resp_header() {
            Some(header) if header.status.is_informational() => {}
            Some(header) => return Ok(header.status.as_u16()),
            None => return Error::e_explain(ErrorType::InvalidHTTPHeader, "no response header"),
        }
    }
}

/// Reads the answer to its end.
async fn drain(session: &mut HttpSession) -> pingora::Result<()> {
    while session.read_body_bytes().await?.is_some() {}
    Ok(())
}

struct Expected<'a>(&'a [Expect]);

impl fmt::Display for Expected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{range}")?;
        }
        Ok(())
    }
}

/// What Pingora's `LoadBalancer` calls: probes members, and takes those that are down out of the turns.
///
/// Each check tells Pingora the state that the member is in, which one check is enough to believe. Counting to `rise`
/// and `fall` is done here: Pingora takes every backend that it does not know for one that is up, and has no way to be
/// told otherwise, be it after a reload or before the first probe.
pub struct Checker {
    pool: Arc<str>,
    checks: Checks,
    roster: Arc<Roster>,
}

impl Checker {
    pub fn new(pool: Arc<str>, checks: Checks, roster: Arc<Roster>) -> Checker {
        Checker {
            pool,
            checks,
            roster,
        }
    }

    async fn probe(&self, member: &Member) -> Result<(), String> {
        let timeout = self.checks.timeout;
        match tokio::time::timeout(timeout, self.checks.probe.run(member)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {timeout:?}")),
        }
    }

    /// What follows from a probe.
    fn take_in(&self, member: &Member, result: Result<(), String>, now: Instant, wall: SystemTime) {
        let result = result.map_err(Arc::from);
        let (rise, fall) = (self.checks.rise, self.checks.fall);
        if let Some(probes) = member.health().observe(result, rise, fall, wall) {
            // what requests made of it lies before that
            member.breaker().close(wall);
            self.roster.refresh(now);
            let (level, text) = self.news(member, probes);
            log::log!(target: "weir::health", level, "{text}");
        }
    }

    /// What an operator is told when a member has gone up or down by so many probes.
    fn news(&self, member: &Member, probes: u32) -> (log::Level, String) {
        let members = self.roster.members();
        let up = members.iter().filter(|m| State::of(m) == State::Up).count();
        let (level, state) = if member.health().is_up() {
            (
                log::Level::Info,
                format!("up ({})", counted(probes, "passed")),
            )
        } else {
            let reason = member.health().record().reason.unwrap_or_default();
            let level = if up == 0 {
                log::Level::Error
            } else {
                log::Level::Warn
            };
            let probes = counted(probes, "failed");
            (level, format!("down: {reason} ({probes})"))
        };
        let (pool, name, all) = (&self.pool, member.backend(), members.len());
        let text = format!("pool {pool}: {name} is {state}; {up} of {all} members up");
        (level, text)
    }
}

fn counted(count: u32, which: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {which} probe{plural}")
}

#[async_trait]
impl HealthCheck for Checker {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        let Some(member) = member_of(target) else {
            return Error::e_explain(ErrorType::InternalError, "a backend that is no member");
        };
        let result = self.probe(&member).await;
        // Pingora's loop brings no time along.
        self.take_in(&member, result, Instant::now(), SystemTime::now());
        match member.health().is_up() {
            true => Ok(()),
            false => Error::e_explain(DOWN, "see the state of the member"),
        }
    }

    fn health_threshold(&self, _success: bool) -> usize {
        1
    }

    fn backend_summary(&self, target: &Backend) -> String {
        format!("pool {}: {}", self.pool, target.addr)
    }
}

const DOWN: ErrorType = ErrorType::Custom("MemberDown");

/// The running health checks of one pool; they end when it is dropped.
#[derive(Debug)]
pub struct HealthTask {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl HealthTask {
    pub(super) fn spawn<F>(run: impl FnOnce(watch::Receiver<bool>) -> F) -> HealthTask
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(stopped));
        HealthTask { stop, task }
    }
}

impl Drop for HealthTask {
    fn drop(&mut self) {
        // Pingora's loop goes on for ever when the sender merely disappears.
        self.stop.send_replace(true);
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Place;
    use crate::pool::roster::Rules;
    use pingora::upstreams::peer::PeerOptions;

    fn checker(rise: u32, fall: u32) -> Checker {
        let address = |port| SocketAddr::Inet(([127, 0, 0, 1], port).into());
        let member = |position: usize| {
            let place = Place {
                position,
                address: address(9001 + position as u16),
                authority: "app".into(),
                weight: 1,
                backup: false,
                max_conns: None,
            };
            Arc::new(Member::new(place, PeerOptions::new(), 0))
        };
        let checks = Checks {
            probe: Probe::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            rise,
            fall,
        };
        let roster = Arc::new(Roster::new(Rules::default(), None));
        roster.set_members([member(0), member(1)].into(), Instant::now());
        Checker::new("app".into(), checks, roster)
    }

    #[test]
    fn news_say_what_why_and_how_many_are_left() {
        let checker = checker(2, 3);
        let members = checker.roster.members();
        let (first, second) = (&members[0], &members[1]);
        let change = |member: &Member, up| {
            let result = if up {
                Ok(())
            } else {
                Err("connection refused".into())
            };
            let probes = loop {
                let result = result.clone();
                let probes = member
                    .health()
                    .observe(result, 2, 3, SystemTime::UNIX_EPOCH);
                if let Some(probes) = probes {
                    break probes;
                }
            };
            checker.news(member, probes)
        };
        let (level, text) = change(second, false);
        assert_eq!(level, log::Level::Warn);
        assert_eq!(
            text,
            "pool app: 127.0.0.1:9002 is down: connection refused (3 failed probes); 1 of 2 members up"
        );
        let (level, text) = change(first, false);
        assert_eq!(level, log::Level::Error);
        assert!(text.ends_with("0 of 2 members up"), "{text}");
        let (level, text) = change(second, true);
        assert_eq!(level, log::Level::Info);
        assert_eq!(
            text,
            "pool app: 127.0.0.1:9002 is up (2 passed probes); 1 of 2 members up"
        );
    }

    #[test]
    fn one_probe_is_singular() {
        assert_eq!(counted(1, "failed"), "1 failed probe");
    }
}
