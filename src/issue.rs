//! What is wrong with a configuration, and where.
//!
//! Every mistake becomes one [`Issue`]; a load collects all of them. While compiling, a place in the document is
//! an [`At`]: a chain of keys on the stack that costs nothing until something is wrong. [`Sources`] turns it into
//! file, line and column, and `report` into what is printed. This happens before any request, and again at each reload.

mod left_out;
pub mod places;
mod report;
mod sources;

use std::fmt;
use std::path::PathBuf;

pub use left_out::LeftOut;
pub use sources::{Dependency, Sources};

/// A place in the document, as a chain of borrowed keys and indices: `sites.shop.routes[1].proxy`.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    Root,
    Key(&'a At<'a>, &'a str),
    Index(&'a At<'a>, usize),
}

impl<'a> At<'a> {
    pub fn key(&'a self, key: &'a str) -> At<'a> {
        At::Key(self, key)
    }

    pub fn index(&'a self, index: usize) -> At<'a> {
        At::Index(self, index)
    }

    pub fn to_path(&self) -> KeyPath {
        let mut path = match self {
            At::Root => return KeyPath::default(),
            At::Key(parent, _) | At::Index(parent, _) => parent.to_path(),
        };
        path.0.push(match self {
            At::Root => unreachable!("returned above"),
            At::Key(_, key) => Step::Key((*key).to_owned()),
            At::Index(_, index) => Step::Index(*index),
        });
        path
    }
}

/// One step from a map or a sequence to what it holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// An owned place in the document.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPath(pub Vec<Step>);

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) => {
                    if i > 0 {
                        f.write_str(".")?;
                    }
                    // A host or a header name as a key would otherwise blur where it begins and ends.
                    match key.is_empty() || key.contains(['.', ' ', '[']) {
                        true => write!(f, "{key:?}")?,
                        false => f.write_str(key)?,
                    }
                }
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, but is hardly what was meant.
    Warning,
}

/// One mistake. `message` is lower case without a full stop, offending values in backticks; `hint` is a way out.
#[derive(Clone, Debug)]
pub struct Issue {
    pub severity: Severity,
    pub path: KeyPath,
    pub message: String,
    pub hint: Option<String>,
    /// Point at the key itself rather than at its value (unknown key, duplicate key).
    pub on_key: bool,
    pub place: Option<Place>,
}

impl Issue {
    pub fn hint(&mut self, hint: impl Into<String>) -> &mut Issue {
        self.hint = Some(hint.into());
        self
    }

    pub fn on_key(&mut self) -> &mut Issue {
        self.on_key = true;
        self
    }

    /// For what is not at a key: a file that cannot be read, or is not YAML.
    pub fn place(&mut self, place: Place) -> &mut Issue {
        self.place = Some(place);
        self
    }
}

/// Where an issue stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    /// `None`: the file as a whole.
    pub spot: Option<Spot>,
    /// The source line.
    pub source: String,
}

/// Line and column, both from 1 and in characters, and how many characters to underline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    pub line: usize,
    pub column: usize,
    pub length: usize,
}

/// All mistakes of one load, in document order once located.
#[derive(Debug, Default)]
pub struct Issues(pub Vec<Issue>);

impl Issues {
    pub fn error(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut Issue {
        self.push(Severity::Error, at.to_path(), message.into())
    }

    pub fn warn(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut Issue {
        self.push(Severity::Warning, at.to_path(), message.into())
    }

    /// As [`Issues::error`], for who has a path and no [`At`].
    pub fn error_at(&mut self, path: KeyPath, message: impl Into<String>) -> &mut Issue {
        self.push(Severity::Error, path, message.into())
    }

    /// How many errors there are.
    pub fn errors(&self) -> usize {
        self.0
            .iter()
            .filter(|issue| issue.severity == Severity::Error)
            .count()
    }

    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|issue| issue.severity == Severity::Error)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn append(&mut self, mut more: Issues) {
        self.0.append(&mut more.0);
    }

    /// Forgets the warnings: beside an error they may only follow from it, as a pool seems unused whose name is
    /// misspelt in a route.
    pub fn only_errors(&mut self) {
        self.0.retain(|issue| issue.severity == Severity::Error);
    }

    /// Gives each issue its place in the files and sorts all into document order. Text that was filled in from the
    /// environment or from a file, which may be a secret, is replaced in the messages by what is written there. Issues
    /// that only follow from what was left out are dropped; those that have a place already stay as they are.
    pub fn locate(&mut self, sources: &Sources) {
        self.0.retain_mut(|issue| sources.locate(issue));
        // The sort is stable: several issues at one place stay in the order in which they were found. What has no place
        // comes last.
        self.0.sort_by_cached_key(|issue| match &issue.place {
            Some(place) => (sources.position(&place.file), place.spot),
            None => (usize::MAX, None),
        });
    }

    fn push(&mut self, severity: Severity, path: KeyPath, message: String) -> &mut Issue {
        self.0.push(Issue {
            severity,
            path,
            message,
            hint: None,
            on_key: false,
            place: None,
        });
        self.0.last_mut().expect("just pushed")
    }
}
