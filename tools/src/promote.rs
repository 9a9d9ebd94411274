//! `taipan volume delete --promote`: the clones of a volume take over what they need of it, then
//! its snapshots and the volume itself are deleted. Interrupted, it is repeated and goes on.

use std::io::{IsTerminal, stderr};

use taipan_engine::api::CloneInfo;
use taipan_engine::size::human;
use taipan_engine::snapshot::SnapshotName;
use taipan_engine::volume::VolumeName;

use crate::control::Control;
use crate::failure::{Exit, Failure, Outcome};
use crate::flatten;
use crate::volume::confirm;

/// What deleting a volume with clones is about to do.
pub(crate) struct Promotion {
    clones: Vec<CloneInfo>,
    snapshots: Vec<SnapshotName>,
}

impl Promotion {
    /// Looks at the volume. Refused, with nothing changed, while clients are connected or snapshots
    /// have no clone that takes them over.
    pub(crate) fn plan(control: &Control, name: &VolumeName) -> Outcome<Self> {
        let refuse = |text: String| Err(Failure::new(Exit::Conflict, text));
        let connections = control.volume(name)?.connections;
        if connections > 0 {
            let text = format!("volume \"{name}\" has connected clients: {connections}");
            let who = "`taipan connection list` tells who they are";
            return refuse(format!("{text}; disconnect them first ({who})"));
        }
        let all = control.snapshots(name)?.snapshots;
        let snapshots: Vec<_> = all.into_iter().map(|info| info.name).collect();
        let clones = control.clones(name)?.clones;
        let has_clone = |s: &&SnapshotName| clones.iter().any(|clone| clone.snapshot == **s);
        let alone: Vec<_> = snapshots.iter().filter(|s| !has_clone(s)).collect();
        if !alone.is_empty() {
            let names: Vec<&str> = alone.iter().map(|s| s.as_str()).collect();
            let text = format!("snapshots of \"{name}\" have no clones: {names:?}");
            return refuse(format!("{text}; they would be lost, delete them first"));
        }
        Ok(Self { clones, snapshots })
    }

    /// Asks whether that is meant.
    pub(crate) fn confirm(&self, control: &Control, name: &VolumeName) -> Outcome<()> {
        let size = human(control.volume(name)?.settings.size_bytes);
        let clones: Vec<&str> = self.clones.iter().map(|c| c.name.as_str()).collect();
        let snapshots = self.snapshots.len();
        let question = format!(
            "Copy to its clones {clones:?} what they need of volume \"{name}\" ({size}), then \
             delete it and its {snapshots} snapshots for good? [y/N] "
        );
        confirm(&question, "nothing was deleted")
    }

    /// Does it, but for the deletion of the volume itself.
    pub(crate) fn run(&self, control: &Control, name: &VolumeName, quiet: bool) -> Outcome<()> {
        let names: Vec<VolumeName> = self.clones.iter().map(|clone| clone.name.clone()).collect();
        for clone in &names {
            control.flatten(clone)?;
        }
        flatten::wait(control, &names, !quiet && stderr().is_terminal())?;
        for snapshot in &self.snapshots {
            control.delete_snapshot(name, snapshot)?;
        }
        Ok(())
    }

    /// The clones that are independent now.
    pub(crate) fn promoted(&self) -> Vec<&VolumeName> {
        self.clones.iter().map(|clone| &clone.name).collect()
    }
}
