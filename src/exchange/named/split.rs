//! `split`: a variable that has one value for so many percent of all texts, and another for the rest.
//!
//! ```yaml
//! split:
//!   $variant: { by: "$remote_addr$http_user_agent", values: { a: 20%, b: 80% } }
//! ```
//!
//! A text has the same value at all times, after a restart and on every other weir with these shares; where a share grows,
//! those that had it keep it. nginx: `split_clients`.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Choice, Definition, Value};
use crate::build::Build;
use crate::exchange::vars::Text;
use crate::issue::At;
use crate::pool::balance::key_of;
use crate::value::Ratio;

/// A variable that splits requests by share: `split.$NAME`. nginx: `split_clients`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The text that decides, with variables: the same text, the same value. Splits by the same text agree; a word in
    /// front of it (`"b$cookie_user"`) makes one independent of the others.
    pub by: String,
    /// Each value, a text with variables, with its share of all texts; 100% in all at most.
    pub values: IndexMap<String, Ratio>,
    /// The value of the rest. Default: the last of `values`.
    #[serde(default)]
    pub default: Option<String>,
}

/// Where the share of each value ends, in millionths of all hashes.
#[derive(Debug)]
pub struct Shares {
    ends: Vec<u32>,
    /// Whether what is left belongs to the last value.
    rest: bool,
}

impl Config {
    pub(super) fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Definition> {
        let by = Text::compile(&at.key("by"), &self.by, b);
        let at_values = at.key("values");
        let sum: u64 = self
            .values
            .values()
            .map(|ratio| u64::from(ratio.millionths()))
            .sum();
        let whole = u64::from(Ratio::percent(100).millionths());
        if self.values.is_empty() {
            b.error(&at_values, "needs a value with its share")
                .hint("such as `{ a: 20%, b: 80% }`");
        } else if sum > whole {
            let percent = sum as f64 * 100.0 / whole as f64;
            b.error(&at_values, format!("the shares are {percent}% in all"))
                .hint("100% is all there is");
        } else if sum == whole && self.default.is_some() {
            b.warn(&at.key("default"), "nothing is left for it")
                .hint("the shares are 100% in all");
        }
        let values = self.values.keys();
        let values: Vec<_> = values
            .map(|value| Value::compile(&at_values.key(value), value, b))
            .collect();
        let default = Value::default(at, self.default.as_deref(), b);
        let definition = Definition {
            choice: Choice::Split(
                by?,
                Shares::new(self.values.values(), self.default.is_none()),
            ),
            values: values.into_iter().collect::<Option<_>>()?,
            default: default.ok()?,
        };
        (sum <= whole && !self.values.is_empty()).then_some(definition)
    }
}

impl Shares {
    /// `rest`: whether what is left belongs to the last value.
    fn new<'a>(shares: impl Iterator<Item = &'a Ratio>, rest: bool) -> Shares {
        let ends = shares.scan(0u32, |end, share| {
            *end = end.saturating_add(share.millionths());
            Some(*end)
        });
        Shares {
            ends: ends.collect(),
            rest,
        }
    }

    pub fn find(&self, text: &[u8]) -> Option<usize> {
        let whole = u128::from(Ratio::percent(100).millionths());
        let place = (u128::from(key_of(text)) * whole) >> u64::BITS;
        let found = self.ends.partition_point(|end| u128::from(*end) <= place);
        match found < self.ends.len() {
            true => Some(found),
            false => self.rest.then(|| self.ends.len().saturating_sub(1)),
        }
    }
}
