//! Reading the file again while running.
//!
//! One transaction: everything is loaded and checked before anything changes; one mistake, and nothing does.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::changes::Changes;
use super::{Boot, Live, Plan, Snapshot, compile};
use crate::config::{Config, load};
use crate::issue::{At, Issues, Sources};
use crate::net::Bind;

/// Where a configuration is read from.
#[derive(Clone, Debug)]
pub enum Source {
    File(PathBuf),
    /// No file, but what the command line stands for; `name` takes the file's place in messages.
    Text {
        name: &'static str,
        text: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(file) => file.display().fmt(f),
            Source::Text { name, .. } => f.write_str(name),
        }
    }
}

impl Source {
    fn read(&self) -> load::Reading<Config> {
        match self {
            Source::File(file) => load::load(file),
            Source::Text { name, text } => load::parse(Path::new(name), text),
        }
    }

    /// Where the process that runs on this would be spoken to, if anywhere. Mistakes do not matter where it can be told
    /// all the same: they may be what one wants to speak about.
    ///
    /// # Errors
    /// When it cannot, which may be due to the mistakes.
    pub fn admin_socket(&self) -> Result<Option<Bind>, Issues> {
        let reading = self.read();
        let config = reading.document.unwrap_or_default();
        match super::compile::admin_socket(&config, &reading.sources) {
            None if reading.issues.has_errors() => Err(reading.issues),
            socket => Ok(socket),
        }
    }
}

/// A file that can be run.
pub struct Loaded {
    pub config: Config,
    pub plan: Plan,
    /// What is hardly meant in it.
    pub warnings: Issues,
    /// The files that it consists of.
    pub sources: Sources,
}

/// Loads and compiles a document, on top of what runs if something does.
///
/// # Errors
/// All that is wrong in the file, located. Where single values are wrong, the rest is compiled all the same, so that
/// nobody learns of a missing certificate only after an unknown key is gone. Warnings wait until there is no error.
pub fn load(source: &Source, previous: Option<&Snapshot>) -> Result<Loaded, Issues> {
    let load::Reading {
        document,
        mut issues,
        sources,
    } = source.read();
    let mut good = None;
    if let Some(config) = document {
        let (plan, found) = compile(&config, &sources, previous);
        good = plan.map(|plan| (config, plan));
        issues.append(found);
        issues.locate(&sources);
    }
    match good {
        Some((config, plan)) if !issues.has_errors() => Ok(Loaded {
            config,
            plan,
            warnings: issues,
            sources,
        }),
        _ => {
            issues.only_errors();
            Err(issues)
        }
    }
}

/// What a reload starts from.
pub struct Reloader {
    source: Source,
    boot: Boot,
    live: Arc<Live>,
    /// What the live snapshot was made from.
    config: Mutex<Config>,
}

/// The next configuration, ready to go live.
pub struct Prepared {
    pub snapshot: Snapshot,
    pub warnings: Issues,
    /// What is different from the one that runs.
    pub changes: Changes,
    /// Keys that differ and that only a new process can take: this one must not go live with the rest.
    pub start_only: Vec<&'static str>,
    config: Config,
}

impl Reloader {
    pub fn new(source: Source, config: Config, boot: Boot, live: Arc<Live>) -> Reloader {
        Reloader {
            source,
            boot,
            live,
            config: Mutex::new(config),
        }
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Makes the next snapshot of what the file says now. Reads files and looks names up: blocks.
    ///
    /// # Errors
    /// All that is wrong in the file, and keys that only a new process can take, unless there `can_be_one`.
    pub fn prepare(&self, can_be_one: bool) -> Result<Prepared, Issues> {
        let live = self.live.load();
        let Loaded {
            config,
            plan,
            warnings,
            sources,
        } = load(&self.source, Some(&live))?;
        let start_only = self.boot.differences(&plan.boot);
        if !can_be_one && !start_only.is_empty() {
            let mut refused = Issues::default();
            for key in start_only {
                refused
                    .error(&At::Root.key(key), "cannot change while running")
                    .hint("restart weir: no new process can take over from this one");
            }
            refused.locate(&sources);
            return Err(refused);
        }
        let mut changes = Changes::between(&self.config.lock(), &config);
        changes.at_start(&start_only);
        changes.in_certificates(&live.certificates, &plan.snapshot.certificates);
        Ok(Prepared {
            snapshot: plan.snapshot,
            warnings,
            changes,
            start_only,
            config,
        })
    }

    /// Makes it the live one.
    pub fn commit(&self, prepared: Prepared) -> Arc<Snapshot> {
        let snapshot = Arc::new(prepared.snapshot);
        snapshot.present_certificates();
        self.live.store(snapshot.clone());
        *self.config.lock() = prepared.config;
        snapshot
    }
}
