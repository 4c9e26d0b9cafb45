//! The process: starting, signals, the hand-over to a new binary, and ending.

pub mod boot;
mod daemon;
mod logs;
mod reload;
mod service;
mod signals;
mod swap;
mod systemd;
mod upgrade;

pub use boot::{How, run};

/// Exit status when the process could not start.
pub const EXIT_FAILED: u8 = 3;
