//! `taipan inspect`: decodes a file of the appliance and checks every CRC in it.

mod batch;
mod calendar;
mod chunk;
mod index;
mod manifest;
mod noted;
mod quarantine;
mod records;
mod region;
mod state;
mod wal;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Map, Value, json};
use taipan_engine::object::ObjectKey;
use taipan_engine::registry::LAST_SWEEP_FILE;
use taipan_engine::size::human;

use crate::cli::{Inspect, Target};
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{Form, print_text};
use crate::table::{Fields, Table};

/// Largest file that is read as a whole: every object of the appliance is smaller.
const OBJECT_BYTES_MAX: u64 = 128 << 20;
/// Rows of a table that are shown unless all are asked for.
const ROWS_SHOWN: usize = 16;

/// What was found in a file.
struct Decoded {
    /// What the file is, in words.
    kind: &'static str,
    /// The content for programs; an object.
    json: Value,
    /// The content for people: labelled values, then tables.
    fields: Fields,
    tables: Vec<String>,
    /// What is wrong; empty if all is well.
    damage: Vec<String>,
}

/// A file that is looked at.
struct Subject<'a> {
    path: &'a Path,
    file: File,
    len: u64,
    /// Show every row of every table.
    all: bool,
}

/// Runs the command.
pub(crate) fn run(target: &Target, args: &Inspect) -> Outcome<()> {
    let subject = open(&args.path, args.all)?;
    let decoded = decode(&subject)?;
    match target.form() {
        Form::Human => print_text(&render(&subject, &decoded))?,
        form @ Form::Json => form.print(&with_frame(&subject, &decoded), |_| String::new())?,
    }
    match decoded.damage.first() {
        None => Ok(()),
        Some(first) => {
            let (path, more) = (args.path.display(), decoded.damage.len() - 1);
            let more = match more {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            let what = format!("{path} is damaged: {first}{more}");
            Err(Failure::new(Exit::Damaged, what))
        }
    }
}

fn open(path: &Path, all: bool) -> Outcome<Subject<'_>> {
    let failed = |e: io::Error| Failure::io(format!("cannot read {}", path.display()), &e);
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_dir() {
        let what = format!(
            "{} is a directory: inspect a file in it, such as wal/shard-00.wal or a file under \
             objects/ or volumes/",
            path.display()
        );
        return Err(Failure::new(Exit::Usage, what));
    }
    let len = meta.len();
    Ok(Subject {
        path,
        file,
        len,
        all,
    })
}

/// Finds out what the file is and decodes it.
fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let mut start = [0; 8];
    let known = subject.read_at(&mut start, 0)?;
    let start = &start[..known];
    if start == taipan_engine::chunk::MAGIC {
        return chunk::decode(subject);
    }
    if start == taipan_engine::manifest::MAGIC {
        return manifest::decode(subject);
    }
    if start == taipan_engine::registry::quarantine::MAGIC {
        return quarantine::decode(subject);
    }
    if start == taipan_engine::index::part::MAGIC {
        return index::decode(subject);
    }
    if start == taipan_engine::wal::format::HEAD_MAGIC || has_second_head(subject)? {
        return wal::decode(subject);
    }
    if start == taipan_engine::wal::region::REGION_MAGIC {
        return region::decode(subject);
    }
    if start == taipan_engine::wal::format::BATCH_MAGIC {
        return noted::decode(subject);
    }
    if start == taipan_engine::wal::state::STATE_MAGIC {
        return state::decode(subject);
    }
    if start.first() == Some(&b'{') {
        return records::decode(subject);
    }
    if subject
        .path
        .file_name()
        .is_some_and(|name| name == LAST_SWEEP_FILE)
    {
        return calendar::decode(subject);
    }
    let what = format!(
        "{} ({}) is no file of the appliance: it starts with {start:02x?}. Known are WAL \
         files, their state and noted headers, memory regions, chunks, manifests, index \
         parts, quarantine files, \
         volume records, name entries and the time of the last sweep",
        subject.path.display(),
        human(subject.len)
    );
    Err(Failure::new(Exit::Failed, what))
}

