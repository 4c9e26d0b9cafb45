//! Signals while running: HUP reloads, USR1 reopens the log files, TERM drains, QUIT hands over and drains, INT ends.
//! What is ordered over the admin socket is carried out here as well, so that one thing happens after the other.
//!
//! Pingora waits for its shutdown signal here; when this returns, everything that could finish has finished, so the
//! answer is always a fast shutdown: Pingora's graceful one sleeps for a fixed time and then cuts.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::StatusCode;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal as Arrivals, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::daemon::Background;
use super::logs::Logs;
use super::reload::Reload;
use super::service::Handle;
use super::swap::{Failed, Swap, Swapper};
use super::systemd;
use super::upgrade::{Heir, Successor, WAIT_FOR_READY};
use crate::admin::{self, Endpoint, Order, Orders, Process, Refusal, Reloaded, Upgrade, Upgraded};
use crate::runtime::Drain;
use crate::runtime::changes::Changes;
use crate::runtime::reload::Reloader;

/// How often a drain looks whether the last connection has ended.
const DRAIN_TICK: Duration = Duration::from_millis(20);
/// How often files are looked at that are watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

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

/// A new process that is coming up.
struct Coming {
    swap: Swap,
    asked: Asked,
    sockets: usize,
}

/// What this process does once the new one serves or has failed.
enum Next {
    GoOn,
    Leave { has_heir: bool },
}

