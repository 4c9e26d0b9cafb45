//! Signals while running: HUP reloads, USR1 reopens the log files, TERM drains, QUIT hands over and drains, INT ends.
//! What is ordered over the admin socket is carried out here as well, so that one thing happens after the other.
//!
//! Pingora waits for its shutdown signal here; when this returns, everything that could finish has finished, so the
//! answer is always a fast shutdown: Pingora's graceful one sleeps for a fixed time and then cuts.

use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use http::StatusCode;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal as Arrivals, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, timeout};

use super::daemon::Background;
use super::logs::Logs;
use super::probation::{self, Probation, Verdict};
use super::reload::Reload;
use super::service::Handle;
use super::swap::{Failed, Swap, Swapper};
use super::systemd;
use super::upgrade::{Fate, Heir, Successor, WAIT_FOR_READY};
use crate::admin::{
    self, Endpoint, Order, Orders, Passed, Process, Receipt, Refusal, Reloaded, Terms, Trial,
    Upgrade, Upgraded,
};
use crate::runtime::changes::Changes;
use crate::runtime::figures::Recent;
use crate::runtime::reload::Reloader;
use crate::runtime::{Candidate, Drain};

/// How often a drain looks whether the last connection has ended.
const DRAIN_TICK: Duration = Duration::from_millis(20);
/// How often files are looked at that are watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How often the figures are noted by which a new process is judged.
const MARK_INTERVAL: Duration = Duration::from_secs(60);
/// How long connections may come in that were on their way when accepting ended.
const LAST_ARRIVALS: Duration = Duration::from_secs(1);
/// How long a process that has let go may take to end, to have its exit status told.
const OBITUARY: Duration = Duration::from_secs(1);

/// Holds back the signals until [`Signals`] handles them: by default HUP and USR1 would end the process.
///
/// # Errors
/// Never in practice; sigprocmask(2) fails for wrong arguments only.
pub fn hold() -> nix::Result<()> {
    held().thread_block()
}

/// Lets them have their default effect again, while there is nothing that they could interrupt.
///
/// # Errors
/// As [`hold`].
pub fn release() -> nix::Result<()> {
    held().thread_unblock()
}

fn held() -> SigSet {
    let signals = [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGTERM,
        Signal::SIGQUIT,
        Signal::SIGINT,
    ];
    signals.into_iter().collect()
}

/// Everything that a signal can set off.
pub struct Signals {
    pub reloader: Arc<Reloader>,
    /// The edge, then the companion.
    pub services: Vec<Handle>,
    pub logs: Arc<Logs>,
    /// `None` for a process that runs without a file, and so cannot be started again.
    pub swapper: Option<Swapper>,
    pub admin: Option<Admin>,
    /// Taken once this process serves.
    pub debut: Mutex<Option<Debut>>,
}

/// Who waits for this process to serve.
#[derive(Default)]
pub struct Debut {
    /// Who started it in the background.
    pub background: Option<Background>,
    /// The old process, and where errors go once that no longer reads them.
    pub successor: Option<Successor>,
    pub stderr: Option<std::os::fd::OwnedFd>,
}

/// A new process beside this one.
enum Beside {
    Coming(Box<Coming>),
    OnProbation(Box<OnProbation>),
}

impl Beside {
    /// Why nothing else is begun meanwhile.
    fn reason(&self) -> &'static str {
        match self {
            Beside::Coming(_) => "a new process is about to take over",
            Beside::OnProbation(_) => "a new process is on probation",
        }
    }
}

/// One that is coming up.
struct Coming {
    swap: Swap,
    asked: Asked,
    sockets: usize,
}

/// One that serves already.
struct OnProbation {
    probation: Probation,
    /// Who is told how it did; `connections` are those that this process had when it began.
    upgraded: Upgraded,
    done: oneshot::Sender<Result<Upgraded, Refusal>>,
    /// The pid file named the new process until this one took its place back.
    had_pid_file: bool,
}

/// What has become of it.
enum News {
    Outcome(Result<Option<Heir>, Failed>),
    Verdict(Verdict),
}

/// What this process does then.
enum Next {
    GoOn,
    Watch(Box<OnProbation>),
    Leave(Box<Departure>),
}

