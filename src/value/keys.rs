//! Maps that serde's derive cannot read: their keys come from more than one type (a route holds its own keys, one
//! action and any policy).
//!
//! `#[serde(flatten)]` would read them, but it buffers the map, so that a mistake inside loses its place, and it
//! cannot refuse unknown keys. Here each key is checked while it is read, so that an error names the key itself.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, Visitor};

/// A type that is read key by key.
pub trait Keyed: Default {
    /// What a message calls it: `invalid type: string "x", expected a route`.
    const EXPECTING: &'static str;
    /// Every key that may stand in the map.
    const KEYS: &'static [&'static str];

    /// Takes the value of `key`, which is one of [`Keyed::KEYS`] and comes once.
    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error>;
}

/// The body of a `Deserialize` implementation of a [`Keyed`] type.
pub fn deserialize<'de, T: Keyed, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_map(KeyedVisitor(PhantomData))
}

/// Joins lists of keys at compile time; `N` is the sum of their lengths.
pub const fn join<const N: usize>(lists: &[&[&'static str]]) -> [&'static str; N] {
    let mut joined = [""; N];
    let mut filled = 0;
    let mut list = 0;
    while list < lists.len() {
        let mut key = 0;
        while key < lists[list].len() {
            joined[filled] = lists[list][key];
            filled += 1;
            key += 1;
        }
        list += 1;
    }
    assert!(filled == N, "N is the sum of the lengths");
    joined
}

struct KeyedVisitor<T>(PhantomData<T>);

impl<'de, T: Keyed> Visitor<'de> for KeyedVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTING)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut value = T::default();
        let mut seen = Vec::new();
        while let Some(key) = map.next_key_seed(Key {
            known: T::KEYS,
            seen: &seen,
        })? {
            seen.push(key);
            value.read(key, &mut map)?;
        }
        Ok(value)
    }
}

/// One key of a map. It is refused here, and not after it was read, because only here does a wrapper that tracks
/// places count the key to the place.
struct Key<'a> {
    known: &'static [&'static str],
    seen: &'a [&'static str],
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<&'static str, E> {
        match self.known.iter().find(|known| **known == key) {
            Some(known) if self.seen.contains(known) => Err(E::duplicate_field(known)),
            Some(known) => Ok(known),
            None => Err(E::unknown_field(key, self.known)),
        }
    }
}
