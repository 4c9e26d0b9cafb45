//! `file` of a redirect: a line for each path that is elsewhere now.
//!
//! ```text
//! # what was where
//! /old            /new
//! /shop/*         https://shop.example/*     308
//! /caf%C3%A9.html /coffee
//! ```
//!
//! Words between blanks: a path, where it is, and perhaps a status. A `*` at the end of the path takes all that is below, and
//! one at the end of the place stands for that. Paths are compared decoded and normalised, the exact one first, then the longest
//! with a `*`; both by hash, so that a hundred thousand lines cost what ten do. The query of the request goes along, unless the
//! place has one (as with nginx's `rewrite`). Nothing in it is a variable. It is much like the `_redirects` of hosts of static
//! sites, and the text maps of Apache's `RewriteMap`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ahash::RandomState;
use http::StatusCode;

use super::{STATUSES, redirecting};
use crate::build::Build;
use crate::http::path;
use crate::issue::{At, Place, Spot};

/// How many mistakes in one file are told.
const MISTAKES: usize = 20;

#[derive(Debug, Default)]
pub struct Table {
    exact: HashMap<Box<str>, Entry, RandomState>,
    /// By what stands before the `*`, which ends with a slash.
    below: HashMap<Box<str>, Entry, RandomState>,
}

#[derive(Debug)]
struct Entry {
    to: Box<str>,
    /// Whether what the `*` stands for goes at the end.
    open: bool,
    status: StatusCode,
    line: u32,
}

/// An entry, and what its `*` stands for.
#[derive(Debug)]
pub struct Found<'a> {
    entry: &'a Entry,
    rest: &'a str,
}

/// What is wrong with a line: the word, and how.
struct Mistake<'a> {
    word: &'a str,
    message: String,
    hint: &'static str,
}

impl Table {
    /// The table in a file; `status` is for lines that have none. `None` with mistakes.
    pub fn read(file: &Path, status: StatusCode, at: &At<'_>, b: &mut Build<'_>) -> Option<Table> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                let error = error.to_string().to_lowercase();
                b.error(at, format!("cannot read `{}`: {error}", file.display()));
                return None;
            }
        };
        let mut table = Table::default();
        let mut mistakes = 0;
        for (number, line) in (1..).zip(text.lines()) {
            let Err(mistake) = table.add(line, number, status) else {
                continue;
            };
            mistakes += 1;
            if mistakes > MISTAKES {
                continue;
            }
            let before = line.len() - line.trim_start().len();
            let offset = line.find(mistake.word).unwrap_or(before);
            let spot = Spot {
                line: number as usize,
                column: 1 + line[..offset].chars().count(),
                length: mistake.word.chars().count().max(1),
            };
            let issue = b.error(at, mistake.message).place(Place {
                file: file.to_owned(),
                spot: Some(spot),
                source: line.to_owned(),
            });
            if !mistake.hint.is_empty() {
                issue.hint(mistake.hint);
            }
        }
        if mistakes > MISTAKES {
            let shown = file.display();
            b.error(
                at,
                format!("`{shown}` has {mistakes} mistakes, of which {MISTAKES} are shown"),
            );
        }
        if table.len() == 0 && mistakes == 0 {
            b.warn(at, format!("`{}` holds no redirect", file.display()));
        }
        (mistakes == 0).then_some(table)
    }

    fn add<'l>(
        &mut self,
        line: &'l str,
        number: u32,
        status: StatusCode,
    ) -> Result<(), Mistake<'l>> {
        let mut words = line.split_whitespace();
        let Some(from) = words.next().filter(|word| !word.starts_with('#')) else {
            return Ok(());
        };
        let refuse = |word, message: String, hint| {
            Err(Mistake {
                word,
                message,
                hint,
            })
        };
        let Some(to) = words.next() else {
            return refuse(
                from,
                format!("`{from}` leads nowhere"),
                "a line is `/from /to`, and perhaps a status",
            );
        };
        let status = match words.next() {
            None => status,
            Some(word) => match word.parse().ok().and_then(redirecting) {
                Some(status) => status,
                None => return refuse(word, format!("`{word}` does not redirect"), STATUSES),
            },
        };
        if let Some(word) = words.next() {
            return refuse(
                word,
                format!("`{word}` is one word too many"),
                "blanks in a path are written `%20`",
            );
        }
        let (path, is_open) = match from.strip_suffix('*') {
            Some(path) if path.ends_with('/') => (path, true),
            Some(_) => {
                return refuse(
                    from,
                    format!("`{from}` has its `*` not behind a slash"),
                    "`/old/*` takes all below `/old/`",
                );
            }
            None => (from, false),
        };
        if path.contains('?') {
            return refuse(
                from,
                format!("`{from}` has a query"),
                "a path ends before the query, which is not compared",
            );
        }
        let path = match path::normalise(path) {
            Ok(path) if from.starts_with('/') && !path.contains('*') => path,
            Ok(_) => {
                return refuse(
                    from,
                    format!("`{from}` is not a path"),
                    "a path begins with `/`, and has a `*` only at its end",
                );
            }
            Err(error) => return refuse(from, format!("`{from}` is not a path: {error}"), ""),
        };
        if !to.starts_with('/') && !to.contains("://") {
            return refuse(
                to,
                format!("`{to}` is neither a URL nor a path"),
                "begin it with `https://` or `/`",
            );
        }
        let open = to.strip_suffix('*');
        if open.is_some() && !is_open {
            return refuse(
                to,
                format!("the `*` of `{to}` stands for nothing"),
                "the path has none",
            );
        }
        let entry = Entry {
            to: open.unwrap_or(to).into(),
            open: open.is_some(),
            status,
            line: number,
        };
        let entries = match is_open {
            true => &mut self.below,
            false => &mut self.exact,
        };
        if let Some(first) = entries.get(&*path) {
            let message = format!("`{from}` is given twice, first in line {}", first.line);
            return refuse(from, message, "");
        }
        entries.insert(path.into(), entry);
        Ok(())
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.exact.len() + self.below.len()
    }

    /// Where a path, decoded and normalised, is now.
    pub fn find<'a>(&'a self, path: &'a str) -> Option<Found<'a>> {
        if let Some(entry) = self.exact.get(path) {
            return Some(Found { entry, rest: "" });
        }
        if self.below.is_empty() {
            return None;
        }
        let mut slashes = memchr::memrchr_iter(b'/', path.as_bytes());
        slashes.find_map(|slash| {
            let (before, rest) = path.split_at(slash + 1);
            let entry = self.below.get(before)?;
            Some(Found { entry, rest })
        })
    }
}

