//! `taipan volume flatten`: makes a clone independent of the volume that it was cloned from.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use clap::Args;
use taipan_engine::api::{FlattenState, FlattenStatus};
use taipan_engine::size::human;
use taipan_engine::volume::VolumeName;

use crate::cli::volume_name;
use crate::control::Control;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{Form, note};

/// How often a flatten that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Looks between two lines of progress.
const LOOKS_PER_LINE: u32 = 4;

/// Arguments of `volume flatten`.
#[derive(Args, Debug)]
pub(crate) struct Flatten {
    /// Name of the clone.
    #[arg(value_parser = volume_name)]
    name: VolumeName,
    /// Return when it is noted; the daemon goes on, also after a restart.
    #[arg(long)]
    no_wait: bool,
    /// Begin nothing, only tell how it is getting on.
    #[arg(long, conflicts_with = "no_wait")]
    status: bool,
    /// No progress on standard error.
    #[arg(long, short)]
    quiet: bool,
}

/// Runs it.
pub(crate) fn run(control: &Control, form: Form, flatten: &Flatten) -> Outcome<()> {
    let name = &flatten.name;
    if flatten.status {
        return form.print(&control.flatten_status(name)?, told);
    }
    let mut status = control.flatten(name)?;
    if !flatten.no_wait {
        let shown = !flatten.quiet && stderr().is_terminal();
        status = wait(control, std::slice::from_ref(name), shown)?.remove(0);
    }
    form.print(&status, told)
}

/// Waits until all of these are flattened; fails if one waits for something that others must do.
pub(crate) fn wait(
    control: &Control,
    names: &[VolumeName],
    shown: bool,
) -> Outcome<Vec<FlattenStatus>> {
    for look in 0.. {
        let all: Outcome<Vec<_>> = names
            .iter()
            .map(|name| control.flatten_status(name))
            .collect();
        let all = all?;
        if let Some(status) = all.iter().find(|s| s.state == FlattenState::Waiting) {
            return Err(Failure::new(Exit::Conflict, held_up(status)));
        }
        let is_over = |s: &FlattenStatus| s.state != FlattenState::Copying;
        if all.iter().all(is_over) {
            return Ok(all);
        }
        if shown && look % LOOKS_PER_LINE == 0 {
            all.iter()
                .filter(|s| !is_over(s))
                .for_each(|s| note(told(s).trim_end()));
        }
        std::thread::sleep(LOOK);
    }
    unreachable!("looks do not end")
}

/// What keeps a volume from letting go of its parent's snapshot.
fn held_up(status: &FlattenStatus) -> String {
    let (volume, held) = (&status.volume, status.waits_for.join(", "));
    format!(
        "volume \"{volume}\" itself needs its parent no more, but what it keeps does: {held}. Once \
         that is gone the daemon lets go of the parent by itself"
    )
}

fn told(status: &FlattenStatus) -> String {
    let FlattenStatus {
        volume,
        foreign_bytes,
        total_bytes,
        foreign_chunks,
        ..
    } = status;
    let copied = human(total_bytes.saturating_sub(*foreign_bytes));
    let (left, total) = (human(*foreign_bytes), human(*total_bytes));
    let mut text = match status.state {
        FlattenState::None if *foreign_bytes == 0 => {
            format!("volume \"{volume}\" has nothing of other volumes; no flatten was asked for")
        }
        FlattenState::None => format!(
            "volume \"{volume}\" has {left} in {foreign_chunks} chunks of other volumes; no \
             flatten was asked for"
        ),
        FlattenState::Copying => {
            format!("volume \"{volume}\": {copied} of {total} copied, {left} to go")
        }
        FlattenState::Waiting => held_up(status),
        FlattenState::Done => {
            format!("volume \"{volume}\" is flattened: it needs nothing of other volumes")
        }
    };
    if let Some(failure) = &status.last_failure {
        text.push_str(&format!("; failed, tried again: {failure}"));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_how_far_it_is_and_what_holds_it_up() {
        let mut status = FlattenStatus {
            volume: VolumeName::parse("c").unwrap(),
            state: FlattenState::Copying,
            foreign_bytes: 1 << 20,
            total_bytes: 4 << 20,
            foreign_chunks: 3,
            waits_for: Vec::new(),
            last_failure: Some("no route".to_owned()),
        };
        let text = told(&status);
        assert!(
            text.contains("3 MiB of 4 MiB copied, 1 MiB to go; failed"),
            "{text}"
        );
        status.state = FlattenState::Waiting;
        status.waits_for = vec!["snapshot \"old\"".to_owned()];
        assert!(told(&status).contains("what it keeps does: snapshot \"old\""));
        status.state = FlattenState::None;
        assert!(told(&status).contains("1 MiB in 3 chunks of other volumes"));
        status.foreign_bytes = 0;
        assert!(told(&status).contains("has nothing of other volumes"));
        status.state = FlattenState::Done;
        assert!(told(&status).contains("is flattened"));
    }
}
