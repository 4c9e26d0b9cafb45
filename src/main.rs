//! The `weir` binary: see the library for everything.

use std::process::ExitCode;

// glibc's allocator costs a proxied request about a quarter more CPU; jemalloc was measured too (benches/README.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weir::cli::main()
}
