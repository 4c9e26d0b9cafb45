//! Issues as they are shown: blocks of text for people, JSON for programs.
//!
//! ```text
//! conf/weir.yaml:14:16: sites.shop.routes[1].proxy: no pool named `ap`
//!    14 |         proxy: ap
//!       |                ^^ did you mean `app`? pools are: app, assets
//! ```

use std::fmt;

use serde::Serialize;

use super::{Issue, Issues, Place, Severity, Spot};

/// One block for each issue.
impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|issue| writeln!(f, "{issue}"))
    }
}

/// The block of one issue, without a line end after it.
impl Issue {
    /// The issue on one line, for a log: place, path, message and hint, without the source.
    pub fn headline(&self) -> String {
        let mut line = Heading(self).to_string();
        if let Some(hint) = &self.hint {
            line.push_str(" (");
            line.push_str(hint);
            line.push(')');
        }
        line
    }
}

/// The first line of an issue.
struct Heading<'a>(&'a Issue);

impl fmt::Display for Heading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Heading(issue) = self;
        if let Some(place) = &issue.place {
            write!(f, "{place}: ")?;
        }
        if issue.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !issue.path.0.is_empty() {
            write!(f, "{}: ", issue.path)?;
        }
        f.write_str(&issue.message)
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Heading(self))?;
        match self
            .place
            .as_ref()
            .and_then(|place| Some((place, place.spot?)))
        {
            Some((place, spot)) => write_source(f, &place.source, spot, self.hint.as_deref()),
            None => match &self.hint {
                Some(hint) => write!(f, "\n{:>GUTTER$} = {hint}", ""),
                None => Ok(()),
            },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match self.spot {
            Some(spot) => write!(f, ":{}:{}", spot.line, spot.column),
            None => Ok(()),
        }
    }
}

/// The source line, and below it what is wrong in it, underlined.
fn write_source(
    f: &mut fmt::Formatter<'_>,
    source: &str,
    spot: Spot,
    hint: Option<&str>,
) -> fmt::Result {
    let excerpt = Excerpt::of(source, spot);
    write!(f, "\n{:>GUTTER$} | {}", spot.line, excerpt.text)?;
    write!(
        f,
        "\n{:>GUTTER$} | {:indent$}{:^<length$}",
        "",
        "",
        "",
        indent = excerpt.start,
        length = excerpt.length
    )?;
    match hint {
        Some(hint) => write!(f, " {hint}"),
        None => Ok(()),
    }
}

/// What is shown of a source line: all of it or, of a long one, the part around the mark.
struct Excerpt {
    text: String,
    /// Where in `text` the mark starts, and how long it is; in characters.
    start: usize,
    length: usize,
}

impl Excerpt {
    fn of(source: &str, spot: Spot) -> Excerpt {
        let line: Vec<char> = source.trim_end().chars().map(printable).collect();
        let start = spot.column - 1;
        let (from, to) = match line.len() > WIDTH {
            true => {
                let from = start.saturating_sub(BEFORE).min(line.len() - WIDTH);
                (from, from + WIDTH)
            }
            false => (0, line.len()),
        };
        let (left, right) = (
            if from > 0 { "…" } else { "" },
            if to < line.len() { "…" } else { "" },
        );
        let shown: String = line[from..to].iter().collect();
        Excerpt {
            text: format!("{left}{shown}{right}"),
            start: left.chars().count() + start - from,
            length: spot.length.min(to.saturating_sub(start)).max(1),
        }
    }
}

/// One column for each character: a tab would shift the mark, and a control character could speak to the terminal.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Columns for the line number.
const GUTTER: usize = 5;

/// Characters that are shown of a long line, and how many of them before the mark.
const WIDTH: usize = 110;
const BEFORE: usize = 50;

/// What `weir check --json` prints: `{"ok": bool, "issues": [{severity, file, line, column, path, message, hint}]}`.
///
/// `ok` is false when there is an error; warnings leave it true. `severity` is `error` or `warning`. What is not known (the
/// line of a file that cannot be read, a hint where there is none) is null; lines and columns count from 1. Keys may be
/// added, none will be renamed or removed.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    ok: bool,
    issues: Vec<Entry<'a>>,
}

