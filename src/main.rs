//! The command line; see `tidegate --help`.

use std::process::ExitCode;

/// Every request allocates and frees a few dozen small things on one thread: measured in docs/performance.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tidegate::cli::main()
}
