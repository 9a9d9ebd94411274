//! The protocol machines against clients and servers that others wrote, over unix sockets.
//!
//! A tool that is not installed is named on standard error and its test passes.

mod clients;
mod memory_server;
mod server;
mod servers;

use std::process::{Command, Output};

/// Runs a tool to its end. `None`, said loudly, when it is not installed.
fn run(tool: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new("timeout")
        .arg("60")
        .arg(tool)
        .args(arguments)
        .output()
    {
        Ok(output) if output.status.code() == Some(127) => {
            eprintln!("SKIPPED: {tool} is not installed");
            None
        }
        Ok(output) => Some(output),
        Err(error) => panic!("timeout {tool}: {error}"),
    }
}

/// Standard output of a tool that must succeed.
fn stdout(tool: &str, arguments: &[&str]) -> Option<String> {
    let output = run(tool, arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {text}{errors}"
    );
    Some(text)
}
