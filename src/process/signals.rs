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
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::logs::Logs;
use super::service::Handle;
use super::upgrade::{self, Handover};
use crate::admin::{self, Endpoint, Order, Orders, Refusal, Reloaded};
use crate::runtime::Drain;
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
    /// Where a new process would wait for the sockets.
    pub upgrade_sock: Option<std::path::PathBuf>,
    pub admin: Option<Admin>,
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
        release()?;
        let mut orders = self.take_orders();
        let (watcher, mut changes) = mpsc::channel(1);
        let watching = tokio::spawn(watch(self.reloader.clone(), watcher));
        let heir = loop {
            tokio::select! {
                _ = hangup.recv() => {
                    // What came of it is in the log.
                    let _ = self.reload(false).await;
                }
                Some(order) = orders.recv() => match order {
                    Order::Stop => {
                        log::info!("told to stop: draining");
                        break None;
                    }
                    order => self.obey(order).await,
                },
                Some(order) = changes.recv() => self.obey(order).await,
                _ = reopen.recv() => self.logs.reopen(),
                _ = terminate.recv() => {
                    log::info!("TERM: draining");
                    break None;
                }
                _ = quit.recv() => match self.hand_over().await {
                    Ok(Handover::Done) => {
                        log::info!("QUIT: the new process serves; draining");
                        break Some(Heir);
                    }
                    Ok(Handover::Nobody) => {
                        log::info!("QUIT: no new process waits for the sockets; draining");
                        break None;
                    }
                    Err(e) => log::error!("QUIT: the sockets were not handed over: {e}; going on"),
                },
                _ = interrupt.recv() => {
                    log::info!("INT: ending now");
                    return Ok(());
                }
            }
        };
        watching.abort();
        // Who has given one that still waits learns that it will not be carried out.
        drop(orders);
        let mut drained = pin!(self.drain(heir));
        loop {
            tokio::select! {
                () = &mut drained => break,
                _ = reopen.recv() => self.logs.reopen(),
                _ = interrupt.recv() => {
                    log::info!("INT: ending now");
                    break;
                }
                _ = terminate.recv() => {
                    log::info!("TERM again: ending now");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Begins to answer on the admin socket, if there is one.
    fn take_orders(&self) -> Orders {
        let orders = |admin: &Admin| Some((admin.endpoint.clone(), admin.orders.lock().take()?));
        let Some((endpoint, orders)) = self.admin.as_ref().and_then(orders) else {
            // Closed: no order ever comes.
            return mpsc::channel(1).1;
        };
        tokio::spawn(async move {
            if let Err(e) = endpoint.run().await {
                log::error!("cannot answer on the admin socket: {e}");
            }
        });
        orders
    }

    async fn obey(&self, order: Order) {
        // Whoever gave it may have left; it is carried out all the same.
        match order {
            Order::Reload { dry_run, done } => {
                let _ = done.send(self.reload(dry_run).await);
            }
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
    }

    async fn reload(&self, dry_run: bool) -> Result<Reloaded, Refusal> {
        let (reloader, services) = (self.reloader.clone(), self.services.clone());
        let logs = self.logs.clone();
        let reload = move || match dry_run {
            true => super::reload::rehearse(&reloader),
            false => super::reload::reload(&reloader, &services, &logs),
        };
        tokio::task::spawn_blocking(reload)
            .await
            .unwrap_or_else(|e| {
                let error = format!("{e}; nothing has changed");
                log::error!("reload failed: {error}");
                Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error))
            })
    }

    async fn hand_over(&self) -> std::io::Result<Handover> {
        let services = self.services.clone();
        let Some(path) = self.upgrade_sock.clone() else {
            return Ok(Handover::Nobody);
        };
        let admin = self.admin.as_ref().map(|admin| admin.endpoint.clone());
        let hand_over = move || {
            let mut sockets = Vec::new();
            if let Some(endpoint) = admin {
                sockets.extend(endpoint.socket()?);
            }
            for service in &services {
                sockets.extend(service.sockets()?);
            }
            upgrade::hand_over(&path, &sockets)
        };
        tokio::task::spawn_blocking(hand_over).await?
    }

    /// Ends when the last connection has, or at the deadline.
    async fn drain(&self, heir: Option<Heir>) {
        let live = self.reloader.live();
        let Drain {
            announce,
            tunnels,
            deadline,
        } = live.load().drain;
        let began = Instant::now();
        match (heir, &self.admin) {
            // The socket is its by now, and who asks whether there is somebody to serve is to get its answer.
            (Some(Heir), Some(admin)) => admin.endpoint.close(),
            (Some(Heir), None) => {}
            (None, _) => {
                live.drain();
                tokio::time::sleep(announce).await;
            }
        }
        let tunnels = Instant::now() + tunnels;
        let mut told = false;
        // One after the other: the edge may proxy to the companion until its last request is answered.
        for service in &self.services {
            service.drain();
            while service.open_connections() > 0 {
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
        log::info!("drained in {:.1} s", began.elapsed().as_secs_f64());
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
            done,
        };
        // Either fails only when nobody takes orders any more. What came of it is in the log.
        let _ = orders.send(order).await;
        let _ = outcome.await;
    }
}

/// The process that has taken the sockets over.
struct Heir;
