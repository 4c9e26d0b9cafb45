//! Statuses that a probe expects: `200` or `200-299`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// A range of statuses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    first: u16,
    last: u16,
}

impl Expect {
    pub const SUCCESS: Expect = Expect {
        first: 200,
        last: 299,
    };

    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Expect, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (status(first), status(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Expect { first, last }),
            _ => Err(format!("expected {EXPECTED}, found `{text}`")),
        }
    }
}

/// Three digits; interim statuses (1xx) are never the answer.
fn status(text: &str) -> Option<u16> {
    let is_number = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    let status = text.parse().ok().filter(|_| is_number)?;
    (200..=599).contains(&status).then_some(status)
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl<'de> Deserialize<'de> for Expect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Expect, D::Error> {
        struct NumberOrRange;

        impl Visitor<'_> for NumberOrRange {
            type Value = Expect;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Expect, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Expect, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(NumberOrRange)
    }
}

impl JsonSchema for Expect {
    fn schema_name() -> Cow<'static, str> {
        "Expect".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A status such as 200, or a range of statuses such as 200-299.",
            "anyOf": [
                { "type": "integer", "minimum": 200, "maximum": 599 },
                { "type": "string", "pattern": "^[2-5][0-9]{2}(-[2-5][0-9]{2})?$" },
            ],
        })
    }
}

const EXPECTED: &str = "a status from 200 to 599 such as `200`, or a range such as `200-299`";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_status_or_a_range_is_read() {
        let read = |text: &str| serde_yaml::from_str::<Expect>(text).unwrap();
        assert!(read("200").contains(200) && !read("200").contains(201));
        assert!(read("'204'").contains(204));
        assert!(read("200-299").contains(200) && read("200-299").contains(299));
        assert!(!read("200-299").contains(300));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "99",
            "100",
            "600",
            "2xx",
            "-1",
            "299-200",
            "200-",
            "200-299-300",
            "+200",
            "",
        ] {
            assert!(text.parse::<Expect>().is_err(), "{text}");
        }
        for yaml in ["99", "-200", "2.5", "[200]", "true"] {
            assert!(serde_yaml::from_str::<Expect>(yaml).is_err(), "{yaml}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(a in 200u16..=599, b in 200u16..=599) {
            let range = Expect { first: a.min(b), last: a.max(b) };
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
            let _ = text.parse::<Expect>();
        }
    }
}
