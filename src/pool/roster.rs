//! Who of a pool's members can be picked, by whatever may change that: membership, health, an operator, time.
//!
//! Each such change makes a new [`Lineup`], in which all that a pick needs is worked out; a pick reads the current
//! one, without a lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::balance::{Balance, Balancer};
use super::member::{Kept, Post};
use super::queue::{Limits, Queue};
use super::sticky::{Sticky, Token};
use super::{InFlight, Member, Tried, passive};

/// How a pool gives its members requests.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub balance: Balance,
    /// How long a member that comes back, or newly joins a pool that runs, takes to get its full share.
    pub slow_start: Option<Duration>,
    pub sticky: Option<Sticky>,
    /// Absent: nobody waits.
    pub queue: Option<Limits>,
}

/// What a request wants to be chosen by.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    pub now: Instant,
    /// A random number, for algorithms that draw.
    pub random: u64,
    /// Whose request it is, for `ip_hash`.
    pub client: Option<IpAddr>,
    /// What `hash` goes by (see [`super::balance::key_of`]).
    pub key: u64,
    /// The member that the request wants to come back to.
    pub token: Option<Token>,
}

impl Choice {
    /// Of a request of which nothing is known.
    pub fn any(now: Instant, random: u64) -> Choice {
        Choice {
            now,
            random,
            client: None,
            key: 0,
            token: None,
        }
    }
}

/// What [`Roster::pick`] came to.
#[derive(Debug)]
pub enum Pick {
    /// Counted as in flight there already.
    Member(InFlight),
    /// Every member that is left to try has as many requests as it takes.
    Busy,
    /// They still had when the request had waited for as long as it may.
    TimedOut,
    /// The request has tried every member that can be.
    Exhausted,
    /// There is no member to try at all.
    Down,
}

/// The members of a pool, and the current order among them.
#[derive(Debug)]
pub struct Roster {
    rules: Rules,
    current: ArcSwap<Lineup>,
    queue: Arc<Queue>,
    /// Held while a lineup is made: of two changes at the same time, the one that looks first must not store last.
    changing: Mutex<()>,
}

impl Roster {
    /// Goes on from where `previous` is, the roster of this pool before a reload; otherwise without members.
    pub fn new(rules: Rules, previous: Option<&Roster>) -> Roster {
        let lineup = match previous {
            Some(previous) => previous.current.load_full(),
            None => Arc::new(Lineup::new(&rules, [].into(), None, None, Instant::now())),
        };
        Roster {
            rules,
            current: ArcSwap::new(lineup),
            queue: previous.map_or_else(Arc::default, |previous| previous.queue.clone()),
            changing: Mutex::new(()),
        }
    }

    pub fn sticky(&self) -> Option<&Sticky> {
        self.rules.sticky.as_ref()
    }

    /// From now on these are the members.
    pub fn set_members(&self, members: Arc<[Arc<Member>]>, now: Instant) {
        for member in members.iter() {
            member.join(|| Post {
                queue: self.queue.clone(),
                badge: self.sticky().and_then(|sticky| sticky.badge(member)),
            });
        }
        let _changing = self.changing.lock();
        self.make(members, now);
    }

    /// Looks again at who of the members can be picked.
    pub fn refresh(&self, now: Instant) {
        let _changing = self.changing.lock();
        self.make(self.members(), now);
    }

    fn make(&self, members: Arc<[Arc<Member>]>, now: Instant) {
        let previous = self.current.load();
        let until = passive::settle(&members, now);
        let lineup = Lineup::new(&self.rules, members, until, Some(&previous), now);
        self.current.store(Arc::new(lineup));
        self.queue.has_room();
    }

    /// The lineup that holds at this moment.
    fn current(&self, now: Instant) -> arc_swap::Guard<Arc<Lineup>> {
        let lineup = self.current.load();
        if !lineup.is_over(now) {
            return lineup;
        }
        // Who finds it locked goes on with what there is: somebody else makes the next one.
        if let Some(_changing) = self.changing.try_lock()
            && self.current.load().is_over(now)
        {
            self.make(self.members(), now);
        }
        self.current.load()
    }

    /// In written order; several for a name with several addresses.
    pub fn members(&self) -> Arc<[Arc<Member>]> {
        self.current.load().members.clone()
    }

