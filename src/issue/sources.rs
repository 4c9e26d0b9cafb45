//! The files that a document was read from.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::places::Places;
use super::{At, Issue, KeyPath, LeftOut, Place, Spot, Step};

/// The files that a document was read from, where each key stands in them, and what of them was left out.
///
/// Which file holds a key is known at once; where in the file is found out when the first issue asks for it.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<File>,
    /// The top-level keys that stand in an included file, or of which entries do.
    sections: HashMap<String, Section>,
    filled: HashMap<KeyPath, Filled>,
    left_out: LeftOut,
    /// What else was read for it, noted by whoever reads.
    dependencies: Mutex<BTreeSet<Dependency>>,
}

/// Something outside the document that decides what the document means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependency {
    /// What is in a file: one that is included, a list of passwords.
    File(PathBuf),
    /// The same of a file that, once the document is in use, is taken anew by itself when it changes: a certificate.
    Renewed(PathBuf),
    /// Which files there are: those that `pattern` means in `folder`.
    Pattern { folder: PathBuf, pattern: String },
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    text: String,
    places: OnceLock<Places>,
}

#[derive(Debug, Default)]
struct Section {
    file: usize,
    /// Entries that stand in another file than the section.
    entries: HashMap<String, usize>,
}

/// Text that does not stand in the document but was put there while loading.
#[derive(Debug)]
struct Filled {
    text: String,
    /// What stands in the document: `${env:TOKEN}`.
    written: String,
}

impl Sources {
    /// The file that holds the key at `path` (paths in a file are relative to that file).
    pub fn file(&self, path: &KeyPath) -> &Path {
        match self.files.get(self.index(path)) {
            Some(file) => &file.path,
            None => Path::new(""),
        }
    }

    /// A path written at `at`, relative to the file that holds it.
    pub fn path(&self, at: &At<'_>, written: &Path) -> PathBuf {
        let file = self.file(&at.to_path());
        file.parent().unwrap_or(Path::new("")).join(written)
    }

    /// The same of a file that decides what the document means, which is noted.
    pub fn input(&self, at: &At<'_>, written: &Path) -> PathBuf {
        let path = self.path(at, written);
        self.depends_on(Dependency::File(path.clone()));
        path
    }

    /// The same of a file that is taken anew by itself, once the document is in use.
    pub fn renewed(&self, at: &At<'_>, written: &Path) -> PathBuf {
        let path = self.path(at, written);
        self.depends_on(Dependency::Renewed(path.clone()));
        path
    }

    /// All files, in the order in which they were read; the first is the one that was asked for.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Notes that the document, or what is made of it, depends on this: when it changes, all is to be loaded anew.
    pub fn depends_on(&self, dependency: Dependency) {
        self.dependencies.lock().insert(dependency);
    }

    /// All that decides whether the document is to be loaded anew, its own files included. What is taken anew by itself
    /// does not, once it `is_in_use`; before that, it may be what keeps it from being so.
    pub fn into_dependencies(self, is_in_use: bool) -> BTreeSet<Dependency> {
        let mut dependencies = self.dependencies.into_inner();
        dependencies.retain(|one| !is_in_use || !matches!(one, Dependency::Renewed(_)));
        dependencies
    }

    /// Adds a file; the result is its number.
    pub fn add(&mut self, path: PathBuf, text: String) -> usize {
        self.depends_on(Dependency::File(path.clone()));
        self.files.push(File {
            path,
            text,
            places: OnceLock::new(),
        });
        self.files.len() - 1
    }

    /// Notes that the top-level key `section` stands in `file`.
    pub fn section_from(&mut self, section: &str, file: usize) {
        if file != 0 {
            self.sections.entry(section.to_owned()).or_default().file = file;
        }
    }

    /// Notes that the entry `name` of a section that began in another file stands in `file`.
    pub fn entry_from(&mut self, section: &str, name: &str, file: usize) {
        let section = self.sections.entry(section.to_owned()).or_default();
        section.entries.insert(name.to_owned(), file);
    }

    /// Notes that the value at `path` was filled in, and what is `written` there.
    pub fn filled(&mut self, path: KeyPath, text: String, written: String) {
        self.filled.insert(path, Filled { text, written });
    }

    /// Notes what was left out: from now on, the paths of issues are those in what was read.
    pub fn leave_out(&mut self, left_out: LeftOut) {
        self.left_out = left_out;
    }

    /// What was left out, because it is wrong and reported.
    pub fn left_out(&self) -> &LeftOut {
        &self.left_out
    }

    /// The place of the file as a whole.
    pub fn whole(&self, file: usize) -> Option<Place> {
        let file = self.files.get(file)?;
        Some(Place {
            file: file.path.clone(),
            spot: None,
            source: String::new(),
        })
    }

    /// The place of a character of a file; `line` and `column` from 1.
    pub fn spot(&self, file: usize, line: usize, column: usize) -> Option<Place> {
        let length = 1;
        Some(self.files.get(file)?.place(Spot {
            line,
            column,
            length,
        }))
    }

