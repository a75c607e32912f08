//! The program `qmerge`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(qmerge_cli::run(std::env::args_os()))
}