/// How this process comes to its end.
#[derive(Default)]
struct Departure {
    /// Another process serves.
    has_heir: bool,
    report: Option<Report>,
}

/// For who waits to learn what became of the connections.
struct Report {
    upgraded: Upgraded,
    trial: Trial,
    done: oneshot::Sender<Result<Upgraded, Refusal>>,
}

/// What has begun with this process.
struct Begun {
    orders: Orders,
    /// The old process has taken everything back.
    withdrawn: Arc<Notify>,
    /// Dropped when this process is about to end.
    leaving: oneshot::Sender<()>,
}

/// Who asked for it.
enum Asked {
    /// QUIT: this process is to end in any case but a failure.
    Quit,
    Upgrade(oneshot::Sender<Result<Upgraded, Refusal>>, Option<Terms>),
    /// A file with keys that only a new process can take; nobody waits after HUP.
    Reload(Reloaded, Option<oneshot::Sender<Result<Reloaded, Refusal>>>),
}

/// The admin socket, and what is ordered over it.
pub struct Admin {
    pub endpoint: Arc<Endpoint>,
    /// Taken by whoever carries them out.
    pub orders: Mutex<Option<Orders>>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        if let Err(e) = self.handle().await {
            log::error!("cannot handle signals: {e}");
        }
        self.reloader.live().load().cuts.begin();
        ShutdownSignal::FastShutdown
    }
}

