//! Types of configuration values: parsed while loading, so that a value that exists is a value that is right.
//!
//! All of them are strict. Where a unit is meant a bare number is refused, because `timeout: 60` reads as seconds to
//! one and as milliseconds to another; and the message says what would be right: ``expected a duration such as `5s`,
//! found `5` ``.

pub mod cidr;
pub mod factor;
pub mod keys;
pub mod one_or_many;
pub mod or_off;
pub mod pattern;
pub mod rate;
pub mod ratio;
pub mod short;
pub mod size;
pub mod span;
pub mod suggest;
pub mod template;
pub mod true_or;

pub use cidr::Cidr;
pub use factor::Factor;
pub use one_or_many::OneOrMany;
pub use or_off::OrOff;
pub use rate::Rate;
pub use ratio::Ratio;
pub use short::{FromShort, Short};
pub use size::Size;
pub use span::Span;
pub use suggest::{hint, suggest};
pub use template::Template;
pub use true_or::TrueOr;

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{Deserializer, Error, Visitor};

/// Deserializes a type that is written as text. Anything else, a bare number above all, is refused by naming what
/// was `expected`.
pub(crate) fn from_text<'de, T, D>(deserializer: D, expected: &'static str) -> Result<T, D::Error>
where
    T: FromStr<Err = String>,
    D: Deserializer<'de>,
{
    struct Text<T>(&'static str, PhantomData<T>);

    impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Text(expected, PhantomData))
}

/// Splits `10MiB` into its digits, as a number, and the unit behind them; `None` when there are no digits or too many.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    Some((digits.parse().ok()?, unit))
}
