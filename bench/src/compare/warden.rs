//! The warden of a comparison: a process that is told what was started and written, and that ends
//! and removes it when the comparison is gone, whatever ended it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::interruption;

/// Longest wait for killed processes before their files are removed.
const KILLED_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(60);

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
        self.tell(&format!("directory {}", path.display()))
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
                thread::sleep(Duration::from_millis(10));
            }
        }
        // Children that did not hear of it.
        kill(self.id(), Signal::TERM);
        // Without the warden there is nobody to tell.
        let _ = self.warden.tell(&format!("ended {}", self.id()));
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

/// The warden itself: listens until the pipe ends, then ends and removes what is left.
pub(crate) fn watch(lines: impl BufRead) -> Result<()> {
    let mut groups = BTreeSet::new();
    let mut directories = BTreeSet::new();
    for line in lines.lines() {
        let line = line.context("listening to the comparison")?;
        let (word, rest) = line.split_once(' ').context("a word alone")?;
        let group = || rest.parse::<u32>().context("no process group");
        match word {
            "began" => groups.insert(group()?),
            "ended" => groups.remove(&group()?),
            _ => directories.insert(PathBuf::from(rest)),
        };
    }
    for &group in &groups {
        kill(group, Signal::KILL);
    }
    let alive = |&group: &u32| {
        let group = Pid::from_raw(group as i32);
        group.is_some_and(|group| test_kill_process_group(group).is_ok())
    };
    let begin = Instant::now();
    while groups.iter().any(alive) && begin.elapsed() < KILLED_MAX {
        thread::sleep(Duration::from_millis(10));
    }
    for directory in directories.iter().filter(|directory| directory.exists()) {
        fs::remove_dir_all(directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    Ok(())
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
}
