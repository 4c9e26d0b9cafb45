//! A number of bytes as it is written in the document: `512B`, `64KiB`, `10MiB`, or as in nginx `64k`, `10m`, `1g`.
//!
//! All units are powers of 1024. `KB` and `MB` are refused: half of the readers take them for powers of 1000.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{from_text, number_and_unit};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    pub const fn new(bytes: u64) -> Size {
        Size(bytes)
    }

    /// In bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let refused = || format!("expected {EXPECTED}, found `{text}`");
        let (number, unit) = number_and_unit(text).ok_or_else(refused)?;
        let shift = match unit {
            "B" => 0,
            "KiB" | "k" | "K" => 10,
            "MiB" | "m" | "M" => 20,
            "GiB" | "g" | "G" => 30,
            "TiB" | "t" | "T" => 40,
            _ => return Err(refused()),
        };
        number
            .checked_mul(1 << shift)
            .map(Size)
            .ok_or_else(|| format!("`{text}` is larger than any size"))
    }
}

/// Prints the largest unit that leaves a whole number.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.0 {
            0 => 0,
            bytes => (bytes.trailing_zeros() as usize / 10).min(UNITS.len() - 1),
        };
        write!(f, "{}{}", self.0 >> (10 * unit), UNITS[unit])
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        from_text(deserializer, EXPECTED)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+(B|[KMGT]iB|[kKmMgGtT])$",
            "description": "A number of bytes: a whole number and one of the units B, KiB, MiB, GiB, TiB, or k, m, g, t for short; for example 64KiB or 10m. All are powers of 1024."
        })
    }
}

const EXPECTED: &str = "a size such as `64KiB`";

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_unit_is_read() {
        let read = |text: &str| text.parse::<Size>().unwrap().get();
        assert_eq!(read("512B"), 512);
        assert_eq!(read("64KiB"), 65_536);
        assert_eq!(read("64k"), 65_536);
        assert_eq!(read("10MiB"), 10 << 20);
        assert_eq!(read("10m"), 10 << 20);
        assert_eq!(read("1g"), 1 << 30);
        assert_eq!(read("2TiB"), 2 << 40);
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_an_example() {
        for text in ["", "64", "KiB", "64KB", "64kb", "64 KiB", "-1k", "1.5m"] {
            let message = text.parse::<Size>().unwrap_err();
            assert_eq!(
                message,
                format!("expected a size such as `64KiB`, found `{text}`")
            );
        }
        assert!("18446744073709551615k".parse::<Size>().is_err());
    }

    #[test]
    fn a_bare_number_in_yaml_is_refused() {
        let message = serde_yaml::from_str::<Size>("65536")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("expected a size such as `64KiB`"),
            "{message}"
        );
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes: u64, shift in 0..64u32) {
            let size = Size::new(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}|[0-9]{1,25}(B|KiB|k|m|t)") {
            let _ = text.parse::<Size>();
        }
    }
}
