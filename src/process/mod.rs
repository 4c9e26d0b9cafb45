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

pub use boot::{Ended, How, run};

/// Exit status when the process could not start.
pub const EXIT_FAILED: u8 = 3;
/// Exit status when the process ended before all requests had.
pub const EXIT_CUT: u8 = 4;