    /// Gives an issue that is known to stand in `file` its place there.
    pub fn locate_in(&self, file: usize, issue: &mut Issue) {
        let Some(file) = self.files.get(file) else {
            return;
        };
        match file.places().find(&issue.path, issue.on_key) {
            Some(found) => {
                issue.path = found.written;
                issue.place = Some(file.place(found.spot));
            }
            None => {
                issue.place = Some(file.place(Spot {
                    line: 1,
                    column: 1,
                    length: 0,
                }))
            }
        }
    }

    /// Where the key at `path` is given for the last time in `file`, for keys that are given twice.
    pub fn last_given(&self, file: usize, path: &KeyPath) -> Option<Place> {
        let file = self.files.get(file)?;
        let found = file.places().find_again(path)?;
        Some(file.place(found.spot))
    }

    /// `FILE:LINE:COL` of the key at `path`, for a hint.
    pub fn given_at(&self, path: &KeyPath) -> String {
        let Some(file) = self.files.get(self.index(path)) else {
            return String::new();
        };
        match file.places().find(path, true) {
            Some(found) => format!(
                "{}:{}:{}",
                file.path.display(),
                found.spot.line,
                found.spot.column
            ),
            None => file.path.display().to_string(),
        }
    }

    /// Gives an issue its place, unless it has one, and takes filled-in text out of its message. False if it only
    /// follows from what was left out.
    pub(super) fn locate(&self, issue: &mut Issue) -> bool {
        let found_later = issue.place.is_none();
        if found_later {
            issue.path = self.left_out.written(&issue.path);
            self.locate_in(self.index(&issue.path), issue);
        }
        // after that, because only now the path is the one that is written
        if let Some(filled) = self.filled.get(&issue.path) {
            issue.message = filled.hidden(&issue.message);
            issue.hint = issue.hint.as_deref().map(|hint| filled.hidden(hint));
        }
        !(found_later && self.left_out.explains(&issue.path))
    }

    /// Where in the order of files `path` comes.
    pub(super) fn position(&self, path: &Path) -> usize {
        let position = self.files.iter().position(|file| file.path == path);
        position.unwrap_or(self.files.len())
    }

    fn index(&self, path: &KeyPath) -> usize {
        let mut steps = path.0.iter();
        let Some(section) = steps
            .next()
            .and_then(|step| self.sections.get(step.name()?))
        else {
            return 0;
        };
        let entry = steps
            .next()
            .and_then(|step| section.entries.get(step.name()?));
        entry.copied().unwrap_or(section.file)
    }
}

impl Step {
    fn name(&self) -> Option<&str> {
        match self {
            Step::Key(name) => Some(name),
            Step::Index(_) => None,
        }
    }
}

impl File {
    fn places(&self) -> &Places {
        self.places.get_or_init(|| Places::of(&self.text))
    }

    fn place(&self, mut spot: Spot) -> Place {
        let source = self
            .text
            .lines()
            .nth(spot.line.saturating_sub(1))
            .unwrap_or("");
        let marked: String = source
            .chars()
            .skip(spot.column - 1)
            .take(spot.length)
            .collect();
        spot.length = marked_length(&marked).max(1);
        Place {
            file: self.path.clone(),
            spot: Some(spot),
            source: source.to_owned(),
        }
    }
}

/// How much of the text from a mark on is the value: not what follows the closing quote, nor space at the end.
fn marked_length(text: &str) -> usize {
    let mut chars = text.chars();
    let quote = match chars.next() {
        Some(quote @ ('"' | '\'')) => quote,
        _ => return text.trim_end().chars().count(),
    };
    let mut length = 1;
    while let Some(c) = chars.next() {
        length += 1;
        match c {
            '\\' if quote == '"' => length += chars.next().map_or(0, |_| 1),
            // two single quotes are one in the text
            '\'' if quote == '\'' && chars.as_str().starts_with('\'') => {
                length += chars.next().map_or(0, |_| 1)
            }
            c if c == quote => return length,
            _ => {}
        }
    }
    length
}

impl Filled {
    fn hidden(&self, message: &str) -> String {
        let quoted = message.replace(&format!("`{}`", self.text), &format!("`{}`", self.written));
        // A short text is no secret, and might well stand in the message by itself.
        match self.text.len() < SECRET {
            true => quoted,
            false => quoted.replace(&self.text, &self.written),
        }
    }
}

/// Bytes from which on a text is looked for everywhere in a message, not only in backticks.
const SECRET: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_ends_with_the_value() {
        assert_eq!(marked_length("plain  "), 5);
        assert_eq!(marked_length("'it''s'  # 'x'"), 7);
        assert_eq!(marked_length(r#""a \" b" # "x""#), 8);
        assert_eq!(marked_length("\"open"), 5);
        assert_eq!(marked_length(""), 0);
    }

    #[test]
    fn short_texts_are_hidden_only_where_they_are_the_value() {
        let filled = |text: &str| Filled {
            text: text.to_owned(),
            written: "${env:X}".to_owned(),
        };
        assert_eq!(
            filled("5").hidden("expected `5s`, found `5`"),
            "expected `5s`, found `${env:X}`"
        );
        assert_eq!(filled("hunter2").hidden("bad: hunter2"), "bad: ${env:X}");
        assert_eq!(filled("").hidden("found ``"), "found `${env:X}`");
    }
}
