//! `${env:NAME}`, `${env:NAME:-default}` and `${file:PATH}` in the text of the document.
//!
//! They are replaced in values (not in keys) while loading. Run-time templates use the dollar sign too, so the loader
//! touches nothing else: `$host`, `${host}` and `$$` are left as they are, for the template to read. `$$` is a dollar sign in
//! a template and also keeps the loader away: `$${env:X}` comes out of a template as the text `${env:X}`. What is filled in is
//! not searched again.
//!
//! As in a shell, the default stands in for a variable that is not set or empty. One line end at the end of a file is
//! dropped, because editors and `echo` put it there. A path is relative to the file that holds it.

use std::ffi::OsString;
use std::path::Path;
use std::{env, fs};

use super::load::unreadable;
use super::node::{Content, Node, Scalar, State};
use crate::issue::{At, Dependency, Issues, Sources};

/// Where the values come from.
pub struct Fill<'a> {
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// What paths are relative to.
    pub folder: &'a Path,
}

impl Fill<'_> {
    /// Fills in all text of `node`. What cannot be filled in is reported, and left out.
    pub fn node(&self, node: &mut Node, at: &At<'_>, sources: &mut Sources, issues: &mut Issues) {
        match &mut node.content {
            Content::Scalar(Scalar::Text(text)) if is_filled(text) => {
                match self.text(text, sources) {
                    Ok((filled, whole)) => {
                        sources.filled(at.to_path(), filled.clone(), std::mem::take(text));
                        node.content = match whole {
                            true => Content::Filled(filled),
                            false => Content::Scalar(Scalar::Text(filled)),
                        };
                    }
                    Err(Unfilled { message, hint }) => {
                        issues.error(at, message).hint = hint;
                        node.state.set(State::LeftOut);
                    }
                }
            }
            Content::Scalar(_) | Content::Filled(_) => {}
            Content::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.node(item, &at.index(index), sources, issues);
                }
            }
            Content::Map(entries) => {
                for entry in entries {
                    self.node(&mut entry.value, &at.key(&entry.key.name), sources, issues);
                }
            }
        }
    }

    /// The text with everything filled in, and whether it is nothing but one `${...}`.
    fn text(&self, text: &str, sources: &Sources) -> Result<(String, bool), Unfilled> {
        let mut filled = String::with_capacity(text.len());
        let mut whole = false;
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            filled.push_str(&rest[..dollar]);
            rest = &rest[dollar..];
            if rest.starts_with(ENV) || rest.starts_with(FILE) {
                let end = rest
                    .find('}')
                    .ok_or_else(|| Unfilled::new(format!("`{rest}` has no closing `}}`")))?;
                filled.push_str(&self.one(&rest[..end], sources)?);
                whole = end + 1 == text.len();
                rest = &rest[end + 1..];
            } else {
                // the dollar sign, and what it may keep from being read
                let kept = if rest.starts_with("$$") { 2 } else { 1 };
                filled.push_str(&rest[..kept]);
                rest = &rest[kept..];
            }
        }
        filled.push_str(rest);
        Ok((filled, whole))
    }

    /// What an expression stands for, given without its closing brace.
    fn one(&self, expression: &str, sources: &Sources) -> Result<String, Unfilled> {
        match expression.strip_prefix(ENV) {
            Some(variable) => self.variable(variable),
            None => self.file(&expression[FILE.len()..], sources),
        }
    }

    fn variable(&self, variable: &str) -> Result<String, Unfilled> {
        let (name, default) = match variable.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (variable, None),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(is_name) {
            let message = format!("`{name}` cannot be the name of an environment variable");
            return Err(Unfilled {
                message,
                hint: Some("write `${env:NAME}` or `${env:NAME:-default}`".to_owned()),
            });
        }
        match ((self.env)(name), default) {
            (None, None) => Err(Unfilled {
                message: format!("the environment variable `{name}` is not set"),
                hint: Some(format!("set it, or give a default: `${{env:{name}:-...}}`")),
            }),
            (None, Some(default)) => Ok(default.to_owned()),
            (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
            (Some(value), _) => value.into_string().map_err(|_| {
                Unfilled::new(format!(
                    "the environment variable `{name}` is not valid UTF-8"
                ))
            }),
        }
    }

    fn file(&self, path: &str, sources: &Sources) -> Result<String, Unfilled> {
        let file = self.folder.join(path);
        sources.depends_on(Dependency::File(file.clone()));
        let bytes = fs::read(file).map_err(|error| {
            Unfilled::new(format!("cannot read `{path}`: {}", unreadable(&error)))
        })?;
        let mut text = String::from_utf8(bytes)
            .map_err(|_| Unfilled::new(format!("`{path}` is not valid UTF-8")))?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    }
}

