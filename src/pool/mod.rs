//! Pools: where requests can go.
//!
//! A `proxy:` route names a pool; for each try of a request, `handler/proxy` takes the member whose turn it is from
//! [`Pool::pick`] and gives Pingora the way to connect to it.
//!
//! Membership and probing belong to Pingora's [`LoadBalancer`]: it keeps the set of backends and runs the checks of
//! [`health`]. What comes of them goes into the [`roster`] once, when it changes, so that a pick takes no lock and no
//! memory; `LoadBalancer::select` comes to the same member by way of a hash set, a hash per candidate
//! and a clone of the backend.
//!
//! ```yaml
//! pools:
//!   app:
//!     backends: [127.0.0.1:9001, { addr: "127.0.0.1:9002", weight: 3 }]
//!     health: { http: { path: /healthz } }
//! ```
//!
//! Backends given by name are followed by a task of the pool ([`names`]), which changes its membership while it runs.
//!
//! A pool is made anew when the file is loaded. Members that stay keep their state and their counters, and a pool in
//! which nothing changed stays the same object with its probes running.

pub mod ask;
pub mod backend;
pub mod balance;
pub mod expect;
pub mod health;
pub mod latency;
pub mod member;
mod membership;
pub mod names;
pub mod passive;
pub mod peer;
pub mod queue;
mod reason;
pub mod resolver;
pub mod retry;
pub mod roster;
mod selection;
pub mod status;
pub mod sticky;
pub mod tried;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr;
use pingora_load_balancing::{Backends, LoadBalancer};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::issue::{At, Issues, Sources};
use crate::value::{OrOff, Short, Span, TrueOr};
use backend::{Backend, Refresh};
use balance::Balance;
use health::{Checker, Checks, Initial};
use membership::{Discovery, Membership, Mould};
use names::Known;
use passive::Passive;
use peer::Connector;
use resolver::Resolver;
use retry::Retry;
use roster::{Roster, Rules};
use selection::Selection;

pub use expect::Expect;
pub use health::HealthTask;
pub use member::{Absence, InFlight, Member, Place};
pub use names::{Names, NamesTask};
pub use passive::Blame;
pub use peer::{Ends, Line, Needs, Protocol, ProxyProtocol, Timeouts, TlsConfig};
pub use retry::Fault;
pub use roster::{Choice, Pick};
pub use status::PoolStatus;
pub use sticky::Sticky;
pub use tried::Tried;

/// A named group of backends that requests are balanced over. nginx: `upstream`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How to choose a member. Default `round_robin`.
    #[serde(default)]
    pub balance: Balance,
    /// The servers: an address each, or a map of `addr` and `weight`. nginx: `server`.
    pub backends: Vec<Short<backend::Config>>,
    /// Active health checks. Absent: none, and no member is ever down.
    pub health: Option<health::Config>,
    /// When a member at which requests fail gets none for a while; `off`: never. Default: 3 failures in 10s, for 10s.
    #[serde(default = "passive::default")]
    pub passive: OrOff<passive::Config>,
    /// How long to wait for a member.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// What the members speak. Default `auto`. nginx: `proxy_http_version`, `grpc_pass`.
    #[serde(default)]
    pub protocol: Protocol,
    /// TLS towards the members: `true`, or a map. Absent: none. nginx: `proxy_pass https://`.
    pub tls: Option<TrueOr<TlsConfig>>,
    /// Tell members of the client's address by the PROXY protocol. A connection is then not used for another client. Absent:
    /// no. nginx: `proxy_protocol on` (`stream`).
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How many idle connections to each member are kept for later requests, by all threads together. Default 128. Those of
    /// HTTP/2 are counted by `upstream_keepalive_pool_size`. nginx: `keepalive`.
    #[serde(default = "default_keepalive")]
    pub keepalive: NonZeroU32,
    /// When a request that failed at one member goes to another; `off`: never. Default: after a connection that could not
    /// be made, broke or fell silent before the answer, each member once. nginx: `proxy_next_upstream`.
    pub retry: Option<OrOff<retry::Config>>,
    /// How long a member takes to get its full share, in ten equal steps, after it was down, ejected or draining or newly joined a
    /// pool that runs: it may have to warm up. Absent: no time. nginx: `slow_start`.
    pub slow_start: Option<Span>,
    /// Sends a client to the member that it was sent to before. Absent: each request is balanced.
    pub sticky: Option<sticky::Config>,
    /// Lets requests wait while all members are full. Absent: they get 503 at once.
    pub queue: Option<queue::Config>,
}

