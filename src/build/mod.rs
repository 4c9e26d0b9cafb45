//! One build of a snapshot: collects issues and resolves names.

mod carry;
#[cfg(test)]
pub mod testing;

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderName;

use crate::disk::overflow::{self, Place, Used};
use crate::issue::{At, Issue, Issues, Sources};
use crate::pool::Pool;
use crate::value::{Cidr, OneOrMany, Size};

/// When in a request's life a text is rendered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before there is a response: rewrites, redirects, request headers, keys.
    #[default]
    Request,
    /// When the response's header is made: response headers.
    Response,
    /// When all is over: the access log.
    Log,
}

/// A variable that the document defines.
#[derive(Clone, Copy, Debug)]
pub struct Defined {
    /// Its place among them.
    pub index: usize,
    /// From when on it has its value.
    pub from: Stage,
}
pub use carry::Carry;

/// Passed to every `compile`. A `compile` reports what is wrong here and returns `None` (or what it could make), so
/// that one run finds all mistakes.
pub struct Build<'a> {
    pub issues: Issues,
    pub sources: &'a Sources,
    /// `None`: the pool is wrong, and that is reported.
    pools: HashMap<String, Option<Arc<Pool>>>,
    /// Names of pools that were asked for.
    used_pools: HashSet<String>,
    /// Names that the regex of the route being compiled captures: `$name` in its templates.
    pub captures: Vec<String>,
    /// That regex is wrong, and reported: a variable that nobody knows may be one of its captures.
    pub captures_unknown: bool,
    /// The variables that the document defines, by name, as far as they are compiled; `None` for those that are wrong,
    /// which is reported already.
    pub defined: HashMap<String, Option<Defined>>,
    /// The latest stage of a variable that was resolved, until it is set back.
    pub latest: Stage,
    /// Fields of backends' headers that variables ask for.
    pub upstream_fields: Vec<HeaderName>,
    /// Variables that the tokens of the routes being compiled bring: `$name` in what is compiled behind them.
    pub claims: Vec<String>,
    /// Whom `trusted_proxies` names.
    pub trusted_proxies: Arc<[Cidr]>,
    /// What the running configuration has to hand on.
    pub previous: Carry,
    /// What this one will.
    pub carried: Carry,
}

impl<'a> Build<'a> {
    pub fn new(sources: &'a Sources) -> Build<'a> {
        Build {
            issues: Issues::default(),
            sources,
            pools: HashMap::new(),
            used_pools: HashSet::new(),
            captures: Vec::new(),
            captures_unknown: false,
            defined: HashMap::new(),
            latest: Stage::Request,
            upstream_fields: Vec::new(),
            claims: Vec::new(),
            trusted_proxies: Arc::default(),
            previous: Carry::default(),
            carried: Carry::default(),
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
        self.sources.path(at, written)
    }

    /// Whether the top-level map `section` was read with all that it holds. If not, nothing may be concluded from what it
    /// does not hold.
    pub fn is_whole(&self, section: &str) -> bool {
        let at = At::Root.key(section);
        self.sources.left_out().is_whole(&at.to_path())
    }

    /// Whether the entry `name` of the top-level map `section` may be written, and is only not there because it, or what
    /// should hold it, is wrong. Who refers to it has made no mistake.
    pub fn is_left_out(&self, section: &str, name: &str) -> bool {
        let at = At::Root.key(section);
        !self.sources.left_out().is_whole(&at.key(name).to_path())
    }

    /// State of this type and name that outlives a reload: the running configuration's, if it `fits`, or a new one.
    pub fn carry<T: Any + Send + Sync>(
        &mut self,
        name: String,
        fits: impl FnOnce(&T) -> bool,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        self.carried.take_over(&self.previous, name, fits, make)
    }

    /// The pools of the document by name; `None` for those that cannot be made, which is reported already.
    pub fn set_pools(&mut self, pools: HashMap<String, Option<Arc<Pool>>>) {
        self.pools = pools;
    }

    /// Whether anything has asked for the pool of that name.
    pub fn uses_pool(&self, name: &str) -> bool {
        self.used_pools.contains(name)
    }

    /// Whether a policy has something in its list; an issue says that it wants `what`, for what does nothing is a mistake.
    pub fn is_filled<T>(&mut self, at: &At<'_>, list: &OneOrMany<T>, what: &str) -> bool {
        if list.0.is_empty() {
            self.error(at, format!("needs at least one {what}"))
                .hint("`off` takes away what a farther level says");
        }
        !list.0.is_empty()
    }

    /// Where a policy keeps bodies on disk: in the folder that its `dir` says or that of the system, up to its `max`. That a file
    /// can be made there is tried.
    pub fn place(
        &mut self,
        at: &At<'_>,
        dir: Option<&Path>,
        max: Option<Size>,
    ) -> Option<Arc<Place>> {
        let key = at.key("dir");
        let (at_dir, folder) = match dir {
            Some(dir) => (&key, self.path(&key, dir)),
            None => (at, std::env::temp_dir()),
        };
        if let Err(e) = overflow::unnamed(&folder) {
            let why = format!("no file can be made in `{}`: {e}", folder.display());
            self.error(at_dir, why)
                .hint("`dir` is where bodies go that are longer than `memory`; by default, the system's folder for temporary files");
            return None;
        }
        let used = self.carry(at.to_path().to_string(), |_| true, Used::default);
        Some(Arc::new(Place {
            dir: folder,
            most: max.map_or(u64::MAX, Size::get),
            used,
        }))
    }

    /// The pool of that name, or an issue with a suggestion.
    pub fn pool(&mut self, at: &At<'_>, name: &str) -> Option<Arc<Pool>> {
        if let Some(pool) = self.pools.get(name) {
            self.used_pools.insert(name.to_owned());
            return pool.clone();
        }
        if self.is_left_out("pools", name) {
            return None;
        }
        let hint = crate::value::hint(name, "pools are", {
            let known = self.pools.keys().map(String::as_str);
            let mut names: Vec<&str> = known
                .chain(self.sources.left_out().names_in("pools"))
                .collect();
            names.sort_unstable();
            names
        });
        self.issues
            .error(at, format!("no pool named `{name}`"))
            .hint(hint);
        None
    }
}
