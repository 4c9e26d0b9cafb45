//! A duration as it is written in the document: `250ms`, `5s`, `2m`, `1h`, `7d`.
//!
//! One whole number and one unit, nothing else: `1.5s` and `1m30s` are `1500ms` and `90s`, so that a duration can be
//! found by searching the file for it.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{from_text, number_and_unit};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

impl Span {
    pub const fn new(duration: Duration) -> Span {
        Span(duration)
    }

    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let refused = || format!("expected {EXPECTED}, found `{text}`");
        let (number, unit) = number_and_unit(text).ok_or_else(refused)?;
        let (_, milliseconds) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(refused)?;
        number
            .checked_mul(*milliseconds)
            .filter(|total| *total <= LONGEST)
            .map(|total| Span(Duration::from_millis(total)))
            .ok_or_else(|| format!("`{text}` is longer than a hundred years"))
    }
}

/// Prints the largest unit that leaves a whole number, so that what is printed is read back as the same duration.
/// What is finer than a millisecond cannot be written and is cut off.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_millis();
        if total == 0 {
            return f.write_str("0s");
        }
        let fits =
            |(_, milliseconds): &&(&str, u64)| total.is_multiple_of(u128::from(*milliseconds));
        let (unit, milliseconds) = UNITS.iter().find(fits).unwrap_or(&("ms", 1));
        write!(f, "{}{unit}", total / u128::from(*milliseconds))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        from_text(deserializer, EXPECTED)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+(ms|s|m|h|d)$",
            "description": "A duration: a whole number and one of the units ms, s, m, h, d; for example 250ms, 5s, 2m, 1h, 7d."
        })
    }
}

const EXPECTED: &str = "a duration such as `5s`";

/// Units with their milliseconds, largest first.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// In milliseconds: a hundred years. More is a slip of the hand, and `now + span` could overflow.
const LONGEST: u64 = 36_500 * 86_400_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_unit_is_read() {
        let read = |text: &str| text.parse::<Span>().unwrap().get();
        assert_eq!(read("250ms"), Duration::from_millis(250));
        assert_eq!(read("5s"), Duration::from_secs(5));
        assert_eq!(read("2m"), Duration::from_secs(120));
        assert_eq!(read("1h"), Duration::from_secs(3600));
        assert_eq!(read("7d"), Duration::from_secs(7 * 86_400));
        assert_eq!(read("0s"), Duration::ZERO);
    }

    #[test]
    fn what_is_not_a_duration_is_refused_with_an_example() {
        for text in [
            "",
            "5",
            "s",
            "-5s",
            "1.5s",
            "5 s",
            "5S",
            "1m30s",
            "5sec",
            "٣s",
            "99999999999999999999s",
        ] {
            let message = text.parse::<Span>().unwrap_err();
            assert_eq!(
                message,
                format!("expected a duration such as `5s`, found `{text}`")
            );
        }
        assert!("40000d".parse::<Span>().is_err());
        assert!("18446744073709551615d".parse::<Span>().is_err());
    }

    #[test]
    fn a_bare_number_in_yaml_is_refused() {
        let message = serde_yaml::from_str::<Span>("5").unwrap_err().to_string();
        assert!(
            message.contains("expected a duration such as `5s`"),
            "{message}"
        );
        assert_eq!(
            serde_yaml::from_str::<Span>("5s").unwrap().get(),
            Duration::from_secs(5)
        );
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(milliseconds in 0..=LONGEST) {
            let span = Span::new(Duration::from_millis(milliseconds));
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}|[0-9]{1,25}(ms|s|m|h|d)") {
            let _ = text.parse::<Span>();
        }
    }
}
