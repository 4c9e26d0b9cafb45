//! The `weir` binary: see the library for everything.

use std::process::ExitCode;

// glibc's allocator costs the proxy about a tenth more CPU per request and gives memory back late; mimalloc and
// jemalloc were measured against it (benches/README.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weir::cli::main()
}
