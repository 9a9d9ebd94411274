//! Decodes a manifest.

use taipan_engine::manifest::Manifest;
use taipan_engine::object::SealedRef;
use taipan_engine::size::{exact, human};
use taipan_engine::snapshot::SnapshotChange;

use super::{Decoded, Subject, plain, unreadable};
use crate::failure::Outcome;
use crate::output::human_seconds;
use crate::table::{Align, Fields, Table};
use crate::volume::word;

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let bytes = subject.read_all()?;
    let manifest = Manifest::decode(&bytes).map_err(|e| unreadable(subject, &e))?;
    let mut json = plain(&manifest);
    json["object"] = plain(manifest.object());
    json["crc32c"] = plain(manifest.crc());
    Ok(Decoded {
        kind: "manifest",
        json,
        fields: fields(&manifest),
        tables: tables(subject, &manifest),
        damage: subject.misplaced(&manifest.object()).into_iter().collect(),
    })
}

fn fields(manifest: &Manifest) -> Fields {
    let settings = &manifest.settings;
    let added: u64 = manifest.added.iter().map(|c| c.bytes).sum();
    let predecessor = match manifest.number.0 {
        1 => "none, this is the first".to_owned(),
        number => format!("{} with CRC {:08x}", number - 1, manifest.predecessor_crc),
    };
    let checkpoint = manifest
        .checkpoint
        .map(|c| format!("{} ({} bytes, CRC {:08x})", c.key, c.bytes, c.crc32c));
    let mut fields = Fields::default();
    fields
        .add("number", manifest.number.to_string())
        .add("does", word(manifest.kind))
        .add(
            "volume",
            format!("{} \"{}\"", manifest.volume, manifest.name),
        )
        .add("predecessor", predecessor)
        .add("CRC", format!("{:08x}", manifest.crc()))
        .add("generation", manifest.generation.to_string())
        .add("writer token", format!("{:016x}", manifest.token.0))
        .add("epoch", manifest.epoch.to_string())
        .add("size", exact(settings.size_bytes))
        .add("block size", exact(u64::from(settings.block_size_bytes)))
        .add("chunk size", exact(u64::from(settings.chunk_size_bytes)))
        .add("ack", word(settings.ack))
        .add("on lost cache", word(settings.on_lost_cache))
        .add(
            "chunks added",
            format!("{} ({})", manifest.added.len(), human(added)),
        )
        .add("condemned", manifest.condemned.len().to_string())
        .add("dropped", manifest.dropped.len().to_string())
        .add("checkpoint", checkpoint.as_deref().unwrap_or("none"));
    if let Some(moment) = &manifest.moment {
        let (since, age) = (moment.since, human_seconds((moment.age_ms / 1000) as f64));
        fields
            .add("committed at", moment.committed.to_string())
            .add("points since", format!("manifest {since}, of {age}"));
    }
    for change in &manifest.snapshots {
        let (what, snapshot) = match change {
            SnapshotChange::Taken(snapshot) => ("snapshot taken", snapshot),
            SnapshotChange::Kept(snapshot) => ("point kept as snapshot", snapshot),
            SnapshotChange::Deleted(snapshot) => ("snapshot deleted", snapshot),
        };
        fields.add(what, format!("{} ({})", snapshot.name, snapshot.id));
    }
    fields
}

fn tables(subject: &Subject<'_>, manifest: &Manifest) -> Vec<String> {
    let mut tables = Vec::new();
    if !manifest.added.is_empty() {
        let mut table = Table::new(&[
            ("CHUNK", Align::Left),
            ("BLOCKS", Align::Right),
            ("BYTES", Align::Right),
        ]);
        for chunk in manifest
            .added
            .iter()
            .take(subject.rows(manifest.added.len()))
        {
            table.row([
                chunk.key.to_string(),
                chunk.slots.to_string(),
                chunk.bytes.to_string(),
            ]);
        }
        tables.push(subject.table("Added", &table, manifest.added.len()));
    }
    tables.extend(objects(subject, "Condemned", &manifest.condemned));
    tables.extend(objects(subject, "Dropped", &manifest.dropped));
    tables
}

/// A table of objects, if there are any.
pub(super) fn objects(subject: &Subject<'_>, title: &str, objects: &[SealedRef]) -> Option<String> {
    if objects.is_empty() {
        return None;
    }
    let mut table = Table::new(&[("OBJECT", Align::Left)]);
    for object in objects.iter().take(subject.rows(objects.len())) {
        table.row([object.object().to_string()]);
    }
    Some(subject.table(title, &table, objects.len()))
}
