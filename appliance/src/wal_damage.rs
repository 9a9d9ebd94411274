//! `taipand accept-wal-damage`: the operator gives up what a damaged WAL file lost, so that the
//! daemon starts again. What can be read is taken over into a new file; the damaged one is kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use taipan_engine::arena::Arena;
use taipan_engine::block::ShardId;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::registry::LocalHeads;
use taipan_engine::wal::files::{FileMedia, WalFiles};
use taipan_engine::wal::region_files::{RegionFile, boot_id, list_regions};
use taipan_engine::wal::{LogConfig, LostRange, ReadMedia, Recovered, Salvage, salvage_shard};
use taipan_engine::wal::{LogIdentity, ShardLog};

use crate::config::Config;
use crate::lock::DataDir;
use crate::recovery::{append, write_out};

/// Memory for writing the new file.
const ARENA_BYTES: usize = 32 << 20;
/// Gaps that are listed one by one.
const GAPS_SHOWN: usize = 32;

/// Looks at the WAL of a daemon that does not run and says what each of `shards` has lost. Only
/// with `accept` anything is changed.
///
/// # Errors
/// `Busy` while a daemon runs, `Full`, `Io`; whatever was not finished can be done again.
pub fn run(config: &Config, shards: &[ShardId], accept: bool) -> Result<()> {
    let data = DataDir::open(&config.data_dir)?;
    let runtime_dir = data.runtime_dir(config.runtime_dir.as_deref())?;
    let wal_dir = data.path().join("wal");
    let heads_dir = data.path().join("volumes");
    if !wal_dir.join("state").exists() {
        let text = "there is no WAL here, so nothing is damaged";
        return Err(Error::new(ErrorKind::NotFound, text).with_path(wal_dir));
    }
    let rescue = Rescue::open(&wal_dir, &runtime_dir)?;
    for shard in shards {
        let Some(salvage) = rescue.look_at(*shard)? else {
            println!("shard {shard}: not damaged, nothing to do");
            continue;
        };
        print!("{}", describe(*shard, &salvage, &heads_dir));
        if salvage.is_from_the_future() {
            let text = "the file is newer than wal/state: restore the state that belongs to it";
            return Err(Error::corrupt(text).with_shard(*shard));
        }
        if accept {
            mark_volumes(&heads_dir)?;
            let kept = rescue.replace(*shard, &salvage)?;
            println!("  accepted; the damaged file is kept as {}", kept.display());
        }
    }
    if !accept {
        println!("nothing was changed; the same with --yes gives up what is lost");
    }
    Ok(())
}

/// The WAL files, held by this process.
struct Rescue {
    files: WalFiles,
    wal_dir: PathBuf,
    config: LogConfig,
    regions: Vec<RegionFile>,
}

impl Rescue {
    fn open(wal_dir: &Path, runtime_dir: &Path) -> Result<Self> {
        let wanted = LogConfig::for_wal(ARENA_BYTES as u64, ARENA_BYTES)?;
        let files = WalFiles::open(wal_dir, &wanted)?;
        Ok(Self {
            config: files.fit(&wanted)?,
            files,
            wal_dir: wal_dir.to_owned(),
            regions: list_regions(runtime_dir)?,
        })
    }

    fn identity(&self, shard: ShardId) -> Result<LogIdentity> {
        Ok(self.files.identity(shard, boot_id()?))
    }

    fn regions_of(&self, shard: ShardId) -> impl Iterator<Item = &RegionFile> {
        self.regions.iter().filter(move |r| r.shard == shard)
    }

    fn look_at(&self, shard: ShardId) -> Result<Option<Salvage>> {
        let media = self.files.media(shard)?;
        let open = |region: &RegionFile| {
            File::open(&region.path)
                .map_err(|e| Error::io("opening a memory region", e).with_path(&region.path))
        };
        let regions: Vec<File> = self.regions_of(shard).map(open).collect::<Result<_>>()?;
        let regions: Vec<FileMedia<'_>> =
            regions.iter().map(FileMedia::new).collect::<Result<_>>()?;
        let regions: Vec<&dyn ReadMedia> = regions.iter().map(|r| r as &dyn ReadMedia).collect();
        let identity = self.identity(shard)?;
        Ok(salvage_shard(&identity, &self.config, &media, &regions))
    }