impl Found<'_> {
    pub fn status(&self) -> StatusCode {
        self.entry.status
    }

    /// The new place of a request with this query.
    pub fn to(&self, query: Option<&str>) -> String {
        let mut to = self.entry.to.to_string();
        if self.entry.open {
            to.extend(path::encode(self.rest));
        }
        let Some(query) = query.filter(|query| !query.is_empty() && !to.contains('?')) else {
            return to;
        };
        let fragment = to.find('#').map(|at| to.split_off(at));
        to.push('?');
        to.push_str(query);
        to.push_str(&fragment.unwrap_or_default());
        to
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(text: &str) -> Table {
        let mut table = Table::default();
        for (number, line) in (1..).zip(text.lines()) {
            let added = table.add(line, number, StatusCode::FOUND);
            assert!(added.is_ok(), "{line}");
        }
        table
    }

    fn message(text: &str) -> String {
        let mut table = Table::default();
        let mut added = (1..)
            .zip(text.lines())
            .map(|(number, line)| table.add(line, number, StatusCode::FOUND));
        let mistake = added.find_map(Result::err).expect("a mistake");
        mistake.message
    }

    #[test]
    fn a_line_is_a_path_a_place_and_perhaps_a_status() {
        let table = table(
            "# comment\n\n/a /b\n  /c%20d\thttps://x.example/?y=1 308 \n/e /f#g\n/s/* /t/*\n/s/deep/* /u\n/s/x /exact",
        );
        assert_eq!(table.len(), 6);
        for (path, query, expected) in [
            ("/a", None, Some((302, "/b"))),
            ("/a", Some("q=1"), Some((302, "/b?q=1"))),
            ("/a/", None, None),
            ("/c d", Some("q=1"), Some((308, "https://x.example/?y=1"))),
            ("/e", Some("q=1"), Some((302, "/f?q=1#g"))),
            ("/s/", None, Some((302, "/t/"))),
            ("/s/y/z?#", Some("a"), Some((302, "/t/y/z%3F%23?a"))),
            ("/s/deep/y", None, Some((302, "/u"))),
            ("/s/x", None, Some((302, "/exact"))),
            ("/s", None, None),
            ("/sx", None, None),
            ("/", None, None),
            ("*", None, None),
        ] {
            let found = table
                .find(path)
                .map(|found| (found.status().as_u16(), found.to(query)));
            let found = found.as_ref().map(|(status, to)| (*status, to.as_str()));
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (text, expected) in [
            ("/a", "`/a` leads nowhere"),
            ("/a /b 200", "`200` does not redirect"),
            ("/a /b 301 x", "`x` is one word too many"),
            (
                "a /b",
                "`a` is not a path: the path does not begin with a slash",
            ),
            ("/a*b /b", "`/a*b` is not a path"),
            ("/a* /b", "`/a*` has its `*` not behind a slash"),
            ("/a?b /b", "`/a?b` has a query"),
            (
                "/../a /b",
                "`/../a` is not a path: the path leaves the root",
            ),
            ("/a b", "`b` is neither a URL nor a path"),
            ("/a /b/*", "the `*` of `/b/*` stands for nothing"),
            ("/a /b\n/%61 /c", "`/%61` is given twice, first in line 1"),
        ] {
            assert_eq!(message(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_taken_or_refused(line in "[/a*?# %é:]{0,16}", path in "/[/a*é]{0,8}") {
            let mut table = Table::default();
            let _ = table.add(&line, 1, StatusCode::FOUND);
            if let Some(found) = table.find(&path) {
                found.to(Some("q"));
            }
        }
    }
}
