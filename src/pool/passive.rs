//! Passive health: a member at which requests fail gets none for a while.
//!
//! ```yaml
//! pools:
//!   app:
//!     backends: [127.0.0.1:9001, 127.0.0.1:9002]
//!     passive: { max_fails: 3, fail_timeout: 10s, on_status: [502, 503] }
//! ```
//!
//! It is nginx's `max_fails` with the states of a circuit breaker. `max_fails` failures within `fail_timeout` eject a
//! member for as long. After that it is on trial: one request at a time goes there, the first that is answered puts it
//! back, one that fails ejects it again. Nobody waits for a timer: the first pick after that time finds the member on
//! trial.
//!
//! To send requests to a member that probably fails is still better than to refuse them all, so that a member that is
//! ejected gets requests, as many as it takes, while nobody else is left. And a pool's only member is not judged at all.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use pingora::Error;
use schemars::JsonSchema;
use serde::Deserialize;

use super::roster::Roster;
use super::status::State;
use super::{Expect, Member, reason};
use crate::issue::{At, Issues};
use crate::value::{OneOrMany, OrOff, Span};

/// When a member at which requests fail gets none for a while. A failure is a connection that cannot be made, breaks or
/// stays silent for too long, and an answer with a status of `on_status`; but not a kept connection that turns out to be
/// closed. A pool's only member is not judged, and members that are ejected get requests while nobody else is left.
///
/// ```yaml
/// passive: { max_fails: 3, fail_timeout: 10s, on_status: [502, 503] }
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// So many failures within `fail_timeout` eject a member. Default 3. nginx: `max_fails=`, which is 1 by default.
    pub max_fails: NonZeroU32,
    /// How long a member is ejected, and how long a failure counts. After that it gets one request at a time until one is
    /// answered. Default 10s. nginx: `fail_timeout=`.
    pub fail_timeout: Span,
    /// Which statuses are failures: `502`, `500-599` or a list of such. Default none. nginx: `proxy_next_upstream`.
    pub on_status: OneOrMany<Expect>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            max_fails: const { NonZeroU32::new(3).unwrap() },
            fail_timeout: Span::new(Duration::from_secs(10)),
            on_status: OneOrMany::default(),
        }
    }
}

/// Of a pool whose file says nothing.
pub fn default() -> OrOff<Config> {
    OrOff::On(Config::default())
}

impl Config {
    pub fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Rules> {
        if self.fail_timeout.get().is_zero() {
            issues
                .error(
                    &at.key("fail_timeout"),
                    "`fail_timeout` must be longer than zero",
                )
                .hint("`passive: off` leaves failures without consequence");
            return None;
        }
        Some(Rules {
            max_fails: self.max_fails.get() as usize,
            fail_timeout: self.fail_timeout.get(),
            on_status: self.on_status.0.clone().into(),
        })
    }
}

/// What ejects a member, and for how long.
#[derive(Clone, Debug)]
pub struct Rules {
    max_fails: usize,
    fail_timeout: Duration,
    on_status: Box<[Expect]>,
}

/// What speaks against a member.
#[derive(Clone, Copy, Debug)]
pub enum Blame<'a> {
    /// No answer, or one that broke off.
    Error(&'a Error),
    /// An answer that is as bad as none.
    Status(u16),
}

impl fmt::Display for Blame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blame::Error(error) => f.write_str(&reason::of_error(error)),
            Blame::Status(status) => write!(f, "status {status}"),
        }
    }
}

/// What judges the members of a pool by what becomes of requests.
#[derive(Debug)]
pub struct Passive {
    pool: Arc<str>,
    rules: Rules,
    /// Weak, because its members hold this.
    roster: Weak<Roster>,
}

impl Passive {
    pub fn new(pool: Arc<str>, rules: Rules, roster: &Arc<Roster>) -> Passive {
        Passive {
            pool,
            rules,
            roster: Arc::downgrade(roster),
        }
    }

    /// Whether an answer with this status is a failure.
    pub fn blames(&self, status: u16) -> bool {
        let mut ranges = self.rules.on_status.iter();
        ranges.any(|range| range.contains(status))
    }

    /// A request to `member` failed; `is_trial` is what [`Breaker::begin`] said of it.
    pub fn failed(&self, member: &Member, is_trial: bool, blame: Blame<'_>, now: Instant) {
        let Some(roster) = self.roster.upgrade() else {
            return; // a request of a pool that is gone
        };
        if roster.members().len() == 1 {
            return;
        }
        // for the record only: nothing is decided by it
        let wall = SystemTime::now();
        match member
            .breaker()
            .failed(&self.rules, is_trial, &blame, now, wall)
        {
            Verdict::Unchanged => {}
            Verdict::OutAgain => roster.refresh(now),
            Verdict::Ejected => {
                roster.refresh(now);
                log::warn!(target: "weir::health", "{}", self.news(&roster, member));
            }
        }
    }

