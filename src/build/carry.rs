//! What outlives a reload: counts that a new configuration goes on with where the old one stopped.
//!
//! An entry is found by its type and a name, which is usually its place in the document. The snapshots hold the entries,
//! here are weak references: the last snapshot that uses one frees it. Pools and open files find their predecessors
//! themselves, by what they are made of.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

#[derive(Clone, Debug, Default)]
pub struct Carry(HashMap<(TypeId, String), Weak<dyn Any + Send + Sync>>);

impl Carry {
    /// The entry of that name, of here or in `previous`, if it `fits`, otherwise a new one; known here from now on.
    pub(super) fn take_over<T: Any + Send + Sync>(
        &mut self,
        previous: &Carry,
        name: String,
        fits: impl FnOnce(&T) -> bool,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let key = (TypeId::of::<T>(), name);
        let of = |carry: &Carry| carry.0.get(&key)?.upgrade()?.downcast::<T>().ok();
        let before = of(self).or_else(|| of(previous));
        let entry = match before {
            Some(entry) if fits(&entry) => entry,
            _ => Arc::new(make()),
        };
        let known: Arc<dyn Any + Send + Sync> = entry.clone();
        self.0.insert(key, Arc::downgrade(&known));
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_and_fits_is_taken_over() {
        let take = |now: &mut Carry, before: &Carry, name: &str, fits: bool, value: u32| {
            now.take_over(before, name.to_owned(), |_: &u32| fits, || value)
        };
        let (none, mut first) = (Carry::default(), Carry::default());
        let one = take(&mut first, &none, "a", true, 1);
        let gone = take(&mut first, &none, "b", true, 2);
        drop(gone);
        let mut second = Carry::default();
        assert!(Arc::ptr_eq(&one, &take(&mut second, &first, "a", true, 3)));
        assert_eq!(*take(&mut second, &first, "b", true, 4), 4);
        assert_eq!(*take(&mut second, &first, "a", false, 5), 5);
        // by several places of one document
        let two = take(&mut second, &first, "c", true, 7);
        assert!(Arc::ptr_eq(&two, &take(&mut second, &first, "c", true, 8)));
        // of another kind
        let other = second.take_over(&first, "a".to_owned(), |_: &u64| true, || 6u64);
        assert_eq!(*other, 6);
    }
}
