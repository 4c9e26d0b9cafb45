//! `access`: who may come, by address.
//!
//! ```yaml
//! access: { allow: [10.0.0.0/8, 2001:db8::/32], deny: [all] }
//! ```
//!
//! The first entry that the client's address is in decides, in written order, also that of the keys `allow` and `deny`;
//! where none is, the client may come. So an `allow` without a `deny` refuses nobody, of which `weir check` warns. Whom
//! it refuses is answered with 403 (`access` in `$failure`). The address is `$remote_addr`: behind a trusted proxy, the
//! client that the proxy names.
//!
//! Where allowing and denying has to alternate, write a list:
//!
//! ```yaml
//! access: [{ allow: 10.1.0.0/16 }, { deny: 10.0.0.0/8 }, { allow: all }]
//! ```
//!
//! # Inside
//!
//! The entries become a sorted list of disjoint ranges when the file is loaded, so that a block list of 100,000
//! networks costs a request a binary search.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pingora::http::RequestHeader;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::{Cx, Failure};
use crate::issue::At;
use crate::value::{Cidr, OneOrMany};

/// Who may come: `{ allow: [...], deny: [...] }`, or a list of `{ allow: ... }` and `{ deny: ... }` where the two have to
/// alternate. The first entry that has the client's address decides, in written order; if none has, the client may come.
/// nginx: `allow`, `deny`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    rules: Vec<Rule>,
    /// Whether it was written as a list; only for the places of mistakes.
    is_list: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    verdict: Verdict,
    whom: OneOrMany<Whom>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Deny,
}

/// What an entry stands for.
#[derive(Debug, Clone, PartialEq)]
enum Whom {
    /// Every client.
    All,
    /// Clients on a unix socket, which have no address.
    Unix,
    Range(Cidr),
    /// The networks in a file.
    File(PathBuf),
}

/// A file of networks, one in each line; what follows `#` is a comment.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileOfRanges {
    /// A file with a network or an address on each line, `#` before comments; read with the configuration.
    file: PathBuf,
}

#[derive(Debug)]
pub struct Access {
    v4: Ranges,
    v6: Ranges,
    /// For clients on a unix socket.
    unix: Verdict,
}

impl Access {
    fn verdict(&self, client: Option<IpAddr>) -> Verdict {
        match client.map(|client| client.to_canonical()) {
            None => self.unix,
            Some(IpAddr::V4(client)) => self.v4.verdict(client.to_bits().into()),
            Some(IpAddr::V6(client)) => self.v6.verdict(client.to_bits()),
        }
    }
}

impl Filter for Access {
    async fn request(&self, cx: &mut Cx, _request: &RequestHeader, _wall: SystemTime) -> Flow {
        match self.verdict(cx.client) {
            Verdict::Allow => Flow::Continue,
            Verdict::Deny => Flow::Fail(Failure::Access),
        }
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Access> {
        if self.rules.iter().all(|rule| rule.verdict == Verdict::Allow) {
            b.warn(at, "nobody is refused").hint(
                "whom no entry has may come; end with `deny: [all]` to let in only who is allowed",
            );
        }
        let mut entries = Vec::new();
        // whether `all` has decided for everybody
        let mut is_decided = false;
        for (i, rule) in self.rules.iter().enumerate() {
            let (item, key) = (at.index(i), rule.verdict.key());
            let list = if self.is_list {
                item.key(key)
            } else {
                at.key(key)
            };
            for (j, whom) in rule.whom.0.iter().enumerate() {
                if is_decided {
                    b.warn(&list.index(j), "this entry is never reached")
                        .hint("`all` stands before it, and entries count in written order");
                }
                is_decided |= *whom == Whom::All;
                match whom {
                    Whom::File(written) => {
                        let path = b.sources.input(&list.index(j), written);
                        let ranges = read(&path, &list.index(j), b);
                        let ranges = ranges.into_iter().map(Whom::Range);
                        entries.extend(ranges.map(|range| (range, rule.verdict)));
                    }
                    whom => entries.push((whom.clone(), rule.verdict)),
                }
            }
        }
        Some(Access::new(&entries))
    }
}

impl Verdict {
    fn key(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        }
    }
}

