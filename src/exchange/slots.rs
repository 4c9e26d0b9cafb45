//! What policies keep about one request from one phase to a later one.

use std::any::{Any, TypeId};
use std::fmt;

/// One value of each type. A policy keeps values of types of its own, so that no two meet, and drops with the request
/// what it has to give back then.
///
/// Few requests have any, and those have few: a list without memory of its own, until there is one, does better than a
/// map.
#[derive(Default)]
pub struct Slots(Vec<Box<dyn Any + Send + Sync>>);

impl Slots {
    /// Keeps `value` in place of the one of the same type.
    pub fn put<T: Any + Send + Sync>(&mut self, value: T) {
        match self.get_mut::<T>() {
            Some(kept) => *kept = value,
            None => self.0.push(Box::new(value)),
        }
    }

    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.iter().find_map(|slot| slot.downcast_ref())
    }

    pub fn get_mut<T: Any>(&mut self) -> Option<&mut T> {
        self.0.iter_mut().find_map(|slot| slot.downcast_mut())
    }

    pub fn take<T: Any>(&mut self) -> Option<T> {
        let of_type = |slot: &Box<dyn Any + Send + Sync>| (**slot).type_id() == TypeId::of::<T>();
        let index = self.0.iter().position(of_type)?;
        let slot: Box<dyn Any> = self.0.swap_remove(index);
        slot.downcast().ok().map(|value| *value)
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slots({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_one_value() {
        let mut slots = Slots::default();
        assert_eq!(slots.get::<u8>(), None);
        slots.put(1u8);
        slots.put("a".to_owned());
        slots.put(2u8);
        assert_eq!(slots.get::<u8>(), Some(&2));
        *slots.get_mut::<u8>().unwrap() += 1;
        assert_eq!(slots.take::<u8>(), Some(3));
        assert_eq!(slots.take::<u8>(), None);
        assert_eq!(slots.get::<String>().map(String::as_str), Some("a"));
    }
}
