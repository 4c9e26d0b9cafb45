//! `try`: what to look for, in which order, when it is not simply the path of the request.

use std::borrow::Cow;

use http::StatusCode;

use crate::build::Build;
use crate::exchange::vars::{Piece, Stage, Text, View};
use crate::issue::At;

/// A compiled `try`.
#[derive(Debug)]
pub struct Tries {
    pub candidates: Vec<Candidate>,
    /// What answers when none of them exists.
    pub status: StatusCode,
    /// Whether the last is a path from the root of the site, for which other routes may have an answer. One that begins
    /// with a variable (`$uri/`) is the request's own path in another form, and this route is the one that has it.
    leads_on: bool,
}

#[derive(Debug)]
pub enum Candidate {
    File(Text),
    /// Written with a slash at its end, which is left out here.
    Folder(Text),
}

impl Tries {
    pub fn compile(written: &[String], at: &At<'_>, b: &mut Build<'_>) -> Option<Tries> {
        let (paths, status) = match written.split_last() {
            Some((last, paths)) if last.starts_with('=') => {
                (paths, status(&at.index(paths.len()), last, b))
            }
            _ => (written, Some(StatusCode::NOT_FOUND)),
        };
        let leads_on = written.last().is_some_and(|last| last.starts_with('/'));
        if paths.is_empty() {
            b.error(at, "needs a path to look for")
                .hint("a single-page application has `[\"$uri\", \"$uri/\", /index.html]`");
        }
        let candidates: Vec<_> = paths
            .iter()
            .enumerate()
            .map(|(i, path)| candidate(&at.index(i), path, b))
            .collect();
        Some(Tries {
            candidates: candidates.into_iter().collect::<Option<_>>()?,
            status: status?,
            leads_on,
        })
    }

    /// The path to ask other routes for when nothing exists.
    pub fn elsewhere(&self) -> Option<&Candidate> {
        self.candidates.last().filter(|_| self.leads_on)
    }
}

fn status(at: &At<'_>, written: &str, b: &mut Build<'_>) -> Option<StatusCode> {
    let status = StatusCode::from_bytes(&written.as_bytes()[1..]).ok();
    let status = status.filter(|status| status.is_client_error() || status.is_server_error());
    if status.is_none() {
        b.error(
            at,
            format!("expected a status of 400 to 599 such as `=404`, found `{written}`"),
        );
    }
    status
}

fn candidate(at: &At<'_>, written: &str, b: &mut Build<'_>) -> Option<Candidate> {
    if written.starts_with('=') {
        b.error(at, format!("`{written}` is not the last entry"))
            .hint("nothing behind a status is ever looked for");
        return None;
    }
    if !written.starts_with(['/', '$']) {
        b.error(at, format!("`{written}` is not a path"))
            .hint("a path begins with `/`, and is looked up below `root`");
        return None;
    }
    if written.contains('?') {
        b.error(at, format!("`{written}` has a query, but a file has none"))
            .hint("leave out what follows the `?`");
        return None;
    }
    let folder = written.strip_suffix('/');
    let text = folder.unwrap_or(written).trim_end_matches('/');
    let text = Text::compile_for(Stage::Request, at, text, b)?;
    Some(match folder {
        Some(_) => Candidate::Folder(text),
        None => Candidate::File(text),
    })
}

impl Candidate {
    /// The path, if it is the same for every request.
    pub fn fixed_path(&self) -> Option<String> {
        let (text, slash) = match self {
            Candidate::File(text) => (text, ""),
            Candidate::Folder(text) => (text, "/"),
        };
        match text.pieces() {
            [] => Some(slash.to_owned()),
            [Piece::Literal(path)] => Some(format!("{path}{slash}")),
            _ => None,
        }
    }

    /// The path to look for; that of a folder ends with a slash, that of a file never should.
    pub fn path<'a>(&'a self, view: &View<'_>) -> Cow<'a, str> {
        match self {
            Candidate::File(text) => text.render(view),
            Candidate::Folder(text) => {
                let mut path = text.render(view).into_owned();
                path.truncate(path.trim_end_matches('/').len());
                path.push('/');
                path.into()
            }
        }
    }
}
