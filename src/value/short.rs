//! A map with a short form: `proxy: app` for `proxy: { pool: app }`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the short form stands for.
pub trait FromShort: Sized {
    /// What may be written, for whoever writes something else.
    const EXPECTING: &'static str = "a string or a map";

    /// What the short form looks like to an editor.
    fn short_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<String>()
    }

    /// Reads the short form; the error is a message in the manner of [`crate::issue::Issue`].
    fn from_short(text: &str) -> Result<Self, String>;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Short<T>(pub T);

impl<T> Deref for Short<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<'de, T: Deserialize<'de> + FromShort> Deserialize<'de> for Short<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrMap(PhantomData))
    }
}

struct TextOrMap<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + FromShort> Visitor<'de> for TextOrMap<T> {
    type Value = Short<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTING)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        T::from_short(text).map(Short).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Short)
    }
}

impl<T: Serialize> Serialize for Short<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<T: JsonSchema + FromShort> JsonSchema for Short<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Short_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let short = T::short_schema(generator);
        let map = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [short, map] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Proxy {
        pool: String,
    }

    impl FromShort for Proxy {
        fn from_short(text: &str) -> Result<Proxy, String> {
            match text {
                "" => Err("a pool needs a name".to_owned()),
                pool => Ok(Proxy {
                    pool: pool.to_owned(),
                }),
            }
        }
    }

    #[test]
    fn both_forms_mean_the_same() {
        let read = |text: &str| serde_yaml::from_str::<Short<Proxy>>(text);
        assert_eq!(read("app").unwrap().pool, "app");
        assert_eq!(read("{ pool: app }").unwrap(), read("app").unwrap());
        assert!(
            read("''")
                .unwrap_err()
                .to_string()
                .contains("a pool needs a name")
        );
        assert!(read("{ pol: app }").is_err());
        assert!(
            read("5")
                .unwrap_err()
                .to_string()
                .contains("expected a string or a map")
        );
    }
}
