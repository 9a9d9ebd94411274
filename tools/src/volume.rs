//! `taipan volume …`: create, list, show, resize, set, delete.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use taipan_engine::api::{
    CreateVolume, Lineage, QuarantineInfo, SweepReport, VolumeInfo, VolumeList, VolumePatch,
};
use taipan_engine::size::{exact, human};
use taipan_engine::volume::{Ack, Durability, OnLostCache, VolumeName, VolumeSettings};

use crate::cli::{Create, Set, Target, VolumeCommand};
use crate::control::Control;
use crate::failure::{Exit, Failure, Outcome};
use crate::flatten;
use crate::history;
use crate::output::{Form, human_seconds, percent};
use crate::promote::Promotion;
use crate::table::{Align, Fields, Table};
use crate::warm;

/// Runs one subcommand.
pub(crate) fn run(target: &Target, command: &VolumeCommand) -> Outcome<()> {
    let control = Control::new(target.control_socket())?;
    let form = target.form();
    match command {
        VolumeCommand::Create(create) => form.print(&control.create(&creation(create)?)?, created),
        VolumeCommand::List => form.print(&control.volumes()?, list),
        VolumeCommand::Show { name } => form.print(&control.volume(name)?, show),
        VolumeCommand::Resize(resize) => {
            form.print(&control.resize(&resize.name, resize.size_bytes())?, resized)
        }
        VolumeCommand::Set(set) => form.print(&control.configure(&set.name, &patch(set)?)?, show),
        VolumeCommand::History { name } => form.print(&control.history(name)?, history::list),
        VolumeCommand::Commit { name, quiet, .. } => {
            form.print(&commit(target, &control, name, *quiet)?, committed)
        }
        VolumeCommand::Warm(arguments) => warm::run(&control, form, arguments),
        VolumeCommand::Takeover { name } => form.print(&control.take_over(name)?, taken_over),
        VolumeCommand::Sweep { name, dry_run } => {
            form.print(&control.sweep(name, *dry_run)?, swept)
        }
        VolumeCommand::Flatten(arguments) => flatten::run(&control, form, arguments),
        VolumeCommand::Delete {
            name,
            yes,
            promote: true,
            quiet,
        } => promote(&control, form, name, (*yes, *quiet)),
        VolumeCommand::Delete { name, yes, .. } => {
            if !yes {
                confirm_deletion(&control, name)?;
            }
            control.delete(name)?;
            let answer = serde_json::json!({ "deleted": name });
            form.print(&answer, |_| deleted(name))
        }
    }
}

/// Deletes a volume whose clones take over what they need of it.
fn promote(
    control: &Control,
    form: Form,
    name: &VolumeName,
    (yes, quiet): (bool, bool),
) -> Outcome<()> {
    let promotion = Promotion::plan(control, name)?;
    if !yes {
        promotion.confirm(control, name)?;
    }
    promotion.run(control, name, quiet)?;
    control.delete(name)?;
    let answer = serde_json::json!({ "deleted": name, "promoted": promotion.promoted() });
    form.print(&answer, |_| deleted(name))
}

fn deleted(name: &VolumeName) -> String {
    format!("volume \"{name}\" is deleted; its objects are freed in the background\n")
}

/// The request to create a volume, checked here so that a mistake needs no daemon to be found.
fn creation(create: &Create) -> Outcome<CreateVolume> {
    let mut request = request(create.name.clone(), create.size.0);
    request.block_size_bytes = create.layout.block_size.map(|s| s.0);
    request.chunk_size_bytes = create.layout.chunk_size.map(|s| s.0);
    request.ack = create.changeable.ack;
    request.on_lost_cache = create.changeable.on_lost_cache;
    request.durability = create.changeable.durability;
    request.rpo_seconds = create.changeable.rpo_seconds;
    request.rpo_bytes = create.changeable.rpo_bytes.map(|s| s.0);
    request.commit_interval_seconds = create.changeable.commit_interval_seconds;
    request.requests_per_hour = create.changeable.requests_per_hour;
    request.iops = create.changeable.iops;
    request.bandwidth_bytes = create.changeable.bandwidth.map(|s| s.0);
    request.burst_seconds = create.changeable.burst_seconds;
    request.pitr_window_seconds = create.changeable.pitr_window_seconds;
    request.settings().map_err(|e| {
        let what = format!("volume \"{}\" cannot be created: {e}", create.name);
        Failure::new(Exit::Usage, what)
    })?;
    Ok(request)
}

