//! Pools: where requests can go.
//!
//! A `proxy:` route names a pool; for each try of a request, `handler/proxy` takes the member whose turn it is from
//! [`Pool::pick`] and gives Pingora the way to connect to it.
//!
//! Membership and health belong to Pingora's [`LoadBalancer`]: it keeps the set of backends, runs the probes and decides
//! when a member goes up or down. What it decides is written into the order of turns ([`balance`]) once, when it
//! changes, so that a pick is a step of a cursor, without lock or allocation; `LoadBalancer::select` comes to the same
//! member by way of a hash set, a hash per candidate and a clone of the backend.
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
pub mod member;
pub mod status;
pub mod tried;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::PeerOptions;
use pingora_load_balancing::discovery::Static;
use pingora_load_balancing::{Backend, Backends, Extensions, LoadBalancer};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::issue::{At, Issues, Sources};
use crate::value::{Short, Span};
use backend::Address;
use balance::{Balance, Selection, SmoothRoundRobin};
use health::{Checker, Checks};

pub use expect::Expect;
pub use health::HealthTask;
pub use member::{InFlight, Member};
pub use status::PoolStatus;
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
    /// Active health checks. Absent: none, and every member always counts as up.
    pub health: Option<health::Config>,
    /// How long to wait for a member.
    #[serde(default)]
    pub timeouts: Timeouts,
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
        let places = self.places(previous, &at.key("backends"), sources, issues);
        let (options, checks, places) = (options?, checks?, places?);
        match previous {
            Some(previous) if previous.config == *self && previous.stands_for(&places) => {
                Some(previous.clone())
            }
            _ => {
                let pool = Pool::new(name, self.clone(), options, checks, places, previous);
                Some(Arc::new(pool))
            }
        }
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
                    address,
                    authority: authority.clone(),
                    weight: backend.weight,
                });
            }
        }
        complete.then_some(places)
    }
}

/// Where one member is.
struct Place {
    address: SocketAddr,
    authority: Arc<str>,
    weight: u32,
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
    let members = previous.map_or(&[] as &[_], |pool| pool.members());
    let kept: Vec<SocketAddr> = members
        .iter()
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
    members: Arc<[Arc<Member>]>,
    /// What requests choose with.
    balancer: Arc<SmoothRoundRobin>,
    /// Pingora's side of the pool: membership and health.
    backends: LoadBalancer<Selection>,
}

/// What [`Pool::pick`] came to.
#[derive(Debug)]
pub enum Pick<'a> {
    Member(&'a Arc<Member>),
    /// The request has tried every member that is up.
    Exhausted,
    /// There is no member that is up to try at all.
    Down,
}

impl Pool {
    fn new(
        name: &str,
        config: Config,
        options: PeerOptions,
        checks: Option<Checks>,
        places: Vec<Place>,
        previous: Option<&Arc<Pool>>,
    ) -> Pool {
        let name: Arc<str> = name.into();
        let before: HashMap<&SocketAddr, &Member> = previous
            .iter()
            .flat_map(|pool| pool.members())
            .map(|member| (member.address(), &**member))
            .collect();
        let group_key = config.timeouts.group_key();
        let make = |(index, place): (usize, Place)| {
            let before = before.get(&place.address);
            let mut member = Member::new(
                index,
                place.address,
                place.authority,
                place.weight,
                options.clone(),
                group_key,
            );
            if let Some(before) = before {
                member.adopt_load(before);
                // without probes nothing would ever bring it up again
                if checks.is_some() {
                    member.adopt_health(before);
                }
            }
            Arc::new(member)
        };
        let members: Arc<[Arc<Member>]> = places.into_iter().enumerate().map(make).collect();
        let balancer = SmoothRoundRobin::new(members.iter().map(|member| member.weight()));
        balancer.refresh(|index| members[index].health().is_up());
        let balancer = Arc::new(balancer);
        Pool {
            backends: load_balancer(&name, checks, &members, &balancer),
            name,
            config,
            members,
            balancer,
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
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// The member whose turn it is among those that are up and not in `tried`; it is in there from now on, so that no
    /// request comes to one member twice.
    pub fn pick(&self, tried: &mut Tried) -> Pick<'_> {
        match self.balancer.pick(tried) {
            Some(index) => {
                tried.insert(index);
                Pick::Member(&self.members[index])
            }
            None if tried.is_empty() => Pick::Down,
            None => Pick::Exhausted,
        }
    }

    /// Whether no member is up.
    pub fn is_down(&self) -> bool {
        self.balancer.is_empty()
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
        let members = self.members.iter();
        members.len() == places.len()
            && members.zip(places).all(|(member, place)| {
                *member.address() == place.address && *member.authority() == place.authority
            })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

fn load_balancer(
    name: &Arc<str>,
    checks: Option<Checks>,
    members: &Arc<[Arc<Member>]>,
    balancer: &Arc<SmoothRoundRobin>,
) -> LoadBalancer<Selection> {
    let backends: BTreeSet<Backend> = members.iter().map(backend_of).collect();
    let backends = Backends::new(Static::new(backends));
    let mut balancing = LoadBalancer::from_backends_with_config(backends, Some(balancer.clone()));
    balancing.parallel_health_check = true;
    balancing.health_check_frequency = checks.as_ref().map(|checks| checks.interval);
    let checker =
        checks.map(|checks| Checker::new(name.clone(), checks, members.clone(), balancer.clone()));
    let replaying = checker.as_ref().map(Checker::replaying);
    if let Some(checker) = checker {
        balancing.set_health_check(Box::new(checker));
    }
    if let Err(error) = at_once(balancing.update()) {
        unreachable!("static discovery does not fail: {error}");
    }
    // Pingora takes every new backend for one that is up and learns otherwise from checks only. So a first round of
    // checks, without probes, tells it what members were adopted with.
    if let Some(replaying) = replaying {
        at_once(balancing.backends().run_health_check(false));
        replaying.store(false, Ordering::Relaxed);
    }
    balancing
}

fn backend_of(member: &Arc<Member>) -> Backend {
    let mut ext = Extensions::new();
    ext.insert(member.clone());
    Backend {
        addr: member.address().clone(),
        weight: member.weight() as usize,
        ext,
    }
}

/// The result of a future that waits for nothing.
fn at_once<F: Future>(future: F) -> F::Output {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("neither static discovery nor a replay waits"),
    }
}

#[cfg(test)]
mod tests;
