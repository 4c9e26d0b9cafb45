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
//! A pool is made anew when the file is loaded. Members that stay keep their state and their counters, and a pool in
//! which nothing changed stays the same object with its probes running.

pub mod backend;
pub mod balance;
pub mod expect;
pub mod health;
pub mod latency;
pub mod member;
pub mod passive;
pub mod queue;
mod reason;
pub mod retry;
pub mod roster;
mod selection;
pub mod status;
pub mod sticky;
pub mod tried;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::PeerOptions;
use pingora_load_balancing::discovery::Static;
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::issue::{At, Issues, Sources};
use crate::value::{OrOff, Short, Span};
use backend::Address;
use balance::Balance;
use health::{Checker, Checks, Initial};
use passive::Passive;
use retry::Retry;
use roster::{Roster, Rules};
use selection::{Selection, backend_of};

pub use expect::Expect;
pub use health::HealthTask;
pub use member::{Absence, InFlight, Member, Place};
pub use passive::Blame;
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

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a new connection to stand. Default 3s. nginx: `proxy_connect_timeout`.
    pub connect: Span,
    /// Between two reads of a response. Default 60s. nginx: `proxy_read_timeout`.
    pub read: Span,
    /// Between two writes of a request. Default 60s. nginx: `proxy_send_timeout`.
    pub write: Span,
    /// For an unused connection to be kept. Default 60s. nginx: `keepalive_timeout` in `upstream`.
    pub idle: Span,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let seconds = |seconds| Span::new(Duration::from_secs(seconds));
        Timeouts {
            connect: seconds(3),
            read: seconds(60),
            write: seconds(60),
            idle: seconds(60),
        }
    }
}

