//! Job files in fio's form: `[global]` sections, `[job]` sections, `key=value` lines. Keys are the
//! flags of `run`, with `_` or `-`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::options::JobOptions;

/// Section whose keys hold for all jobs behind it.
const GLOBAL: &str = "global";
/// Keys as near as this to a known one are taken for a slip.
const NEAR: usize = 3;

/// A job with its name.
#[derive(Debug)]
pub(crate) struct NamedJob {
    /// Name of the section, or what was asked for on the command line.
    pub(crate) name: String,
    /// Its options.
    pub(crate) options: JobOptions,
}

/// Settings by the identity of their option, each as an argument of a command line.
pub(crate) type Settings = BTreeMap<String, String>;

fn vocabulary() -> Command {
    JobOptions::augment_args(Command::new("job").no_binary_name(true))
}

/// What was given on the command line, which goes before what job files say.
pub(crate) fn given(matches: &ArgMatches) -> Settings {
    let mut given = Settings::new();
    for option in vocabulary().get_arguments() {
        let id = option.get_id().as_str();
        if matches.value_source(id) != Some(clap::parser::ValueSource::CommandLine) {
            continue;
        }
        let long = option.get_long().expect("every option has a long name");
        given.insert(id.to_owned(), argument(long, raw(matches, id).as_deref()));
    }
    if let Some(target) = raw(matches, "target") {
        given.insert("filename".to_owned(), argument("filename", Some(&target)));
    }
    given
}

fn raw(matches: &ArgMatches, id: &str) -> Option<String> {
    let value = matches.get_raw(id)?.next()?;
    Some(value.to_string_lossy().into_owned())
}

fn argument(long: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("--{long}={value}"),
        None => format!("--{long}"),
    }
}

/// The jobs of a file's text; `over` goes before what it says.
pub(crate) fn parse(text: &str, over: &Settings) -> Result<Vec<NamedJob>> {
    let mut global = Settings::new();
    let mut jobs: Vec<(usize, String, Settings)> = Vec::new();
    let mut section: Option<String> = None;
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with([';', '#']) {
            continue;
        }
        if let Some(name) = text.strip_prefix('[') {
            let name = name.strip_suffix(']').map(str::trim);
            let name = name.filter(|name| !name.is_empty());
            let name = name.with_context(|| format!("line {line}: a section is [NAME]"))?;
            if name != GLOBAL {
                jobs.push((line, name.to_owned(), global.clone()));
            }
            section = Some(name.to_owned());
            continue;
        }
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim())),
            None => (text, None),
        };
        let (id, argument) =
            setting(key, value).map_err(|error| anyhow!("line {line}: {error}"))?;
        let settings = match section.as_deref() {
            None => bail!("line {line}: {key} stands before the first [section]"),
            Some(GLOBAL) => &mut global,
            Some(_) => &mut jobs.last_mut().expect("a section was begun").2,
        };
        settings.insert(id, argument);
    }
    ensure!(!jobs.is_empty(), "no job: a [section] is missing");
    let build = |(line, name, mut settings): (usize, String, Settings)| {
        settings.extend(over.iter().map(|(id, text)| (id.clone(), text.clone())));
        let options = options(&settings).with_context(|| format!("line {line}: job [{name}]"))?;
        Ok(NamedJob { name, options })
    };
    jobs.into_iter().map(build).collect()
}

/// Options from settings that have each been looked at.
fn options(settings: &Settings) -> Result<JobOptions> {
    let matches = vocabulary().try_get_matches_from(settings.values())?;
    let options = JobOptions::from_arg_matches(&matches)?;
    options.validate()?;
    Ok(options)
}

/// One line as the identity of its option and an argument that is known to be good.
fn setting(key: &str, value: Option<&str>) -> Result<(String, String)> {
    let command = vocabulary();
    let wanted = key.replace('_', "-");
    let found = command.get_arguments().find(|option| {
        let mut names = option.get_long_and_visible_aliases().unwrap_or_default();
        names.extend(option.get_all_aliases().unwrap_or_default());
        names.iter().any(|name| name.replace('_', "-") == wanted)
    });
    let Some(option) = found else {
        let near = nearest(&wanted, &command);
        let near = near.map_or_else(
            || "the keys are the flags of taipan-bench run".to_owned(),
            |near| format!("did you mean {near}?"),
        );
        bail!("unknown key {key:?}; {near}");
    };
    let long = option.get_long().expect("every option has a long name");
    let id = option.get_id().as_str().to_owned();
    let argument = argument(long, value);
    command
        .try_get_matches_from([&argument])
        .map_err(|error| anyhow!("{}", first_paragraph(&error)))?;
    Ok((id, argument))
}

fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    text.trim_start_matches("error: ").trim().to_owned()
}