    /// Whether no member can be picked, whatever the request.
    pub fn is_down(&self) -> bool {
        self.current.load().is_down()
    }

    /// The member for the next try of a request. It is in `tried` from now on, so that no request comes to one member
    /// twice.
    pub fn pick(&self, choice: &Choice, tried: &mut Tried) -> Pick {
        let lineup = self.current(choice.now);
        loop {
            let Some(member) = lineup.choose(choice, tried) else {
                return lineup.nobody(tried);
            };
            // `None`: another request was quicker to take the member's last place
            if let Some(request) = member.begin() {
                tried.insert(member.clone());
                return Pick::Member(request);
            }
        }
    }

    /// The same, but waits for room where that is all that is missing, if the pool has a queue. `choice.now` becomes the
    /// end of the wait.
    pub async fn take(
        &self,
        choice: &mut Choice,
        tried: &mut Tried,
        clock: fn() -> Instant,
    ) -> Pick {
        let first = tried.is_empty();
        let Some(limits) = self.rules.queue else {
            return self.pick(choice, tried);
        };
        // Nobody overtakes those who wait.
        if !(first && self.queue.is_awaited()) {
            match self.pick(choice, tried) {
                Pick::Busy => {}
                pick => return pick,
            }
        }
        let pick = || {
            choice.now = clock();
            self.pick(choice, tried)
        };
        self.queue.wait(limits, first, pick).await
    }

    /// Whom [`Roster::pick`] would take.
    pub fn choose(&self, choice: &Choice, tried: &Tried) -> Option<Arc<Member>> {
        self.current(choice.now).choose(choice, tried).cloned()
    }
}

/// The mean weight from which on weights have tenths of their own.
const HEAVY: u64 = 20;
/// In how many steps a share grows to its full size, each of which makes a new lineup.
const STEPS: u32 = 10;

/// Who can be picked, and how. Never changes.
#[derive(Debug)]
struct Lineup {
    members: Arc<[Arc<Member>]>,
    /// By index of the member.
    standings: Box<[Standing]>,
    /// Ordinary members and, for when none of them can serve, backups.
    tiers: [Tier; 2],
    /// The members, by index, to which clients come back.
    tokens: HashMap<Token, u32>,
    /// When time alone changes it.
    until: Option<Instant>,
}

/// How much of its share a member gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Absent,
    /// More from step to step.
    Growing {
        since: Instant,
    },
    Full,
}

impl Standing {
    /// `before` is what it was; a member of nothing yet was absent.
    fn of(
        member: &Member,
        before: Standing,
        slow_start: Option<Duration>,
        now: Instant,
    ) -> Standing {
        let Some(slow_start) = slow_start.filter(|_| member.absence().is_none()) else {
            return match member.absence() {
                Some(_) => Standing::Absent,
                None => Standing::Full,
            };
        };
        match before {
            Standing::Absent => Standing::Growing { since: now },
            Standing::Growing { since } if now < since + slow_start => before,
            Standing::Growing { .. } | Standing::Full => Standing::Full,
        }
    }

    /// How many of all steps it has come, and when the next one follows.
    fn step(self, slow_start: Option<Duration>, now: Instant) -> (u32, Option<Instant>) {
        match (self, slow_start) {
            (Standing::Absent, _) => (0, None),
            (Standing::Growing { since }, Some(slow_start)) => {
                let age = now.saturating_duration_since(since).as_nanos();
                let step = age * u128::from(STEPS) / slow_start.as_nanos().max(1);
                let step = step.min(u128::from(STEPS - 1)) as u32 + 1;
                // a little late rather than early, which would make the same lineup again
                let next = slow_start * step / STEPS + Duration::from_nanos(1);
                (step, Some(since + next))
            }
            (Standing::Growing { .. } | Standing::Full, _) => (STEPS, None),
        }
    }
}

/// Members of equal standing.
#[derive(Debug)]
struct Tier {
    members: Box<[Arc<Member>]>,
    balancer: Balancer,
}

