//! Actions: what finally answers a request.

pub mod files;
