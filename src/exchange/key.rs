//! What a request is counted by: the hash of a text.
//!
//! For policies with one limit or several, each with a key.

use std::cell::RefCell;
use std::num::NonZeroU64;

use ahash::RandomState;

use super::vars::{Piece, Stage, Text, Var, View};
use crate::build::Build;
use crate::issue::At;

/// The text of a key, which is known when a limit is applied.
pub fn compile(at: &At<'_>, text: &str, b: &mut Build<'_>) -> Option<Text> {
    let key = Text::compile_for(Stage::Request, at, text, b)?;
    if key.pieces().contains(&Piece::Var(Var::RemoteUser)) {
        b.error(
            at,
            "`$remote_user` is not known here: limits come before authentication",
        )
        .hint("`$http_authorization` is what the client claims");
        return None;
    }
    Some(key)
}

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
