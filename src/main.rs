//! The command line; see `tidegate --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::cli::main()
}
