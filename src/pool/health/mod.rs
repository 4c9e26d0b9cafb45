//! Active health checks: members are probed at an interval, whether or not requests come.
//!
//! Pingora's `LoadBalancer` runs them (all members of a pool at once, first as soon as the pool starts); here is what it
//! runs. Its own `HttpHealthCheck` and `TcpHealthCheck` are not used: each instance loads the system's certificates (the
//! HTTP one twice: 2.3 MiB), which a plain probe never needs and a thousand pools would pay for; they limit each read but
//! not the whole probe, and take a `103` for the answer.

mod grpc;
mod http;
mod http2;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use pingora::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::JoinHandle;

use super::roster::Roster;
use super::selection::member_of;
use super::status::State;
use super::{Member, reason};
use crate::issue::{At, Issues};
use crate::value::Span;
use grpc::Grpc;
use http::Http;

/// How to find out which members can serve. Exactly one of `http`, `tcp` and `grpc`.
///
/// ```yaml
/// health:
///   http: { path: /healthz, host: app.internal, expect: [200-299], body: { contains: ok } }
///   interval: 5s
///   timeout: 1s
///   rise: 2
///   fall: 3
///   initial: wait
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A member passes when it answers an HTTP request completely, with an expected status and body.
    pub http: Option<http::Config>,
    /// A member passes when it accepts a connection: `tcp: {}`. Also for unix sockets.
    pub tcp: Option<TcpConfig>,
    /// A member passes when gRPC's health service (`grpc.health.v1.Health`) says that it is serving: `grpc: {}`, or
    /// `grpc: { service: package.Service }`. It is asked over HTTP/2.
    pub grpc: Option<grpc::Config>,
    /// Time from the start of one round of probes to the start of the next one. Default 5s. Each probe but the first of a
    /// member is a random time of up to a tenth of that later, lest all come at the same moment.
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
    /// What a member is before its first probe. Default `up`.
    #[serde(default)]
    pub initial: Initial,
}

/// What a member is before its first probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Initial {
    /// Up, until `fall` probes have failed.
    #[default]
    Up,
    /// Down, until its first probe, which decides alone. Before weir serves, and before a reload takes effect, it waits for
    /// the first probes of members that are new. nginx: `mandatory` (commercial).
    Wait,
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

impl Config {
    pub fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Checks> {
        for (key, span) in [("interval", self.interval), ("timeout", self.timeout)] {
            if span.get().is_zero() {
                issues.error(&at.key(key), format!("`{key}` must be longer than zero"));
            }
        }
        let probe = self.compile_probe(at, issues)?;
        Some(Checks {
            probe,
            interval: self.interval.get(),
            timeout: self.timeout.get(),
            rise: self.rise.get(),
            fall: self.fall.get(),
            initial: self.initial,
        })
    }

    fn compile_probe(&self, at: &At<'_>, issues: &mut Issues) -> Option<Probe> {
        let ways = [
            ("http", self.http.is_some()),
            ("tcp", self.tcp.is_some()),
            ("grpc", self.grpc.is_some()),
        ];
        let mut given = ways.iter().filter(|(_, given)| *given);
        if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
            issues
                .error(
                    &at.key(second),
                    format!("`{first}` and `{second}` are both given"),
                )
                .hint("`http` and `grpc` include that the connection stands");
            return None;
        }
        match self {
            Config {
                http: Some(http), ..
            } => {
                let http = http.compile(&at.key("http"), issues)?;
                Some(Probe::Http(Box::new(http)))
            }
            Config {
                grpc: Some(grpc), ..
            } => grpc.compile(&at.key("grpc"), issues).map(Probe::Grpc),
            Config {
                tcp: Some(TcpConfig {}),
                ..
            } => Some(Probe::Tcp),
            _ => {
                issues
                    .error(at, "none of `http`, `tcp` and `grpc` says what to check")
                    .hint("`http: { path: / }`, `tcp: {}` or `grpc: {}`");
                None
            }
        }
    }
}

/// Health checks, ready to run.
pub struct Checks {
    probe: Probe,
    interval: Duration,
    timeout: Duration,
    rise: u32,
    fall: u32,
    initial: Initial,
}

impl Checks {
    /// Whether a member is down until its first probe.
    pub fn waits(&self) -> bool {
        self.initial == Initial::Wait
    }
}

enum Probe {
    Tcp,
    Http(Box<Http>),
    Grpc(Grpc),
}

/// Who a backend is told that it is asked by.
const AGENT: &str = "weir (health check)";

impl Probe {
    async fn run(&self, member: &Member) -> Result<(), String> {
        let contact = member
            .dialer()
            .connect(matches!(self, Probe::Grpc(_)))
            .await;
        let contact = contact.map_err(|error| reason::of_error(&error))?;
        match self {
            Probe::Tcp => Ok(()),
            Probe::Http(http) => http.run(contact, member.authority()).await,
            Probe::Grpc(grpc) => grpc.run(contact, member.authority()).await,
        }
    }
}

/// What Pingora's `LoadBalancer` calls: probes members, and takes those that are down out of the turns.
///
/// Each check tells Pingora the state that the member is in, which one check is enough to believe. Counting to `rise`
/// and `fall` is done here: Pingora takes every backend that it does not know for one that is up, and has no way to be
/// told otherwise, be it after a reload or before the first probe.
#[derive(Clone)]
pub struct Checker {
    pool: Arc<str>,
    checks: Arc<Checks>,
    roster: Arc<Roster>,
}

impl Checker {
    pub fn new(pool: Arc<str>, checks: Checks, roster: Arc<Roster>) -> Checker {
        Checker {
            pool,
            checks: Arc::new(checks),
            roster,
        }
    }

    /// Probes a member once, and does what follows from it.
    pub async fn examine(self, member: Arc<Member>) {
        let result = self.probe(&member).await;
        // Pingora's loop brings no time along.
        self.take_in(&member, result, Instant::now(), SystemTime::now());
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
            if member.health().is_up() {
                // what requests made of it was before it was down
                member.breaker().close(wall);
            }
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
            // at the start the others may be about to be up
            let level = match up == 0 && members.iter().all(|m| m.health().is_known()) {
                true => log::Level::Error,
                false => log::Level::Warn,
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
        if member.health().is_known() {
            // all members of a pool have the same rounds, and all pools of a file
            let spread = self.checks.interval.mul_f64(SPREAD * fastrand::f64());
            tokio::time::sleep(spread).await;
        }
        self.clone().examine(member.clone()).await;
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

/// How much later than its round a probe may be, in intervals.
const SPREAD: f64 = 0.1;

const DOWN: ErrorType = ErrorType::Custom("MemberDown");

/// The running health checks of one pool; they end when it is dropped.
#[derive(Debug)]
pub struct HealthTask(JoinHandle<()>);

impl HealthTask {
    pub(super) fn spawn(checks: impl Future<Output = ()> + Send + 'static) -> HealthTask {
        HealthTask(tokio::spawn(checks))
    }
}

impl Drop for HealthTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Place;
    use crate::pool::peer::Connector;
    use crate::pool::roster::Rules;
    use pingora::protocols::l4::socket::SocketAddr;

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
            Arc::new(Member::new(place, &Connector::plain()))
        };
        let checks = Checks {
            probe: Probe::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            rise,
            fall,
            initial: Initial::Up,
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