pub(crate) fn default_keepalive() -> NonZeroU32 {
    const { NonZeroU32::new(128).unwrap() }
}

impl Config {
    /// The pool that this describes: `previous`, the pool of this name in the running configuration, if it describes just
    /// that; otherwise a new one whose members go on from where those of `previous` were.
    pub fn compile(
        &self,
        name: &str,
        previous: Option<&Arc<Pool>>,
        names: &Names,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<Arc<Pool>> {
        let connector = Connector::compile(self, at, sources, issues);
        let checks = match &self.health {
            Some(health) => health.compile(&at.key("health"), issues).map(Some),
            None => Some(None),
        };
        let retry = match &self.retry {
            Some(OrOff::On(retry)) => retry.compile(&at.key("retry"), issues),
            Some(OrOff::Off) => Some(Retry::off()),
            None => retry::Config::default().compile(&at.key("retry"), issues),
        };
        let passive = match &self.passive {
            OrOff::On(passive) => passive.compile(&at.key("passive"), issues).map(Some),
            OrOff::Off => Some(None),
        };
        let backends = self.compile_backends(&at.key("backends"), sources, issues);
        let rules = self.rules(name, previous, at, issues);
        let (connector, checks, passive, retry) = (connector?, checks?, passive?, retry?);
        let (backends, rules) = (backends?, rules?);
        let answers = self.answers(&backends, names, &at.key("backends"), issues);
        match previous {
            Some(previous)
                if previous.config == *self
                    && previous.stands_for(&backends, &answers, names)
                    && previous.connector.has_same_means(&connector) =>
            {
                Some(previous.clone())
            }
            _ => {
                let parts = Parts {
                    rules,
                    connector,
                    checks,
                    passive,
                    retry,
                    backends,
                    answers,
                    resolver: names.resolver().clone(),
                };
                let pool = Pool::new(name, self.clone(), parts, previous);
                Some(Arc::new(pool))
            }
        }
    }

    /// How members are chosen. What a `hash` consists of is not looked at here: see `handler/proxy`.
    fn rules(
        &self,
        name: &str,
        previous: Option<&Arc<Pool>>,
        at: &At<'_>,
        issues: &mut Issues,
    ) -> Option<Rules> {
        let zero = self.slow_start.is_some_and(|span| span.get().is_zero());
        if zero {
            let message = "`slow_start` must be longer than zero";
            issues
                .error(&at.key("slow_start"), message)
                .hint("without it there is none");
        }
        let sticky = self.sticky.as_ref().map(|sticky| {
            let previous = previous.and_then(|previous| previous.sticky());
            sticky.compile(name, previous, &at.key("sticky"), issues)
        });
        let queue = self.queue.map(|queue| {
            let limited = |Short(backend): &Short<backend::Config>| backend.max_conns.is_some();
            let limited = self.backends.iter().any(limited);
            queue.compile(limited, &at.key("queue"), issues)
        });
        let wrong = zero || matches!(sticky, Some(None)) || matches!(queue, Some(None));
        (!wrong).then(|| Rules {
            balance: self.balance.clone(),
            slow_start: self.slow_start.map(Span::get),
            sticky: sticky.flatten(),
            queue: queue.flatten(),
        })
    }

    fn compile_backends(
        &self,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<Vec<Backend>> {
        if self.backends.is_empty() {
            issues.error(at, "a pool needs at least one backend");
            return None;
        }
        let mut written = HashSet::new();
        let mut backends = Vec::new();
        for (i, config) in self.backends.iter().enumerate() {
            let at = &at.index(i);
            let Some(backend) = config.compile(at, sources, issues) else {
                continue;
            };
            if !written.insert(backend.address.clone()) {
                // not by its index: those before it may have been left out
                issues
                    .error(
                        &at.key(config.key()),
                        format!("`{}` is listed twice", backend.address),
                    )
                    .hint("a `weight` at the first gives it more requests");
                continue;
            }
            backends.push(backend);
        }
        (backends.len() == self.backends.len()).then_some(backends)
    }

    /// What the names among `backends` stand for, by backend.
    fn answers(
        &self,
        backends: &[Backend],
        names: &Names,
        at: &At<'_>,
        issues: &mut Issues,
    ) -> Vec<Option<Known>> {
        let mut answers = Vec::new();
        for (i, backend) in backends.iter().enumerate() {
            let Some(query) = backend.query() else {
                answers.push(None);
                continue;
            };
            let (known, error) = names.answer(query);
            if let Some(error) = error {
                let hint = match known {
                    None => "the pool goes on without it until it does",
                    Some(_) => "the pool goes on with the addresses that it had",
                };
                let at = &at.index(i);
                issues
                    .warn(
                        &at.key(self.backends[i].key()),
                        format!("`{query}` does not resolve: {error}"),
                    )
                    .hint(hint);
            }
            answers.push(known);
        }
        answers
    }
}

/// What lets a member go on from where the one at its address was in `previous`.
fn adopt(previous: Option<&Arc<Pool>>, has_checks: bool, is_watched: bool) -> impl Fn(&mut Member) {
    let before = previous.map(|pool| pool.members()).unwrap_or_default();
    let before: HashMap<SocketAddr, Arc<Member>> = before
        .iter()
        .map(|member| (member.address().clone(), member.clone()))
        .collect();
    move |member| {
        if let Some(before) = before.get(member.address()) {
            member.adopt(before);
            // without probes nothing would ever bring it up again; and without any so far nothing is known of it
            if has_checks && before.health().is_known() {
                member.adopt_health(before);
            }
            if is_watched {
                member.adopt_breaker(before);
            }
        }
    }
}

/// A named group of backends with one way to choose among them.
pub struct Pool {
    name: Arc<str>,
    config: Config,
    /// What requests choose from.
    roster: Arc<Roster>,
    /// How connections to the members are made.
    connector: Arc<Connector>,
    retry: Retry,
    membership: Arc<Membership>,
    checker: Option<Checker>,
    /// Pingora's side of the pool: membership and health.
    backends: LoadBalancer<Selection>,
    /// Held while membership changes: Pingora takes one change at a time.
    changing: Mutex<()>,
}

/// What the keys of a pool compile to.
struct Parts {
    rules: Rules,
    connector: Arc<Connector>,
    checks: Option<Checks>,
    passive: Option<passive::Rules>,
    retry: Retry,
    backends: Vec<Backend>,
    /// By backend.
    answers: Vec<Option<Known>>,
    resolver: Resolver,
}

impl Pool {
    fn new(name: &str, config: Config, parts: Parts, previous: Option<&Arc<Pool>>) -> Pool {
        let name: Arc<str> = name.into();
        let Parts {
            rules,
            connector,
            checks,
            passive,
            mut retry,
            backends,
            answers,
            resolver,
        } = parts;
        if let Some(previous) = previous {
            retry.adopt(&previous.retry);
        }
        let roster = Arc::new(Roster::new(rules, previous.map(|pool| &*pool.roster)));
        let passive = passive.map(|rules| Arc::new(Passive::new(name.clone(), rules, &roster)));
        let adopt = adopt(previous, checks.is_some(), passive.is_some());
        let mould = Mould {
            connector: connector.clone(),
            passive,
            waits: checks.as_ref().is_some_and(Checks::waits),
        };
        let membership = Membership::new(backends, answers, resolver, mould, adopt);
        let membership = Arc::new(membership);
        let checker = checks.map(|checks| Checker::new(name.clone(), checks, roster.clone()));
        let pool = Pool {
            connector,
            backends: load_balancer(checker.clone(), &membership, &roster),
            checker,
            name,
            config,
            roster,
            retry,
            membership,
            changing: Mutex::new(()),
        };
        pool.follow_membership();
        pool
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// How connections to the members are made.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// What the pool was made from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// In written order; several for a name with several addresses.
    pub fn members(&self) -> Arc<[Arc<Member>]> {
        self.roster.members()
    }

    /// The member for the next try of a request, counted as in flight there. It is in `tried` from now on, so that no
    /// request comes to one member twice.
    pub fn pick(&self, choice: &Choice, tried: &mut Tried) -> Pick {
        self.roster.pick(choice, tried)
    }

    /// The same, but in a pool with a queue it waits for room where that is all that is missing. `choice.now` becomes the
    /// end of the wait.
    pub async fn take(
        &self,
        choice: &mut Choice,
        tried: &mut Tried,
        clock: fn() -> Instant,
    ) -> Pick {
        self.roster.take(choice, tried, clock).await
    }

    /// How clients are recognised, if they come back to their member.
    pub fn sticky(&self) -> Option<&Sticky> {
        self.roster.sticky()
    }

    /// What to do about tries that fail.
    pub fn retry(&self) -> &Retry {
        &self.retry
    }

    /// Whether no member can be picked, whatever the request.
    pub fn is_down(&self) -> bool {
        self.roster.is_down()
    }

    /// Lets a member finish what it is at and gives it no more requests, or gives it requests again. Answers whether
    /// there is a member of that name (see [`Member::backend`]).
    pub fn set_draining(&self, backend: &str, draining: bool, now: Instant) -> bool {
        let members = self.roster.members();
        let Some(member) = members.iter().find(|member| **member.backend() == *backend) else {
            return false;
        };
        // for the record only: nothing is decided by it
        member.set_draining(draining, SystemTime::now());
        self.roster.refresh(now);
        true
    }

    /// Whether there are members that get no requests before their first probe.
    pub fn awaits_probes(&self) -> bool {
        let waits = |health: &health::Config| health.initial == Initial::Wait;
        let unknown = |member: &Arc<Member>| !member.health().is_known();
        self.config.health.as_ref().is_some_and(waits) && self.members().iter().any(unknown)
    }

    /// Probes those members, all at once. It takes no longer than one probe may.
    pub async fn first_probes(&self) {
        let Some(checker) = &self.checker else { return };
        let members = self.members();
        let unknown = members.iter().filter(|member| !member.health().is_known());
        let mut probes: JoinSet<()> = unknown
            .map(|member| checker.clone().examine(member.clone()))
            .collect();
        while probes.join_next().await.is_some() {}
    }

    /// Starts the health checks, if the pool has any; the first round of probes at once. Needs a running tokio runtime.
    pub fn spawn_health(self: &Arc<Self>) -> Option<HealthTask> {
        let interval = self.config.health.as_ref()?.interval.get();
        let pool = self.clone();
        // Not `LoadBalancer::run`, which begins with an update: that must not overlap with one that a name brings.
        Some(HealthTask::spawn(async move {
            let mut rounds = tokio::time::interval(interval);
            rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                rounds.tick().await;
                pool.backends.backends().run_health_check(true).await;
            }
        }))
    }

    /// Starts to ask for the names among the backends, if there are any, each when its answer expires. Needs a running
    /// tokio runtime.
    pub fn spawn_names(self: &Arc<Self>) -> Option<NamesTask> {
        NamesTask::spawn(self)
    }

    /// The backend at `index` is a name that stands for this from now on.
    fn take_in(&self, index: usize, known: Known) {
        let _changing = self.changing.lock();
        self.membership.take_in(index, known);
        self.follow_membership();
    }

    /// Makes the members known to Pingora, and by way of it to the roster.
    fn follow_membership(&self) {
        if let Err(error) = at_once(self.backends.update()) {
            unreachable!("discovery does not fail: {error}");
        }
        // Pingora compares addresses and weights only: that a member has become a backup is no news to it, nor that
        // there still are no members.
        let members = self.membership.members();
        let current = self.members();
        if !current
            .iter()
            .map(Arc::as_ptr)
            .eq(members.iter().map(Arc::as_ptr))
        {
            self.roster.set_members(members, Instant::now());
        }
    }

    pub fn status(&self) -> PoolStatus {
        PoolStatus::of(self)
    }

    /// Whether it is what these backends make up. What names stand for is for the pool itself to follow, except for those
    /// that were asked for only now, and for those that it has not found so far.
    fn stands_for(&self, backends: &[Backend], answers: &[Option<Known>], names: &Names) -> bool {
        let mut by_name = backends.iter().filter(|backend| backend.query().is_some());
        let mut each = backends.iter().zip(answers).enumerate();
        *self.membership.backends() == *backends
            && (by_name.next().is_none() || self.membership.resolver() == names.resolver())
            && each.all(
                |(index, (backend, new))| match (self.membership.answer(index), new) {
                    (_, None) => true,
                    (None, Some(_)) => false,
                    (Some(own), Some(new)) => {
                        backend.refresh != Refresh::Once || own.answer.targets == new.answer.targets
                    }
                },
            )
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("members", &self.members())
            .finish_non_exhaustive()
    }
}

fn load_balancer(
    checker: Option<Checker>,
    membership: &Arc<Membership>,
    roster: &Arc<Roster>,
) -> LoadBalancer<Selection> {
    let backends = Backends::new(Box::new(Discovery(membership.clone())));
    let mut balancing = LoadBalancer::from_backends_with_config(backends, Some(roster.clone()));
    if let Some(checker) = checker {
        balancing.set_health_check(Box::new(checker));
    }
    balancing
}

/// The result of a future that waits for nothing.
fn at_once<F: Future>(future: F) -> F::Output {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("discovery does not wait"),
    }
}

#[cfg(test)]
mod tests;