/// Looks up a variable of the process.
pub fn process_env(name: &str) -> Option<OsString> {
    env::var_os(name)
}

fn is_filled(text: &str) -> bool {
    text.contains(ENV) || text.contains(FILE)
}

/// Why a text could not be filled in.
struct Unfilled {
    message: String,
    hint: Option<String>,
}

impl Unfilled {
    fn new(message: String) -> Unfilled {
        let hint = None;
        Unfilled { message, hint }
    }
}

const ENV: &str = "${env:";
const FILE: &str = "${file:";

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> Result<(String, bool), String> {
        let env = |name: &str| match name {
            "HOST" => Some("localhost".into()),
            "PORT" => Some("80".into()),
            "EMPTY" => Some("".into()),
            "DOLLAR" => Some("${env:PORT}".into()),
            _ => None,
        };
        let fill = Fill {
            env: &env,
            folder: Path::new("/nonexistent"),
        };
        let sources = Sources::default();
        fill.text(text, &sources)
            .map_err(|unfilled| unfilled.message)
    }

    fn text(text: &str) -> String {
        fill(text).unwrap().0
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(
            text("http://${env:HOST}:${env:PORT}/"),
            "http://localhost:80/"
        );
        assert_eq!(text("${env:NONE:-a:-b}"), "a:-b");
        assert_eq!(text("${env:EMPTY:-x}"), "x");
        assert_eq!(text("${env:EMPTY}"), "");
        assert_eq!(text("${env:NONE:-}"), "");
    }

    #[test]
    fn what_belongs_to_templates_is_left_alone() {
        for same in [
            "$host",
            "${host}",
            "$$",
            "a$",
            "$${env:PORT}",
            "$$${host}",
            "$$$",
            "${ENV:PORT}",
        ] {
            assert_eq!(text(same), same);
        }
        assert_eq!(text("$$${env:PORT}"), "$$80");
        assert_eq!(text("$host${env:PORT}$$"), "$host80$$");
    }

    #[test]
    fn what_is_filled_in_is_not_searched() {
        assert_eq!(text("${env:DOLLAR}"), "${env:PORT}");
    }

    #[test]
    fn only_one_expression_alone_is_the_whole() {
        assert!(fill("${env:PORT}").unwrap().1);
        for part in [
            "${env:PORT}0",
            "1${env:PORT}",
            "${env:PORT}${env:PORT}",
            "$$${env:PORT}",
            "plain",
        ] {
            assert!(!fill(part).unwrap().1, "{part}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        assert_eq!(
            fill("${env:NONE}").unwrap_err(),
            "the environment variable `NONE` is not set"
        );
        assert_eq!(
            fill("${env:NO").unwrap_err(),
            "`${env:NO` has no closing `}`"
        );
        assert_eq!(
            fill("${env:}").unwrap_err(),
            "`` cannot be the name of an environment variable"
        );
        assert_eq!(
            fill("${env:A B}").unwrap_err(),
            "`A B` cannot be the name of an environment variable"
        );
        assert_eq!(
            fill("${file:x}").unwrap_err(),
            "cannot read `x`: no such file"
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_filled_in_or_refused(text in "([$ab]|\\$\\{env:|\\$\\{file:|PORT|:-|\\}|\\PC){0,12}") {
            let _ = fill(&text);
        }
    }
}
