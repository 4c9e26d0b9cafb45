//! One build of a snapshot: collects issues and resolves names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::issue::{At, Issue, Issues, Sources};
use crate::pool::Pool;

/// Passed to every `compile`. A `compile` reports what is wrong here and returns `None` (or what it could make), so
/// that one run finds all mistakes.
pub struct Build<'a> {
    pub issues: Issues,
    pub sources: &'a Sources,
    pools: HashMap<String, Arc<Pool>>,
    /// Names that the regex of the route being compiled captures: `$name` in its templates.
    pub captures: Vec<String>,
}

impl<'a> Build<'a> {
    pub fn new(sources: &'a Sources) -> Build<'a> {
        Build {
            issues: Issues::default(),
            sources,
            pools: HashMap::new(),
            captures: Vec::new(),
        }
    }

    pub fn error(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut Issue {
        self.issues.error(at, message)
    }

    pub fn warn(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut Issue {
        self.issues.warn(at, message)
    }

    /// A path written at `at`, relative to the file that holds it.
    pub fn path(&self, at: &At<'_>, written: &Path) -> PathBuf {
        let file = self.sources.file(&at.to_path());
        file.parent().unwrap_or(Path::new("")).join(written)
    }

    pub fn set_pools(&mut self, pools: HashMap<String, Arc<Pool>>) {
        self.pools = pools;
    }

    /// The pool of that name, or an issue with a suggestion.
    pub fn pool(&mut self, at: &At<'_>, name: &str) -> Option<Arc<Pool>> {
        if let Some(pool) = self.pools.get(name) {
            return Some(pool.clone());
        }
        let hint = crate::value::hint(name, "pools are", {
            let mut names: Vec<&str> = self.pools.keys().map(String::as_str).collect();
            names.sort_unstable();
            names
        });
        self.issues
            .error(at, format!("no pool named `{name}`"))
            .hint(hint);
        None
    }
}
