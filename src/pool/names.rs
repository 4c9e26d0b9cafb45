//! Backends given by name: what each stands for now, and the task that keeps asking.
//!
//! When the file is loaded, all names are asked for at once and not for long: who does not answer by then is found by the
//! task of the pool, and its members appear as soon as there is an answer. From then on the last good answer counts,
//! however old, also when the name servers say that there is no such name any more: a record that was deleted by mistake
//! must not take a site down, and a backend that is to go is taken out of the file.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::backend::{Query, Refresh, SHORTEST};
use super::resolver::{Answer, Resolver, Target, no_answer_within};
use super::{Config, Pool};
use crate::value::Span;

/// How long loading may wait for names.
const PATIENCE: Duration = Duration::from_secs(1);
/// However long an answer is said to hold.
const LONGEST: Duration = Duration::from_secs(3600);
/// After the first failure; each further one doubles it.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What names stand for when a file is loaded.
pub struct Names {
    resolver: Resolver,
    asked: HashMap<Query, Result<Known, String>>,
    /// What the running pools know.
    known: HashMap<Query, Known>,
}

/// An answer, and when it came.
#[derive(Clone, Debug)]
pub struct Known {
    pub answer: Answer,
    pub at: Instant,
}

impl Names {
    /// Asks for the names of `pools`, except where the `running` ones know the answer and keep it up to date. Blocks, but
    /// not for long; must not be called by a task of a runtime.
    pub fn look_up<'a>(
        resolver: Resolver,
        pools: impl IntoIterator<Item = &'a Config>,
        running: impl IntoIterator<Item = &'a Arc<Pool>>,
    ) -> Names {
        let mut names = Names {
            resolver,
            asked: HashMap::new(),
            known: HashMap::new(),
        };
        let mut current = HashSet::new();
        for pool in running {
            let is_current = *pool.membership.resolver() == names.resolver;
            for (query, known) in pool.membership.known() {
                if is_current {
                    current.insert(query.clone());
                }
                names.known.insert(query, known);
            }
        }
        for backend in pools.into_iter().flat_map(|pool| &pool.backends) {
            let Some(query) = backend.query() else {
                continue;
            };
            if !current.contains(&query) || backend.refresh() == Refresh::Once {
                let late = Err(no_answer_within(PATIENCE));
                names.asked.insert(query, late);
            }
        }
        if names.asked.is_empty() {
            return names;
        }
        if let Err(error) = names.ask() {
            let error = error.to_string();
            let asked = names.asked.values_mut();
            asked.for_each(|answer| *answer = Err(error.clone()));
        }
        names
    }

    fn ask(&mut self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut asking = JoinSet::new();
            for query in self.asked.keys().cloned() {
                let resolver = self.resolver.clone();
                asking.spawn(async move {
                    let answer = resolver.look_up(&query).await;
                    (query, answer)
                });
            }
            let answers = async {
                while let Some(asked) = asking.join_next().await {
                    let Ok((query, answer)) = asked else { continue };
                    let at = Instant::now();
                    let known = answer.map(|answer| Known { answer, at });
                    self.asked.insert(query, known);
                }
            };
            // who is late is marked as such already
            let _ = tokio::time::timeout(PATIENCE, answers).await;
        });
        // whatever still asks is not waited for
        runtime.shutdown_background();
        Ok(())
    }

    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// What `query` stands for, and why nothing new is known about it if it was asked for in vain.
    pub fn answer(&self, query: &Query) -> (Option<Known>, Option<&str>) {
        let known = || self.known.get(query);
        match self.asked.get(query) {
            None => (known().cloned(), None),
            Some(Err(error)) => (known().cloned(), Some(error)),
            Some(Ok(new)) => {
                let mut new = new.clone();
                if let Some(known) = known() {
                    new.answer = new.answer.completed_by(&known.answer);
                }
                (Some(new), None)
            }
        }
    }
}

/// The names of one pool are asked for as long as this lives.
#[derive(Debug)]
pub struct NamesTask {
    _names: JoinSet<()>,
}

impl NamesTask {
    pub(super) fn spawn(pool: &Arc<Pool>) -> Option<NamesTask> {
        let mut names = JoinSet::new();
        for (index, backend) in pool.membership.backends().iter().enumerate() {
            let Some(query) = backend.query() else {
                continue;
            };
            let known = pool.membership.answer(index);
            if known.is_some() && backend.refresh == Refresh::Once {
                continue;
            }
            let name = Name {
                pool: pool.clone(),
                index,
                query: query.clone(),
                refresh: backend.refresh,
            };
            names.spawn(name.follow(known));
        }
        (!names.is_empty()).then_some(NamesTask { _names: names })
    }
}

