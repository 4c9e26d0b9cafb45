//! Signals while running: HUP reloads, USR1 reopens the log files, TERM drains, QUIT hands over and drains, INT ends.
//!
//! Pingora waits for its shutdown signal here; when this returns, everything that could finish has finished, so the
//! answer is always a fast shutdown: Pingora's graceful one sleeps for a fixed time and then cuts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::sys::signal::{SigSet, Signal};
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};

use super::logs::Logs;
use super::service::Handle;
use super::upgrade::{self, Handover};
use crate::runtime::reload::Reloader;

/// How often a drain looks whether the last connection has ended.
const DRAIN_TICK: Duration = Duration::from_millis(20);

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
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        if let Err(e) = self.handle().await {
            log::error!("cannot handle signals: {e}");
        }
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
        loop {
            tokio::select! {
                _ = hangup.recv() => self.reload().await,
                _ = reopen.recv() => self.logs.reopen(),
                _ = terminate.recv() => {
                    log::info!("TERM: draining");
                    break;
                }
                _ = quit.recv() => match self.hand_over().await {
                    Ok(Handover::Done) => {
                        log::info!("QUIT: the new process serves; draining");
                        break;
                    }
                    Ok(Handover::Nobody) => {
                        log::info!("QUIT: no new process waits for the sockets; draining");
                        break;
                    }
                    Err(e) => log::error!("QUIT: the sockets were not handed over: {e}; going on"),
                },
                _ = interrupt.recv() => {
                    log::info!("INT: ending now");
                    return Ok(());
                }
            }
        }
        tokio::select! {
            () = self.drain() => {}
            _ = interrupt.recv() => log::info!("INT: ending now"),
            _ = terminate.recv() => log::info!("TERM again: ending now"),
        }
        Ok(())
    }

    async fn reload(&self) {
        let (reloader, services) = (self.reloader.clone(), self.services.clone());
        let logs = self.logs.clone();
        let reload = move || super::reload::reload(&reloader, &services, &logs);
        if let Err(e) = tokio::task::spawn_blocking(reload).await {
            log::error!("reload failed: {e}; nothing has changed");
        }
    }

    async fn hand_over(&self) -> std::io::Result<Handover> {
        let services = self.services.clone();
        let Some(path) = self.upgrade_sock.clone() else {
            return Ok(Handover::Nobody);
        };
        let hand_over = move || {
            let mut sockets = Vec::new();
            for service in &services {
                sockets.extend(service.sockets()?);
            }
            upgrade::hand_over(&path, &sockets)
        };
        tokio::task::spawn_blocking(hand_over).await?
    }

    /// Ends when the last connection has, or when the grace period is over.
    async fn drain(&self) {
        let grace = self.reloader.live().load().grace_period;
        let began = Instant::now();
        // One after the other: the edge may proxy to the companion until its last request is answered.
        for service in &self.services {
            service.drain();
            while service.open_connections() > 0 {
                if began.elapsed() >= grace {
                    let open: usize = self.services.iter().map(Handle::open_connections).sum();
                    return log::warn!("grace period over: {open} connections are cut");
                }
                tokio::time::sleep(DRAIN_TICK).await;
            }
        }
        log::info!("drained in {:.1} s", began.elapsed().as_secs_f64());
    }
}