/// How many mistakes in one file are told.
const MISTAKES: usize = 5;

/// The networks in a file.
fn read(path: &Path, at: &At<'_>, b: &mut Build<'_>) -> Vec<Cidr> {
    let shown = path.display();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => {
            b.error(at, format!("cannot read `{shown}`: {e}"));
            return Vec::new();
        }
    };
    let (mut ranges, mut mistakes) = (Vec::new(), 0);
    for (number, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        match entry.parse() {
            Ok(range) => ranges.push(range),
            Err(message) if mistakes < MISTAKES => {
                b.error(at, format!("`{shown}`, line {}: {message}", number + 1));
                mistakes += 1;
            }
            Err(_) => {}
        }
    }
    ranges
}

impl Access {
    fn new(entries: &[(Whom, Verdict)]) -> Access {
        let (mut v4, mut v6) = (Paint::new(u32::MAX.into()), Paint::new(u128::MAX));
        let mut unix = Verdict::Allow;
        // The first entry decides, so it is painted last, over all others.
        for (whom, verdict) in entries.iter().rev() {
            let verdict = *verdict;
            match whom {
                Whom::All => {
                    v4.over(0, u32::MAX.into(), verdict);
                    v6.over(0, u128::MAX, verdict);
                    unix = verdict;
                }
                Whom::Unix => unix = verdict,
                Whom::Range(range) => {
                    let prefix = u32::from(range.prefix());
                    match range.network() {
                        IpAddr::V4(network) => {
                            let host = u32::MAX.checked_shr(prefix).unwrap_or(0);
                            let first = network.to_bits();
                            v4.over(first.into(), (first | host).into(), verdict);
                        }
                        IpAddr::V6(network) => {
                            let host = u128::MAX.checked_shr(prefix).unwrap_or(0);
                            let first = network.to_bits();
                            v6.over(first, first | host, verdict);
                        }
                    }
                }
                Whom::File(_) => unreachable!("its networks stand in its place"),
            }
        }
        Access {
            v4: v4.into(),
            v6: v6.into(),
            unix,
        }
    }
}

/// Every address of one family, in ranges of one verdict each: where one begins, and its verdict.
#[derive(Debug)]
struct Ranges(Box<[(u128, Verdict)]>);

impl Ranges {
    fn verdict(&self, address: u128) -> Verdict {
        let next = self.0.partition_point(|(first, _)| *first <= address);
        // the first range begins at zero
        self.0[next.saturating_sub(1)].1
    }
}

/// The same while it is made.
struct Paint {
    ranges: BTreeMap<u128, Verdict>,
    /// The last address of the family.
    end: u128,
}

impl Paint {
    fn new(end: u128) -> Paint {
        Paint {
            ranges: BTreeMap::from([(0, Verdict::Allow)]),
            end,
        }
    }

    /// Gives all from `first` to `last` this verdict, whatever it was.
    fn over(&mut self, first: u128, last: u128, verdict: Verdict) {
        let behind = (last < self.end).then(|| {
            let holds = self.ranges.range(..=last + 1).next_back();
            (last + 1, *holds.expect("there is one at zero").1)
        });
        while let Some((&begin, _)) = self.ranges.range(first..=last).next() {
            self.ranges.remove(&begin);
        }
        self.ranges.insert(first, verdict);
        self.ranges.extend(behind);
    }
}

impl From<Paint> for Ranges {
    fn from(paint: Paint) -> Ranges {
        let mut ranges: Vec<_> = paint.ranges.into_iter().collect();
        ranges.dedup_by_key(|(_, verdict)| *verdict);
        Ranges(ranges.into())
    }
}

