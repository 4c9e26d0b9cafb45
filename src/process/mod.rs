//! The process: starting, signals, the hand-over to a new binary, and ending.

pub mod boot;
mod daemon;
mod logs;
mod probation;
mod reload;
mod service;
mod signals;
mod swap;
mod systemd;
mod upgrade;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub use boot::{Ended, How, run};

/// Exit status when the process could not start.
pub const EXIT_FAILED: u8 = 3;
/// Exit status when the process ended before all requests had.
pub const EXIT_CUT: u8 = 4;

/// Takes as many files as this process may have: a soft limit, 1024 on most systems, is for programs that use select(2), and
/// would be full with 500 proxied connections. Comes before a configuration is loaded, which may take a share of them.
pub fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        eprintln!("weir: cannot raise the limit of open files: {e}");
    }
}
