//! One request and its answer, as features see them.

pub mod cx;
pub mod date;
pub mod escape;
pub mod failure;
pub mod key;
pub mod named;
pub mod pace;
pub mod page;
pub mod reply;
pub mod slots;
pub mod transform;
pub mod vars;

pub use cx::Cx;
pub use failure::Failure;
pub use reply::{Body, Parts, Reply};
pub use slots::Slots;
pub use transform::{Transform, Transforms};
