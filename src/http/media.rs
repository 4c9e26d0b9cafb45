//! Media types by pattern: `text/*`, `application/json`, `application/*+json`.

use std::borrow::Cow;
use std::str::FromStr;

use http::{HeaderMap, header};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// A pattern for the types of bodies. A star stands for any text at the beginning of the subtype, or, in `*/*`, for any
/// type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Lower case; `None`: any.
    family: Option<Box<str>>,
    subtype: Subtype,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subtype {
    Is(Box<str>),
    EndsWith(Box<str>),
}

impl Pattern {
    /// Whether the type of a body, as it stands in `Content-Type`, is one of these.
    pub fn takes(&self, content_type: &[u8]) -> bool {
        let Some((family, subtype)) = essence(content_type) else {
            return false;
        };
        let is_family = self
            .family
            .as_ref()
            .is_none_or(|own| family.eq_ignore_ascii_case(own.as_bytes()));
        is_family
            && match &self.subtype {
                Subtype::Is(own) => subtype.eq_ignore_ascii_case(own.as_bytes()),
                Subtype::EndsWith(own) => subtype
                    .len()
                    .checked_sub(own.len())
                    .is_some_and(|at| subtype[at..].eq_ignore_ascii_case(own.as_bytes())),
            }
    }
}

/// Whether the body under this header is of one of these types; one without a type is of none.
pub fn is_one_of(patterns: &[Pattern], headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| {
        let takes = |pattern: &Pattern| pattern.takes(value.as_bytes());
        patterns.iter().any(takes)
    })
}

/// Family and subtype, without parameters.
fn essence(content_type: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b';', content_type).unwrap_or(content_type.len());
    let essence = content_type[..end].trim_ascii();
    let slash = memchr::memchr(b'/', essence)?;
    Some((&essence[..slash], &essence[slash + 1..]))
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let refused = || format!("expected a type such as `text/html` or `text/*`, found `{text}`");
        let (family, subtype) = text.split_once('/').ok_or_else(refused)?;
        let is_token = |name: &str| {
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
            name.bytes().all(token)
        };
        let family = match family {
            "*" if subtype == "*" => None,
            name if !name.is_empty() && is_token(name) => Some(name.to_ascii_lowercase().into()),
            _ => return Err(refused()),
        };
        let subtype = match subtype.strip_prefix('*') {
            Some(end) if is_token(end) => Subtype::EndsWith(end.to_ascii_lowercase().into()),
            None if !subtype.is_empty() && is_token(subtype) => {
                Subtype::Is(subtype.to_ascii_lowercase().into())
            }
            _ => return Err(refused()),
        };
        Ok(Pattern { family, subtype })
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Pattern {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "MediaType".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["text/html", "text/*", "application/*+json"] })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_take_what_they_say() {
        for (pattern, takes, leaves) in [
            (
                "text/html",
                &["text/html", "TEXT/HTML; charset=utf-8", " text/html ;x"][..],
                &["text/html5", "text/plain", "text", ""][..],
            ),
            (
                "Text/*",
                &["text/html", "text/"],
                &["image/png", "texts/html"],
            ),
            (
                "application/*+json",
                &["application/problem+json", "application/+JSON"],
                &["application/json", "application/json+x", "image/x+json"],
            ),
            ("*/*", &["a/b"], &["a"]),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            for content_type in takes {
                assert!(
                    parsed.takes(content_type.as_bytes()),
                    "{pattern} {content_type}"
                );
            }
            for content_type in leaves {
                assert!(
                    !parsed.takes(content_type.as_bytes()),
                    "{pattern} {content_type}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_type_is_refused() {
        for text in [
            "",
            "*",
            "text",
            "text/",
            "/html",
            "*/html",
            "te*t/html",
            "text/h*",
            "a b/c",
            "a/b;c",
            "a/b/c",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read(text in "[a-z*/;+ ]{0,20}", content_type in ".{0,20}") {
            if let Ok(pattern) = text.parse::<Pattern>() {
                pattern.takes(content_type.as_bytes());
            }
        }
    }
}
