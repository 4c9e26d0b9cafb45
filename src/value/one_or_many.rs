//! A list that may be written as its only element: `bind: ":80"` for `bind: [":80"]`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::issue::At;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T> OneOrMany<T> {
    /// What `each` makes of the elements, with the place of each. Of a single one that is the place of the whole: it may be
    /// written without a list.
    pub fn map_at<R>(&self, at: &At<'_>, mut each: impl FnMut(&T, &At<'_>) -> R) -> Vec<R> {
        match &self.0[..] {
            [one] => vec![each(one, at)],
            many => {
                let many = many.iter().enumerate();
                many.map(|(i, one)| each(one, &at.index(i))).collect()
            }
        }
    }
}

impl<T> Default for OneOrMany<T> {
    fn default() -> OneOrMany<T> {
        OneOrMany(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementOrList(PhantomData))
    }
}

struct ElementOrList<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ElementOrList<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value or a list of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(OneOrMany)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        one(MapAccessDeserializer::new(map))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        one(text.into_deserializer())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        one(value.into_deserializer())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        one(value.into_deserializer())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        one(value.into_deserializer())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        one(value.into_deserializer())
    }
}

fn one<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    element: D,
) -> Result<OneOrMany<T>, D::Error> {
    Ok(OneOrMany(vec![T::deserialize(element)?]))
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let element = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [element, { "type": "array", "items": element }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Span;

    #[test]
    fn one_element_is_a_list_of_one() {
        let read = |text: &str| serde_yaml::from_str::<OneOrMany<String>>(text).unwrap().0;
        assert_eq!(read("a"), ["a"]);
        assert_eq!(read("[a, b]"), ["a", "b"]);
        assert!(read("[]").is_empty());
        assert_eq!(
            serde_yaml::from_str::<OneOrMany<u16>>("80").unwrap().0,
            [80]
        );
        assert!(serde_yaml::from_str::<OneOrMany<String>>("80").is_err());
        assert!(serde_yaml::from_str::<OneOrMany<Span>>("[5s, 5]").is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["a", "[]", "[a, b]"] {
            let list: OneOrMany<String> = serde_yaml::from_str(text).unwrap();
            let written = serde_yaml::to_string(&list).unwrap();
            assert_eq!(
                serde_yaml::from_str::<OneOrMany<String>>(&written).unwrap(),
                list
            );
        }
    }
}
