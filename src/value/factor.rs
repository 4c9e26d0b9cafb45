//! How many times as much: `2x`, `1.5x`; from `1x` on.

use std::fmt;
use std::str::FromStr;

/// Kept in hundredths, so that it can be compared and printed exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Factor(u32);

impl Factor {
    /// From a whole number of hundredths, at least 100.
    pub const fn hundredths(hundredths: u32) -> Factor {
        assert!(hundredths >= WHOLE, "a factor is at least 1x");
        Factor(hundredths)
    }

    pub fn get(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }
}

impl FromStr for Factor {
    type Err = String;

    fn from_str(text: &str) -> Result<Factor, String> {
        let refused = || format!("expected a factor such as `2x` or `1.5x`, found `{text}`");
        let written = text.strip_suffix('x').ok_or_else(refused)?;
        let (whole, fraction) = written.split_once('.').unwrap_or((written, "0"));
        let is_number =
            |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || fraction.len() > DECIMALS {
            return Err(refused());
        }
        let whole: u32 = whole.parse().map_err(|_| refused())?;
        let fraction: u32 = format!("{fraction:0<DECIMALS$}")
            .parse()
            .map_err(|_| refused())?;
        let hundredths = whole
            .checked_mul(WHOLE)
            .and_then(|n| n.checked_add(fraction));
        match hundredths {
            Some(hundredths @ WHOLE..) => Ok(Factor(hundredths)),
            Some(_) => Err(format!("`{text}` is less than `1x`")),
            None => Err(refused()),
        }
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x", self.get())
    }
}

const DECIMALS: usize = 2;
const WHOLE: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn factors_are_read_and_others_refused() {
        let read = |text: &str| text.parse::<Factor>();
        assert_eq!(read("2x"), Ok(Factor::hundredths(200)));
        assert_eq!(read("1.5x").map(Factor::get), Ok(1.5));
        for text in [
            "",
            "x",
            "2",
            "-2x",
            "1.x",
            ".5x",
            "2.125x",
            "99999999999x",
            "50000000x",
        ] {
            assert!(
                read(text).unwrap_err().starts_with("expected a factor"),
                "{text}"
            );
        }
        assert_eq!(read("0.5x").unwrap_err(), "`0.5x` is less than `1x`");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(hundredths in WHOLE..) {
            let factor = Factor(hundredths);
            prop_assert_eq!(factor.to_string().parse::<Factor>(), Ok(factor));
        }
    }
}