impl Signals {
    async fn handle(&self) -> io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut reopen = signal(SignalKind::user_defined1())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        if is_init() {
            tokio::spawn(reap_orphans(signal(SignalKind::child())?));
        }
        release()?;
        let Begun {
            mut orders,
            withdrawn,
            leaving,
        } = self.begin();
        let mut beside: Option<Beside> = None;
        let (watcher, mut changes) = mpsc::channel(1);
        let watching = tokio::spawn(watch(self.reloader.clone(), watcher));
        let mut mark = tokio::time::interval(MARK_INTERVAL);
        let mut recent = Recent::default();
        let departure = loop {
            tokio::select! {
                _ = hangup.recv() => beside = self.reload(beside, false, None).await,
                Some(order) = orders.recv() => match order {
                    Order::Stop => {
                        log::info!("told to stop: draining");
                        self.abandon(beside.take()).await;
                        break Departure::default();
                    }
                    order => beside = self.obey(order, beside).await,
                },
                // The new process looks at the files itself.
                Some(order) = changes.recv(), if !matches!(beside, Some(Beside::OnProbation(_))) => {
                    beside = self.obey(order, beside).await;
                }
                _ = reopen.recv() => {
                    self.logs.reopen();
                    if let Some(Beside::OnProbation(candidate)) = &beside {
                        candidate.probation.heir.reopen();
                    }
                }
                _ = mark.tick() => recent.mark(self.reloader.live().figures.totals()),
                _ = terminate.recv() => {
                    log::info!("TERM: draining");
                    break self.depart(beside.take()).await;
                }
                _ = quit.recv() => match (&beside, &self.swapper) {
                    (Some(beside), _) => log::error!("QUIT: {}; going on", beside.reason()),
                    (None, Some(swapper)) if !is_init() => {
                        let found = self.sockets().and_then(|sockets| {
                            let count = sockets.len();
                            Ok((swapper.find(sockets)?, count))
                        });
                        match found {
                            Ok((swap, sockets)) => {
                                let asked = Asked::Quit;
                                let coming = Coming { swap, asked, sockets };
                                beside = Some(Beside::Coming(Box::new(coming)));
                            }
                            Err(e) => log::error!("QUIT: the sockets were not handed over: {e}; going on"),
                        }
                    }
                    // Nobody could take over.
                    (None, _) => {
                        log::info!("QUIT: draining");
                        break Departure::default();
                    }
                },
                news = news(&mut beside) => {
                    let next = match (beside.take(), news) {
                        (Some(Beside::Coming(coming)), News::Outcome(outcome)) => {
                            self.conclude(*coming, outcome, &recent).await
                        }
                        (Some(Beside::OnProbation(candidate)), News::Verdict(verdict)) => {
                            self.judge(*candidate, verdict).await
                        }
                        _ => Next::GoOn,
                    };
                    match next {
                        Next::GoOn => {}
                        Next::Watch(candidate) => beside = Some(Beside::OnProbation(candidate)),
                        Next::Leave(departure) => break *departure,
                    }
                }
                () = withdrawn.notified() => {
                    log::info!("the old process goes on: draining");
                    break Departure { has_heir: true, report: None };
                }
                _ = interrupt.recv() => {
                    log::info!("INT: ending now");
                    self.depart(beside.take()).await;
                    return Ok(());
                }
            }
        };
        // Whether it is kept or not, this process does not stay: an old one that looks on has to.
        drop(leaving);
        systemd::stopping();
        watching.abort();
        // Who has given one that still waits learns that it will not be carried out.
        drop(orders);
        let Departure { has_heir, report } = departure;
        // That were told to close.
        let tunnels = AtomicUsize::new(0);
        {
            let mut drained = pin!(self.drain(has_heir, &tunnels));
            // A service manager tells all processes of a service to end: the first is meant for the new process, and
            // this one is at it already.
            let mut patient = has_heir;
            loop {
                tokio::select! {
                    () = &mut drained => break,
                    _ = reopen.recv() => self.logs.reopen(),
                    _ = interrupt.recv() => {
                        log::info!("INT: ending now");
                        break;
                    }
                    _ = terminate.recv() => {
                        if !std::mem::take(&mut patient) {
                            log::info!("TERM again: ending now");
                            break;
                        }
                    }
                }
            }
        }
        if let Some(report) = report {
            self.tell(report, tunnels.into_inner());
        }
        if let Some(admin) = &self.admin {
            admin.endpoint.close();
            admin.endpoint.answered().await;
        }
        Ok(())
    }

    /// Says that this process serves, and begins to answer on the admin socket, if there is one.
    fn begin(&self) -> Begun {
        let Debut {
            background,
            successor,
            stderr,
        } = self.debut.lock().take().unwrap_or_default();
        match (background, stderr) {
            (Some(background), _) => background.ready(),
            (None, Some(stderr)) => {
                if let Err(e) = nix::unistd::dup2_stderr(stderr) {
                    log::warn!("cannot write where the old process did: {e}");
                }
            }
            (None, None) => {}
        }
        let orders = |admin: &Admin| Some((admin.endpoint.clone(), admin.orders.lock().take()?));
        let (endpoint, orders) = self.admin.as_ref().and_then(orders).unzip();
        let withdrawn = Arc::new(Notify::new());
        let withdraw = withdrawn.clone();
        let (leaving, mut leaves) = oneshot::channel();
        if successor.is_some() {
            systemd::keep_silent(true);
        }
        let (live, logs) = (self.reloader.live().clone(), self.logs.clone());
        let pid_file = self
            .swapper
            .as_ref()
            .and_then(|swapper| swapper.pid_file.clone());
        tokio::spawn(async move {
            if let Some(successor) = successor {
                // Until the old process relies on this one, it is the one to ask and to watch.
                let fate = match successor.ready() {
                    Ok(()) => tokio::select! {
                        fate = successor.fate(&live.figures, || logs.reopen()) => fate,
                        _ = &mut leaves => return,
                    },
                    Err(e) => Err(e),
                };
                match fate {
                    Ok(Fate::Kept) => {}
                    Ok(Fate::Withdrawn) => {
                        withdraw.notify_one();
                        return;
                    }
                    Err(e) => log::warn!("the old process is gone: {e}"),
                }
                // It names the old one where that has ended in the middle of a probation.
                if let Some(Err(e)) = pid_file.map(|file| file.reclaim()) {
                    log::warn!("cannot write the pid file: {e}");
                }
                systemd::keep_silent(false);
            }
            systemd::ready();
            let answer = async {
                if let Some(endpoint) = endpoint
                    && let Err(e) = endpoint.run().await
                {
                    log::error!("cannot answer on the admin socket: {e}");
                }
            };
            tokio::join!(answer, systemd::feed_watchdog());
        });
        // Closed without an admin socket: no order ever comes.
        let orders = orders.unwrap_or_else(|| mpsc::channel(1).1);
        Begun {
            orders,
            withdrawn,
            leaving,
        }
    }

    async fn obey(&self, order: Order, beside: Option<Beside>) -> Option<Beside> {
        // Whoever gave it may have left; it is carried out all the same.
        match order {
            Order::Reload {
                dry_run: true,
                done,
                ..
            } => {
                let _ = done.send(self.rehearse().await);
            }
            Order::Reload { upgrade, done, .. } => {
                return self.reload(beside, upgrade, Some(done)).await;
            }
            Order::Upgrade { wanted, done } => return self.upgrade(beside, wanted, done),
            Order::Drain {
                pool,
                member,
                draining,
                done,
            } => {
                let drained = match &beside {
                    // It serves, and would go on with the member as it was.
                    Some(beside @ Beside::OnProbation(_)) => {
                        Err(Refusal::new(StatusCode::CONFLICT, beside.reason()))
                    }
                    _ => admin::drain(self.reloader.live(), &pool, &member, draining),
                };
                let _ = done.send(drained);
            }
            Order::Stop => unreachable!("ends the loop"),
        }
        beside
    }

    async fn rehearse(&self) -> Result<Reloaded, Refusal> {
        let (reloader, can_swap) = (self.reloader.clone(), self.cannot_swap().is_none());
        aside(move || super::reload::rehearse(&reloader, can_swap)).await
    }

    /// Reloads; where only a new process can take what the file says, one is on its way then.
    async fn reload(
        &self,
        beside: Option<Beside>,
        upgrade: bool,
        done: Option<oneshot::Sender<Result<Reloaded, Refusal>>>,
    ) -> Option<Beside> {
        if let Some(reason) = beside.as_ref().map(Beside::reason) {
            log::error!("reload failed: {reason}");
            answer(done, Err(Refusal::new(StatusCode::CONFLICT, reason)));
            return beside;
        }
        systemd::reloading();
        let can_swap = self.cannot_swap().is_none();
        let is_replaced = || self.swapper.as_ref().is_some_and(Swapper::is_replaced);
        let outcome = if upgrade && can_swap && is_replaced() {
            // What the file may say is up to the new program.
            Ok(self.by_a_new_program())
        } else {
            let (reloader, services) = (self.reloader.clone(), self.services.clone());
            let logs = self.logs.clone();
            aside(move || super::reload::reload(&reloader, &services, &logs, can_swap)).await
        };
        match outcome {
            Ok(Reload::NeedsProcess(reloaded)) => match self.bring_up(&Upgrade::default()) {
                Ok((swap, sockets)) => {
                    let asked = Asked::Reload(reloaded, done);
                    let coming = Coming {
                        swap,
                        asked,
                        sockets,
                    };
                    return Some(Beside::Coming(Box::new(coming)));
                }
                Err(refusal) => {
                    log::error!("reload failed: {}", refusal.error);
                    answer(done, Err(refusal));
                }
            },
            Ok(Reload::Done(reloaded)) => answer(done, Ok(reloaded)),
            Err(refusal) => answer(done, Err(refusal)),
        }
        systemd::ready();
        None
    }

    fn by_a_new_program(&self) -> Reload {
        log::info!("the program on disk is a new one");
        Reload::NeedsProcess(Reloaded {
            file: self.reloader.source().to_string(),
            dry_run: false,
            // That of a process which has just begun.
            generation: 1,
            changes: Changes::default(),
            start_only: Vec::new(),
            upgraded: None,
            warnings: String::new(),
        })
    }

    fn upgrade(
        &self,
        beside: Option<Beside>,
        wanted: Upgrade,
        done: oneshot::Sender<Result<Upgraded, Refusal>>,
    ) -> Option<Beside> {
        let refusal = match (&beside, self.cannot_swap()) {
            (Some(beside), _) => Refusal::new(StatusCode::CONFLICT, beside.reason()),
            (None, Some(reason)) => Refusal::new(StatusCode::CONFLICT, reason),
            (None, None) => match self.bring_up(&wanted) {
                Ok((swap, sockets)) => {
                    let asked = Asked::Upgrade(done, wanted.probation);
                    let coming = Coming {
                        swap,
                        asked,
                        sockets,
                    };
                    return Some(Beside::Coming(Box::new(coming)));
                }
                Err(refusal) => refusal,
            },
        };
        log::error!("upgrade failed: {}", refusal.error);
        let _ = done.send(Err(refusal));
        beside
    }

    /// Why no new process can take over from this one.
    fn cannot_swap(&self) -> Option<&'static str> {
        if self.swapper.is_none() {
            return Some("this process runs without a file, with which a new one could be started");
        }
        // With process 1, the kernel ends all others of the container.
        is_init().then_some(
            "process 1 of a container cannot be replaced: start a new container, or run weir below an init \
             (`docker run --init`)",
        )
    }

    fn bring_up(&self, wanted: &Upgrade) -> Result<(Swap, usize), Refusal> {
        let limit = wanted.timeout.map_or(WAIT_FOR_READY, |limit| limit.get());
        let start = |swapper: &Swapper| {
            let sockets = self.sockets()?;
            let count = sockets.len();
            let swap = swapper.start(wanted.binary.clone(), sockets, limit)?;
            Ok((swap, count))
        };
        let started = self.swapper.as_ref().map(start).transpose();
        match started {
            Ok(Some(started)) => Ok(started),
            Ok(None) => Err(Refusal::new(
                StatusCode::CONFLICT,
                self.cannot_swap().unwrap_or_default(),
            )),
            Err(e) => {
                let e: io::Error = e;
                let error = format!("cannot start a new process: {e}");
                Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error))
            }
        }
    }

    /// All listening sockets, that of the admin endpoint included.
    fn sockets(&self) -> io::Result<super::swap::Sockets> {
        let mut sockets = Vec::new();
        if let Some(admin) = &self.admin {
            let socket = admin.endpoint.socket()?;
            sockets.extend(socket.map(|(name, socket)| (name, Arc::new(socket))));
        }
        for service in &self.services {
            sockets.extend(service.sockets());
        }
        Ok(sockets)
    }

    /// Tells whoever asked what became of the new process.
    async fn conclude(
        &self,
        coming: Coming,
        outcome: Result<Option<Heir>, Failed>,
        recent: &Recent,
    ) -> Next {
        let Coming { asked, sockets, .. } = coming;
        let heir = match outcome {
            Ok(Some(heir)) => heir,
            Ok(None) => {
                log::info!("QUIT: no new process waits for the sockets; draining");
                return Next::Leave(Box::default());
            }
            Err(failed) => {
                self.go_on(asked, failed);
                return Next::GoOn;
            }
        };
        if let Asked::Upgrade(done, Some(terms)) = asked {
            return self.examine(heir, terms, sockets, done, recent).await;
        }
        let upgraded = self.upgraded(&heir, sockets);
        Swapper::keep(heir);
        say_draining(&upgraded.new);
        match asked {
            Asked::Quit => {}
            Asked::Upgrade(done, _) => {
                let _ = done.send(Ok(upgraded));
            }
            Asked::Reload(reloaded, done) => {
                let upgraded = Some(upgraded);
                answer(
                    done,
                    Ok(Reloaded {
                        upgraded,
                        ..reloaded
                    }),
                );
            }
        }
        Next::Leave(Box::new(Departure {
            has_heir: true,
            report: None,
        }))
    }

    fn upgraded(&self, heir: &Heir, sockets: usize) -> Upgraded {
        Upgraded {
            old: Process {
                process: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            new: Process {
                process: heir.process,
                version: heir.version.clone(),
            },
            sockets,
            connections: self.open_connections(),
            probation: None,
        }
    }

    fn open_connections(&self) -> usize {
        self.services.iter().map(Handle::open_connections).sum()
    }

    fn go_on(&self, asked: Asked, failed: Failed) {
        if let Some(swapper) = &self.swapper {
            swapper.reclaim_pid_file();
        }
        let error = format!("{failed}; this one goes on");
        log::error!("the sockets were not handed over: {error}");
        let refusal = Refusal {
            report: (!failed.last_words.is_empty()).then(|| failed.last_words.join("\n")),
            ..Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
        };
        match asked {
            Asked::Quit => {}
            Asked::Upgrade(done, _) => {
                let _ = done.send(Err(refusal));
            }
            Asked::Reload(_, done) => {
                systemd::ready();
                answer(done, Err(refusal));
            }
        }
    }

    /// Has the new process serve alone, and begins to watch it.
    async fn examine(
        &self,
        heir: Heir,
        terms: Terms,
        sockets: usize,
        done: oneshot::Sender<Result<Upgraded, Refusal>>,
        recent: &Recent,
    ) -> Next {
        let live = self.reloader.live();
        let before = recent.until(&live.figures.totals());
        let had_pid_file = self.swapper.as_ref().is_some_and(Swapper::reclaim_pid_file);
        self.services.iter().for_each(Handle::pause);
        let began = Instant::now();
        while self.services.iter().any(Handle::is_accepting) && began.elapsed() < LAST_ARRIVALS {
            tokio::time::sleep(DRAIN_TICK).await;
        }
        let reports = match heir.examine() {
            Ok(reports) => reports,
            Err(e) => {
                drop(self.take_back(heir));
                let error = format!("cannot watch the new process: {e}; this one goes on");
                log::error!("upgrade failed: {error}");
                let refusal = Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error);
                let _ = done.send(Err(refusal));
                return Next::GoOn;
            }
        };
        let upgraded = self.upgraded(&heir, sockets);
        let Process { process, version } = &upgraded.new;
        log::info!(
            "process {process} (weir {version}) serves, on probation for {}",
            terms.length
        );
        live.set_candidate(Some(Candidate {
            process: *process,
            version: version.clone(),
            until: SystemTime::now() + terms.length.get(),
        }));
        Next::Watch(Box::new(OnProbation {
            probation: Probation::begin(heir, reports, terms, before),
            upgraded,
            done,
            had_pid_file,
        }))
    }

    /// Ends the probation.
    async fn judge(&self, candidate: OnProbation, verdict: Verdict) -> Next {
        let heir = &candidate.upgraded.new;
        let heir = format!("process {} (weir {})", heir.process, heir.version);
        let error = match verdict {
            Verdict::Passed => return Next::Leave(Box::new(self.leave_to(candidate))),
            Verdict::Failed(reason) => {
                drop(self.take_back(candidate.probation.heir));
                format!("{heir} has failed its probation: {reason}; this one goes on")
            }
            Verdict::Gone => {
                let end = self.take_back(candidate.probation.heir);
                let end = timeout(OBITUARY, end).await;
                let end = end.map_or("about to end".to_owned(), |status| {
                    status.map_or_else(|e| e.to_string(), |status| status.to_string())
                });
                format!("{heir} has let go in its probation ({end}); this one goes on")
            }
        };
        log::error!("upgrade failed: {error}");
        let refusal = Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error);
        let _ = candidate.done.send(Err(refusal));
        Next::GoOn
    }

    /// Leaves everything to the new process.
    fn leave_to(&self, candidate: OnProbation) -> Departure {
        let OnProbation {
            probation,
            upgraded,
            done,
            had_pid_file,
        } = candidate;
        self.reloader.live().set_candidate(None);
        let trial = probation.trial();
        let heir = probation.heir;
        if had_pid_file && let Some(swapper) = &self.swapper {
            swapper.give_pid_file(heir.process);
        }
        Swapper::keep(heir);
        say_draining(&upgraded.new);
        Departure {
            has_heir: true,
            report: Some(Report {
                upgraded,
                trial,
                done,
            }),
        }
    }

    /// Serves alone again.
    fn take_back(&self, heir: Heir) -> impl Future<Output = io::Result<ExitStatus>> {
        self.services.iter().for_each(Handle::resume);
        let live = self.reloader.live();
        live.set_candidate(None);
        heir.withdraw();
        let patience = live.load().drain.deadline;
        let end = tokio::spawn(probation::see_off(heir, patience));
        async { end.await.unwrap_or_else(|e| Err(io::Error::other(e))) }
    }

    /// Ends a new process that was to take over, for nobody is to serve.
    async fn abandon(&self, beside: Option<Beside>) {
        match beside {
            None => {}
            Some(Beside::Coming(coming)) => coming.swap.abort().await,
            Some(Beside::OnProbation(candidate)) => drop(self.take_back(candidate.probation.heir)),
        }
    }

    /// Ends this process alone: a new one that serves already goes on.
    async fn depart(&self, beside: Option<Beside>) -> Departure {
        match beside {
            Some(Beside::OnProbation(candidate)) => self.leave_to(*candidate),
            beside => {
                self.abandon(beside).await;
                Departure::default()
            }
        }
    }

    /// Tells who waits how the change came off, once this process is done.
    fn tell(&self, report: Report, tunnels: usize) {
        let Report {
            mut upgraded,
            trial,
            done,
        } = report;
        let cut = self.open_connections();
        let closed = tunnels.saturating_sub(self.reloader.live().tunnels());
        let kept = upgraded.connections;
        let receipt = Receipt {
            kept,
            finished: kept.saturating_sub(closed + cut),
            closed,
            cut,
        };
        upgraded.probation = Some(Box::new(Passed { trial, receipt }));
        let _ = done.send(Ok(upgraded));
    }

    /// Ends when the last connection has, or at the deadline.
    /// `told` becomes the number of tunnels that were told to close.
    async fn drain(&self, has_heir: bool, told: &AtomicUsize) {
        let live = self.reloader.live();
        let Drain {
            announce,
            tunnels,
            deadline,
        } = live.load().drain;
        let began = Instant::now();
        let admin = self.admin.as_ref().map(|admin| &admin.endpoint);
        match (has_heir, admin) {
            // The socket is its by now, and who asks whether there is somebody to serve is to get its answer.
            (true, Some(endpoint)) => endpoint.close(),
            (true, None) => {}
            (false, _) => {
                live.drain();
                tokio::time::sleep(announce).await;
            }
        }
        let tunnels = Instant::now() + tunnels;
        let mut are_told = false;
        // One after the other: the edge may proxy to the companion until its last request is answered.
        for service in &self.services {
            service.drain();
            while service.is_at_work() {
                if began.elapsed() >= deadline {
                    let open = self.open_connections();
                    return log::warn!("time is over: {open} connections are open still");
                }
                if !are_told && Instant::now() >= tunnels {
                    are_told = true;
                    told.store(live.tunnels(), Ordering::Relaxed);
                    self.services.iter().for_each(Handle::close_tunnels);
                }
                tokio::time::sleep(DRAIN_TICK).await;
            }
        }
        log::info!("drained in {:.1} s", began.elapsed().as_secs_f64());
    }
}