/// Who asked for it.
enum Asked {
    /// QUIT: this process is to end in any case but a failure.
    Quit,
    Upgrade(oneshot::Sender<Result<Upgraded, Refusal>>),
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
    async fn handle(&self) -> std::io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut reopen = signal(SignalKind::user_defined1())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        if is_init() {
            tokio::spawn(reap_orphans(signal(SignalKind::child())?));
        }
        release()?;
        let mut orders = self.take_orders();
        let mut coming: Option<Coming> = None;
        let (watcher, mut changes) = mpsc::channel(1);
        let watching = tokio::spawn(watch(self.reloader.clone(), watcher));
        let has_heir = loop {
            tokio::select! {
                _ = hangup.recv() => coming = self.reload(coming, false, None).await,
                Some(order) = orders.recv() => match order {
                    Order::Stop => {
                        log::info!("told to stop: draining");
                        break false;
                    }
                    order => coming = self.obey(order, coming).await,
                },
                Some(order) = changes.recv() => coming = self.obey(order, coming).await,
                _ = reopen.recv() => self.logs.reopen(),
                _ = terminate.recv() => {
                    log::info!("TERM: draining");
                    break false;
                }
                _ = quit.recv() => match (&coming, &self.swapper) {
                    (Some(_), _) => log::error!("QUIT: {UNDER_WAY}; going on"),
                    (None, Some(swapper)) if !is_init() => {
                        let found = self.sockets().and_then(|sockets| {
                            let count = sockets.len();
                            Ok((swapper.find(sockets)?, count))
                        });
                        match found {
                            Ok((swap, sockets)) => {
                                let asked = Asked::Quit;
                                coming = Some(Coming { swap, asked, sockets });
                            }
                            Err(e) => log::error!("QUIT: the sockets were not handed over: {e}; going on"),
                        }
                    }
                    // Nobody could take over.
                    (None, _) => {
                        log::info!("QUIT: draining");
                        break false;
                    }
                },
                outcome = outcome(&mut coming) => {
                    let concluded = coming.take().map(|coming| self.conclude(coming, outcome));
                    if let Some(Next::Leave { has_heir }) = concluded {
                        break has_heir;
                    }
                }
                _ = interrupt.recv() => {
                    log::info!("INT: ending now");
                    if let Some(coming) = coming {
                        coming.swap.abort().await;
                    }
                    return Ok(());
                }
            }
        };
        systemd::stopping();
        watching.abort();
        // Who has given one that still waits learns that it will not be carried out.
        drop(orders);
        if let Some(coming) = coming {
            coming.swap.abort().await;
        }
        let mut drained = pin!(self.drain(has_heir));
        // A service manager tells all processes of a service to end: the first is meant for the new process, and this one
        // is at it already.
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
        Ok(())
    }

    /// Says that this process serves, and begins to answer on the admin socket, if there is one.
    fn take_orders(&self) -> Orders {
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
        tokio::spawn(async move {
            if let Some(successor) = successor {
                // Until the old process relies on this one, it is the one to ask and to watch.
                let kept = match successor.ready() {
                    Ok(()) => successor.kept().await,
                    Err(e) => Err(e),
                };
                if let Err(e) = kept {
                    log::warn!("the old process is gone: {e}");
                }
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
        orders.unwrap_or_else(|| mpsc::channel(1).1)
    }

    async fn obey(&self, order: Order, coming: Option<Coming>) -> Option<Coming> {
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
                return self.reload(coming, upgrade, Some(done)).await;
            }
            Order::Upgrade { wanted, done } => return self.upgrade(coming, wanted, done),
            Order::Drain {
                pool,
                member,
                draining,
                done,
            } => {
                let live = self.reloader.live();
                let _ = done.send(admin::drain(live, &pool, &member, draining));
            }
            Order::Stop => unreachable!("ends the loop"),
        }
        coming
    }

    async fn rehearse(&self) -> Result<Reloaded, Refusal> {
        let (reloader, can_swap) = (self.reloader.clone(), self.cannot_swap().is_none());
        aside(move || super::reload::rehearse(&reloader, can_swap)).await
    }

    /// Reloads; where only a new process can take what the file says, one is on its way then.
    async fn reload(
        &self,
        coming: Option<Coming>,
        upgrade: bool,
        done: Option<oneshot::Sender<Result<Reloaded, Refusal>>>,
    ) -> Option<Coming> {
        if coming.is_some() {
            log::error!("reload failed: {UNDER_WAY}");
            answer(done, Err(Refusal::new(StatusCode::CONFLICT, UNDER_WAY)));
            return coming;
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
                    return Some(Coming {
                        swap,
                        asked,
                        sockets,
                    });
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
        coming: Option<Coming>,
        wanted: Upgrade,
        done: oneshot::Sender<Result<Upgraded, Refusal>>,
    ) -> Option<Coming> {
        let refusal = match (&coming, self.cannot_swap()) {
            (Some(_), _) => Refusal::new(StatusCode::CONFLICT, UNDER_WAY),
            (None, Some(reason)) => Refusal::new(StatusCode::CONFLICT, reason),
            (None, None) => match self.bring_up(&wanted) {
                Ok((swap, sockets)) => {
                    let asked = Asked::Upgrade(done);
                    return Some(Coming {
                        swap,
                        asked,
                        sockets,
                    });
                }
                Err(refusal) => refusal,
            },
        };
        log::error!("upgrade failed: {}", refusal.error);
        let _ = done.send(Err(refusal));
        coming
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
                let e: std::io::Error = e;
                let error = format!("cannot start a new process: {e}");
                Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error))
            }
        }
    }

    /// All listening sockets, that of the admin endpoint included.
    fn sockets(&self) -> std::io::Result<super::swap::Sockets> {
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
    fn conclude(&self, coming: Coming, outcome: Result<Option<Heir>, Failed>) -> Next {
        let Coming { asked, sockets, .. } = coming;
        let heir = match outcome {
            Ok(Some(heir)) => heir,
            Ok(None) => {
                log::info!("QUIT: no new process waits for the sockets; draining");
                return Next::Leave { has_heir: false };
            }
            Err(failed) => {
                self.go_on(asked, failed);
                return Next::GoOn;
            }
        };
        let upgraded = Upgraded {
            old: Process {
                process: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            new: Process {
                process: heir.process,
                version: heir.version.clone(),
            },
            sockets,
            connections: self.services.iter().map(Handle::open_connections).sum(),
        };
        Swapper::keep(heir);
        let new = &upgraded.new;
        log::info!(
            "process {} (weir {}) serves; draining",
            new.process,
            new.version
        );
        match asked {
            Asked::Quit => {}
            Asked::Upgrade(done) => {
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
        Next::Leave { has_heir: true }
    }

    fn go_on(&self, asked: Asked, failed: Failed) {
        if let Some(swapper) = &self.swapper {
            swapper.go_on();
        }
        let error = format!("{failed}; this one goes on");
        log::error!("the sockets were not handed over: {error}");
        let refusal = Refusal {
            report: (!failed.last_words.is_empty()).then(|| failed.last_words.join("\n")),
            ..Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
        };
        match asked {
            Asked::Quit => {}
            Asked::Upgrade(done) => {
                let _ = done.send(Err(refusal));
            }
            Asked::Reload(_, done) => {
                systemd::ready();
                answer(done, Err(refusal));
            }
        }
    }

    /// Ends when the last connection has, or at the deadline.
    async fn drain(&self, has_heir: bool) {
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
        let mut told = false;
        // One after the other: the edge may proxy to the companion until its last request is answered.
        for service in &self.services {
            service.drain();
            while service.is_at_work() {
                if began.elapsed() >= deadline {
                    let open: usize = self.services.iter().map(Handle::open_connections).sum();
                    return log::warn!("time is over: {open} connections are open still");
                }
                if !told && Instant::now() >= tunnels {
                    told = true;
                    self.services.iter().for_each(Handle::close_tunnels);
                }
                tokio::time::sleep(DRAIN_TICK).await;
            }
        }
        if let Some(endpoint) = admin {
            endpoint.close();
            endpoint.answered().await;
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

/// Why a second one is refused.
const UNDER_WAY: &str = "a new process is about to take over";

/// What becomes of the new process; never, while there is none.
async fn outcome(coming: &mut Option<Coming>) -> Result<Option<Heir>, Failed> {
    match coming {
        Some(coming) => coming.swap.outcome().await,
        None => std::future::pending().await,
    }
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

/// Orders a reload whenever the files have changed, if that is wanted. In a task of its own: a file system that hangs must not
/// keep signals waiting.
async fn watch(reloader: Arc<Reloader>, orders: mpsc::Sender<Order>) {
    let mut look = tokio::time::interval(WATCH_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if !reloader.live().load().watch {
            continue;
        }
        let reloader = reloader.clone();
        let looked = tokio::task::spawn_blocking(move || reloader.have_files_changed()).await;
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