impl Config {
    /// The pool that this describes: `previous`, the pool of this name in the running configuration, if it describes just
    /// that; otherwise a new one whose members go on from where those of `previous` were.
    ///
    /// Resolves names, so it may block.
    pub fn compile(
        &self,
        name: &str,
        previous: Option<&Arc<Pool>>,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<Arc<Pool>> {
        let options = self.timeouts.compile(&at.key("timeouts"), issues);
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
        let places = self.places(previous, &at.key("backends"), sources, issues);
        let rules = self.rules(name, previous, at, issues);
        let (options, checks, passive, retry) = (options?, checks?, passive?, retry?);
        let (places, rules) = (places?, rules?);
        match previous {
            Some(previous) if previous.config == *self && previous.stands_for(&places) => {
                Some(previous.clone())
            }
            _ => {
                let parts = Parts {
                    rules,
                    options,
                    checks,
                    passive,
                    retry,
                };
                let pool = Pool::new(name, self.clone(), parts, places, previous);
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

    /// Where the members are, in written order.
    fn places(
        &self,
        previous: Option<&Arc<Pool>>,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<Vec<Place>> {
        if self.backends.is_empty() {
            issues.error(at, "a pool needs at least one backend");
            return None;
        }
        let mut complete = true;
        let mut written = HashSet::new();
        let mut places: Vec<Place> = Vec::new();
        let mut taken = HashSet::new();
        for (i, Short(config)) in self.backends.iter().enumerate() {
            let at = &at.index(i);
            let Some(backend) = config.compile(at, sources, issues) else {
                complete = false;
                continue;
            };
            if !written.insert(backend.address.clone()) {
                let message = format!("`{}` is listed twice", config.addr);
                // not by its index: those before it may have been left out
                issues
                    .error(&at.key("addr"), message)
                    .hint("a `weight` at the first gives it more requests");
                complete = false;
                continue;
            }
            let authority: Arc<str> = backend.address.authority().into();
            for address in resolve(&backend.address, previous, &at.key("addr"), issues) {
                if !taken.insert(address.clone()) {
                    let name = backend::display_name(&address);
                    let message = format!(
                        "`{}` stands for `{name}`, as an earlier backend does",
                        config.addr
                    );
                    issues
                        .warn(&at.key("addr"), message)
                        .hint("it stays one member, with the earlier weight");
                    continue;
                }
                places.push(Place {
                    position: i,
                    address,
                    authority: authority.clone(),
                    weight: backend.weight,
                    backup: backend.backup,
                    max_conns: backend.max_conns,
                });
            }
        }
        complete.then_some(places)
    }
}

/// The addresses of a backend; of a name that does not resolve, those that it had before, so that a name server's bad
/// hour and a reload do not empty a pool that works.
fn resolve(
    address: &Address,
    previous: Option<&Arc<Pool>>,
    at: &At<'_>,
    issues: &mut Issues,
) -> Vec<SocketAddr> {
    let error = match address.resolve() {
        Ok(addresses) => return addresses,
        Err(error) => error,
    };
    let name = address.authority();
    let members = previous.map(|pool| pool.members());
    let kept: Vec<SocketAddr> = members
        .iter()
        .flat_map(|members| members.iter())
        .filter(|member| **member.authority() == *name)
        .map(|member| member.address().clone())
        .collect();
    let hint = if kept.is_empty() {
        "the pool goes on without it until a reload finds it"
    } else {
        "the pool goes on with the addresses that it had"
    };
    issues
        .warn(at, format!("`{name}` does not resolve: {error}"))
        .hint(hint);
    kept
}

impl Timeouts {
    fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<PeerOptions> {
        let mut complete = true;
        for (key, span) in [
            ("connect", self.connect),
            ("read", self.read),
            ("write", self.write),
            ("idle", self.idle),
        ] {
            if span.get().is_zero() {
                issues.error(&at.key(key), format!("`{key}` must be longer than zero"));
                complete = false;
            }
        }
        let mut options = PeerOptions::new();
        options.connection_timeout = Some(self.connect.get());
        options.total_connection_timeout = Some(self.connect.get());
        options.read_timeout = Some(self.read.get());
        options.write_timeout = Some(self.write.get());
        options.idle_timeout = Some(self.idle.get());
        complete.then_some(options)
    }

    /// What keeps the idle connections of differently configured pools apart. Pingora compares address, TLS name and the
    /// like by itself; what else stays with a connection once it is made belongs in here. The other timeouts do not:
    /// each request brings its own.
    fn group_key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        "http/1.1".hash(&mut hasher);
        self.idle.get().hash(&mut hasher);
        hasher.finish()
    }
}

/// A named group of backends with one way to choose among them.
pub struct Pool {
    name: Arc<str>,
    config: Config,
    /// What requests choose from.
    roster: Arc<Roster>,
    retry: Retry,
    checker: Option<Checker>,
    /// Pingora's side of the pool: membership and health.
    backends: LoadBalancer<Selection>,
}

/// What the keys of a pool compile to.
struct Parts {
    rules: Rules,
    options: PeerOptions,
    checks: Option<Checks>,
    passive: Option<passive::Rules>,
    retry: Retry,
}

impl Pool {
    fn new(
        name: &str,
        config: Config,
        parts: Parts,
        places: Vec<Place>,
        previous: Option<&Arc<Pool>>,
    ) -> Pool {
        let name: Arc<str> = name.into();
        let Parts {
            rules,
            options,
            checks,
            passive,
            mut retry,
        } = parts;
        if let Some(previous) = previous {
            retry.adopt(&previous.retry);
        }
        let before = previous.map(|pool| pool.members()).unwrap_or_default();
        let before: HashMap<&SocketAddr, &Arc<Member>> = before
            .iter()
            .map(|member| (member.address(), member))
            .collect();
        let group_key = config.timeouts.group_key();
        let roster = Arc::new(Roster::new(rules, previous.map(|pool| &*pool.roster)));
        let passive = passive.map(|rules| Arc::new(Passive::new(name.clone(), rules, &roster)));
        let waits = checks.as_ref().is_some_and(Checks::waits);
        let make = |place: Place| {
            let before = before.get(&place.address);
            let mut member = Member::new(place, options.clone(), group_key);
            if let Some(before) = before {
                member.adopt(before);
                // without probes nothing would ever bring it up again
                if checks.is_some() {
                    member.adopt_health(before);
                }
                if passive.is_some() {
                    member.adopt_breaker(before);
                }
            }
            if waits {
                member.await_probe();
            }
            if let Some(passive) = &passive {
                member.watch(passive.clone());
            }
            backend_of(&Arc::new(member))
        };
        let members: BTreeSet<Backend> = places.into_iter().map(make).collect();
        let checker = checks.map(|checks| Checker::new(name.clone(), checks, roster.clone()));
        Pool {
            backends: load_balancer(checker.clone(), members, &roster),
            checker,
            name,
            config,
            roster,
            retry,
        }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
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
        self.config.health.as_ref()?;
        let pool = self.clone();
        Some(HealthTask::spawn(move |stopped| async move {
            pool.backends.run(stopped, None).await
        }))
    }

    pub fn status(&self) -> PoolStatus {
        PoolStatus::of(self)
    }

    /// Whether the members are at these places.
    fn stands_for(&self, places: &[Place]) -> bool {
        let members = self.members();
        members.iter().map(|member| member.place()).eq(places)
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
    members: BTreeSet<Backend>,
    roster: &Arc<Roster>,
) -> LoadBalancer<Selection> {
    let backends = Backends::new(Static::new(members));
    let mut balancing = LoadBalancer::from_backends_with_config(backends, Some(roster.clone()));
    balancing.parallel_health_check = true;
    balancing.health_check_frequency = checker.as_ref().map(Checker::interval);
    if let Some(checker) = checker {
        balancing.set_health_check(Box::new(checker));
    }
    if let Err(error) = at_once(balancing.update()) {
        unreachable!("static discovery does not fail: {error}");
    }
    balancing
}

/// The result of a future that waits for nothing.
fn at_once<F: Future>(future: F) -> F::Output {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("static discovery does not wait"),
    }
}

#[cfg(test)]
mod tests;
