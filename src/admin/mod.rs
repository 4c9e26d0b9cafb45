//! The admin socket: how a running process is asked how it is, and told what to do.
//!
//! HTTP with JSON over a unix socket, for `weir status` and its like, and for programs:
//!
//! ```text
//! curl --unix-socket /run/weir/admin.sock http://weir/status
//! ```
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | [`Status`](crate::runtime::status::Status), as from a `status` action |
//! | `GET /ready` | 200 `ready`, or 503 `draining`, in plain text |
//! | `POST /reload` | [`Reloaded`]; with `?dry_run=true` nothing changes; with `?upgrade=true` a program that was replaced on disk takes over |
//! | `POST /upgrade` | [`Upgraded`]: a new process has taken over; with `?binary=PATH` another program, with `&timeout=60s` a limit, with `&probation=60s&max_5xx=1%25&max_p99=2x` a probation, and the answer at its end |
//! | `POST /pools/POOL/members/MEMBER/drain` | [`Drained`]: no new requests, running ones end |
//! | `POST /pools/POOL/members/MEMBER/undrain` | [`Drained`]: requests again |
//! | `POST /stop` | [`Stopping`], and the end of the answer when the process is gone |
//!
//! Anything else, and what cannot be done, is answered with a [`Refusal`]. Only weir's own user and root may ask.
//!
//! What changes something is carried out by the process, one [`Order`] after the other and in turn with the signals;
//! this module knows sockets, HTTP and JSON.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::issue::Issues;
use crate::pool::Pool;
use crate::pool::status::MemberStatus;
use crate::runtime::Live;
use crate::runtime::changes::Changes;
use crate::runtime::figures::Summary;
use crate::value::{Factor, Ratio, Span, hint};

pub mod client;
mod server;

pub use server::Endpoint;

/// What the process is told to do.
pub enum Order {
    Reload {
        dry_run: bool,
        /// Where the program on disk was replaced, have that take over instead.
        upgrade: bool,
        done: oneshot::Sender<Result<Reloaded, Refusal>>,
    },
    Upgrade {
        wanted: Upgrade,
        done: oneshot::Sender<Result<Upgraded, Refusal>>,
    },
    Drain {
        pool: String,
        member: String,
        /// Or back to work.
        draining: bool,
        done: oneshot::Sender<Result<Drained, Refusal>>,
    },
    Stop,
}

pub type Orders = mpsc::Receiver<Order>;

/// The new process that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upgrade {
    /// Its program; by default the running one, as it is on disk now.
    pub binary: Option<PathBuf>,
    /// How long it may take until it serves.
    pub timeout: Option<Span>,
    /// What it has to pass before the old one ends.
    pub probation: Option<Terms>,
}

/// How a new process must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long it is watched.
    pub length: Span,
    /// How much larger the share of requests may be that are answered with 5xx.
    pub max_5xx: Ratio,
    /// How many times as long the slowest hundredth of requests may take.
    pub max_p99: Factor,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            length: Span::new(Duration::from_secs(60)),
            max_5xx: Ratio::percent(1),
            max_p99: Factor::hundredths(200),
        }
    }
}

/// A new process serves, and the old one ends with its last connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Upgraded {
    pub old: Process,
    pub new: Process,
    /// How many listening sockets have changed hands.
    pub sockets: usize,
    /// How many connections the old process has to finish.
    pub connections: usize,
    /// The probation that the new process has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probation: Option<Box<Passed>>,
}

/// A new process has done well, and the old one has finished.
#[derive(Debug, Serialize, Deserialize)]
pub struct Passed {
    pub trial: Trial,
    pub receipt: Receipt,
}

/// How a new process did on probation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Trial {
    pub length: Span,
    /// The old process was told to end before that.
    pub cut_short: bool,
    /// The old process, in the last ten minutes before.
    pub before: Summary,
    pub new: Summary,
}

/// What became of the connections that the old process had when the new one began to accept alone. `kept` is the sum of
/// the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// All of them.
    pub kept: usize,
    /// Ended by the client, after their last answer, or idle.
    pub finished: usize,
    /// WebSockets that were told to close.
    pub closed: usize,
    /// Still at work at the deadline.
    pub cut: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Process {
    pub process: u32,
    pub version: String,
}

/// A reload that went well, or would.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// The file that was read.
    pub file: String,
    pub dry_run: bool,
    /// The number of the configuration.
    pub generation: u64,
    pub changes: Changes,
    /// Keys that changed and that only a new process can take.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_only: Vec<String>,
    /// The process that has taken over for their sake, or because its program is a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<Upgraded>,
    /// What is hardly meant in the file, as `weir check` prints it.
    pub warnings: String,
}

/// Members that drain from now on, or no longer do: several for a name with several addresses.
#[derive(Debug, Serialize, Deserialize)]
pub struct Drained {
    pub members: Vec<MemberStatus>,
}

/// The process ends when its requests have.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stopping {
    pub process: u32,
}

/// Why something was not done.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    #[serde(skip)]
    pub status: StatusCode,
    pub error: String,
    /// A way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Mistakes in the configuration, as `weir check` prints them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
    /// The same for programs, as in `weir check --json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issues: Option<serde_json::Value>,
}

impl Refusal {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Refusal {
        Refusal {
            status,
            error: error.into(),
            hint: None,
            report: None,
            issues: None,
        }
    }

    /// For a file with mistakes.
    pub fn mistakes(error: String, issues: &Issues) -> Refusal {
        let mut json = serde_json::to_value(issues.report()).ok();
        Refusal {
            report: Some(issues.to_string()),
            issues: json.as_mut().map(|report| report["issues"].take()),
            ..Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error)
        }
    }

    fn with_hint(mut self, hint: String) -> Refusal {
        self.hint = Some(hint);
        self
    }
}

/// Takes a member of a pool out of the turns, or gives it its turns again. `member` is an address, or the name with
/// which several were written.
///
/// # Errors
/// When there is no such pool or member.
pub fn drain(live: &Live, pool: &str, member: &str, draining: bool) -> Result<Drained, Refusal> {
    let snapshot = live.load();
    let no = |what: String| Refusal::new(StatusCode::NOT_FOUND, what);
    let Some(pool) = snapshot.pools.get(pool) else {
        let names = snapshot.pools.keys().map(String::as_str);
        let hint = hint(pool, "pools are", names);
        return Err(no(format!("no pool named `{pool}`")).with_hint(hint));
    };
    let backends = backends(pool, member);
    if backends.is_empty() {
        let members = pool.members();
        let names = members.iter().map(|member| &**member.backend());
        let hint = hint(member, "members are", names);
        return Err(no(format!("no member `{member}` in pool `{}`", pool.name())).with_hint(hint));
    }
    let word = if draining {
        "drains"
    } else {
        "no longer drains"
    };
    for backend in &backends {
        if pool.set_draining(backend, draining, Instant::now()) {
            log::info!("pool {}: {backend} {word}, as told", pool.name());
        }
    }
    let mut members = pool.status().members;
    members.retain(|member| backends.iter().any(|backend| **backend == *member.backend));
    Ok(Drained { members })
}

fn backends(pool: &Pool, name: &str) -> Vec<Arc<str>> {
    let members = pool.members();
    let is_meant = |member: &&Arc<_>| {
        let member: &crate::pool::Member = member;
        let is_inet = member.address().as_inet().is_some();
        **member.backend() == *name || (is_inet && **member.authority() == *name)
    };
    let meant = members.iter().filter(is_meant);
    meant.map(|member| member.backend().clone()).collect()
}