    /// The trial of `member` was answered.
    pub fn passed(&self, member: &Member, now: Instant) {
        let Some(roster) = self.roster.upgrade() else {
            return;
        };
        if member.breaker().close(SystemTime::now()) {
            roster.refresh(now);
            log::info!(target: "weir::health", "{}", self.news(&roster, member));
        }
    }

    /// What an operator is told when a member was ejected or is back.
    fn news(&self, roster: &Roster, member: &Member) -> String {
        let members = roster.members();
        let up = members.iter().filter(|m| State::of(m) == State::Up).count();
        let (pool, name, all) = (&self.pool, member.backend(), members.len());
        let record = member.breaker().record();
        let Some(reason) = record.reason else {
            return format!(
                "pool {pool}: {name} is back: a request was answered; {up} of {all} members up"
            );
        };
        let span = self.rules.fail_timeout;
        let rest = match up {
            0 => ", so that it gets requests all the same",
            _ => "",
        };
        format!(
            "pool {pool}: {name} is ejected for {span:?}: {reason}; {up} of {all} members up{rest}"
        )
    }
}

/// Brings the breakers of a pool's members to where they are to be at `now`; answers when time alone will change them.
pub fn settle(members: &[Arc<Member>], now: Instant) -> Option<Instant> {
    let serves = |member: &&Arc<Member>| member.absence().is_none() && member.breaker().is_closed();
    let needed = !members.iter().any(|member| serves(&member));
    let until = |member: &Arc<Member>| member.breaker().settle(needed, now);
    members.iter().filter_map(until).min()
}

/// Whether one member gets requests, by what became of earlier ones.
#[derive(Debug, Default)]
pub struct Breaker {
    /// The phase of `record`, for picks.
    phase: AtomicU8,
    record: Mutex<Record>,
}

#[derive(Clone, Debug, Default)]
pub struct Record {
    phase: Phase,
    /// When requests failed lately; the oldest first.
    failures: VecDeque<Instant>,
    /// The end of an ejection.
    until: Option<Instant>,
    /// When the member was last ejected or put back.
    pub since: Option<SystemTime>,
    /// Why it is ejected; `None` while it is not.
    pub reason: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Requests pass.
    #[default]
    Closed,
    /// None does.
    Open,
    /// The next request is the trial.
    HalfOpen,
    /// It is running, and others wait for what becomes of it.
    Trial,
    /// Each request is a trial, for nobody else is left.
    Needed,
}

/// What a failure leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Unchanged,
    Ejected,
    /// Out as before, after a trial.
    OutAgain,
}

impl Breaker {
    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    pub fn is_closed(&self) -> bool {
        self.is(Phase::Closed)
    }

    pub fn is_open(&self) -> bool {
        self.is(Phase::Open)
    }

    /// Whether its fate hangs on a request that is running.
    pub fn is_on_trial(&self) -> bool {
        self.is(Phase::Trial)
    }

    pub fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// Lets a request pass, and says whether it is a trial; `None` when another one is the trial.
    pub fn begin(&self) -> Option<bool> {
        if self.is_closed() {
            return Some(false);
        }
        let mut record = self.record.lock();
        match record.phase {
            Phase::Closed => Some(false),
            Phase::HalfOpen => {
                self.enter(&mut record, Phase::Trial);
                Some(true)
            }
            Phase::Trial => None,
            // `Open`: it was picked while it was not
            Phase::Open | Phase::Needed => Some(true),
        }
    }

    /// A trial ended without saying anything about the member.
    pub fn release(&self) {
        let mut record = self.record.lock();
        if record.phase == Phase::Trial {
            self.enter(&mut record, Phase::HalfOpen);
        }
    }

