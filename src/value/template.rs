//! Text with run-time variables in it: `https://$host/users/${id}`.
//!
//! Only the syntax lives here, so that a template is checked while the file is read; what a name means is decided
//! by `exchange::vars`, which knows the variables and the captures of the route.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// A parsed template: `$name` and `${name}` are variables, `$$` is a dollar sign, all else stands for itself.
///
/// A name consists of letters, digits and `_` and is as long as it can be; `${name}text` ends it earlier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Without empty literals and without two literals in a row.
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Literal(String),
    Variable(String),
}

/// Why a text is not a template. `offset` is the byte in the text where it goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    pub offset: usize,
    pub message: &'static str,
}

impl Template {
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            literal.push_str(&rest[..dollar]);
            let offset = text.len() - rest.len() + dollar;
            let after = &rest[dollar + 1..];
            if let Some(after) = after.strip_prefix('$') {
                literal.push('$');
                rest = after;
                continue;
            }
            let (name, after) = name(after).map_err(|message| TemplateError { offset, message })?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Variable(name.to_owned()));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Template { parts })
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

/// Splits the name that follows a dollar sign from what comes after it.
fn name(text: &str) -> Result<(&str, &str), &'static str> {
    let (braced, text) = match text.strip_prefix('{') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let (name, after) = text.split_at(end);
    if !braced {
        return match name {
            "" => Err("`$` without a variable name (a dollar sign is written `$$`)"),
            _ => Ok((name, after)),
        };
    }
    match (name, after.strip_prefix('}')) {
        ("", Some(_)) => Err("`${}` without a variable name"),
        (_, Some(after)) => Ok((name, after)),
        (_, None) if after.is_empty() => Err("`${` without `}`"),
        (_, None) => Err("a variable name in `${}` consists of letters, digits and `_`"),
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.message, self.offset)
    }
}

impl std::error::Error for TemplateError {}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Template, TemplateError> {
        Template::parse(text)
    }
}

/// A text that parses to the same template; names always in braces, so that no literal can run into them.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Literal(text) => f.write_str(&text.replace('$', "$$"))?,
                Part::Variable(name) => write!(f, "${{{name}}}")?,
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Template, D::Error> {
        let text = String::deserialize(deserializer)?;
        Template::parse(&text).map_err(de::Error::custom)
    }
}

impl JsonSchema for Template {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "text in which `$name` and `${name}` are run-time variables and `$$` is a dollar sign",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn literal(text: &str) -> Part {
        Part::Literal(text.to_owned())
    }

    fn variable(name: &str) -> Part {
        Part::Variable(name.to_owned())
    }

    #[test]
    fn literals_and_variables_alternate() {
        let template = Template::parse("https://$host/u/${id}s?$$x=$1").unwrap();
        assert_eq!(
            template.parts(),
            [
                literal("https://"),
                variable("host"),
                literal("/u/"),
                variable("id"),
                literal("s?$x="),
                variable("1"),
            ]
        );
    }

    #[test]
    fn plain_text_is_one_literal_and_empty_text_is_nothing() {
        assert_eq!(
            Template::parse("plain {} text").unwrap().parts(),
            [literal("plain {} text")]
        );
        assert_eq!(Template::parse("").unwrap().parts(), []);
        assert_eq!(Template::parse("$$").unwrap().parts(), [literal("$")]);
        assert_eq!(
            Template::parse("$$host").unwrap().parts(),
            [literal("$host")]
        );
    }

    #[test]
    fn a_name_ends_at_the_first_other_character() {
        assert_eq!(
            Template::parse("$hosté$uri.$args").unwrap().parts(),
            [
                variable("host"),
                literal("é"),
                variable("uri"),
                literal("."),
                variable("args")
            ]
        );
    }

    #[test]
    fn errors_point_at_the_dollar_sign() {
        for (text, offset) in [
            ("a$", 1),
            ("a$ b", 1),
            ("é$-", 2),
            ("$host${", 5),
            ("${host", 0),
            ("$$${}", 2),
            ("x ${a b}", 2),
            ("${a-b}", 0),
        ] {
            assert_eq!(
                Template::parse(text).map_err(|error| error.offset),
                Err(offset),
                "{text}"
            );
        }
    }

    #[test]
    fn deserializes_from_a_string() {
        let template: Template = serde_json::from_str(r#""$uri!""#).unwrap();
        assert_eq!(template.parts(), [variable("uri"), literal("!")]);
        let error = serde_json::from_str::<Template>(r#""x$""#)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("`$` without a variable name"), "{error}");
        assert!(serde_json::from_str::<Template>("8080").is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_at_a_dollar_sign(text in "[a-z${} é]{0,24}|\\PC{0,24}") {
            if let Err(error) = Template::parse(&text) {
                prop_assert_eq!(text.as_bytes()[error.offset], b'$');
            }
        }

        #[test]
        fn what_is_printed_parses_to_the_same(text in "[a-z_0-9${}/é]{0,24}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert_eq!(Template::parse(&template.to_string()), Ok(template));
            }
        }

        #[test]
        fn text_without_a_dollar_sign_stands_for_itself(text in "[^$]{1,24}") {
            let template = Template::parse(&text).unwrap();
            prop_assert_eq!(template.parts(), [literal(&text)]);
        }
    }
}
