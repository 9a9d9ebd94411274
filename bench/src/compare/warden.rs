//! The warden of a comparison: a process that is told what was started and written, and that ends
//! and removes it when the comparison is gone, whatever ended it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::interruption;

/// Longest wait for killed processes before their files are removed.
const KILLED_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(60);

/// Longest wait for the children of a program that has ended, asked and then killed.
const CHILDREN_MAX: Duration = Duration::from_secs(2);
/// Between two looks at processes that are to end.
const BREATH: Duration = Duration::from_millis(10);

/// The comparison's end of the pipe to the warden.
pub(crate) struct Warden {
    child: Child,
    state: Mutex<State>,
}

struct State {
    /// Its end is the end of the comparison.
    pipe: Option<ChildStdin>,
    /// The client that runs now.
    client: Option<u32>,
}

/// A program with its children, in a group of its own; it ends with the comparison.
pub(crate) struct Process {
    child: Child,
    ended: bool,
    warden: Arc<Warden>,
}

impl Warden {
    /// Starts it; `bench` is this program.
    pub(crate) fn start(bench: &Path) -> Result<Arc<Self>> {
        let mut child = Command::new(bench)
            .arg("warden")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting the warden of the comparison")?;
        let pipe = child.stdin.take();
        Ok(Arc::new(Self {
            child,
            state: Mutex::new(State { pipe, client: None }),
        }))
    }

    /// A directory that is to go.
    pub(crate) fn directory(&self, path: &Path) -> Result<()> {
        self.tell(&directory_line(path)?)
    }

    /// Ends the client that runs now.
    pub(crate) fn end_client(&self) {
        if let Some(client) = self.state().client {
            kill(client, Signal::KILL);
        }
    }