/// The known key that is spelled most alike, in fio's spelling.
fn nearest(wanted: &str, command: &Command) -> Option<String> {
    let names = command.get_arguments().flat_map(|option| {
        let mut names = option.get_long_and_visible_aliases().unwrap_or_default();
        names.extend(option.get_all_aliases().unwrap_or_default());
        names
    });
    let (distance, name) = names
        .map(|name| (edits(wanted, &name.replace('_', "-")), name))
        .min()?;
    // A slip leaves something of the word.
    (distance <= NEAR && distance < wanted.len()).then(|| name.replace('-', "_"))
}

/// Insertions, deletions and replacements that make one word of the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, have) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (at, want) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(have != *want);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::options::IoEngine;
    use crate::pattern::Rw;

    const FILE: &str = "
; two jobs beside each other, then one alone
[global]
filename=nbd+unix:///vol0?socket=s
direct=1
group_reporting
bs=16k
time_based
runtime=5

[readers]
rw = randread
iodepth=32
numjobs=2
random_distribution=zipf:1.1
[writers]
rw=randwrite
bssplit=4k/80:64k/20
fsync=8
rate_iops=100

[global]
runtime=2s
[alone]
stonewall
ioengine=glommio
time_based=0
percentile_list=50:99.9
";

    fn jobs(text: &str) -> Result<Vec<NamedJob>> {
        parse(text, &Settings::new())
    }

    fn refusal(text: &str) -> String {
        format!("{:#}", jobs(text).unwrap_err())
    }

    #[test]
    fn sections_inherit_what_is_global_before_them() {
        let jobs = jobs(FILE).unwrap();
        let names: Vec<_> = jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["readers", "writers", "alone"]);
        let [readers, writers, alone] = [0, 1, 2].map(|at| &jobs[at].options);
        assert_eq!(
            (readers.rw, readers.iodepth, readers.numjobs),
            (Rw::RandRead, 32, 2)
        );
        assert_eq!(readers.random_distribution.to_string(), "zipf:1.1");
        assert_eq!(readers.runtime, Some(Duration::from_secs(5)));
        assert_eq!((writers.fsync, writers.rate_iops), (8, Some(100.0)));
        assert_eq!(writers.spec(1 << 20).request_bytes.max, 65536);
        assert_eq!(readers.spec(1 << 20).request_bytes.max, 16384);
        assert!(alone.stonewall && !alone.endless() && writers.endless());
        assert_eq!(alone.runtime, Some(Duration::from_secs(2)));
        assert_eq!(alone.ioengine, Some(IoEngine::Glommio));
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let over = Settings::from([("runtime".to_owned(), "--runtime=1".to_owned())]);
        for job in parse(FILE, &over).unwrap() {
            assert_eq!(job.options.runtime, Some(Duration::from_secs(1)));
        }
    }

    #[test]
    fn what_is_unknown_or_wrong_is_refused_with_its_line() {
        let with = |line: &str| refusal(&format!("[a]\nfilename=/dev/null\n{line}\n"));
        for (line, words) in [
            (
                "io_depth=3",
                "line 3: unknown key \"io_depth\"; did you mean iodepth?",
            ),
            ("=3", "line 3: unknown key \"\"; the keys are the flags"),
            ("state=s", "line 1: job [a]: --state needs --verify"),
            ("size=0", "line 1: job [a]: --size is at least one byte"),
            ("ramptime=3", "did you mean ramp_time?"),
            (
                "thinktime_blocks",
                "line 3: unknown key \"thinktime_blocks\"; the keys are",
            ),
            (
                "iodepth=many",
                "line 3: invalid value 'many' for '--iodepth",
            ),
            ("iodepth", "line 3: a value is required for '--iodepth"),
            ("rw=randwrong", "line 3: invalid value 'randwrong'"),
            (
                "direct=0",
                "line 3: invalid value '0' for '--direct[=<DIRECT>]': there is no other",
            ),
            ("group_reporting=0", "there is no other way"),
            ("[b", "line 3: a section is [NAME]"),
            (
                "ioengine=nbd",
                "line 1: job [a]: --ioengine nbd needs an nbd:// address",
            ),
        ] {
            let text = with(line);
            assert!(text.contains(words), "{line}: {text}");
        }
        assert!(refusal("rw=read\n").contains("before the first [section]"));
        assert!(refusal("[global]\nrw=read\n").contains("no job"));
        assert!(refusal("[a]\nrw=read\n").contains("no target"));
    }

    #[test]
    fn edits_are_counted() {
        for (from, to, count) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("iodept", "iodepth", 1),
            ("rwx", "xrw", 2),
        ] {
            assert_eq!(edits(from, to), count, "{from} {to}");
        }
    }
}
