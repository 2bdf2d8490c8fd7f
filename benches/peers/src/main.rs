//! The two ends of a proxy measurement: a fast fake upstream and a load driver. `run` beside this
//! package starts both around each proxy; neither is itself measured.
//!
//! Plain sockets and a minimal HTTP/1.1 reader: every microsecond spent here is taken from the
//! proxy under test, because all of them share the machine's cores.

mod args;
mod event;
mod requests;
mod streams;
mod upstream;
mod wire;

use std::process::ExitCode;

const USAGE: &str = "\
usage: peers upstream [--threads 2]
           prints {\"port\":N}, serves until standard input closes
       peers load --port N [--connections 64] [--requests N] [--seconds T] [--threads 1]
           closed loop; with --rate R an open loop of R requests per second
       peers load --port N --streams S [--chunks 200] [--interval-ms 10] [--threads 1]
           S event streams at once, read to their end
       peers load --port N --hold S [--interval-ms 5000] [--seconds T]
           opens S streams, prints a line, keeps them until standard input closes";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let done = args::Args::parse(words).and_then(|args| match command.as_str() {
        "upstream" => upstream::run(&args),
        "load" if args.has("hold") => streams::hold(&args),
        "load" if args.has("streams") => streams::run(&args),
        "load" => requests::run(&args),
        _ => Err(USAGE.into()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}
