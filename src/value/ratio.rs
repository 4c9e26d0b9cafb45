//! A share of a whole as it is written in the document: `20%`, `0.5%`; from `0%` to `100%`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::from_text;

/// Kept in millionths, so that it can be compared and printed exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ratio(u32);

impl Ratio {
    /// From a whole number of percent, at most 100.
    pub const fn percent(percent: u32) -> Ratio {
        assert!(percent <= 100, "a ratio is at most 100%");
        Ratio(percent * MILLIONTHS_PER_PERCENT)
    }

    /// 1,000,000 for all.
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// From 0.0 to 1.0.
    pub fn get(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Ratio, String> {
        let refused = || format!("expected {EXPECTED}, found `{text}`");
        let written = text.strip_suffix('%').ok_or_else(refused)?;
        let (whole, fraction) = written.split_once('.').unwrap_or((written, "0"));
        let is_number =
            |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || fraction.len() > DECIMALS {
            return Err(refused());
        }
        let too_large = || format!("`{text}` is more than `100%`");
        let whole: u32 = whole.parse().map_err(|_| too_large())?;
        let fraction: u32 = format!("{fraction:0<DECIMALS$}")
            .parse()
            .map_err(|_| refused())?;
        whole
            .checked_mul(MILLIONTHS_PER_PERCENT)
            .and_then(|millionths| millionths.checked_add(fraction))
            .filter(|millionths| *millionths <= WHOLE)
            .map(Ratio)
            .ok_or_else(too_large)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (
            self.0 / MILLIONTHS_PER_PERCENT,
            self.0 % MILLIONTHS_PER_PERCENT,
        );
        if fraction == 0 {
            return write!(f, "{whole}%");
        }
        let fraction = format!("{fraction:0DECIMALS$}");
        write!(f, "{whole}.{}%", fraction.trim_end_matches('0'))
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ratio, D::Error> {
        from_text(deserializer, EXPECTED)
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Ratio {
    fn schema_name() -> Cow<'static, str> {
        "Ratio".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(100(\.0{1,4})?|[0-9]{1,2}(\.[0-9]{1,4})?)%$",
            "description": "A share from 0% to 100%, for example 20% or 0.5%."
        })
    }
}

const EXPECTED: &str = "a ratio such as `20%`";

const DECIMALS: usize = 4;
const MILLIONTHS_PER_PERCENT: u32 = 10_000;
const WHOLE: u32 = 100 * MILLIONTHS_PER_PERCENT;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ratios_are_read() {
        let read = |text: &str| text.parse::<Ratio>().unwrap();
        assert_eq!(read("20%").get(), 0.2);
        assert_eq!(read("0%").get(), 0.0);
        assert_eq!(read("100%").get(), 1.0);
        assert_eq!(read("0.5%").get(), 0.005);
        assert_eq!(read("20%"), Ratio::percent(20));
    }

    #[test]
    fn what_is_not_a_ratio_is_refused_with_an_example() {
        for text in [
            "", "20", "%", "0.2", ".5%", "5.%", "-1%", "1.23456%", "20 %",
        ] {
            let message = text.parse::<Ratio>().unwrap_err();
            assert_eq!(
                message,
                format!("expected a ratio such as `20%`, found `{text}`")
            );
        }
        for text in ["101%", "100.1%", "4294967296%"] {
            assert_eq!(
                text.parse::<Ratio>().unwrap_err(),
                format!("`{text}` is more than `100%`")
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(millionths in 0..=WHOLE) {
            let ratio = Ratio(millionths);
            prop_assert_eq!(ratio.to_string().parse::<Ratio>(), Ok(ratio));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}|[0-9]{0,12}\\.[0-9]{0,6}%") {
            let _ = text.parse::<Ratio>();
        }
    }
}
