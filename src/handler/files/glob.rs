//! Patterns for files, by name or by path.

use glob::{MatchOptions, Pattern};

#[derive(Debug)]
pub enum Glob {
    /// Of the last segment.
    Name(Pattern),
    /// Of the whole path, here without its first slash.
    Path(Pattern),
}

/// `*` takes slashes too: who writes `/assets/*` means all that is below it.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: false,
    require_literal_leading_dot: false,
};

impl Glob {
    /// The error is a message for the configuration's author.
    pub fn parse(written: &str) -> Result<Glob, String> {
        let parse = |text: &str| {
            Pattern::new(text)
                .map_err(|error| format!("`{written}` is not a pattern: {}", error.msg))
        };
        match written.strip_prefix('/') {
            Some(path) => parse(path).map(Glob::Path),
            None if written.contains('/') => Err(format!(
                "`{written}` is a path, but does not begin with `/`"
            )),
            None if written.is_empty() => Err("expected a pattern, found an empty string".into()),
            None => parse(written).map(Glob::Name),
        }
    }

    /// Whether it takes the file at `relative`, which begins with no slash.
    pub fn takes(&self, relative: &str) -> bool {
        match self {
            Glob::Name(pattern) => {
                let name = relative.rsplit_once('/').map_or(relative, |(_, name)| name);
                pattern.matches_with(name, OPTIONS)
            }
            Glob::Path(pattern) => pattern.matches_with(relative, OPTIONS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_makes_a_path() {
        for (pattern, relative, takes) in [
            ("*.html", "index.html", true),
            ("*.html", "a/b/.hidden.html", true),
            ("*.html", "a.html/b", false),
            ("*.HTML", "index.html", false),
            ("*", "a/b", true),
            ("app.?????.js", "x/app.12345.js", true),
            ("app-[0-9]*.js", "app-7f.js", true),
            ("/assets/*", "assets/a.js", true),
            ("/assets/*", "assets/deep/er/a.js", true),
            ("/assets/*", "assets", false),
            ("/assets/*", "x/assets/a.js", false),
            ("/assets/**", "assets/deep/er/a.js", true),
            ("/*.js", "deep/a.js", true),
            ("/index.html", "index.html", true),
            ("/index.html", "a/index.html", false),
        ] {
            let glob = Glob::parse(pattern).unwrap();
            assert_eq!(glob.takes(relative), takes, "{pattern} {relative}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (pattern, message) in [
            ("", "expected a pattern"),
            ("a/*", "`a/*` is a path, but does not begin with `/`"),
            ("a***", "`a***` is not a pattern: "),
            ("[", "`[` is not a pattern: "),
        ] {
            let error = Glob::parse(pattern).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
