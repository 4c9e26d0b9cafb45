//! The document.

mod de;
mod fill;
pub mod load;
mod node;
