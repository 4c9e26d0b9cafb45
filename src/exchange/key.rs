//! What a request is counted by: the hash of a text.

use std::cell::RefCell;
use std::num::NonZeroU64;

use ahash::RandomState;

use super::vars::{Text, View};

/// The hash of the text for one request; `None` where the text is empty. Whoever does not know the seed of `hasher` finds no two
/// keys that fall together.
pub fn hash(text: &Text, view: &View<'_>, hasher: &RandomState) -> Option<NonZeroU64> {
    thread_local! {
        /// Only for the moment of one call: kept because it has memory.
        static RENDERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    RENDERED.with_borrow_mut(|rendered| {
        rendered.clear();
        text.write(view, rendered);
        let hash = hasher.hash_one(rendered.as_slice());
        (!rendered.is_empty()).then_some(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    })
}
