//! The service manager: what it is told, and what it gives. Without one, all of this does nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use sd_notify::NotifyState;

/// What it sets for the process that it starts, and what would mislead any other.
pub const OF_THIS_PROCESS: [&str; 4] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// Sockets for `bind: systemd:NAME`, by that name.
pub type Given = BTreeMap<String, OwnedFd>;

/// Takes the sockets that were opened for this process. Must be called once, before any thread exists.
///
/// # Errors
/// When the variables that tell of them make no sense, or several have the same name.
pub fn sockets() -> anyhow::Result<Given> {
    let mut given = Given::new();
    // Those of another process, from which the variables came down to this one, are not here.
    if std::env::var("LISTEN_PID").ok() != Some(std::process::id().to_string()) {
        return Ok(given);
    }
    #[expect(unsafe_code, reason = "no child of this process is to believe them")]
    // SAFETY: no other thread exists yet that could read the environment.
    let named = unsafe { sd_notify::listen_fds_with_names_and_unset_env() };
    for (fd, name) in named.context("cannot take the sockets of the service manager")? {
        #[expect(unsafe_code, reason = "the service manager gives bare numbers")]
        // SAFETY: LISTEN_PID says that these numbers are for us, and nobody has taken them before.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if given.insert(name.clone(), socket).is_some() {
            bail!(
                "the service manager gives several sockets named `{name}`: each needs a name of its own \
                 (FileDescriptorName= in a .socket unit of its own)"
            );
        }
    }
    Ok(given)
}

/// This process serves, or has finished to reload.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload begins; [`ready`] ends it, whatever came of it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(e) => log::warn!("cannot tell the service manager of the reload: {e}"),
    }
}

pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// From now on `process` is the one to watch, and speaks for itself: this one is not listened to any more, and says nothing.
pub fn main_process(process: u32) {
    tell(&[NotifyState::MainPid(process)]);
    keep_silent(true);
}

/// While another process is the main one, this one says nothing.
pub fn keep_silent(silent: bool) {
    SILENT.store(silent, Ordering::Relaxed);
}

/// Says again and again that this process is alive, if the service manager wants to know.
pub async fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return;
    };
    let mut tick = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        tick.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// Whether another process is the main one.
static SILENT: AtomicBool = AtomicBool::new(false);

fn tell(states: &[NotifyState<'_>]) {
    if SILENT.load(Ordering::Relaxed) {
        return;
    }
    if let Err(e) = sd_notify::notify(states) {
        // A service manager that is just being restarted, say.
        let quiet = e.kind() == io::ErrorKind::ConnectionRefused;
        let level = if quiet {
            log::Level::Debug
        } else {
            log::Level::Warn
        };
        log::log!(level, "cannot tell the service manager: {e}");
    }
}
