//! How often something may happen: `10/s`, `30/m`, `100/h`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::from_text;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    times: u32,
    unit: &'static str,
    seconds: u32,
}

impl Rate {
    /// The time between two of them.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.seconds.into()) / self.times
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let refused = || format!("expected {EXPECTED}, found `{text}`");
        let (times, unit) = text.split_once('/').ok_or_else(refused)?;
        let (unit, seconds) = UNITS
            .into_iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(refused)?;
        if times.is_empty() || !times.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refused());
        }
        match times.parse() {
            Ok(0) => Err(format!("`{text}` is never")),
            Ok(times @ ..=MOST) => Ok(Rate {
                times,
                unit,
                seconds,
            }),
            _ => Err(format!("`{text}` is more than `{MOST}/{unit}`")),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.times, self.unit)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
        from_text(deserializer, EXPECTED)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+/[smh]$",
            "description": "How often something may happen in a second, a minute or an hour: 10/s, 30/m, 100/h."
        })
    }
}

const EXPECTED: &str = "a rate such as `10/s` or `30/m`";

/// Units with their seconds.
const UNITS: [(&str, u32); 3] = [("s", 1), ("m", 60), ("h", 3600)];

/// Beyond it the time between two is a matter of single nanoseconds.
const MOST: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_read_and_others_refused() {
        let interval = |text: &str| text.parse::<Rate>().unwrap().interval();
        assert_eq!(interval("10/s"), Duration::from_millis(100));
        assert_eq!(interval("30/m"), Duration::from_secs(2));
        assert_eq!(interval("1/h"), Duration::from_secs(3600));
        for text in [
            "", "10", "/s", "10/", "10/d", "10r/s", "+1/s", "1.5/s", "10 /s",
        ] {
            let message = text.parse::<Rate>().unwrap_err();
            assert!(message.starts_with("expected a rate"), "{text}: {message}");
        }
        assert_eq!("0/s".parse::<Rate>().unwrap_err(), "`0/s` is never");
        assert!("1000001/s".parse::<Rate>().is_err());
        assert!("99999999999/s".parse::<Rate>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(times in 1..=MOST, unit in 0..3usize) {
            let text = format!("{times}/{}", UNITS[unit].0);
            prop_assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}|[0-9]{0,12}/[smhd]") {
            let _ = text.parse::<Rate>();
        }
    }
}
