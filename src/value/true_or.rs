//! A map of which all is optional, with `true` for an empty one: `tls: true`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TrueOr<T>(pub T);

impl<T> Deref for TrueOr<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for TrueOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TrueOrMap(PhantomData))
    }
}

struct TrueOrMap<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for TrueOrMap<T> {
    type Value = TrueOr<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`true` or a map")
    }

    fn visit_bool<E: Error>(self, on: bool) -> Result<Self::Value, E> {
        match on {
            true => Ok(TrueOr(T::default())),
            false => Err(E::custom(
                "`true` or a map switches it on; leave the key out if it is to be off",
            )),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(TrueOr)
    }
}

impl<T: JsonSchema> JsonSchema for TrueOr<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("TrueOr_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let map = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [{ "const": true }, map] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Tls {
        sni: String,
    }

    #[test]
    fn true_is_the_map_of_all_defaults() {
        let read = |text: &str| serde_yaml::from_str::<TrueOr<Tls>>(text);
        assert_eq!(read("true").unwrap().0, Tls::default());
        assert_eq!(read("{}").unwrap(), read("true").unwrap());
        assert_eq!(read("{ sni: a }").unwrap().sni, "a");
        for wrong in ["false", "on", "1", "[]", "{ sn: a }"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
