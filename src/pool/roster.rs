//! Who of a pool's members can be picked, by whatever may change that: membership, health, an operator.
//!
//! Each such change makes a new [`Lineup`], in which all that a pick needs is worked out; a pick reads the current
//! one, without a lock.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::balance::{Balance, Balancer};
use super::{InFlight, Member, Tried};

/// What a request wants to be chosen by.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    pub now: Instant,
}

/// What [`Roster::pick`] came to.
#[derive(Debug)]
pub enum Pick {
    /// Counted as in flight there already.
    Member(InFlight),
    /// Every member that is left to try has as many requests as it takes.
    Busy,
    /// The request has tried every member that can be.
    Exhausted,
    /// There is no member to try at all.
    Down,
}

/// The members of a pool, and the current order among them.
#[derive(Debug)]
pub struct Roster {
    balance: Balance,
    current: ArcSwap<Lineup>,
    /// Held while a lineup is made: of two changes at the same time, the one that looks first must not store last.
    changing: Mutex<()>,
}

impl Roster {
    /// Without members.
    pub fn new(balance: Balance) -> Roster {
        let nobody = Lineup::new(&balance, [].into(), None);
        Roster {
            current: ArcSwap::from_pointee(nobody),
            balance,
            changing: Mutex::new(()),
        }
    }

    /// From now on these are the members.
    pub fn set_members(&self, members: Arc<[Arc<Member>]>, _now: Instant) {
        let _changing = self.changing.lock();
        self.make(members);
    }

    /// Looks again at who of the members can be picked.
    pub fn refresh(&self, _now: Instant) {
        let _changing = self.changing.lock();
        self.make(self.members());
    }

    fn make(&self, members: Arc<[Arc<Member>]>) {
        let previous = self.current.load();
        let lineup = Lineup::new(&self.balance, members, Some(&previous));
        self.current.store(Arc::new(lineup));
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
        let lineup = self.current.load();
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

    /// Whom [`Roster::pick`] would take.
    pub fn choose(&self, choice: &Choice, tried: &Tried) -> Option<Arc<Member>> {
        self.current.load().choose(choice, tried).cloned()
    }
}

/// Who can be picked, and how. Never changes.
#[derive(Debug)]
struct Lineup {
    members: Arc<[Arc<Member>]>,
    /// Ordinary members and, for when none of them can serve, backups.
    tiers: [Tier; 2],
}

/// Members of equal standing.
#[derive(Debug)]
struct Tier {
    members: Box<[Arc<Member>]>,
    balancer: Balancer,
}

impl Lineup {
    fn new(balance: &Balance, members: Arc<[Arc<Member>]>, previous: Option<&Lineup>) -> Lineup {
        let tier = |index: usize, backup: bool| {
            let members = members.iter();
            let members = members.filter(|member| member.place().backup == backup);
            let previous = previous.map(|previous| &previous.tiers[index]);
            Tier::new(balance, members.cloned().collect(), previous)
        };
        Lineup {
            tiers: [tier(0, false), tier(1, true)],
            members,
        }
    }

    fn choose(&self, choice: &Choice, tried: &Tried) -> Option<&Arc<Member>> {
        self.tiers
            .iter()
            .find_map(|tier| tier.choose(choice, tried))
    }

    /// Why there was nobody to choose.
    fn nobody(&self, tried: &Tried) -> Pick {
        let mut untried = self.members.iter().filter(|member| !tried.contains(member));
        if untried.any(|member| member.absence().is_none()) {
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
    fn new(balance: &Balance, members: Box<[Arc<Member>]>, previous: Option<&Tier>) -> Tier {
        let share = |member: &Arc<Member>| match member.absence() {
            None => member.weight(),
            Some(_) => 0,
        };
        let shares: Box<[u32]> = members.iter().map(share).collect();
        let previous = previous.map(|previous| &previous.balancer);
        Tier {
            balancer: Balancer::new(balance, &members, &shares, previous),
            members,
        }
    }

    fn choose(&self, choice: &Choice, tried: &Tried) -> Option<&Arc<Member>> {
        let is_free = |index: usize| {
            let member = &self.members[index];
            member.has_room() && !tried.contains(member)
        };
        let index = self.balancer.pick(choice, &self.members, is_free)?;
        Some(&self.members[index])
    }
}
