//! `when`: which requests a log is about.
//!
//! A text alone holds unless it is empty or `0` (nginx: `access_log ... if=`); or it is compared with a value:
//! `$status >= 400`, `$request_method != GET`, `$uri ~ ^/api/`.

use std::borrow::Cow;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::build::Build;
use crate::exchange::vars::{Piece, Text, View};
use crate::issue::At;
use crate::value::pattern;

/// A condition as it is written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Config(String);

#[derive(Debug)]
pub struct Condition {
    text: Text,
    test: Test,
}

#[derive(Debug)]
enum Test {
    /// Neither empty nor `0`.
    True,
    Equals(Text),
    Differs(Text),
    Matches(Regex),
    Misses(Regex),
    /// Both are numbers, and theirs is this.
    Number(Order, f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Less,
    AtMost,
    More,
    AtLeast,
}

/// How a value is compared with another: longer spellings first, since they begin like shorter ones.
const OPERATORS: [&str; 8] = ["==", "!=", "<=", ">=", "!~", "<", ">", "~"];

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Condition> {
        let Some((left, operator, right)) = split(&self.0) else {
            let text = Text::compile(at, &self.0, b)?;
            let is_literal = |piece: &Piece| matches!(piece, Piece::Literal(_));
            if text.pieces().iter().all(is_literal) {
                return refuse(at, "names no variable: it would hold always or never", b);
            }
            // `$status>=400` is one
            if text.pieces().iter().any(is_literal) {
                let message = "would hold always: a comparison has blanks around its operator";
                return refuse(at, message, b);
            }
            return Some(Condition {
                text,
                test: Test::True,
            });
        };
        if self.0.contains(" && ") || self.0.contains(" || ") {
            b.error(at, "more than one comparison")
                .hint("a `map` over several variables makes one of them");
            return None;
        }
        let text = Text::compile(at, left, b);
        let number = |order, b: &mut Build<'_>| match right.parse() {
            Ok(number) => Some(Test::Number(order, number)),
            Err(_) => refuse(at, &format!("`{right}` is not a number"), b),
        };
        let regex = |b: &mut Build<'_>| match pattern::regex(right) {
            Ok(regex) => Some(regex),
            Err(error) => refuse(at, &format!("not a regular expression: {error}"), b),
        };
        let test = match operator {
            "==" => Text::compile(at, right, b).map(Test::Equals),
            "!=" => Text::compile(at, right, b).map(Test::Differs),
            "~" => regex(b).map(Test::Matches),
            "!~" => regex(b).map(Test::Misses),
            "<" => number(Order::Less, b),
            "<=" => number(Order::AtMost, b),
            ">" => number(Order::More, b),
            _ => number(Order::AtLeast, b),
        };
        Some(Condition {
            text: text?,
            test: test?,
        })
    }
}

/// What is compared, how, and with what. Blanks stand around the operator, so that a text may hold one.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    OPERATORS.iter().find_map(|operator| {
        let (left, right) = text.split_once(&format!(" {operator} "))?;
        Some((left.trim(), *operator, right.trim()))
    })
}

fn refuse<T>(at: &At<'_>, message: &str, b: &mut Build<'_>) -> Option<T> {
    b.error(at, message).hint(
        "write `$status >= 400`, `$request_method != GET`, `$uri ~ ^/api/`, or a variable alone, which holds unless \
         it is empty or `0`",
    );
    None
}

impl Condition {
    /// Whether it holds for a request that is over.
    pub fn holds(&self, view: &View<'_>) -> bool {
        let value = self.text.render(view);
        match &self.test {
            Test::True => !value.is_empty() && value != "0",
            Test::Equals(other) => value == other.render(view),
            Test::Differs(other) => value != other.render(view),
            Test::Matches(regex) => regex.is_match(&value),
            Test::Misses(regex) => !regex.is_match(&value),
            Test::Number(order, number) => value
                .parse::<f64>()
                .is_ok_and(|value| order.is_that_of(value, *number)),
        }
    }
}

impl Order {
    fn is_that_of(self, left: f64, right: f64) -> bool {
        match self {
            Order::Less => left < right,
            Order::AtMost => left <= right,
            Order::More => left > right,
            Order::AtLeast => left >= right,
        }
    }
}

impl JsonSchema for Config {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Condition".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "\\$" })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Instant, SystemTime};

    use pingora::http::RequestHeader;

    use super::*;
    use crate::exchange::Cx;
    use crate::exchange::cx::Connection;
    use crate::issue::Sources;

    fn compile(text: &str) -> Result<Condition, String> {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let condition = Config(text.to_owned()).compile(&At::Root, &mut b);
        match b.issues.0.pop() {
            Some(issue) => Err(issue.message),
            None => Ok(condition.unwrap()),
        }
    }

    fn holds(text: &str, status: u16, target: &[u8]) -> bool {
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.status = status;
        let request = RequestHeader::build("GET", target, None).unwrap();
        compile(text).unwrap().holds(&View {
            cx: &cx,
            request: &request,
            response: None,
            wall: SystemTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        for (condition, at_99, at_400, at_500) in [
            ("$status >= 400", false, true, true),
            ("$status > 400", false, false, true),
            ("$status < 400", true, false, false),
            ("$status <= 400.5", true, true, false),
            // not a number: it is neither more nor less
            ("$arg_none < 400", false, false, false),
        ] {
            let found = [99, 400, 500].map(|status| holds(condition, status, b"/"));
            assert_eq!(found, [at_99, at_400, at_500], "{condition}");
        }
    }

    #[test]
    fn texts_are_compared_and_matched() {
        assert!(holds("$request_method == GET", 200, b"/"));
        assert!(!holds("$request_method != GET", 200, b"/"));
        assert!(holds("$arg_a$arg_b == $arg_c", 200, b"/?a=1&b=2&c=12"));
        assert!(holds("$request_uri ~ ^/api/", 200, b"/api/x"));
        assert!(!holds("$request_uri !~ ^/api/", 200, b"/api/x"));
        assert!(holds("$arg_log", 200, b"/?log=yes"));
        for target in [&b"/"[..], b"/?log=", b"/?log=0"] {
            assert!(!holds("$arg_log", 200, target));
        }
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for (text, message) in [
            ("always", "names no variable: it would hold always or never"),
            (
                "$status>=400",
                "would hold always: a comparison has blanks around its operator",
            ),
            ("$status == 1 || $status == 2", "more than one comparison"),
            ("$status >= many", "`many` is not a number"),
            ("$statsu == 200", "no variable named `$statsu`"),
        ] {
            assert_eq!(compile(text).unwrap_err(), message);
        }
        assert!(compile("$uri ~ (").unwrap_err().contains("regular"));
    }
}
