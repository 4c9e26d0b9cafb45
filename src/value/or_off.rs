//! A setting that can be switched off: `passive: off` or `passive: { max_fails: 3 }`.
//!
//! `off` is a word of its own and not "no value", so that a nearer level (a route) can take back what a farther one (the
//! site) has set.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrOff<T> {
    Off,
    On(T),
}

impl<T> OrOff<T> {
    pub fn as_ref(&self) -> OrOff<&T> {
        match self {
            OrOff::Off => OrOff::Off,
            OrOff::On(value) => OrOff::On(value),
        }
    }

    /// The setting, unless it is off.
    pub fn on(self) -> Option<T> {
        match self {
            OrOff::Off => None,
            OrOff::On(value) => Some(value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OrOff<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueOrOff(PhantomData))
    }
}

struct ValueOrOff<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ValueOrOff<T> {
    type Value = OrOff<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or `off`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        match text {
            "off" => Ok(OrOff::Off),
            _ => T::deserialize(text.into_deserializer()).map(OrOff::On),
        }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        match value {
            false => Err(E::invalid_value(Unexpected::Bool(false), &self)),
            true => T::deserialize(value.into_deserializer()).map(OrOff::On),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(OrOff::On)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(OrOff::On)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(OrOff::On)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(list)).map(OrOff::On)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(OrOff::On)
    }
}

impl<T: Serialize> Serialize for OrOff<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OrOff::Off => serializer.serialize_str("off"),
            OrOff::On(value) => value.serialize(serializer),
        }
    }
}

impl<T: JsonSchema> JsonSchema for OrOff<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("OrOff_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [{ "const": "off" }, value] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Span;

    #[test]
    fn off_is_a_word() {
        let read = |text: &str| serde_yaml::from_str::<OrOff<Span>>(text);
        assert_eq!(read("off").unwrap(), OrOff::Off);
        assert_eq!(read("5s").unwrap(), OrOff::On("5s".parse().unwrap()));
        let message = read("false").unwrap_err().to_string();
        assert!(message.contains("expected a value or `off`"), "{message}");
        assert!(read("5").is_err());
        assert!(read("OFF").is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        for setting in [
            OrOff::Off,
            OrOff::On(Span::new(std::time::Duration::from_secs(3))),
        ] {
            let written = serde_yaml::to_string(&setting).unwrap();
            assert_eq!(
                serde_yaml::from_str::<OrOff<Span>>(&written).unwrap(),
                setting
            );
        }
    }
}