/// A WAL file has two log heads, so that one of them may be damaged.
fn has_second_head(subject: &Subject<'_>) -> Outcome<bool> {
    let mut start = [0; 8];
    let count = subject.read_at(&mut start, taipan_engine::wal::format::HEAD_SLOTS[1])?;
    Ok(start[..count] == taipan_engine::wal::format::HEAD_MAGIC)
}

impl Subject<'_> {
    /// Reads as many bytes as there are, up to `out.len()`.
    fn read_at(&self, out: &mut [u8], offset: u64) -> Outcome<usize> {
        let mut filled = 0;
        while filled < out.len() {
            match self
                .file
                .read_at(&mut out[filled..], offset + filled as u64)
            {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let at = offset + filled as u64;
                    let what = format!("cannot read {} at byte {at}", self.path.display());
                    return Err(Failure::io(what, &e));
                }
            }
        }
        Ok(filled)
    }

    /// The whole file.
    fn read_all(&self) -> Outcome<Vec<u8>> {
        if self.len > OBJECT_BYTES_MAX {
            let (path, len) = (self.path.display(), human(self.len));
            let what = format!("{path} has {len}, more than any object of the appliance");
            return Err(Failure::new(Exit::Damaged, what));
        }
        let mut bytes = vec![0; self.len as usize];
        let count = self.read_at(&mut bytes, 0)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// How many of `len` rows to show.
    fn rows(&self, len: usize) -> usize {
        if self.all { len } else { len.min(ROWS_SHOWN) }
    }

    /// A table under a title, with a line about the rows that are not shown.
    fn table(&self, title: &str, table: &Table, len: usize) -> String {
        let hidden = len - self.rows(len);
        let more = match hidden {
            0 => String::new(),
            hidden => format!("… {hidden} more, --all shows them\n"),
        };
        format!("\n{title}\n{}{more}", table.render())
    }

    /// Damage if the file lies in a backend's directory under another name than its own.
    fn misplaced(&self, own: &ObjectKey) -> Option<String> {
        let path = self.path.to_string_lossy();
        let key = match path.rfind("/v1/") {
            Some(at) => &path[at + 1..],
            None => path.strip_prefix("v1/").map(|_| &*path)?,
        };
        (key != own.as_str()).then(|| format!("it lies at {key}, but says that it is {own}"))
    }
}

fn render(subject: &Subject<'_>, decoded: &Decoded) -> String {
    let mut head = Fields::default();
    head.add("file", subject.path.display().to_string())
        .add("bytes", format!("{} ({})", subject.len, human(subject.len)))
        .add("kind", decoded.kind);
    for damage in &decoded.damage {
        head.add("DAMAGE", damage.as_str());
    }
    let mut out = format!("{}\n{}", head.render(), decoded.fields.render());
    for table in &decoded.tables {
        out.push_str(table);
    }
    out
}

/// The content with what is told of every file.
fn with_frame(subject: &Subject<'_>, decoded: &Decoded) -> Value {
    let mut frame = Map::new();
    frame.insert("file".into(), json!(subject.path.display().to_string()));
    frame.insert("file_bytes".into(), json!(subject.len));
    frame.insert("kind".into(), json!(decoded.kind));
    frame.insert("damage".into(), json!(decoded.damage));
    frame.insert("content".into(), decoded.json.clone());
    Value::Object(frame)
}

/// A failure for content that does not even parse.
fn unreadable(subject: &Subject<'_>, error: &taipan_engine::error::Error) -> Failure {
    let what = format!("{} is damaged: {error}", subject.path.display());
    Failure::new(Exit::Damaged, what)
}

/// The JSON of something that is plain data.
fn plain(value: impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}