/// Read by hand: the order of the keys counts, and a struct has none.
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
        struct MapOrList;

        impl<'de> Visitor<'de> for MapOrList {
            type Value = Config;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`{ allow: [...], deny: [...] }`, or a list of `{ allow: ... }` and `{ deny: ... }`")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Config, A::Error> {
                let rules = rules(map)?;
                Ok(Config {
                    rules,
                    is_list: false,
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Config, A::Error> {
                let mut rules = Vec::new();
                while let Some(Item(rule)) = list.next_element()? {
                    rules.push(rule);
                }
                Ok(Config {
                    rules,
                    is_list: true,
                })
            }
        }

        deserializer.deserialize_any(MapOrList)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Allow,
    Deny,
}

fn rules<'de, A: MapAccess<'de>>(mut map: A) -> Result<Vec<Rule>, A::Error> {
    let mut rules: Vec<Rule> = Vec::new();
    while let Some(key) = map.next_key()? {
        let verdict = match key {
            Key::Allow => Verdict::Allow,
            Key::Deny => Verdict::Deny,
        };
        if rules.iter().any(|rule| rule.verdict == verdict) {
            return Err(A::Error::duplicate_field(verdict.key()));
        }
        rules.push(Rule {
            verdict,
            whom: map.next_value()?,
        });
    }
    Ok(rules)
}

/// One item of the list.
struct Item(Rule);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Item, D::Error> {
        struct OneKey;

        impl<'de> Visitor<'de> for OneKey {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`{ allow: ... }` or `{ deny: ... }`")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
                let mut rules = rules(map)?;
                match (rules.pop(), rules.is_empty()) {
                    (Some(rule), true) => Ok(Item(rule)),
                    _ => Err(A::Error::custom(
                        "an item of the list has one key, `allow` or `deny`",
                    )),
                }
            }
        }

        deserializer.deserialize_any(OneKey)
    }
}

impl<'de> Deserialize<'de> for Whom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Whom, D::Error> {
        struct TextOrFile;

        impl<'de> Visitor<'de> for TextOrFile {
            type Value = Whom;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an address range such as `10.0.0.0/8`, `all`, `unix:` or `{ file: PATH }`",
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Whom, E> {
                match text {
                    "all" => Ok(Whom::All),
                    "unix:" => Ok(Whom::Unix),
                    range => range.parse().map(Whom::Range).map_err(E::custom),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Whom, A::Error> {
                let file = FileOfRanges::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Whom::File(file.file))
            }
        }

        deserializer.deserialize_any(TextOrFile)
    }
}

impl JsonSchema for Config {
    fn schema_name() -> Cow<'static, str> {
        "Access".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let whom = generator.subschema_for::<OneOrMany<Whom>>();
        let key = |what: &str| {
            let mut schema = whom.clone();
            schema.insert("description".to_owned(), what.into());
            schema
        };
        let allow = key(
            "Who may come: a network, an address, `all`, `unix:` (clients on a unix socket) or a file of networks. nginx: `allow`.",
        );
        let deny = key("Who may not, in the same way; 403 answers. nginx: `deny`.");
        let keys = json_schema!({ "allow": allow, "deny": deny });
        let keys = &keys;
        json_schema!({
            "description": "A map of the two keys, or a list of maps of one key each, where allowing and denying has to alternate.",
            "anyOf": [
                { "type": "object", "properties": keys, "additionalProperties": false },
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": keys,
                        "additionalProperties": false,
                        "minProperties": 1,
                        "maxProperties": 1,
                    },
                },
            ],
        })
    }
}

impl JsonSchema for Whom {
    fn schema_name() -> Cow<'static, str> {
        "Whom".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let range = generator.subschema_for::<Cidr>();
        let file = generator.subschema_for::<FileOfRanges>();
        json_schema!({ "anyOf": [{ "enum": ["all", "unix:"] }, range, file] })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::issue::Sources;

