//! A range of client addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::from_text;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// How many leading bits an address shares with the network.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` is in this range. An IPv4 client of an IPv6 socket appears as `::ffff:a.b.c.d`; it is
    /// judged as the IPv4 address that it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                masked_v4(address, self.prefix) == network
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                masked_v6(address, self.prefix) == network
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let refused = || format!("expected {EXPECTED}, found `{text}`");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| refused())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            // `u8` would also read `+8`
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(refused)?,
            Some(_) => return Err(refused()),
        };
        let network = match address {
            IpAddr::V4(address) => IpAddr::V4(masked_v4(address, prefix)),
            IpAddr::V6(address) => IpAddr::V6(masked_v6(address, prefix)),
        };
        // In an allow list a range that is wider than it looks is an open door.
        if network != address {
            return Err(format!(
                "`{text}` is an address inside a range; write `{network}/{prefix}` for the range or `{address}` for the address"
            ));
        }
        // `contains` would never meet it, because it judges such clients as IPv4.
        if let Some(mapped) = mapped_v4(network).filter(|_| prefix >= 96) {
            let prefix = prefix - 96;
            return Err(format!(
                "`{text}` is an IPv4 range in disguise; write `{mapped}/{prefix}`"
            ));
        }
        Ok(Cidr { network, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cidr, D::Error> {
        from_text(deserializer, EXPECTED)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Cidr {
    fn schema_name() -> Cow<'static, str> {
        "Cidr".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9a-fA-F.:]+(/[0-9]{1,3})?$",
            "description": "A range of addresses such as 10.0.0.0/8 or 2001:db8::/32, or one address."
        })
    }
}

const EXPECTED: &str = "an address range such as `10.0.0.0/8`";

fn masked_v4(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

fn masked_v6(address: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}

fn mapped_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contains(range: &str, address: &str) -> bool {
        range
            .parse::<Cidr>()
            .unwrap()
            .contains(address.parse().unwrap())
    }

    #[test]
    fn addresses_are_matched_by_their_leading_bits() {
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("0.0.0.0/0", "255.255.255.255"));
        assert!(!contains("0.0.0.0/0", "::1"));
        assert!(contains("192.0.2.7", "192.0.2.7"));
        assert!(!contains("192.0.2.7", "192.0.2.8"));
        assert!(contains("2001:db8::/32", "2001:db8:1::1"));
        assert!(contains("::/0", "::1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
    }

    #[test]
    fn what_is_not_a_range_is_refused_with_an_example() {
        for text in [
            "",
            "10",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "localhost",
            "10.0.0.0/256",
        ] {
            let message = text.parse::<Cidr>().unwrap_err();
            assert_eq!(
                message,
                format!("expected an address range such as `10.0.0.0/8`, found `{text}`")
            );
        }
    }

    #[test]
    fn a_range_with_loose_bits_is_refused_with_both_readings() {
        assert_eq!(
            "10.1.2.3/8".parse::<Cidr>().unwrap_err(),
            "`10.1.2.3/8` is an address inside a range; write `10.0.0.0/8` for the range or `10.1.2.3` for the address"
        );
    }

    #[test]
    fn a_mapped_range_is_refused_with_the_range_it_means() {
        let message = "::ffff:10.0.0.0/104".parse::<Cidr>().unwrap_err();
        assert!(message.ends_with("write `10.0.0.0/8`"), "{message}");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bits: u32, prefix in 0..=32u8) {
            let network = IpAddr::V4(masked_v4(Ipv4Addr::from_bits(bits), prefix));
            let range = Cidr { network, prefix };
            prop_assert_eq!(range.to_string().parse::<Cidr>(), Ok(range));
            prop_assert!(range.contains(IpAddr::V4(Ipv4Addr::from_bits(bits))));
        }

        #[test]
        fn what_is_printed_is_read_back_v6(bits: u128, prefix in 0..=128u8) {
            let network = IpAddr::V6(masked_v6(Ipv6Addr::from_bits(bits), prefix));
            let range = Cidr { network, prefix };
            prop_assert_eq!(range.to_string().parse::<Cidr>(), Ok(range));
            prop_assert!(range.contains(IpAddr::V6(Ipv6Addr::from_bits(bits))));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}|[0-9a-f.:]{0,20}/[0-9]{0,4}") {
            let _ = text.parse::<Cidr>();
        }
    }
}
