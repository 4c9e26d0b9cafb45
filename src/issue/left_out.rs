//! What of a document was not read, because it is wrong.
//!
//! After mistakes in single values the rest is read and compiled all the same, so that one run tells them all. What is
//! compiled then lacks something, and three things must be known about that: which path in the document an issue means,
//! since the items behind one that is left out have moved up; whether the issue is only a consequence; and whether a name
//! that nothing has might be one that was left out.

use std::collections::BTreeSet;

use super::{KeyPath, Step};

/// The paths of what was left out; the root when a file could not be read, since that may have held anything.
#[derive(Debug, Default)]
pub struct LeftOut(BTreeSet<KeyPath>);

impl LeftOut {
    pub fn insert(&mut self, path: KeyPath) {
        self.0.insert(path);
    }

    pub fn extend(&mut self, paths: impl IntoIterator<Item = KeyPath>) {
        self.0.extend(paths);
    }

    pub fn contains(&self, path: &KeyPath) -> bool {
        self.0.contains(path)
    }

    /// Whether what is, or should be, at `path` was read with all that it holds.
    pub fn is_whole(&self, path: &KeyPath) -> bool {
        !self
            .0
            .iter()
            .any(|gone| gone.0.starts_with(&path.0) || path.0.starts_with(&gone.0))
    }

    /// The entries of a top-level map that were left out.
    pub fn names_in(&self, section: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(move |gone| match &*gone.0 {
            [Step::Key(of), Step::Key(name)] if of == section => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether an issue at `path` is a consequence: nobody can judge a value that was left out, nor a map or a list that
    /// lacks one of its entries.
    pub(super) fn explains(&self, path: &KeyPath) -> bool {
        self.contains(path)
            || self
                .0
                .iter()
                .any(|gone| gone.0.split_last().is_some_and(|(_, of)| of == path.0))
    }

    /// The path in the document of what is at `path` in what was read.
    pub(super) fn written(&self, path: &KeyPath) -> KeyPath {
        let mut written = KeyPath::default();
        for step in &path.0 {
            let step = match step {
                Step::Index(index) => Step::Index(self.written_index(&written, *index)),
                key => key.clone(),
            };
            written.0.push(step);
        }
        written
    }

    fn written_index(&self, list: &KeyPath, mut index: usize) -> usize {
        let gone = self.0.iter().filter_map(|gone| match gone.0.split_last()? {
            (Step::Index(index), of) if of == list.0 => Some(*index),
            _ => None,
        });
        // they come in their order
        for gone in gone {
            index += usize::from(gone <= index);
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> KeyPath {
        let step = |text: &str| match text.parse() {
            Ok(index) => Step::Index(index),
            Err(_) => Step::Key(text.to_owned()),
        };
        KeyPath(text.split_terminator('/').map(step).collect())
    }

    fn left_out(paths: &[&str]) -> LeftOut {
        LeftOut(paths.iter().map(|text| path(text)).collect())
    }

    #[test]
    fn indices_count_what_was_left_out() {
        let gone = left_out(&["a/0", "a/2", "a/3/b/1", "c/0"]);
        for (read, written) in [
            ("a/0", "a/1"),
            ("a/1", "a/3"),
            ("a/1/b/0", "a/3/b/0"),
            ("a/1/b/1", "a/3/b/2"),
            ("a/2", "a/4"),
            ("b/0", "b/0"),
        ] {
            assert_eq!(gone.written(&path(read)), path(written), "{read}");
        }
    }

    #[test]
    fn verdicts_on_what_lacks_an_entry_are_consequences() {
        let gone = left_out(&["sites/a/hosts", "sites/a/routes/0/match/path"]);
        for explained in ["sites/a", "sites/a/hosts", "sites/a/routes/0/match"] {
            assert!(gone.explains(&path(explained)), "{explained}");
        }
        for own in ["", "sites", "sites/a/routes", "sites/a/routes/0", "sites/b"] {
            assert!(!gone.explains(&path(own)), "{own}");
        }
    }

    #[test]
    fn whole_is_what_lacks_nothing_above_or_below() {
        let gone = left_out(&["pools/a", "sites/a/hosts"]);
        for whole in ["pools/b", "sites/b", "listeners", "sites/a/routes"] {
            assert!(gone.is_whole(&path(whole)), "{whole}");
        }
        for lacking in [
            "",
            "pools",
            "pools/a",
            "pools/a/backends",
            "sites",
            "sites/a",
        ] {
            assert!(!gone.is_whole(&path(lacking)), "{lacking}");
        }
        assert!(!left_out(&[""]).is_whole(&path("listeners")));
        assert_eq!(gone.names_in("pools").collect::<Vec<_>>(), ["a"]);
        assert_eq!(gone.names_in("sites").count(), 0);
    }
}
