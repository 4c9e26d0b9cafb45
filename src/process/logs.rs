//! The logs of the process: opened at start, following the configuration, reopened on USR1.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::log::{ErrorLog, Writers};
use crate::runtime::Snapshot;

/// How long the process waits at its end for the last lines to be written.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Logs {
    error: ErrorLog,
    writers: Writers,
}

impl Logs {
    /// Must not be called before the process is in the background: it starts the threads that write.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn start(snapshot: &Snapshot) -> anyhow::Result<Arc<Logs>> {
        let error = ErrorLog::install(&snapshot.log.error).context("cannot open the error log")?;
        let logs = Logs {
            error,
            writers: Writers::default(),
        };
        logs.open_access(snapshot)?;
        Ok(Arc::new(logs))
    }

    /// Goes on with the settings of a new configuration.
    ///
    /// # Errors
    /// When a file cannot be opened; nothing has changed then.
    pub fn follow(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        self.open_access(snapshot)?;
        self.error
            .apply(&snapshot.log.error)
            .context("cannot open the error log")
    }

    /// Opens all files anew, for a tool that has renamed them.
    pub fn reopen(&self) {
        if let Err(e) = self.error.reopen() {
            log::error!("cannot reopen the error log: {e}; the old file stays in use");
        }
        for (destination, e) in self.writers.reopen().err().into_iter().flatten() {
            log::error!("cannot reopen {destination}: {e}; the old file stays in use");
        }
        log::info!("log files reopened");
    }

    /// Writes what waits.
    pub fn flush(&self) {
        if !self.writers.flush(PATIENCE) {
            log::warn!("some lines of the access log could not be written in time");
        }
        log::logger().flush();
    }

    fn open_access(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        snapshot
            .access_logs()
            .try_for_each(|logs| logs.open(&self.writers))
            .context("cannot open the access log")
    }
}