/// Tells whoever waits; what came of it is in the log as well.
fn answer<T>(done: Option<oneshot::Sender<T>>, outcome: T) {
    if let Some(done) = done {
        // Who has left meanwhile need not know.
        let _ = done.send(outcome);
    }
}

/// What becomes of the new process; never, while there is none.
async fn news(beside: &mut Option<Beside>) -> News {
    match beside {
        Some(Beside::Coming(coming)) => News::Outcome(coming.swap.outcome().await),
        Some(Beside::OnProbation(candidate)) => News::Verdict(candidate.probation.verdict().await),
        None => std::future::pending().await,
    }
}

fn say_draining(new: &Process) {
    let Process { process, version } = new;
    log::info!("process {process} (weir {version}) serves; draining");
}

/// Does what blocks on a thread for that.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        let error = format!("{e}; nothing has changed");
        log::error!("reload failed: {error}");
        Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error))
    })
}

/// Whether this is the first process of a container, which must bury those whose parents are gone.
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Process 1 starts none itself: all that end here are orphans, some perhaps before this process was ready for them.
async fn reap_orphans(mut ended: Arrivals) {
    loop {
        let reaped = || waitpid(None, Some(WaitPidFlag::WNOHANG));
        while matches!(reaped(), Ok(status) if status != WaitStatus::StillAlive) {}
        if ended.recv().await.is_none() {
            return;
        }
    }
}

/// Renews certificates, and orders a reload whenever the files have changed, if that is wanted. In a task of its own: a file system that hangs must not
/// keep signals waiting.
async fn watch(reloader: Arc<Reloader>, orders: mpsc::Sender<Order>) {
    let mut look = tokio::time::interval(WATCH_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let watches = reloader.live().load().watch;
        let reloader = reloader.clone();
        let looked = tokio::task::spawn_blocking(move || {
            reloader.renew_certificates();
            watches && reloader.have_files_changed()
        });
        let looked = looked.await;
        match looked {
            Ok(true) => log::info!("the files have changed: reloading"),
            Ok(false) => continue,
            Err(e) => {
                log::error!("cannot look at the files: {e}");
                continue;
            }
        }
        let (done, outcome) = oneshot::channel();
        let order = Order::Reload {
            dry_run: false,
            upgrade: false,
            done,
        };
        // Either fails only when nobody takes orders any more. What came of it is in the log.
        let _ = orders.send(order).await;
        let _ = outcome.await;
    }
}