    #[test]
    fn the_order_of_the_keys_is_the_order_of_the_rules() {
        for (config, office, world) in [
            (
                "{ allow: [10.0.0.0/8], deny: [all] }",
                Verdict::Allow,
                Verdict::Deny,
            ),
            (
                "{ deny: [all], allow: [10.0.0.0/8] }",
                Verdict::Deny,
                Verdict::Deny,
            ),
            ("{ deny: 10.0.0.0/8 }", Verdict::Deny, Verdict::Allow),
            ("[]", Verdict::Allow, Verdict::Allow),
            (
                "[{ deny: 10.0.0.1 }, { allow: 10.0.0.0/24 }, { deny: all }]",
                Verdict::Deny,
                Verdict::Deny,
            ),
        ] {
            let access = compile(config);
            let verdict = |client: &str| access.verdict(client.parse().ok());
            assert_eq!(verdict("10.0.0.1"), office, "{config}");
            assert_eq!(verdict("192.0.2.1"), world, "{config}");
            assert_eq!(verdict("2001:db8::1"), world, "{config}");
            assert_eq!(access.verdict(None), world, "{config}");
        }
    }

    #[test]
    fn unix_sockets_and_mapped_addresses_are_known() {
        let access = compile("{ allow: ['unix:', 10.0.0.0/8], deny: all }");
        assert_eq!(access.verdict(None), Verdict::Allow);
        let mapped = access.verdict("::ffff:10.1.2.3".parse().ok());
        assert_eq!(mapped, Verdict::Allow);
        // no address of IPv4
        let all_v6 = compile("{ deny: '::/0' }");
        assert_eq!(all_v6.verdict("10.0.0.1".parse().ok()), Verdict::Allow);
        assert_eq!(all_v6.verdict("::1".parse().ok()), Verdict::Deny);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for (config, expected) in [
            ("10.0.0.0/8", "expected `{ allow"),
            ("{ permit: all }", "unknown field `permit`"),
            (
                "[{ allow: all, deny: all }]",
                "an item of the list has one key",
            ),
            ("[{}]", "an item of the list has one key"),
            ("{ allow: 10.0.0.1/8 }", "`10.0.0.1/8` is an address inside"),
            ("{ allow: [5] }", "expected an address range such as"),
            ("{ allow: { path: x } }", "unknown field `path`"),
        ] {
            let error = serde_yaml::from_str::<Config>(config).unwrap_err();
            assert!(error.to_string().contains(expected), "{config}: {error}");
        }
    }

    proptest! {
        #[test]
        fn ranges_say_what_the_rules_say_one_by_one(
            rules in proptest::collection::vec((0..64u32, 24..=32u8, any::<bool>()), 0..12),
            client in 0..64u32,
        ) {
            let entries: Vec<(Whom, Verdict)> = rules
                .iter()
                .map(|(bits, prefix, allow)| {
                    let network = std::net::Ipv4Addr::from_bits(bits & !(u32::MAX.checked_shr((*prefix).into()).unwrap_or(0)));
                    let range = format!("{network}/{prefix}").parse().unwrap();
                    (Whom::Range(range), if *allow { Verdict::Allow } else { Verdict::Deny })
                })
                .collect();
            let client = IpAddr::V4(std::net::Ipv4Addr::from_bits(client));
            let first = entries.iter().find(|(whom, _)| match whom {
                Whom::Range(range) => range.contains(client),
                _ => false,
            });
            let expected = first.map_or(Verdict::Allow, |(_, verdict)| *verdict);
            prop_assert_eq!(Access::new(&entries).verdict(Some(client)), expected);
        }
    }

    fn compile(config: &str) -> Access {
        let config: Config = serde_yaml::from_str(config).unwrap();
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let access = config.compile(&At::Root, &mut b).expect("sound rules");
        assert!(!b.issues.has_errors(), "{:?}", b.issues);
        access
    }
}