    fn failed(
        &self,
        rules: &Rules,
        is_trial: bool,
        blame: &Blame<'_>,
        now: Instant,
        wall: SystemTime,
    ) -> Verdict {
        let mut record = self.record.lock();
        match record.phase {
            Phase::Closed => {
                let counts =
                    |then: &Instant| now.saturating_duration_since(*then) < rules.fail_timeout;
                while record.failures.front().is_some_and(|then| !counts(then)) {
                    record.failures.pop_front();
                }
                record.failures.push_back(now);
                let count = record.failures.len();
                if count < rules.max_fails {
                    return Verdict::Unchanged;
                }
                record.failures = VecDeque::new();
                record.until = Some(now + rules.fail_timeout);
                record.since = Some(wall);
                let (plural, span) = (if count == 1 { "" } else { "s" }, rules.fail_timeout);
                let reason = format!("{blame} ({count} failure{plural} in {span:?})");
                record.reason = Some(reason.into());
                self.enter(&mut record, Phase::Open);
                Verdict::Ejected
            }
            Phase::HalfOpen | Phase::Trial if is_trial => {
                record.until = Some(now + rules.fail_timeout);
                self.enter(&mut record, Phase::Open);
                Verdict::OutAgain
            }
            Phase::Needed if is_trial => {
                record.until = Some(now + rules.fail_timeout);
                Verdict::Unchanged
            }
            // a request that began before the member was ejected tells nothing new
            Phase::HalfOpen | Phase::Trial | Phase::Needed | Phase::Open => Verdict::Unchanged,
        }
    }

    /// Lets requests pass again, as if none had failed; answers whether that is a change.
    pub fn close(&self, wall: SystemTime) -> bool {
        let mut record = self.record.lock();
        if record.phase == Phase::Closed {
            return false;
        }
        *record = Record {
            since: Some(wall),
            ..Record::default()
        };
        self.enter(&mut record, Phase::Closed);
        true
    }

    /// What time, and whether the member is `needed` for want of others, make of an ejection; answers when its time is
    /// over.
    fn settle(&self, needed: bool, now: Instant) -> Option<Instant> {
        if self.is_closed() {
            return None;
        }
        let mut record = self.record.lock();
        let until = record.until?;
        let phase = match record.phase {
            Phase::Closed => Phase::Closed,
            _ if needed => Phase::Needed,
            Phase::Open | Phase::Needed if now < until => Phase::Open,
            Phase::Open | Phase::Needed => Phase::HalfOpen,
            trial @ (Phase::HalfOpen | Phase::Trial) => trial,
        };
        self.enter(&mut record, phase);
        (phase == Phase::Open).then_some(until)
    }

