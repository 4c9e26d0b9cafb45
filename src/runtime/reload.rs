//! Reading the file again while running.
//!
//! One transaction: everything is loaded and checked before anything changes; one mistake, and nothing does.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Boot, Live, Plan, Snapshot, compile};
use crate::config::{Config, load};
use crate::issue::{At, Issues, Sources};

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

/// A file that can be run.
pub struct Loaded {
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
    } = match source {
        Source::File(file) => load::load::<Config>(file),
        Source::Text { name, text } => load::parse(Path::new(name), text),
    };
    let mut plan = None;
    if let Some(config) = document {
        let (compiled, found) = compile(&config, &sources, previous);
        plan = compiled;
        issues.append(found);
        issues.locate(&sources);
    }
    match plan {
        Some(plan) if !issues.has_errors() => Ok(Loaded {
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
}

impl Reloader {
    pub fn new(source: Source, boot: Boot, live: Arc<Live>) -> Reloader {
        Reloader { source, boot, live }
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The next snapshot, ready to go live, and warnings. Reads files and looks names up: blocks.
    ///
    /// # Errors
    /// All that is wrong in the file, or keys that only a new process can take.
    pub fn prepare(&self) -> Result<(Snapshot, Issues), Issues> {
        let Loaded {
            plan,
            warnings,
            sources,
        } = load(&self.source, Some(&self.live.load()))?;
        let mut refused = Issues::default();
        for key in self.boot.differences(&plan.boot) {
            refused
                .error(&At::Root.key(key), "cannot change while running")
                .hint("start the new process with `weir -u -d`, then send QUIT to this one");
        }
        if refused.has_errors() {
            refused.locate(&sources);
            return Err(refused);
        }
        Ok((plan.snapshot, warnings))
    }
}
