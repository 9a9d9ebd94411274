//! `taipan backend probe`: what a backend can do, tried without a daemon.

use futures::executor::block_on;
use serde::Serialize;
use taipan_engine::backend::{ConditionalWrites, OpenOptions, Probe, open_with};

use crate::cli::{BackendCommand, Target};
use crate::failure::{Exit, Failure, Outcome};
use crate::table::Fields;

/// What is printed.
#[derive(Serialize)]
struct Found {
    backend: String,
    #[serde(flatten)]
    probe: Probe,
}

/// Does what was asked.
pub(crate) fn run(target: &Target, command: &BackendCommand) -> Outcome<()> {
    match command {
        BackendCommand::Probe { url } => probe(target, url),
    }
}

/// Probes; a backend that cannot keep two appliances apart is a failure, after it is shown.
fn probe(target: &Target, url: &str) -> Outcome<()> {
    let options = OpenOptions {
        default_dir: &target.data.join("objects"),
        cpu: None,
    };
    let backend = open_with(url, &options)?;
    let found = Found {
        backend: backend.describe(),
        probe: block_on(backend.probe())?,
    };
    target.form().print(&found, render)?;
    match found.probe.conditional_writes {
        ConditionalWrites::None => Err(Failure::new(
            Exit::Failed,
            "this backend does not keep conditional writes: taipand refuses it unless \
             fencing = \"none\"",
        )),
        _ => Ok(()),
    }
}

fn render(found: &Found) -> String {
    let writes = match found.probe.conditional_writes {
        ConditionalWrites::Full => "full: creation and replacement",
        ConditionalWrites::CreateOnly => "create only: all that Taipan needs",
        ConditionalWrites::None => "none: two appliances could overwrite each other",
    };
    let mut fields = Fields::default();
    fields
        .add("backend", found.backend.as_str())
        .add("conditional writes", writes);
    if !found.probe.notes.is_empty() {
        fields.add("notes", found.probe.notes.join("\n"));
    }
    fields.render()
}