    fn enter(&self, record: &mut Record, phase: Phase) {
        record.phase = phase;
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// As it is now, without the trial: what becomes of that is for the original to know.
    pub fn copy(&self) -> Breaker {
        let mut record = self.record();
        if record.phase == Phase::Trial {
            record.phase = Phase::HalfOpen;
        }
        Breaker {
            phase: AtomicU8::new(record.phase as u8),
            record: Mutex::new(record),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::peer::Connector;
    use crate::pool::roster;
    use crate::pool::{Absence, Choice, InFlight, Pick, Place, Tried};
    use pingora::ErrorType;
    use pingora::protocols::l4::socket::SocketAddr;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn roster(members: usize) -> Arc<Roster> {
        judged(members).0
    }

    /// The roster of a pool whose members are ejected for 10 s after 3 failures in as many.
    fn judged(members: usize) -> (Arc<Roster>, Arc<Passive>) {
        let rules = Config {
            on_status: OneOrMany(vec!["500-599".parse().unwrap()]),
            ..Config::default()
        };
        let rules = rules.compile(&At::Root, &mut Issues::default()).unwrap();
        let roster = Arc::new(Roster::new(roster::Rules::default(), None));
        let passive = Arc::new(Passive::new("app".into(), rules, &roster));
        let member = |position: usize| {
            let port = 9001 + position as u16;
            let place = Place {
                position,
                address: SocketAddr::Inet(([127, 0, 0, 1], port).into()),
                authority: "app".into(),
                weight: 1,
                backup: false,
                max_conns: None,
            };
            let mut member = Member::new(place, &Connector::plain());
            member.watch(passive.clone());
            Arc::new(member)
        };
        roster.set_members((0..members).map(member).collect(), Instant::now());
        (roster, passive)
    }

    fn fail(request: &mut InFlight, now: Instant) {
        let error = Error::new(ErrorType::ConnectionClosed);
        request.blame(Blame::Error(&error), now);
    }

    fn answer(request: &mut InFlight, status: u16, now: Instant) {
        request.judge(status, now);
    }

    /// Fails so many requests to a member.
    fn fail_at(member: &Arc<Member>, times: usize, now: Instant) {
        for _ in 0..times {
            fail(&mut member.begin().expect("there is room"), now);
        }
    }

    fn pick(roster: &Roster, now: Instant) -> Pick {
        roster.pick(&Choice::any(now, 0), &mut Tried::default())
    }

    /// The positions of the members that the next requests come to, one after another.
    fn turns(roster: &Roster, now: Instant) -> Vec<usize> {
        let turn = |_| match pick(roster, now) {
            Pick::Member(request) => request.place().position,
            nobody => panic!("{nobody:?}"),
        };
        let mut turns: Vec<usize> = (0..4).map(turn).collect();
        turns.sort_unstable();
        turns.dedup();
        turns
    }

    fn states(roster: &Roster) -> Vec<State> {
        roster.members().iter().map(|m| State::of(m)).collect()
    }

    #[test]
    fn failures_in_time_eject_and_others_do_not() {
        let (roster, start) = (roster(2), Instant::now());
        let first = roster.members()[0].clone();
        for i in 0..10 {
            fail_at(&first, 1, start + SECOND * 5 * i);
        }
        assert_eq!(states(&roster), [State::Up, State::Up]);
        let now = start + SECOND * 100;
        fail_at(&first, 2, now);
        fail_at(&first, 1, now + SECOND * 9);
        assert_eq!(states(&roster), [State::Ejected, State::Up]);
        assert_eq!(turns(&roster, now + SECOND * 9), [1]);
        let reason = first.breaker().record().reason.unwrap();
        assert_eq!(
            &*reason,
            "connection closed before the end of the answer (3 failures in 10s)"
        );
    }

    #[test]
    fn statuses_count_where_they_are_listed() {
        let (roster, now) = (roster(2), Instant::now());
        let first = roster.members()[0].clone();
        for status in [404, 404, 404, 502, 502] {
            answer(&mut first.begin().unwrap(), status, now);
        }
        assert_eq!(states(&roster), [State::Up, State::Up]);
        answer(&mut first.begin().unwrap(), 599, now);
        assert_eq!(states(&roster), [State::Ejected, State::Up]);
        let reason = first.breaker().record().reason.unwrap();
        assert_eq!(&*reason, "status 599 (3 failures in 10s)");
    }

    #[test]
    fn one_request_at_a_time_is_the_trial() {
        let (roster, start) = (roster(2), Instant::now());
        let first = roster.members()[0].clone();
        fail_at(&first, 3, start);
        assert_eq!(turns(&roster, start + SECOND * 9), [1]);

        let now = start + SECOND * 10;
        let trial = |now| loop {
            match pick(&roster, now) {
                Pick::Member(request) if request.place().position == 0 => return request,
                Pick::Member(_) => {}
                nobody => panic!("{nobody:?}"),
            }
        };
        let mut running = trial(now);
        assert_eq!(turns(&roster, now), [1], "only one");
        assert!(first.begin().is_none());
        assert_eq!(states(&roster), [State::Ejected, State::Up]);
        fail(&mut running, now);
        assert_eq!(turns(&roster, now + SECOND * 9), [1], "ejected again");

        // one that the client ended says nothing
        let now = now + SECOND * 10;
        drop(trial(now));
        let mut running = trial(now);
        answer(&mut running, 200, now);
        assert_eq!(states(&roster), [State::Up, State::Up]);
        assert_eq!(turns(&roster, now), [0, 1]);
        fail_at(&first, 2, now);
        assert_eq!(
            states(&roster),
            [State::Up, State::Up],
            "as if none had failed"
        );
    }

    #[test]
    fn requests_from_before_the_ejection_decide_nothing() {
        let (roster, now) = (roster(2), Instant::now());
        let first = roster.members()[0].clone();
        let (mut early, mut late) = (first.begin().unwrap(), first.begin().unwrap());
        fail_at(&first, 3, now);
        answer(&mut early, 200, now);
        assert_eq!(states(&roster), [State::Ejected, State::Up]);
        let now = now + SECOND * 10;
        assert_eq!(turns(&roster, now), [0, 1]);
        fail(&mut late, now);
        assert_eq!(turns(&roster, now), [0, 1]);
    }

    #[test]
    fn the_only_member_is_not_judged() {
        let (roster, now) = (roster(1), Instant::now());
        fail_at(&roster.members()[0], 9, now);
        assert_eq!(states(&roster), [State::Up]);
    }

    #[test]
    fn who_is_ejected_serves_while_nobody_else_is_left() {
        let (roster, now) = (roster(3), Instant::now());
        let members = roster.members();
        fail_at(&members[0], 3, now);
        fail_at(&members[1], 3, now);
        assert_eq!(turns(&roster, now), [2]);
        members[2].set_draining(true, SystemTime::now());
        roster.refresh(now);
        assert_eq!(turns(&roster, now), [0, 1]);
        assert!(!roster.is_down());

        // any number at a time, and the first that is answered ends it
        let mut requests: Vec<_> = (0..4).map(|_| members[0].begin().unwrap()).collect();
        fail(&mut requests[0], now);
        assert_eq!(turns(&roster, now), [0, 1]);
        answer(&mut requests[1], 200, now);
        assert_eq!(turns(&roster, now), [0]);
        assert_eq!(
            states(&roster),
            [State::Up, State::Ejected, State::Draining]
        );
    }

    #[test]
    fn a_member_that_probes_bring_up_is_not_ejected_any_more() {
        let (roster, now) = (roster(2), Instant::now());
        let first = roster.members()[0].clone();
        fail_at(&first, 3, now);
        assert!(first.breaker().close(SystemTime::now()));
        roster.refresh(now);
        assert_eq!(turns(&roster, now), [0, 1]);
        assert!(!first.breaker().close(SystemTime::now()));
    }

    #[test]
    fn a_reload_keeps_an_ejection_and_forgets_a_trial() {
        let (roster, start) = (roster(2), Instant::now());
        let first = roster.members()[0].clone();
        fail_at(&first, 3, start);
        assert!(first.breaker().copy().is_open());
        roster.refresh(start + SECOND * 10);
        let _running = first.begin().expect("the trial");
        let copy = first.breaker().copy();
        assert!(first.breaker().is_on_trial());
        assert_eq!(copy.begin(), Some(true));
    }

    #[test]
    fn news_say_what_why_and_how_many_are_left() {
        let ((roster, passive), now) = (judged(2), Instant::now());
        let members = roster.members();
        let news = |member: &Member| passive.news(&roster, member);
        fail_at(&members[1], 3, now);
        assert_eq!(
            news(&members[1]),
            "pool app: 127.0.0.1:9002 is ejected for 10s: connection closed before the end of the answer (3 failures \
             in 10s); 1 of 2 members up"
        );
        fail_at(&members[0], 3, now);
        assert!(
            news(&members[0])
                .ends_with("; 0 of 2 members up, so that it gets requests all the same")
        );
        answer(&mut members[1].begin().unwrap(), 200, now);
        assert_eq!(
            news(&members[1]),
            "pool app: 127.0.0.1:9002 is back: a request was answered; 1 of 2 members up"
        );
    }

    /// What can happen to a pool; members by number.
    #[derive(Clone, Debug)]
    enum Event {
        Fail(usize),
        Answer(usize),
        /// A request stays.
        Stay(usize),
        /// The oldest one that stayed ends.
        End,
        Drain(usize, bool),
        Wait(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let member = 0..4usize;
        let event = prop_oneof![
            6 => member.clone().prop_map(Event::Fail),
            2 => member.clone().prop_map(Event::Answer),
            2 => member.clone().prop_map(Event::Stay),
            1 => Just(Event::End),
            1 => (member, any::<bool>()).prop_map(|(member, out)| Event::Drain(member, out)),
            1 => (1..20u64).prop_map(Event::Wait),
        ];
        prop::collection::vec(event, 1..80)
    }

    proptest! {
        /// Failures alone never leave a pool without a member to pick.
        #[test]
        fn the_last_one_is_never_ejected(events in events(), size in 2..5usize) {
            let roster = roster(size);
            let members = roster.members();
            let mut now = Instant::now();
            let mut staying = VecDeque::new();
            for event in events {
                match event {
                    Event::Fail(i) => {
                        if let Some(mut request) = members[i % size].begin() {
                            fail(&mut request, now);
                        }
                    }
                    Event::Answer(i) => {
                        if let Some(mut request) = members[i % size].begin() {
                            answer(&mut request, 200, now);
                        }
                    }
                    Event::Stay(i) => staying.extend(members[i % size].begin()),
                    Event::End => drop(staying.pop_front()),
                    Event::Drain(i, out) => {
                        members[i % size].set_draining(out, SystemTime::UNIX_EPOCH);
                        roster.refresh(now);
                    }
                    Event::Wait(seconds) => now += SECOND * seconds as u32,
                }
                let in_service = |member: &&Arc<Member>| {
                    matches!(member.absence(), None | Some(Absence::Ejected))
                };
                let expected = members.iter().any(|member| in_service(&member));
                let picked = pick(&roster, now);
                prop_assert_eq!(matches!(picked, Pick::Member(_)), expected, "{:?}", picked);
            }
        }
    }
}
