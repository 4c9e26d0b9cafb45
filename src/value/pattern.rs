//! Regular expressions of the configuration, built once at load.

use regex::{Regex, RegexBuilder};
use regex_syntax::hir::{Hir, HirKind, Look};

/// Compiles a regular expression; the error is its essence in one line, without the drawing that `regex` makes.
///
/// `.` is any character: a path with a line break in it (`%0A`) must not get past the route that is to guard it.
pub fn regex(pattern: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(pattern);
    builder.dot_matches_new_line(true);
    builder.build().map_err(|error| {
        let drawing = error.to_string();
        let last = drawing.lines().last().unwrap_or_default();
        last.strip_prefix("error: ").unwrap_or(last).to_owned()
    })
}

/// The names by which templates reach the groups of `regex`, in the order in which [`push_captures`] gives their
/// values: `$name`, or the number for a group without a name.
pub fn capture_names(regex: &Regex) -> impl Iterator<Item = String> + '_ {
    regex
        .capture_names()
        .enumerate()
        .skip(1) // the whole match
        .map(|(number, name)| name.map_or_else(|| number.to_string(), str::to_owned))
}

/// Appends what the groups of `regex` captured in `text`; empty for a group that took no part. False if the regex
/// does not match.
pub fn push_captures(regex: &Regex, text: &str, captures: &mut Vec<String>) -> bool {
    if regex.captures_len() == 1 {
        return regex.is_match(text);
    }
    let Some(found) = regex.captures(text) else {
        return false;
    };
    let groups = found.iter().skip(1);
    captures.extend(groups.map(|group| group.map_or("", |group| group.as_str()).to_owned()));
    true
}

/// The bytes with which every text begins that `pattern` matches: `/u/` for `^/u/[0-9]+$`; empty where nothing
/// can be said. It lets an index skip a regex without running it.
pub fn literal_prefix(pattern: &str) -> Vec<u8> {
    let Ok(hir) = regex_syntax::parse(pattern) else {
        return Vec::new();
    };
    let HirKind::Concat(parts) = hir.kind() else {
        return Vec::new();
    };
    let mut prefix = Vec::new();
    if let [first, rest @ ..] = parts.as_slice()
        && matches!(first.kind(), HirKind::Look(Look::Start))
    {
        rest.iter().all(|part| push_literal(part, &mut prefix));
    }
    prefix
}

/// Appends the literal with which `hir` begins. True if it is nothing else.
fn push_literal(hir: &Hir, prefix: &mut Vec<u8>) -> bool {
    match hir.kind() {
        HirKind::Literal(literal) => {
            prefix.extend_from_slice(&literal.0);
            true
        }
        HirKind::Capture(capture) => push_literal(&capture.sub, prefix),
        HirKind::Concat(parts) => parts.iter().all(|part| push_literal(part, prefix)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(regex("^/u/(").unwrap_err(), "unclosed group");
        assert_eq!(regex("[").unwrap_err(), "unclosed character class");
        let huge = regex("(?:a{1000}){1000}").unwrap_err();
        assert!(!huge.contains('\n') && !huge.is_empty(), "{huge}");
    }

    #[test]
    fn groups_are_named_or_numbered_in_order() {
        let regex = regex("^/(a)/(?<id>[0-9]+)(x)?").unwrap();
        assert_eq!(capture_names(&regex).collect::<Vec<_>>(), ["1", "id", "3"]);
        let mut captures = vec!["before".to_owned()];
        assert!(push_captures(&regex, "/a/7", &mut captures));
        assert_eq!(captures, ["before", "a", "7", ""]);
        assert!(!push_captures(&regex, "/b/7", &mut captures));
        assert_eq!(captures.len(), 4);
    }

    #[test]
    fn a_literal_prefix_is_found_only_where_it_is_certain() {
        let cases = [
            ("^/u/[0-9]+$", "/u/"),
            ("^/u/(?<id>[0-9]+)$", "/u/"),
            ("^/exact$", "/exact"),
            (r"^/a\.b", "/a.b"),
            ("^/ab?", "/a"),
            ("/u/[0-9]+", ""),
            (r"\.php$", ""),
            ("(?i)^/u/", "/"),
            ("(?m)^/u/", ""),
            ("^/a|^/b", ""),
            ("^(/a/)(?<id>[0-9]+)/b", "/a/"),
            ("^(?<all>/a[0-9])/b", "/a"),
            ("^(/a)?/b", ""),
            ("^(?:/a|/b)", ""),
            ("^/ü", "/ü"),
            ("^", ""),
            ("", ""),
            ("(", ""),
        ];
        for (pattern, prefix) in cases {
            let found = literal_prefix(pattern);
            assert_eq!(found, prefix.as_bytes(), "{pattern}");
        }
    }
}
