//! `geo`: a variable whose value depends on an address.
//!
//! ```yaml
//! geo:
//!   $region: { from: "$remote_addr", values: { 10.0.0.0/8: office, 10.1.0.0/16: lab }, default: world }
//! ```
//!
//! The longest network that holds the address decides. Networks lie within each other or apart, so that they cut the
//! addresses into stretches with one value each; a look-up is a binary search for the stretch. nginx: `geo`.

use std::net::IpAddr;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Choice, Definition, Value, bytes};
use crate::build::Build;
use crate::exchange::vars::{Piece, Text, Var, View};
use crate::issue::At;
use crate::value::Cidr;

/// A variable whose value depends on an address: `geo.$NAME`. nginx: `geo`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address, as a text with variables. Default: `$remote_addr`.
    #[serde(default = "remote_addr")]
    pub from: String,
    /// Values by network, such as `10.0.0.0/8` or `2001:db8::/32`; the longest that holds the address decides. Values are
    /// texts with variables.
    pub values: IndexMap<String, String>,
    /// The value where none does, or where there is no address. Default: none.
    #[serde(default)]
    pub default: Option<String>,
}

fn remote_addr() -> String {
    "$remote_addr".to_owned()
}

/// Where the address is from.
#[derive(Debug)]
pub enum From {
    /// The client's, which need not be written and read again.
    Client,
    Text(Text),
}

/// Networks, each with the index of its value.
#[derive(Debug)]
pub struct Networks {
    /// Where a stretch of addresses begins that share a value; the first begins at zero. IPv4 is within IPv6 here, as
    /// `::ffff:0:0/96`.
    stretches: Vec<(u128, Option<usize>)>,
}

impl Config {
    pub(super) fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Definition> {
        let from = Text::compile(&at.key("from"), &self.from, b);
        let at_values = at.key("values");
        let mut networks = Vec::with_capacity(self.values.len());
        let mut values = Vec::with_capacity(self.values.len());
        let mut sound = true;
        for (written, value) in &self.values {
            let at = at_values.key(written);
            match written.parse::<Cidr>() {
                Ok(network) => networks.push((network, values.len())),
                Err(message) => {
                    b.error(&at, message).on_key();
                    sound = false;
                }
            }
            match Value::compile(&at, value, b) {
                Some(value) => values.push(value),
                None => sound = false,
            }
        }
        let mut sorted = networks.clone();
        sorted.sort_unstable();
        for pair in sorted.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            // By index: those of values that are wrong are missing, but then nothing comes of it anyway.
            if let Some((written, _)) = self.values.get_index(pair[1].1) {
                b.error(
                    &at_values.key(written),
                    format!("`{written}` is given twice"),
                )
                .on_key();
                sound = false;
            }
        }
        let default = Value::default(at, self.default.as_deref(), b);
        let from = from?;
        let from = match from.pieces() {
            [Piece::Var(Var::RemoteAddr)] => From::Client,
            _ => From::Text(from),
        };
        let definition = Definition {
            choice: Choice::Geo(from, Networks::new(&networks)),
            values,
            default: default.ok()?,
        };
        sound.then_some(definition)
    }
}

impl From {
    pub(super) fn address(&self, view: &View<'_>) -> Option<IpAddr> {
        match self {
            From::Client => view.cx.client,
            From::Text(text) => std::str::from_utf8(&bytes(text, view))
                .ok()?
                .trim()
                .parse()
                .ok(),
        }
    }
}

impl Networks {
    pub fn new(networks: &[(Cidr, usize)]) -> Networks {
        let ranges = networks.iter().map(|(network, value)| {
            let (first, prefix) = widened(network.network(), network.prefix());
            (first, prefix, Some(*value))
        });
        // What a network of IPv6 holds does not hold for the clients of IPv4 within it.
        let ipv4 = (widened([0, 0, 0, 0].into(), 0).0, 96, None);
        let mut ranges: Vec<(u128, u8, Option<usize>)> = ranges.collect();
        if !ranges
            .iter()
            .any(|range| (range.0, range.1) == (ipv4.0, ipv4.1))
        {
            ranges.push(ipv4);
        }
        // Each behind those that it lies within.
        ranges.sort_unstable_by_key(|(first, prefix, _)| (*first, *prefix));

        let mut stretches = vec![(0, None)];
        // The networks around the present address, with the last address of each.
        let mut around: Vec<(u128, Option<usize>)> = Vec::new();
        for (first, prefix, value) in ranges {
            while around.last().is_some_and(|(last, _)| *last < first) {
                leave(&mut around, &mut stretches);
            }
            begin(first, value, &mut stretches);
            let size = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            around.push((first | size, value));
        }
        while !around.is_empty() {
            leave(&mut around, &mut stretches);
        }
        Networks { stretches }
    }

    /// The value for an address.
    pub fn find(&self, address: IpAddr) -> Option<usize> {
        let (address, _) = widened(address.to_canonical(), 0);
        let after = self
            .stretches
            .partition_point(|(first, _)| *first <= address);
        self.stretches[after - 1].1
    }
}

/// Behind the innermost network begins a stretch of the one around it.
fn leave(around: &mut Vec<(u128, Option<usize>)>, stretches: &mut Vec<(u128, Option<usize>)>) {
    let left = around.pop();
    let value = around.last().and_then(|(_, value)| *value);
    if let Some(next) = left.and_then(|(last, _)| last.checked_add(1)) {
        begin(next, value, stretches);
    }
}

fn begin(first: u128, value: Option<usize>, stretches: &mut Vec<(u128, Option<usize>)>) {
    match stretches.last_mut() {
        Some(last) if last.0 == first => last.1 = value,
        _ => stretches.push((first, value)),
    }
}

/// An address of IPv4 as one of IPv6, and the length of a prefix likewise.
fn widened(address: IpAddr, prefix: u8) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (address.to_ipv6_mapped().to_bits(), prefix + 96),
        IpAddr::V6(address) => (address.to_bits(), prefix),
    }
}
