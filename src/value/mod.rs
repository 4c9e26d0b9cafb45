//! Types of configuration values: parsed while loading, so that a value that exists is a value that is right.

pub mod template;

pub use template::Template;
