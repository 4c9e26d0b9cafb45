//! Reading the file again while running.
//!
//! One transaction: everything is loaded and checked before anything changes; one mistake, and nothing does.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::changes::Changes;
use super::watch::Watch;
use super::{Boot, Live, Plan, Snapshot, compile, renewals};
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
    let (compiled, sources) = read_and_compile(source, previous);
    let Compiled {
        config,
        plan,
        warnings,
    } = compiled?;
    Ok(Loaded {
        config,
        plan,
        warnings,
        sources,
    })
}

struct Compiled {
    config: Config,
    plan: Plan,
    warnings: Issues,
}

/// As [`load`]. Errors come with what was read as well: what has to change for another outcome.
fn read_and_compile(
    source: &Source,
    previous: Option<&Snapshot>,
) -> (Result<Compiled, Issues>, Sources) {
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
    let compiled = match good {
        Some((config, plan)) if !issues.has_errors() => Ok(Compiled {
            config,
            plan,
            warnings: issues,
        }),
        _ => {
            issues.only_errors();
            Err(issues)
        }
    };
    (compiled, sources)
}

/// The document that a process runs on.
pub struct Document {
    pub source: Source,
    pub config: Config,
    /// The files that it was read from.
    pub watch: Watch,
}

/// What a reload starts from.
pub struct Reloader {
    source: Source,
    boot: Boot,
    live: Arc<Live>,
    /// What the live snapshot was made from.
    config: Mutex<Config>,
    watch: Mutex<Watch>,
    /// Held while another snapshot goes live, or the one that is live changes its certificates.
    committing: Mutex<()>,
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
    pub fn new(document: Document, boot: Boot, live: Arc<Live>) -> Reloader {
        let Document {
            source,
            config,
            watch,
        } = document;
        Reloader {
            source,
            boot,
            live,
            config: Mutex::new(config),
            watch: Mutex::new(watch),
            committing: Mutex::default(),
        }
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Whether the files have changed since they were last loaded, and not since the last look: who writes several of
    /// them, or one in several steps, is left the time to finish. Blocks.
    pub fn have_files_changed(&self) -> bool {
        self.watch.lock().look()
    }

    /// Has handshakes get the certificates that were renewed. Blocks.
    pub fn renew_certificates(&self) {
        renewals::renew(&self.live, &self.committing);
    }

    /// Makes the next snapshot of what the file says now. Reads files and looks names up: blocks.
    ///
    /// # Errors
    /// All that is wrong in the file, and keys that only a new process can take, unless there `can_be_one`.
    pub fn prepare(&self, can_be_one: bool) -> Result<Prepared, Issues> {
        // Before they are read: what changes meanwhile is seen by the next look.
        let before = self.watch.lock().now();
        let (prepared, sources) = self.rehearse(can_be_one);
        let next = before.reading(sources.into_dependencies(prepared.is_ok()));
        *self.watch.lock() = next;
        prepared
    }

    /// As [`Reloader::prepare`], for who only wants to know what would come of it. It comes with what was read.
    pub fn rehearse(&self, can_be_one: bool) -> (Result<Prepared, Issues>, Sources) {
        let live = self.live.load();
        let (compiled, sources) = read_and_compile(&self.source, Some(&live));
        let Compiled {
            config,
            plan,
            warnings,
        } = match compiled {
            Ok(compiled) => compiled,
            Err(issues) => return (Err(issues), sources),
        };
        let start_only = self.boot.differences(&plan.boot);
        if !can_be_one && !start_only.is_empty() {
            let mut refused = Issues::default();
            for key in start_only {
                refused
                    .error(&At::Root.key(key), "cannot change while running")
                    .hint("restart weir: no new process can take over from this one");
            }
            refused.locate(&sources);
            return (Err(refused), sources);
        }
        let mut changes = Changes::between(&self.config.lock(), &config);
        changes.at_start(&start_only);
        changes.in_certificates(
            live.certificates.load().by_owner(),
            plan.snapshot.certificates.load().by_owner(),
        );
        let prepared = Prepared {
            snapshot: plan.snapshot,
            warnings,
            changes,
            start_only,
            config,
        };
        (Ok(prepared), sources)
    }

    /// Makes it the live one.
    pub fn commit(&self, prepared: Prepared) -> Arc<Snapshot> {
        let snapshot = Arc::new(prepared.snapshot);
        let committing = self.committing.lock();
        snapshot.present_certificates();
        self.live.store(snapshot.clone());
        drop(committing);
        snapshot.warn_of_key_logs();
        *self.config.lock() = prepared.config;
        snapshot
    }
}