/// One name of a pool.
struct Name {
    pool: Arc<Pool>,
    index: usize,
    query: Query,
    refresh: Refresh,
}

impl Name {
    async fn follow(self, known: Option<Known>) {
        // One that was not found while loading has been warned about then.
        let mut failures = u32::from(known.is_none());
        let mut due = match known {
            Some(known) => known.at + self.refresh.pause(known.answer.ttl, fastrand::f64()),
            None => Instant::now(),
        };
        loop {
            tokio::time::sleep_until(due.into()).await;
            let pause = match self.pool.membership.resolver().look_up(&self.query).await {
                Ok(answer) => {
                    let pause = self.refresh.pause(answer.ttl, fastrand::f64());
                    self.found(answer, failures);
                    failures = 0;
                    if self.refresh == Refresh::Once {
                        return;
                    }
                    pause
                }
                Err(error) => {
                    self.failed(&error, failures);
                    failures = failures.saturating_add(1);
                    retry_after(failures, fastrand::f64())
                }
            };
            due = Instant::now() + pause;
        }
    }

    fn found(&self, answer: Answer, failures: u32) {
        let now = Instant::now();
        let before = self.pool.membership.answer(self.index);
        let answer = match &before {
            Some(before) => answer.completed_by(&before.answer),
            None => answer,
        };
        let (pool, name) = (self.pool.name(), &self.query);
        let targets = list(&answer.targets);
        match &before {
            Some(before) if before.answer.targets == answer.targets => {
                if failures > 0 {
                    log::info!(target: "weir::names", "pool {pool}: {name} resolves again");
                }
            }
            Some(before) => {
                let before = list(&before.answer.targets);
                log::info!(target: "weir::names", "pool {pool}: {name} is now {targets} (was {before})");
            }
            None => {
                log::info!(target: "weir::names", "pool {pool}: {name} is now {targets}");
            }
        }
        self.pool.take_in(self.index, Known { answer, at: now });
    }

    fn failed(&self, error: &str, failures: u32) {
        let level = match failures {
            0 => log::Level::Warn,
            _ => log::Level::Debug,
        };
        let rest = match self.pool.membership.answer(self.index) {
            Some(known) => format!("it stays {}", list(&known.answer.targets)),
            None => "the pool goes on without it".to_owned(),
        };
        let (pool, name) = (self.pool.name(), &self.query);
        log::log!(target: "weir::names", level, "pool {pool}: {name} does not resolve: {error}; {rest}");
    }
}

fn list(targets: &[Target]) -> String {
    let targets: Vec<String> = targets.iter().map(Target::to_string).collect();
    targets.join(", ")
}

impl Refresh {
    /// How long an answer that holds for `ttl` is good for.
    fn pause(self, ttl: Duration, random: f64) -> Duration {
        let pause = match self {
            Refresh::Every(span) => Span::get(span),
            Refresh::Ttl | Refresh::Once => ttl.clamp(SHORTEST, LONGEST),
        };
        jitter(pause, random)
    }
}

/// How long to wait after so many failures in a row.
fn retry_after(failures: u32, random: f64) -> Duration {
    let doubled = failures.saturating_sub(1).min(16);
    jitter((FIRST_RETRY * (1 << doubled)).min(LAST_RETRY), random)
}

/// `random` is from 0 to 1: up to a tenth less, so that many names and many machines do not ask in step; never more, so that a change is seen
/// within the time that an answer holds.
fn jitter(pause: Duration, random: f64) -> Duration {
    pause - pause.mul_f64(random / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: [f64; 3] = [0.0, 0.3, 1.0];

    #[test]
    fn an_answer_is_good_for_its_ttl_within_bounds() {
        for random in DRAWS {
            for (ttl, most) in [(0, 1), (1, 1), (30, 30), (3600, 3600), (u32::MAX, 3600)] {
                let most = Duration::from_secs(most);
                let pause = Refresh::Ttl.pause(Duration::from_secs(ttl.into()), random);
                assert!(most.mul_f64(0.899) <= pause && pause <= most, "{pause:?}");
            }
            let every = Refresh::Every("1d".parse().unwrap());
            let pause = every.pause(Duration::ZERO, random);
            assert!(Duration::from_secs(77_000) <= pause && pause <= Duration::from_secs(86_400));
        }
    }

    #[test]
    fn failures_are_retried_soon_at_first_and_at_last_seldom() {
        let waits: Vec<u128> = (1..=9).map(|n| retry_after(n, 0.0).as_millis()).collect();
        assert_eq!(
            waits,
            [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]
        );
        assert_eq!(retry_after(u32::MAX, 0.0), LAST_RETRY);
        assert_eq!(retry_after(1, 1.0), Duration::from_millis(225));
    }
}