impl Lineup {
    fn new(
        rules: &Rules,
        members: Arc<[Arc<Member>]>,
        until: Option<Instant>,
        previous: Option<&Lineup>,
        now: Instant,
    ) -> Lineup {
        let standings = Lineup::standings(&members, rules.slow_start, previous, now);
        let steps = standings.iter().map(|s| s.step(rules.slow_start, now));
        let (steps, changes): (Vec<u32>, Vec<Option<Instant>>) = steps.unzip();
        let tier = |index: usize, backup: bool| {
            let members = members.iter().zip(&steps);
            let members = members.filter(|(member, _)| member.place().backup == backup);
            let previous = previous.map(|previous| &previous.tiers[index]);
            Tier::new(&rules.balance, members, previous)
        };
        let badges = members.iter().enumerate();
        let badges = badges.filter_map(|(index, m)| Some((m.badge()?.token, index as u32)));
        Lineup {
            tiers: [tier(0, false), tier(1, true)],
            standings,
            tokens: badges.collect(),
            until: changes.into_iter().flatten().chain(until).min(),
            members,
        }
    }

    fn standings(
        members: &[Arc<Member>],
        slow_start: Option<Duration>,
        previous: Option<&Lineup>,
        now: Instant,
    ) -> Box<[Standing]> {
        let previous = previous.filter(|previous| !previous.members.is_empty());
        let before: HashMap<*const Kept, Standing> = match previous {
            Some(previous) if slow_start.is_some() => {
                let members = previous.members.iter().map(|m| Arc::as_ptr(m.kept()));
                members.zip(previous.standings.iter().copied()).collect()
            }
            _ => HashMap::new(),
        };
        let before = |member: &Arc<Member>| match before.get(&Arc::as_ptr(member.kept())) {
            Some(before) => *before,
            None if previous.is_some() => Standing::Absent,
            // with the pool, all start at once
            None => Standing::Full,
        };
        members
            .iter()
            .map(|member| Standing::of(member, before(member), slow_start, now))
            .collect()
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    fn choose(&self, choice: &Choice, tried: &Tried) -> Option<&Arc<Member>> {
        let mut tiers = self.tiers.iter();
        self.home(choice, tried)
            .or_else(|| tiers.find_map(|tier| tier.choose(choice, tried)))
    }

    /// The member that the request wants to come back to, if that can take it.
    fn home(&self, choice: &Choice, tried: &Tried) -> Option<&Arc<Member>> {
        let member = &self.members[*self.tokens.get(&choice.token?)? as usize];
        let can = member.absence().is_none() && member.has_room() && !tried.contains(member);
        can.then_some(member)
    }

    /// Why there was nobody to choose.
    fn nobody(&self, tried: &Tried) -> Pick {
        let mut untried = self.members.iter().filter(|member| !tried.contains(member));
        // to wait for a member that is on trial would be to bet on it
        let is_full =
            |member: &Arc<Member>| member.absence().is_none() && !member.breaker().is_on_trial();
        if untried.any(is_full) {
            Pick::Busy
        } else if tried.is_empty() {
            Pick::Down
        } else {
            Pick::Exhausted
        }
    }

    fn is_down(&self) -> bool {
        self.tiers.iter().all(|tier| tier.balancer.is_empty())
    }
}

impl Tier {
    /// Of members and how many of all steps each has come.
    fn new<'m>(
        balance: &Balance,
        members: impl Iterator<Item = (&'m Arc<Member>, &'m u32)>,
        previous: Option<&Tier>,
    ) -> Tier {
        let (members, steps): (Vec<Arc<Member>>, Vec<u32>) = members
            .map(|(member, step)| (member.clone(), *step))
            .unzip();
        // A step of a light weight is no whole number, unless all are made larger; heavy ones make turns long enough as
        // they are.
        let sum: u64 = members.iter().map(|m| u64::from(m.weight())).sum();
        let full = if sum < HEAVY * members.len() as u64 {
            STEPS
        } else {
            1
        };
        let share = |(member, step): (&Arc<Member>, &u32)| {
            let share = member.weight() * full * step;
            share.div_ceil(STEPS)
        };
        let shares: Box<[u32]> = members.iter().zip(&steps).map(share).collect();
        let previous = previous.map(|previous| &previous.balancer);
        Tier {
            balancer: Balancer::new(balance, &members, &shares, full, previous),
            members: members.into(),
        }
    }

    fn choose(&self, choice: &Choice, tried: &Tried) -> Option<&Arc<Member>> {
        let is_free = |index: usize| {
            let member = &self.members[index];
            member.has_room() && !tried.contains(member)
        };
        let index = self.balancer.pick(choice, is_free)?;
        Some(&self.members[index])
    }
}

#[cfg(test)]
mod tests;
