//! How a pool is doing, for people and programs that ask.

use std::time::SystemTime;

use serde::Serialize;

use super::{Member, Pool};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    pub name: String,
    /// How many members are up.
    pub up: usize,
    pub members: Vec<MemberStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    pub backend: String,
    pub weight: u32,
    pub up: bool,
    /// When it last went up or down, in seconds since 1970; `null` when it never did.
    pub since: Option<u64>,
    /// What the last failed probe found wrong; `null` after a passed one, unless the member is still down.
    pub reason: Option<String>,
    /// Requests that it is busy with.
    pub in_flight: u64,
    /// Requests that it was given since weir started, tries that failed included.
    pub requests: u64,
    /// Those of them that it did not answer.
    pub failures: u64,
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
    let record = member.health().record();
    let seconds = |since: SystemTime| since.duration_since(SystemTime::UNIX_EPOCH).ok();
    MemberStatus {
        backend: member.backend().to_string(),
        weight: member.weight(),
        up: member.health().is_up(),
        since: record.since.and_then(seconds).map(|since| since.as_secs()),
        reason: record.reason.map(|reason| reason.to_string()),
        in_flight: member.load().in_flight(),
        requests: member.load().requests(),
        failures: member.load().failures(),
    }
}