/// A request for a volume with default settings.
pub(crate) fn request(name: VolumeName, size_bytes: u64) -> CreateVolume {
    CreateVolume {
        name,
        size_bytes,
        block_size_bytes: None,
        chunk_size_bytes: None,
        ack: None,
        on_lost_cache: None,
        durability: None,
        rpo_seconds: None,
        rpo_bytes: None,
        commit_interval_seconds: None,
        requests_per_hour: None,
        iops: None,
        bandwidth_bytes: None,
        burst_seconds: None,
        pitr_window_seconds: None,
    }
}

fn patch(set: &Set) -> Outcome<VolumePatch> {
    let patch = VolumePatch {
        ack: set.changeable.ack,
        on_lost_cache: set.changeable.on_lost_cache,
        durability: set.changeable.durability,
        rpo_seconds: set.changeable.rpo_seconds,
        rpo_bytes: set.changeable.rpo_bytes.map(|s| s.0),
        commit_interval_seconds: set.changeable.commit_interval_seconds,
        requests_per_hour: set.changeable.requests_per_hour,
        iops: set.changeable.iops,
        bandwidth_bytes: set.changeable.bandwidth.map(|s| s.0),
        burst_seconds: set.changeable.burst_seconds,
        pitr_window_seconds: set.changeable.pitr_window_seconds,
    };
    if patch.is_empty() {
        let what = "nothing to change: give --ack, --on-lost-cache, --durability, --rpo-seconds, \
                    --rpo-bytes, --commit-interval-seconds, --requests-per-hour, --iops, \
                    --bandwidth, --burst-seconds or --pitr-window-seconds";
        return Err(Failure::new(Exit::Usage, what));
    }
    Ok(patch)
}

fn swept(report: &SweepReport) -> String {
    let did = match report.dry_run {
        true => "would be deleted",
        false => "deleted",
    };
    let mut text = format!(
        "{} of {} objects that nothing names {did}: {} of {}\n",
        report.orphans,
        report.objects,
        human(report.orphan_bytes),
        human(report.bytes)
    );
    for name in &report.names {
        text.push_str(&format!("  {name}\n"));
    }
    let told = report.names.len() as u64;
    if told < report.orphans {
        text.push_str(&format!("  and {} more\n", report.orphans - told));
    }
    if report.strange > 0 {
        text.push_str(&format!(
            "{} objects have strange names, left alone\n",
            report.strange
        ));
    }
    text
}

fn confirm_deletion(control: &Control, name: &VolumeName) -> Outcome<()> {
    if !io::stdin().is_terminal() {
        return Ok(());
    }
    let size = human(control.volume(name)?.settings.size_bytes);
    let question = format!("Delete volume \"{name}\" ({size}) and all its data for good? [y/N] ");
    confirm(&question, "nothing was deleted")
}

/// Asks the person at the terminal. Scripts, whose input is no terminal, are taken at their word.
pub(crate) fn confirm(question: &str, refused: &str) -> Outcome<()> {
    if !io::stdin().is_terminal() {
        return Ok(());
    }
    let mut err = io::stderr().lock();
    let asked = err
        .write_all(question.as_bytes())
        .and_then(|()| err.flush());
    let mut answer = String::new();
    asked
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|e| Failure::io("cannot ask at the terminal (--yes does not ask)", &e))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Failed, refused)),
    }
}

fn created(volume: &VolumeInfo) -> String {
    let (name, size) = (&volume.name, exact(volume.settings.size_bytes));
    format!(
        "volume \"{name}\" of {size} is created (id {})\n",
        volume.id
    )
}

/// Commits the volume and shows meanwhile how far that is.
fn commit(
    target: &Target,
    control: &Control,
    name: &VolumeName,
    quiet: bool,
) -> Outcome<VolumeInfo> {
    let watch = Control::new(target.control_socket())?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let shown = !quiet && io::stderr().is_terminal();
        let watcher = shown.then(|| scope.spawn(|| show_progress(&watch, name, &done)));
        let outcome = control.commit(name);
        done.store(true, Ordering::Release);
        if let Some(watcher) = watcher {
            watcher.thread().unpark();
        }
        outcome
    })
}

/// Shows once a second what the backend lacks, until `done`.
fn show_progress(control: &Control, name: &VolumeName, done: &AtomicBool) {
    loop {
        std::thread::park_timeout(Duration::from_secs(1));
        if done.load(Ordering::Acquire) {
            return;
        }
        // Progress is a courtesy: what is wrong the commit itself tells.
        if let Ok(volume) = control.volume(name) {
            let _ = writeln!(io::stderr(), "{}", progress(&volume));
        }
    }
}

