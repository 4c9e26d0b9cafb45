//! What is wrong with a configuration, and where.
//!
//! Every mistake becomes one [`Issue`]; a load collects all of them. While compiling, a place in the document is
//! an [`At`]: a chain of keys on the stack that costs nothing until something is wrong. [`Sources`] turns it into
//! file, line and column.

use std::fmt;
use std::path::{Path, PathBuf};

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// An owned place in the document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyPath(pub Vec<Step>);

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if i == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
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
}

/// File, line and column (both from 1) of an issue, with the source line and how many characters to underline.
#[derive(Clone, Debug)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
    pub source: String,
    pub length: usize,
}

/// All mistakes of one load, in document order once located.
#[derive(Debug, Default)]
pub struct Issues(pub Vec<Issue>);

impl Issues {
    pub fn error(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut Issue {
        self.push(Severity::Error, at, message.into())
    }

    pub fn warn(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut Issue {
        self.push(Severity::Warning, at, message.into())
    }

    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|issue| issue.severity == Severity::Error)
    }

    fn push(&mut self, severity: Severity, at: &At<'_>, message: String) -> &mut Issue {
        self.0.push(Issue {
            severity,
            path: at.to_path(),
            message,
            hint: None,
            on_key: false,
            place: None,
        });
        self.0.last_mut().expect("just pushed")
    }
}

/// The files that a document was read from, and where each key stands in them.
#[derive(Debug, Default)]
pub struct Sources {
    main: PathBuf,
}

impl Sources {
    /// The file that holds the key at `path` (paths in a file are relative to that file).
    pub fn file(&self, _path: &KeyPath) -> &Path {
        &self.main
    }
}
