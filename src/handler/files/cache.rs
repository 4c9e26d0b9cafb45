//! `open_files`: the files that were asked for lately, open and described, so that a request for one of them asks the
//! file system nothing.
//!
//! ```yaml
//! files: { root: ./www, open_files: { max: 10000, memory: 64MiB, valid: 1s } }      # the default
//! ```
//!
//! What is known of a file is believed for `valid`, then the path is opened again, beneath the root as ever. Is it the
//! same file in the same version, all that was made of it stays; if not, the next answer is of the new one, while those
//! that are being sent keep the old. A request takes a shared lock of one of several parts, for a look into a map; only
//! what is looked up anew takes the lock of all.
//!
//! What was not asked for since it came or was last passed over goes first when there is no more room (the clock
//! algorithm): nothing has to be moved when a file is asked for. nginx: `open_file_cache`.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ahash::RandomState;
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::{Mutex, RwLock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resource::{Open, Version};
use crate::value::{Size, Span};

const SHARDS: usize = 16;
/// What a file costs beside its content, about: its name, the header of its answers, places in maps.
const OVERHEAD: u64 = 1024;
/// How long a file is kept open that nobody asks for (nginx: `inactive`): deleted, it would take room on the disk.
const IDLE: Duration = Duration::from_secs(60);

/// Which files are kept open, and how long what is known of them is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How many files are remembered at most. Small ones (64 KiB and less) are kept in memory, larger ones open; of these
    /// never more than a quarter of the file descriptors that the process may have. Default 10000. nginx:
    /// `open_file_cache max=`.
    #[serde(default = "default_max")]
    pub max: NonZeroU32,
    /// Memory for what is remembered. Default 64MiB.
    #[serde(default = "default_memory")]
    pub memory: Size,
    /// How long a path is not looked at again: a changed file is served at most this much later. Default 1s. nginx:
    /// `open_file_cache_valid`.
    #[serde(default = "default_valid")]
    pub valid: Span,
}

fn default_max() -> NonZeroU32 {
    const { NonZeroU32::new(10_000).unwrap() }
}

fn default_memory() -> Size {
    Size::new(64 << 20)
}

fn default_valid() -> Span {
    Span::new(Duration::from_secs(1))
}

impl Default for Config {
    fn default() -> Config {
        Config {
            max: default_max(),
            memory: default_memory(),
            valid: default_valid(),
        }
    }
}

/// How well the open files of a folder do.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OpenFiles {
    /// Files that are known.
    pub files: u64,
    /// Those of them that are kept open.
    pub open: u64,
    /// Bytes of memory, about.
    pub memory: u64,
    /// Look-ups that asked the file system nothing.
    pub hits: u64,
    /// All others.
    pub misses: u64,
}

/// See the module's description.
#[derive(Debug)]
pub struct Cache {
    max: Load,
    /// In milliseconds.
    valid: u64,
    /// What times are counted from.
    born: Instant,
    hasher: RandomState,
    shards: [Shard; SHARDS],
    held: Mutex<Held>,
}

/// A part of the files, alone on its lines of the processor's cache.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    files: RwLock<HashMap<Arc<str>, Entry, RandomState>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    file: Arc<Open>,
    /// When it was last seen to be the one at its path, in milliseconds.
    checked: AtomicU64,
    /// Whether it was asked for since the hand of the clock went by.
    used: AtomicBool,
}

/// All that is in the shards. Its lock is taken before that of a shard.
#[derive(Debug, Default)]
struct Held {
    /// In the order in which the hand of the clock comes by; each file once.
    order: VecDeque<Arc<str>>,
    load: Load,
}

/// How much there is, or may be.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    files: u64,
    open: u64,
    memory: u64,
}