    /// Writes what is left to a new file and puts that in the place of the damaged one.
    fn replace(&self, shard: ShardId, salvage: &Salvage) -> Result<PathBuf> {
        let file = self
            .files
            .create_replacement(&self.wal_dir, shard, &self.config)?;
        let identity = self.identity(shard)?;
        let blank = Recovered::blank(&identity, &self.config);
        let arena = Arena::anonymous(self.config.arena_bytes)?;
        let mut log = ShardLog::resume(identity, self.config, arena, &blank)?;
        write_out(&mut log, &file)?;
        let media = self.files.media(shard)?;
        for record in salvage.records(&media) {
            append(&mut log, &file, &record)?;
        }
        log.close();
        write_out(&mut log, &file)?;
        let kept = self.files.replace(&self.wal_dir, shard)?;
        // What they say of durable batches is of the file that is gone; their records are in the
        // new one.
        for region in self.regions_of(shard) {
            let aside = region.path.with_extension("accepted");
            fs::rename(&region.path, &aside)
                .map_err(|e| Error::io("setting a region aside", e).with_path(&region.path))?;
        }
        Ok(kept)
    }
}

/// Any volume may have had records in what is lost: none is taken for whole until the operator has
/// decided.
fn mark_volumes(heads_dir: &Path) -> Result<()> {
    let heads = LocalHeads::open(heads_dir)?;
    for (id, head) in heads.load_all()? {
        match head {
            Ok(mut head) if !head.lost_cache => {
                head.lost_cache = true;
                heads.save(&head)?;
            }
            Ok(_) => {}
            Err(error) => println!("  the record of volume {id} cannot be read: {error}"),
        }
    }
    Ok(())
}

fn describe(shard: ShardId, salvage: &Salvage, heads_dir: &Path) -> String {
    let mut out = format!("{}\n", salvage.damage);
    out += &format!("  kept: {} records\n", salvage.kept());
    let lost = salvage.lost();
    for gap in lost.iter().take(GAPS_SHOWN) {
        out += &format!("  lost: {}\n", describe_gap(gap));
    }
    if lost.len() > GAPS_SHOWN {
        out += &format!("  lost: {} more gaps\n", lost.len() - GAPS_SHOWN);
    }
    if lost.is_empty() {
        out += "  lost: nothing between records that can be read; see the batches above\n";
    }
    let heads = LocalHeads::open(heads_dir)
        .and_then(|heads| heads.load_all())
        .unwrap_or_default();
    let name = |id| {
        let head = heads.iter().find(|(of, _)| *of == id);
        let known = head.and_then(|(_, head)| head.as_ref().ok());
        known.map_or_else(|| format!("{id}"), |head| format!("{} ({id})", head.name))
    };
    let names: Vec<String> = salvage.volumes().into_iter().map(name).collect();
    out += &format!(
        "  volumes with records in shard {shard}: {}\n",
        names.join(", ")
    );
    out
}

fn describe_gap(gap: &LostRange) -> String {
    let LostRange {
        first,
        last,
        from,
        through,
    } = gap;
    format!("records {first} to {last}, of epochs {from} to {through}")
}

/// Shards as an operator writes them: `3,7`.
///
/// # Errors
/// `Invalid` with the part that is none.
pub fn parse_shards(text: &str) -> Result<Vec<ShardId>> {
    let shard = |part: &str| {
        let number = part.trim().parse::<u8>().ok();
        number.and_then(ShardId::new).ok_or_else(|| {
            Error::invalid(format!("'{part}' is no shard: write numbers from 0 to 15"))
        })
    };
    text.split(',').map(shard).collect()
}

#[cfg(test)]
mod tests;