    /// What a client says until it ends.
    pub(crate) fn output(&self, command: &mut Command) -> Result<Output> {
        let child = spawned(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let id = child.id();
        self.state().client = Some(id);
        if interruption::asked() {
            self.end_client();
        }
        // Without the warden the client still ends by itself.
        let _ = self.tell(&format!("began {id}"));
        let output = child.wait_with_output();
        self.state().client = None;
        let _ = self.tell(&format!("ended {id}"));
        interruption::check()?;
        Ok(output?)
    }

    fn tell(&self, line: &str) -> Result<()> {
        let mut state = self.state();
        let pipe = state.pipe.as_mut().context("the warden was let go")?;
        writeln!(pipe, "{line}").context("telling the warden")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with the lock")
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        // With the pipe it goes; what is left to do is little, as all was ended before.
        self.state().pipe = None;
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts a program.
    pub(crate) fn start(command: &mut Command, warden: &Arc<Warden>) -> Result<Self> {
        let process = Self {
            child: spawned(command)?,
            ended: false,
            warden: Arc::clone(warden),
        };
        warden.tell(&format!("began {}", process.id()))?;
        Ok(process)
    }

    /// The group's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it with its children: asks, and after a while does not ask.
    pub(crate) fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let begin = Instant::now();
        while !self.has_ended() {
            let patient = begin.elapsed() < STOP_MAX && !interruption::asked();
            let signal = if patient { Signal::TERM } else { Signal::KILL };
            kill(self.id(), signal);
            for _ in 0..100 {
                if self.has_ended() {
                    break;
                }
                thread::sleep(BREATH);
            }
        }
        // Children that did not hear of it, or do not want to.
        let group = BTreeSet::from([self.id()]);
        let gone = [Signal::TERM, Signal::KILL].into_iter().any(|signal| {
            kill(self.id(), signal);
            wait_for(&group, CHILDREN_MAX)
        });
        // What is still there is the warden's. Without the warden there is nobody to tell.
        if gone {
            let _ = self.warden.tell(&format!("ended {}", self.id()));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawned(command: &mut Command) -> Result<Child> {
    let child = command.stdin(Stdio::null()).process_group(0).spawn();
    child.with_context(|| format!("starting {}", command.get_program().display()))
}

fn kill(group: u32, signal: Signal) {
    // It may have ended by itself.
    let _ = Pid::from_raw(group as i32).map(|group| kill_process_group(group, signal));
}

/// Whether all groups are gone within that time.
fn wait_for(groups: &BTreeSet<u32>, most: Duration) -> bool {
    let alive = |&group: &u32| {
        let group = Pid::from_raw(group as i32);
        group.is_some_and(|group| test_kill_process_group(group).is_ok())
    };
    let begin = Instant::now();
    while groups.iter().any(alive) {
        if begin.elapsed() > most {
            return false;
        }
        thread::sleep(BREATH);
    }
    true
}

/// How a directory is told: in one line.
fn directory_line(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(['\n', '\r']));
    let text = text.with_context(|| format!("{path:?} is no text of one line"))?;
    Ok(format!("directory {text}"))
}

/// The warden itself: listens until the pipe ends, then ends and removes what is left. What it does
/// not understand keeps it from nothing else; the first thing that went wrong is said.
pub(crate) fn watch(lines: impl BufRead) -> Result<()> {
    let mut left = Left::default();
    let heard = left.listen(lines);
    let removed = left.clean_up();
    heard.and(removed)
}

/// What was begun and has not ended.
#[derive(Default)]
struct Left {
    groups: BTreeSet<u32>,
    directories: BTreeSet<PathBuf>,
}

impl Left {
    fn listen(&mut self, lines: impl BufRead) -> Result<()> {
        let mut heard = Ok(());
        for line in lines.lines() {
            let is_over = matches!(&line, Err(error) if error.kind() != ErrorKind::InvalidData);
            let line = line.context("listening to the comparison");
            let noted = line.and_then(|line| self.note(&line));
            heard = heard.and(noted);
            if is_over {
                break;
            }
        }
        heard
    }

    fn note(&mut self, line: &str) -> Result<()> {
        let (word, rest) = line.split_once(' ').context("a word alone")?;
        let group = || {
            let group: u32 = rest.parse().context("no process group")?;
            let ours = (2..=i32::MAX as u32).contains(&group);
            ensure!(ours, "process group {group} is nobody's to end");
            Ok(group)
        };
        match word {
            "began" => self.groups.insert(group()?),
            "ended" => self.groups.remove(&group()?),
            "directory" => self.directories.insert(PathBuf::from(rest)),
            _ => bail!("not understood: {line:?}"),
        };
        Ok(())
    }

    fn clean_up(&self) -> Result<()> {
        for &group in &self.groups {
            kill(group, Signal::KILL);
        }
        wait_for(&self.groups, KILLED_MAX);
        let mut removed = Ok(());
        for directory in self.directories.iter().filter(|path| path.exists()) {
            let gone = fs::remove_dir_all(directory);
            let gone = gone.with_context(|| format!("removing {}", directory.display()));
            removed = removed.and(gone);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_when_the_pipe_ends_is_ended_and_removed() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let (gone, kept) = (dir.path().join("gone"), dir.path().join("kept"));
        for path in [&gone, &kept] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), "data").unwrap();
        }
        let sleeper = || spawned(Command::new("sleep").arg("600")).unwrap();
        let (mut left, mut ended) = (sleeper(), sleeper());
        let told = format!(
            "directory {}\nbegan {}\nbegan {}\nended {}\n",
            gone.display(),
            left.id(),
            ended.id(),
            ended.id()
        );
        // The killed child is a zombie until it is waited for, as it is this test's own.
        let waiter = thread::spawn(move || left.wait().unwrap());
        watch(told.as_bytes()).unwrap();
        assert!(!waiter.join().unwrap().success());
        assert!(!gone.exists() && kept.join("file").exists());
        assert!(ended.try_wait().unwrap().is_none(), "it was not left");
        kill(ended.id(), Signal::KILL);
        ended.wait().unwrap();
    }

    #[test]
    fn what_is_not_understood_or_cannot_be_removed_keeps_from_nothing_else() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["kept", "gone", "last"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("a file"), "data").unwrap();
        let mut told = format!(
            "nonsense {}\nword\nbegan x\nbegan 1\n",
            path("kept").display()
        )
        .into_bytes();
        told.extend(b"directory \xff\n");
        for name in ["a file", "gone", "last"] {
            told.extend(format!("directory {}\n", path(name).display()).into_bytes());
        }
        let error = watch(&told[..]).unwrap_err().to_string();
        assert!(error.contains("not understood: \"nonsense"), "{error}");
        assert!(path("kept").exists(), "an unknown word removes nothing");
        assert!(!path("gone").exists() && !path("last").exists());
    }

    #[test]
    fn a_directory_is_told_in_one_line_or_not_at_all() {
        use std::os::unix::ffi::OsStrExt;

        let told = directory_line(Path::new("/with a blank")).unwrap();
        assert_eq!(told, "directory /with a blank");
        for bad in [&b"/two\nlines"[..], b"/end\r", b"/\xff"] {
            let path = Path::new(std::ffi::OsStr::from_bytes(bad));
            assert!(directory_line(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_child_that_does_not_hear_ends_with_its_leader() {
        // Its word that it ignores the signal comes through the pipe.
        let child = "(trap '' TERM; echo deaf; exec sleep 600) & wait";
        let mut cat = Command::new("cat");
        let mut cat = cat
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pipe = cat.stdin.take();
        let warden = Arc::new(Warden {
            child: cat,
            state: Mutex::new(State { pipe, client: None }),
        });
        let mut command = Command::new("sh");
        command.args(["-c", child]).stdout(Stdio::piped());
        let mut process = Process::start(&mut command, &warden).unwrap();
        let mut said = std::io::BufReader::new(process.child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "deaf\n");
        process.end();
        // The pipe ends when nobody holds it any more.
        assert_eq!(said.read_line(&mut line).unwrap(), 0);
    }
}