impl Cache {
    pub fn new(config: &Config, born: Instant) -> Cache {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE);
        Cache {
            max: Load {
                files: config.max.get().into(),
                open: descriptors.map_or(u64::MAX, |(soft, _)| soft / 4),
                memory: config.memory.get(),
            },
            valid: millis(config.valid.get()),
            born,
            hasher: RandomState::new(),
            shards: Default::default(),
            held: Mutex::default(),
        }
    }

    /// The file at `relative`, if what is known of it is believed at `now`.
    pub fn fresh(&self, relative: &str, now: Instant) -> Option<Arc<Open>> {
        let shard = self.shard(relative);
        let file = shard.fresh(relative, self.time(now), self.valid);
        // Its length is about to be promised: what was written to it since it was opened has another.
        let file = file.filter(|file| file.is_unchanged());
        let count = match file {
            Some(_) => &shard.hits,
            None => &shard.misses,
        };
        count.fetch_add(1, Ordering::Relaxed);
        file
    }

    /// The file that is known at `relative`, if it is this version that stands there at `now`.
    pub fn confirm(&self, relative: &str, version: &Version, now: Instant) -> Option<Arc<Open>> {
        let now = self.time(now);
        self.tidy(now);
        let files = self.shard(relative).files.read();
        let entry = files.get(relative)?;
        if entry.file.version() != version {
            return None;
        }
        entry.checked.fetch_max(now, Ordering::Relaxed);
        entry.used.store(true, Ordering::Relaxed);
        Some(entry.file.clone())
    }

    /// Remembers what stands at `relative` at `now`, in place of what is known.
    pub fn insert(&self, relative: &str, file: Arc<Open>, now: Instant) {
        let load = Load::of(relative, &file);
        if load.memory > self.max.memory || load.open > self.max.open {
            return self.remove(relative);
        }
        let key: Arc<str> = relative.into();
        let entry = Entry {
            file,
            checked: AtomicU64::new(self.time(now)),
            used: AtomicBool::new(false),
        };
        let mut held = self.held.lock();
        let before = self
            .shard(relative)
            .files
            .write()
            .insert(key.clone(), entry);
        match before {
            Some(before) => held.load.subtract(Load::of(relative, &before.file)),
            None => held.order.push_back(key),
        }
        held.load.add(load);
        while held.load.exceeds(&self.max) {
            self.advance(&mut held, |_| true);
        }
    }

    /// Forgets what was at `relative`.
    pub fn remove(&self, relative: &str) {
        if !self.shard(relative).files.read().contains_key(relative) {
            return;
        }
        let mut held = self.held.lock();
        let removed = self.shard(relative).files.write().remove(relative);
        if let Some(removed) = removed {
            held.load.subtract(Load::of(relative, &removed.file));
            // a file that is gone is rare
            held.order.retain(|key| **key != *relative);
        }
    }

    pub fn status(&self) -> OpenFiles {
        let load = self.held.lock().load;
        let count = |of: fn(&Shard) -> &AtomicU64| {
            let counts = self.shards.iter().map(of);
            counts.map(|count| count.load(Ordering::Relaxed)).sum()
        };
        OpenFiles {
            files: load.files,
            open: load.open,
            memory: load.memory,
            hits: count(|shard| &shard.hits),
            misses: count(|shard| &shard.misses),
        }
    }

    /// Lets go of a file that nobody asks for. Called when one is looked up, so that this keeps pace.
    fn tidy(&self, now: u64) {
        // whoever has the lock does the same
        if let Some(mut held) = self.held.try_lock() {
            self.advance(&mut held, |entry| entry.age(now) > millis(IDLE));
        }
    }

    /// Moves the hand of the clock by one: what was used stays and goes to the end; of what was not, that `may_go`.
    fn advance(&self, held: &mut Held, may_go: impl FnOnce(&Entry) -> bool) {
        let Held { order, load } = held;
        let Some(key) = order.front() else {
            return;
        };
        let mut files = self.shard(key).files.write();
        match files.get(key) {
            Some(entry) if entry.used.swap(false, Ordering::Relaxed) => order.rotate_left(1),
            Some(entry) if may_go(entry) => {
                load.subtract(Load::of(key, &entry.file));
                files.remove(key);
                order.pop_front();
            }
            _ => {}
        }
    }

    fn shard(&self, relative: &str) -> &Shard {
        let hash = self.hasher.hash_one(relative);
        &self.shards[hash as usize % SHARDS]
    }

    fn time(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.born))
    }
}

impl Shard {
    fn fresh(&self, relative: &str, now: u64, valid: u64) -> Option<Arc<Open>> {
        let files = self.files.read();
        let entry = files.get(relative).filter(|entry| entry.age(now) < valid)?;
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(entry.file.clone())
    }
}

impl Entry {
    fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.checked.load(Ordering::Relaxed))
    }
}

impl Load {
    fn of(relative: &str, file: &Open) -> Load {
        Load {
            files: 1,
            open: file.is_kept_open().into(),
            memory: OVERHEAD + relative.len() as u64 + file.memory(),
        }
    }

    fn add(&mut self, other: Load) {
        self.files += other.files;
        self.open += other.open;
        self.memory += other.memory;
    }

    fn subtract(&mut self, other: Load) {
        self.files -= other.files;
        self.open -= other.open;
        self.memory -= other.memory;
    }

    fn exceeds(&self, max: &Load) -> bool {
        self.files > max.files || self.open > max.open || self.memory > max.memory
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