fn progress(volume: &VolumeInfo) -> String {
    let upload = &volume.upload;
    let mut text = format!("{} to go", human(upload.risk_bytes));
    if upload.chunks > 0 {
        let (stored, all) = (upload.chunks_stored, upload.chunks);
        text.push_str(&format!(", {stored} of {all} chunks stored"));
    }
    if let Some(failure) = &upload.last_failure {
        let failures = upload.failures;
        text.push_str(&format!(
            ", failed {failures} times, tried again: {failure}"
        ));
    }
    text
}

fn committed(volume: &VolumeInfo) -> String {
    let (name, manifest) = (&volume.name, volume.manifest);
    format!("volume \"{name}\" is committed (manifest {manifest})\n")
}

fn taken_over(volume: &VolumeInfo) -> String {
    let (name, generation) = (&volume.name, volume.generation);
    format!("volume \"{name}\" is served here now (generation {generation})\n")
}

fn resized(volume: &VolumeInfo) -> String {
    let size = exact(volume.settings.size_bytes);
    let reconnect = match volume.connections {
        0 => "",
        _ => "; connected clients see it when they reconnect",
    };
    format!("volume \"{}\" now has {size}{reconnect}\n", volume.name)
}

/// The text of a variant as it stands in JSON.
pub(crate) fn word(variant: impl serde::Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(text)) => text.replace('_', "-"),
        _ => "?".to_owned(),
    }
}

/// A table of volumes.
pub(crate) fn list(list: &VolumeList) -> String {
    if list.volumes.is_empty() {
        return "no volumes; make one with `taipan volume create NAME --size 10GiB`\n".to_owned();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("DATA", Align::Right),
        ("IN WAL ONLY", Align::Right),
        ("CLIENTS", Align::Right),
        ("ACK", Align::Left),
        ("STATE", Align::Left),
    ]);
    for volume in &list.volumes {
        let state = match volume.lineage {
            Lineage::Intact => word(volume.state),
            Lineage::Broken => format!("{}, lineage broken", word(volume.state)),
        };
        table.row([
            volume.name.to_string(),
            human(volume.settings.size_bytes),
            human(data_bytes(volume)),
            human(volume.dirty_bytes),
            volume.connections.to_string(),
            word(volume.settings.ack),
            state,
        ]);
    }
    table.render()
}

fn data_bytes(volume: &VolumeInfo) -> u64 {
    let block = u64::from(volume.settings.block_size_bytes);
    volume.mapped_blocks.saturating_mul(block)
}

fn show(volume: &VolumeInfo) -> String {
    let settings = &volume.settings;
    let data = data_bytes(volume);
    let ack = match settings.ack {
        Ack::Memory => "memory (survives the daemon; FLUSH makes it survive a power cut)",
        Ack::Durable => "durable (every answered write survives a power cut)",
    };
    let lost = match settings.on_lost_cache {
        OnLostCache::Continue => "continue (serve, and report)",
        OnLostCache::ReadOnly => "read-only",
        OnLostCache::Refuse => "refuse (do not serve until the operator decides)",
    };
    let lineage = match volume.lineage {
        Lineage::Intact => "intact",
        Lineage::Broken => {
            "BROKEN: a power cut may have taken answered writes after the last FLUSH"
        }
    };
    let share = percent(data, settings.size_bytes);
    let mut fields = Fields::default();
    fields
        .add("name", volume.name.as_str())
        .add("id", volume.id.to_string())
        .add("size", sized(settings.size_bytes))
        .add("state", word(volume.state))
        .add_some("cause", volume.cause.as_deref())
        .add("lineage", lineage)
        .add_some("quarantine", volume.quarantine.map(quarantined))
        .add("clients", volume.connections.to_string())
        .add("block size", exact(u64::from(settings.block_size_bytes)))
        .add("chunk size", exact(u64::from(settings.chunk_size_bytes)))
        .add("ack", ack)
        .add("on lost cache", lost)
        .add("durability", durability(settings))
        .add("commit every", interval(settings))
        .add("points in time", points(settings))
        .add("requests", requests(volume))
        .add("loss limits", limits(settings))
        .add("speed limits", speed(volume))
        .add("committed data", format!("{} ({share})", human(data)))
        .add("in WAL only", human(volume.dirty_bytes))
        .add("at risk", at_risk(volume))
        .add("commit", commit_phase(volume))
        .add("chunks", chunks(volume))
        .add("index memory", human(volume.index_bytes))
        .add("manifest", volume.manifest.to_string())
        .add("epoch", volume.committed_epoch.to_string())
        .add("generation", volume.generation.to_string())
        .add_some(
            "last commit",
            volume
                .last_commit_age_seconds
                .map(|s| format!("{} ago", human_seconds(s))),
        );
    fields.render()
}

