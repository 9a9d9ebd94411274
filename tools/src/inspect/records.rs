//! Decodes the records that are JSON themselves: a volume's local head, and an entry of a name.

use serde_json::Value;
use taipan_engine::object::ObjectKey;
use taipan_engine::registry::{LocalHead, NameEntry};
use taipan_engine::size::exact;

use super::{Decoded, Subject, plain, unreadable};
use crate::failure::{Exit, Failure, Outcome};
use crate::table::{Align, Fields, Table};
use crate::volume::word;

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let bytes = subject.read_all()?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| {
        let what = format!("{} is no whole JSON record: {e}", subject.path.display());
        Failure::new(Exit::Damaged, what)
    })?;
    if value.get("intents").is_some() {
        let head = LocalHead::decode(&bytes).map_err(|e| unreadable(subject, &e))?;
        return Ok(local_head(subject, &head));
    }
    if value.get("number").is_some() && value.get("name").is_some() {
        let entry = NameEntry::decode(&bytes).map_err(|e| unreadable(subject, &e))?;
        return Ok(name_entry(subject, &entry));
    }
    let what = format!(
        "{} is JSON, but neither a volume's record nor an entry of a name",
        subject.path.display()
    );
    Err(Failure::new(Exit::Failed, what))
}

fn local_head(subject: &Subject<'_>, head: &LocalHead) -> Decoded {
    let quarantine = head
        .quarantine
        .map(|q| format!("WAL records of epochs {} to {}", q.after.0 + 1, q.through));
    let mut fields = Fields::default();
    fields
        .add("volume", format!("{} \"{}\"", head.id, head.name))
        .add("size", exact(head.settings.size_bytes))
        .add("ack", word(head.settings.ack))
        .add("on lost cache", word(head.settings.on_lost_cache))
        .add("generation", head.generation.to_string())
        .add("writer token", format!("{:016x}", head.token.0))
        .add(
            "head manifest",
            format!("{} with CRC {:08x}", head.head, head.head_crc),
        )
        .add("committed epoch", head.committed_epoch.to_string())
        .add("closed in order", if head.clean { "yes" } else { "no" })
        .add("quarantine", quarantine.as_deref().unwrap_or("none"));
    let mut tables = Vec::new();
    if !head.intents.is_empty() {
        let mut table = Table::new(&[
            ("GENERATION", Align::Right),
            ("TOKEN", Align::Left),
            ("AFTER MANIFEST", Align::Right),
            ("WITH CRC", Align::Left),
        ]);
        for intent in &head.intents {
            table.row([
                intent.generation.to_string(),
                format!("{:016x}", intent.token.0),
                intent.predecessor.to_string(),
                format!("{:08x}", intent.predecessor_crc),
            ]);
        }
        let title = "Takeovers of unknown outcome";
        tables.push(format!("\n{title}\n{}", table.render()));
    }
    let stem = subject.path.file_stem().and_then(|s| s.to_str());
    let own = head.id.to_string();
    let damage = match stem {
        Some(stem) if stem != own => vec![format!("it lies under {stem}, but is of volume {own}")],
        _ => Vec::new(),
    };
    Decoded {
        kind: "local head record of a volume",
        json: plain(head),
        fields,
        tables,
        damage,
    }
}

fn name_entry(subject: &Subject<'_>, entry: &NameEntry) -> Decoded {
    let belongs = match entry.volume {
        Some(id) => id.to_string(),
        None => "nobody, the name is free".to_owned(),
    };
    let mut fields = Fields::default();
    fields
        .add("name", entry.name.as_str())
        .add("entry", entry.number.to_string())
        .add("belongs to", belongs);
    let own = ObjectKey::name_entry(&entry.name, entry.number);
    Decoded {
        kind: "entry of a volume name",
        json: plain(entry),
        fields,
        tables: Vec::new(),
        damage: subject.misplaced(&own).into_iter().collect(),
    }
}
