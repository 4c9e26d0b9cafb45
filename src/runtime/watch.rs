//! Whether the files that a configuration was read from have changed.
//!
//! They are looked at, by stat(2), rather than watched by inotify(7): that follows inodes, while files of a configuration
//! are mostly replaced. Editors rename, Kubernetes and ACME clients swap a link somewhere in the path, network file
//! systems tell nothing at all; a look at the path sees all of it, and a second is soon enough.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::load;
use crate::issue::Dependency;

/// Files, as they were when they were last loaded and last looked at.
#[derive(Debug)]
pub struct Watch {
    loaded: View,
    looked: View,
}

/// All files at one time.
type View = BTreeMap<Dependency, Seen>;

/// What is seen of a file, or of a pattern, without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    File {
        device: u64,
        inode: u64,
        size: u64,
        /// In seconds and nanoseconds.
        modified: (i64, i64),
        /// Also by a change of its owner or permissions.
        changed: (i64, i64),
    },
    Matches(Vec<PathBuf>),
}

impl Watch {
    /// For files that were loaded just now.
    pub fn new(files: BTreeSet<Dependency>) -> Watch {
        let loaded = view(files.into_iter());
        Watch {
            looked: loaded.clone(),
            loaded,
        }
    }

    /// True when the files are not as they were loaded, and are as they were at the last look.
    pub(super) fn look(&mut self) -> bool {
        let now = self.view();
        let quiet = now == self.looked;
        self.looked = now;
        quiet && self.looked != self.loaded
    }

    /// The same files as they are now, as if they were loaded now.
    pub(super) fn now(&self) -> Watch {
        let now = self.view();
        Watch {
            looked: now.clone(),
            loaded: now,
        }
    }

    /// These files, which were read after this was made.
    pub(super) fn reading(self, files: BTreeSet<Dependency>) -> Watch {
        let mut next = Watch::new(files);
        for (file, seen) in &mut next.loaded {
            if let Some(before) = self.loaded.get(file) {
                seen.clone_from(before);
            }
        }
        next
    }

    fn view(&self) -> View {
        view(self.loaded.keys().cloned())
    }
}

fn view(files: impl Iterator<Item = Dependency>) -> View {
    files.map(|file| (file.clone(), Seen::of(&file))).collect()
}

impl Seen {
    fn of(dependency: &Dependency) -> Seen {
        match dependency {
            Dependency::File(path) | Dependency::Renewed(path) => Seen::file(path),
            Dependency::Pattern { folder, pattern } => {
                load::matching(folder, pattern).map_or(Seen::Nothing, Seen::Matches)
            }
        }
    }

    fn file(path: &Path) -> Seen {
        let Ok(metadata) = std::fs::metadata(path) else {
            return Seen::Nothing;
        };
        Seen::File {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let dir =
                std::env::temp_dir().join(format!("weir-watch-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }

        fn file(&self, name: &str) -> Dependency {
            Dependency::File(self.0.join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Whether a change is seen at the second look, and not again once it is loaded.
    #[track_caller]
    fn assert_seen(watch: &mut Watch, change: impl FnOnce()) {
        assert!(!watch.look() && !watch.look());
        change();
        assert!(!watch.look(), "it might go on");
        assert!(watch.look());
        *watch = watch.now().reading(watch.loaded.keys().cloned().collect());
        assert!(!watch.look() && !watch.look());
    }

    #[test]
    fn files_are_seen_however_they_change() {
        let scratch = Scratch::new("change");
        let path = |name: &str| scratch.0.join(name);
        fs::write(path("a"), "1").unwrap();
        for data in ["one", "two"] {
            fs::create_dir(path(data)).unwrap();
            fs::write(path(data).join("cert"), data).unwrap();
        }
        symlink("one", path("..data")).unwrap();
        let files = [
            scratch.file("a"),
            scratch.file("missing"),
            scratch.file("..data/cert"),
            Dependency::Pattern {
                folder: scratch.0.clone(),
                pattern: "*.yaml".to_owned(),
            },
        ];
        let mut watch = Watch::new(files.into());
        assert_seen(&mut watch, || fs::write(path("a"), "22").unwrap());
        assert_seen(&mut watch, || {
            fs::write(path("new"), "333").unwrap();
            fs::rename(path("new"), path("a")).unwrap();
        });
        assert_seen(&mut watch, || {
            symlink("two", path("next")).unwrap();
            fs::rename(path("next"), path("..data")).unwrap();
        });
        assert_seen(&mut watch, || fs::write(path("missing"), "").unwrap());
        assert_seen(&mut watch, || fs::remove_file(path("missing")).unwrap());
        assert_seen(&mut watch, || fs::write(path("more.yaml"), "").unwrap());
    }

    #[test]
    fn change_while_loading_is_not_missed() {
        let scratch = Scratch::new("meanwhile");
        fs::write(scratch.0.join("a"), "1").unwrap();
        let files: BTreeSet<_> = [scratch.file("a")].into();
        let watch = Watch::new(files.clone());
        let before = watch.now();
        fs::write(scratch.0.join("a"), "two").unwrap();
        let mut watch = before.reading(files);
        assert!(watch.look());
    }
}