/// `12, 48 MiB, 81.3 % live, 2 sparse`, and how many cannot be read, if any.
fn chunks(volume: &VolumeInfo) -> String {
    let usage = &volume.usage;
    let live = percent(usage.live_bytes, usage.chunk_bytes);
    let (bytes, sparse) = (human(usage.chunk_bytes), usage.sparse_chunks);
    let unreadable = match usage.unreadable_chunks {
        0 => String::new(),
        count => format!(", {count} unreadable: see `taipan verify {}`", volume.name),
    };
    let chunks = volume.chunks;
    format!("{chunks}, {bytes}, {live} live, {sparse} sparse{unreadable}")
}

fn durability(settings: &VolumeSettings) -> &'static str {
    match settings.durability {
        Durability::Local => "local (FLUSH waits for the local disk)",
        Durability::Remote => "remote (FLUSH waits for the bucket)",
    }
}

fn interval(settings: &VolumeSettings) -> String {
    match settings.commit_interval_seconds {
        0 => "as the daemon is configured".to_owned(),
        seconds => format!("{seconds} s"),
    }
}

/// For how long committed cuts are kept.
fn points(settings: &VolumeSettings) -> String {
    match settings.pitr_window_seconds {
        0 => "not kept".to_owned(),
        seconds => format!("kept for {}", human_seconds(seconds as f64)),
    }
}

/// What its commits asked of the backend in the last hour, and what they may.
fn requests(volume: &VolumeInfo) -> String {
    let made = volume.upload.requests_last_hour;
    let allowed = match volume.settings.requests_per_hour {
        0 => "no budget".to_owned(),
        budget => format!("{budget} budgeted"),
    };
    let held = volume.upload.held_seconds.map(human_seconds);
    let held = held.map_or_else(String::new, |time| {
        format!("; the next commit by the interval in {time}")
    });
    format!("{made} by commits in the last hour, {allowed}{held}")
}

/// What would be lost with the local disk.
fn at_risk(volume: &VolumeInfo) -> String {
    let bytes = human(volume.upload.risk_bytes);
    match volume.upload.risk_seconds {
        None => bytes,
        Some(seconds) => format!("{bytes}, {} old", human_seconds(seconds)),
    }
}

fn commit_phase(volume: &VolumeInfo) -> String {
    let upload = &volume.upload;
    let phase = match upload.phase.as_str() {
        "" => "not open",
        phase => phase,
    };
    if upload.changing {
        return "waits for a change of settings or a deletion that is pending".to_owned();
    }
    match &upload.last_failure {
        None => phase.to_owned(),
        Some(failure) => format!("{phase}, failed {} times: {failure}", upload.failures),
    }
}

/// What the bucket may lack before new writes wait.
fn limits(settings: &VolumeSettings) -> String {
    let seconds = (settings.rpo_seconds > 0).then(|| format!("{} s", settings.rpo_seconds));
    let bytes = (settings.rpo_bytes > 0).then(|| exact(settings.rpo_bytes));
    let both: Vec<String> = seconds.into_iter().chain(bytes).collect();
    match both.is_empty() {
        true => "none".to_owned(),
        false => format!("{}; then writes wait", both.join(", ")),
    }
}

/// How fast it may be used, and who waited for that.
fn speed(volume: &VolumeInfo) -> String {
    let settings = &volume.settings;
    let iops = (settings.iops > 0).then(|| format!("{} requests/s", settings.iops));
    let bytes = settings.bandwidth_bytes;
    let bandwidth = (bytes > 0).then(|| format!("{}/s", exact(bytes)));
    let limits: Vec<String> = iops.into_iter().chain(bandwidth).collect();
    let waited = match volume.delays.requests {
        0 => String::new(),
        n => {
            let time = human_seconds(volume.delays.seconds);
            format!("; {n} requests waited {time} in all")
        }
    };
    match limits.is_empty() {
        true => format!("no limit{waited}"),
        false => {
            let (limits, burst) = (limits.join(", "), settings.burst());
            format!("{limits}, bursts of {burst} s{waited}")
        }
    }
}

/// What a takeover by another appliance kept out of the image.
fn quarantined(held: QuarantineInfo) -> String {
    format!(
        "{} of answered writes within {} are held in {} files, not in the image",
        human(held.bytes),
        human_seconds(held.seconds),
        held.files
    )
}

/// `10GiB (10737418240 bytes)`.
fn sized(bytes: u64) -> String {
    let text = exact(bytes);
    if text.ends_with('B') {
        format!("{text} ({bytes} bytes)")
    } else {
        format!("{} ({bytes} bytes)", human(bytes))
    }
}
