//! `taipan backend probe`: what a backend can do, tried without a daemon.

use std::sync::Arc;

use futures::executor::block_on;
use serde::Serialize;
use taipan_engine::backend::{Backend, ConditionalWrites, OpenOptions, Probe, open_with};
use taipan_engine::error::{Error, ErrorKind};

use crate::cli::{BackendCommand, Target};
use crate::control::Control;
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

/// The backend of `url`; `dir:` without a path is that of the data directory.
pub(crate) fn open(target: &Target, url: &str) -> Outcome<Arc<dyn Backend>> {
    let options = OpenOptions {
        default_dir: &target.data.join("objects"),
        cpu: None,
    };
    Ok(open_with(url, &options)?)
}

/// The backend of the daemon, if one runs; else that of the data directory.
pub(crate) fn of_daemon(target: &Target) -> String {
    let status = Control::new(target.control_socket()).and_then(|control| control.status());
    let location = status.ok().and_then(|status| status.backend.location);
    location.unwrap_or_else(|| "dir:".to_owned())
}

/// An absent volume or snapshot may be in another backend.
pub(crate) fn not_found_in(backend: &dyn Backend, error: Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound => {
            let place = backend.describe();
            let what = format!("{error} (in {place}; --backend URL names another backend)");
            Failure::new(Exit::NotFound, what)
        }
        _ => error.into(),
    }
}

/// Probes; a backend that cannot keep two appliances apart is a failure, after it is shown.
fn probe(target: &Target, url: &str) -> Outcome<()> {
    let backend = open(target, url)?;
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