#[derive(Debug, Serialize)]
struct Entry<'a> {
    severity: &'static str,
    file: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
    path: String,
    message: &'a str,
    hint: Option<&'a str>,
}

impl Issues {
    /// For programs: serialize it as JSON.
    pub fn report(&self) -> Report<'_> {
        Report {
            ok: !self.has_errors(),
            issues: self.0.iter().map(Entry::from).collect(),
        }
    }
}

impl<'a> From<&'a Issue> for Entry<'a> {
    fn from(issue: &'a Issue) -> Entry<'a> {
        let spot = issue.place.as_ref().and_then(|place| place.spot);
        Entry {
            severity: match issue.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            file: issue
                .place
                .as_ref()
                .map(|place| place.file.display().to_string()),
            line: spot.map(|spot| spot.line),
            column: spot.map(|spot| spot.column),
            path: issue.path.to_string(),
            message: &issue.message,
            hint: issue.hint.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{At, Sources};
    use super::*;

    fn issues(text: &str, report: impl FnOnce(&mut Issues)) -> Issues {
        let mut sources = Sources::default();
        sources.add("conf/weir.yaml".into(), text.to_owned());
        let mut issues = Issues::default();
        report(&mut issues);
        issues.locate(&sources);
        issues
    }

    #[test]
    fn warnings_are_told_apart() {
        let issues = issues("a: 1\nb: 2\n", |issues| {
            issues.warn(&At::Root.key("b"), "unused").on_key();
        });
        assert_eq!(
            issues.to_string(),
            "conf/weir.yaml:2:1: warning: b: unused\n    2 | b: 2\n      | ^\n"
        );
    }

    #[test]
    fn issues_come_in_document_order() {
        let issues = issues("a: 1\nb: 2\n", |issues| {
            issues.error(&At::Root.key("b"), "second");
            issues.error(&At::Root.key("a"), "first");
        });
        let messages: Vec<&str> = issues
            .0
            .iter()
            .map(|issue| issue.message.as_str())
            .collect();
        assert_eq!(messages, ["first", "second"]);
    }

    #[test]
    fn long_lines_are_cut_around_the_mark() {
        let text = format!("a: [{}, here, {}]\n", "x".repeat(300), "y".repeat(300));
        let issues = issues(&text, |issues| {
            issues
                .error(&At::Root.key("a").index(1), "wrong")
                .hint("way out");
        });
        let shown = issues.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(
            lines.iter().all(|line| line.chars().count() < 130),
            "{shown}"
        );
        let mark = lines[2].chars().position(|c| c == '^').unwrap();
        let marked: String = lines[1].chars().skip(mark).take(4).collect();
        assert_eq!(marked, "here");
        assert!(lines[2].ends_with("^^^^ way out"), "{shown}");
    }

    #[test]
    fn tabs_and_control_characters_keep_the_columns() {
        let issues = issues("a: {\tb:\t\"\u{e9}\", c: 1 }\n", |issues| {
            issues.error(&At::Root.key("a").key("c"), "wrong");
        });
        assert_eq!(
            issues.to_string(),
            "conf/weir.yaml:1:17: a.c: wrong\n    1 | a: { b: \"\u{e9}\", c: 1 }\n      |                 ^\n"
        );
        assert_eq!(printable('\u{1b}'), '\u{fffd}');
    }

    #[test]
    fn keys_with_dots_are_quoted_in_paths() {
        let issues = issues("sites: { shop.example: 1 }\n", |issues| {
            issues.error(&At::Root.key("sites").key("shop.example"), "wrong");
        });
        assert_eq!(issues.0[0].path.to_string(), "sites.\"shop.example\"");
    }

    #[test]
    fn the_report_for_programs_is_stable() {
        let found = issues("a: 1\n", |issues| {
            issues.error(&At::Root.key("a"), "wrong").hint("way out");
        });
        assert_eq!(
            serde_json::to_string(&found.report()).unwrap(),
            r#"{"ok":false,"issues":[{"severity":"error","file":"conf/weir.yaml","line":1,"column":4,"path":"a","message":"wrong","hint":"way out"}]}"#
        );
        let none = Issues::default();
        assert_eq!(
            serde_json::to_string(&none.report()).unwrap(),
            r#"{"ok":true,"issues":[]}"#
        );
    }
}
