//! How a pool is doing, for people and programs that ask.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Absence, Member, Pool};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub name: String,
    /// How many members are up.
    pub up: usize,
    pub members: Vec<MemberStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub backend: String,
    pub weight: u32,
    /// Whether it is for when no ordinary member can serve.
    pub backup: bool,
    /// Whether `state` is `up`.
    pub up: bool,
    pub state: State,
    /// When that state began, in seconds since 1970; `null` when it has been in it since it became a member.
    pub since: Option<u64>,
    /// Why it is not up; `null` when it is.
    pub reason: Option<String>,
    /// `null` before the first one.
    pub probe: Option<ProbeStatus>,
    /// Requests that it is busy with.
    pub in_flight: u64,
    /// How many it takes at a time; `null`: any number.
    pub max_conns: Option<u64>,
    /// Requests that it was given since weir started, tries that failed included.
    pub requests: u64,
    /// Those of them that it did not answer.
    pub failures: u64,
    /// How long it lately took to the header of an answer, in milliseconds; `null` before the first one.
    pub latency_ms: Option<f64>,
}

/// Whether a member gets requests, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Up,
    /// Its health checks fail.
    Down,
    /// An operator has taken it out; what it is at may finish.
    Draining,
    /// Its weight is 0.
    Drained,
    /// Requests failed there lately. It gets one now and then, or as many as it takes while no member is up.
    Ejected,
}

impl State {
    pub fn of(member: &Member) -> State {
        match member.absence() {
            None if member.breaker().is_closed() => State::Up,
            None | Some(Absence::Ejected) => State::Ejected,
            Some(Absence::Down) => State::Down,
            Some(Absence::Draining) => State::Draining,
            Some(Absence::Drained) => State::Drained,
        }
    }
}

/// The last probe of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// When it ended, in seconds since 1970.
    pub at: u64,
    pub passed: bool,
    /// What it found wrong; `null` when it passed.
    pub error: Option<String>,
}

impl PoolStatus {
    pub(super) fn of(pool: &Pool) -> PoolStatus {
        let members: Vec<MemberStatus> = pool.members().iter().map(|m| member(m)).collect();
        PoolStatus {
            name: pool.name().to_string(),
            up: members.iter().filter(|member| member.up).count(),
            members,
        }
    }
}

fn member(member: &Member) -> MemberStatus {
    let health = member.health().record();
    let (state, ejection) = (State::of(member), member.breaker().record());
    let (since, reason) = match state {
        State::Up => (
            health
                .since
                .max(ejection.since)
                .max(member.draining_since()),
            None,
        ),
        State::Down => (health.since, health.reason),
        State::Draining => (
            member.draining_since(),
            Some("an operator has taken it out".into()),
        ),
        State::Drained => (None, Some("its weight is 0".into())),
        State::Ejected => (ejection.since, ejection.reason),
    };
    let load = member.load();
    MemberStatus {
        backend: member.backend().to_string(),
        weight: member.weight(),
        backup: member.place().backup,
        up: state == State::Up,
        state,
        since: since.map(seconds),
        reason: reason.map(|reason| reason.to_string()),
        probe: health.probe.map(|probe| ProbeStatus {
            at: seconds(probe.at),
            passed: probe.error.is_none(),
            error: probe.error.map(|error| error.to_string()),
        }),
        in_flight: load.in_flight(),
        max_conns: member.place().max_conns,
        requests: load.requests(),
        failures: load.failures(),
        // to the microsecond: more would only pretend
        latency_ms: load
            .latency()
            .map(|latency| latency.as_micros() as f64 / 1000.0),
    }
}

/// Since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
