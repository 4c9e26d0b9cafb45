//! Reading the file again while running.
//!
//! One transaction: everything is loaded and checked before anything changes; one mistake, and nothing does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Boot, Live, Plan, Snapshot, compile};
use crate::config::{Config, load};
use crate::issue::{At, Issues};

/// Loads and compiles a file, on top of what runs if something does.
///
/// # Errors
/// All that is wrong in the file, located.
pub fn load(file: &Path, previous: Option<&Snapshot>) -> Result<(Plan, Issues), Issues> {
    let (config, sources) = load::load::<Config>(file);
    let (plan, mut issues) = compile(&config?, &sources, previous);
    issues.locate(&sources);
    match plan {
        Some(plan) if !issues.has_errors() => Ok((plan, issues)),
        _ => Err(issues),
    }
}

/// What a reload starts from.
pub struct Reloader {
    file: PathBuf,
    boot: Boot,
    live: Arc<Live>,
}

impl Reloader {
    pub fn new(file: PathBuf, boot: Boot, live: Arc<Live>) -> Reloader {
        Reloader { file, boot, live }
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The next snapshot, ready to go live. Reads files and looks names up: blocks.
    ///
    /// # Errors
    /// All that is wrong in the file, and keys that only a new process can take.
    pub fn prepare(&self) -> Result<(Snapshot, Issues), Issues> {
        let (plan, issues) = load(&self.file, Some(&self.live.load()))?;
        let mut refused = Issues::default();
        for key in self.boot.differences(&plan.boot) {
            refused
                .error(&At::Root.key(key), "cannot change while running")
                .hint("start the new process with `weir -u -d`, then send QUIT to this one");
        }
        if refused.has_errors() {
            Err(refused)
        } else {
            Ok((plan.snapshot, issues))
        }
    }
}
