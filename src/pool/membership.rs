//! Who the members of a pool are: the addresses among its backends, and what the names among them stand for.
//!
//! A member is one object for as long as its address belongs to the pool, so that its state and its counters stay;
//! requests hold on to theirs, so that one that has left the pool finishes what it is at.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr;
use pingora_load_balancing::Backend as Discovered;
use pingora_load_balancing::discovery::ServiceDiscovery;

use super::backend::{self, Address, Backend, Query};
use super::names::Known;
use super::passive::Passive;
use super::peer::Connector;
use super::resolver::Resolver;
use super::selection::backend_of;
use super::{Member, Place};

pub struct Membership {
    backends: Box<[Backend]>,
    resolver: Resolver,
    mould: Mould,
    current: Mutex<Current>,
}

/// What all members of a pool have in common.
pub struct Mould {
    /// What makes up the connections to each.
    pub connector: Arc<Connector>,
    /// What judges the requests that they get, if anything does.
    pub passive: Option<Arc<Passive>>,
    /// Whether they are down until their first probe.
    pub waits: bool,
}

impl Mould {
    fn make(&self, place: Place) -> Member {
        let mut member = Member::new(place, &self.connector);
        if let Some(passive) = &self.passive {
            member.watch(passive.clone());
        }
        if self.waits {
            member.await_probe();
        }
        member
    }
}

struct Current {
    /// By backend; `None` for what is no name, and for names that have not resolved yet.
    answers: Vec<Option<Known>>,
    members: Arc<[Arc<Member>]>,
}

impl Membership {
    /// `answers` by backend.
    pub fn new(
        backends: Vec<Backend>,
        answers: Vec<Option<Known>>,
        resolver: Resolver,
        mould: Mould,
        adopt: impl Fn(&mut Member),
    ) -> Membership {
        let make = |place| {
            let mut member = mould.make(place);
            adopt(&mut member);
            Arc::new(member)
        };
        let members = places(&backends, &answers).into_iter().map(make).collect();
        Membership {
            backends: backends.into(),
            resolver,
            mould,
            current: Mutex::new(Current { answers, members }),
        }
    }

    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// In written order; those of one name by address.
    pub fn members(&self) -> Arc<[Arc<Member>]> {
        self.current.lock().members.clone()
    }

    /// What the backend at `index` stands for, if it is a name that has resolved.
    pub fn answer(&self, index: usize) -> Option<Known> {
        self.current.lock().answers.get(index)?.clone()
    }

    /// All names that have resolved.
    pub fn known(&self) -> Vec<(Query, Known)> {
        let current = self.current.lock();
        let each = self.backends.iter().zip(&current.answers);
        let known = |(backend, known): (&Backend, &Option<Known>)| {
            Some((backend.query()?.clone(), known.clone()?))
        };
        each.filter_map(known).collect()
    }

    /// The backend at `index` is a name that stands for this from now on.
    pub fn take_in(&self, index: usize, known: Known) {
        let mut current = self.current.lock();
        current.answers[index] = Some(known);
        let before: HashMap<&SocketAddr, &Arc<Member>> = current
            .members
            .iter()
            .map(|member| (member.address(), member))
            .collect();
        let seat = |place: Place| match before.get(&place.address) {
            Some(member) if *member.place() == place => (*member).clone(),
            before => {
                let mut member = self.mould.make(place);
                if let Some(before) = before {
                    member.replace(before);
                }
                Arc::new(member)
            }
        };
        let places = places(&self.backends, &current.answers);
        let members = places.into_iter().map(seat).collect();
        current.members = members;
    }
}

/// Where the members are, in written order; those of one name by address. Of several backends that stand for the same
/// address the first counts.
fn places(backends: &[Backend], answers: &[Option<Known>]) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    let mut taken = HashSet::new();
    for (position, (backend, known)) in backends.iter().zip(answers).enumerate() {
        let place = |address: SocketAddr, authority: Arc<str>| Place {
            position,
            address,
            authority,
            weight: backend.weight,
            backup: backend.backup,
            max_conns: backend.max_conns,
        };
        let mut of_backend = Vec::new();
        if let Address::Socket(address) = &backend.address {
            let authority = backend::authority(address).into();
            of_backend.push(place(address.clone(), authority));
        }
        for target in known.iter().flat_map(|known| &known.answer.targets) {
            let address = SocketAddr::Inet(target.address);
            let mut place = place(address, target.authority.clone());
            if let Some(service) = target.service {
                if backend.backup && service.spare {
                    continue; // there is no third tier
                }
                place.weight = service.weight;
                place.backup |= service.spare;
            }
            of_backend.push(place);
        }
        // as Pingora keeps them
        of_backend.sort_by(|a, b| a.address.cmp(&b.address));
        places.extend(
            of_backend
                .into_iter()
                .filter(|place| taken.insert(place.address.clone())),
        );
    }
    places
}

/// Tells Pingora's `LoadBalancer` who the members are.
pub struct Discovery(pub Arc<Membership>);

#[async_trait]
impl ServiceDiscovery for Discovery {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Discovered>, HashMap<u64, bool>)> {
        let members = self.0.members();
        Ok((members.iter().map(backend_of).collect(), HashMap::new()))
    }
}
