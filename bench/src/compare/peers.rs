//! Servers that can be compared: how each is started, where it is, and what survives with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::lines::{LOG_ONLY, WITH_IDLE};

/// The servers that are known.
const BUILT_IN: &str = include_str!("peers.toml");

/// A server; `peers.toml` says what each field means.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) needs: Vec<String>,
    #[serde(default)]
    pub(crate) unix: Vec<String>,
    #[serde(default)]
    pub(crate) tcp: Vec<String>,
    pub(crate) uri_unix: Option<String>,
    pub(crate) uri_tcp: Option<String>,
    pub(crate) survives: String,
    pub(crate) durable_flush: bool,
    #[serde(default)]
    pub(crate) disk: bool,
    #[serde(default)]
    pub(crate) prefill: bool,
    pub(crate) control: Option<String>,
    pub(crate) metrics: Option<String>,
    #[serde(default)]
    pub(crate) files: BTreeMap<String, String>,
    /// Volumes that are made beside the one that is measured; only with a control socket.
    #[serde(skip)]
    pub(crate) idle_volumes: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeersFile {
    peer: Vec<Peer>,
}

/// How servers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Transport {
    /// A unix socket
    Unix,
    /// TCP over the loopback interface
    Tcp,
}

impl Peer {
    /// The whole command and the URI, still with their placeholders.
    pub(crate) fn over(&self, transport: Transport) -> Option<(Vec<String>, &str)> {
        let (more, uri) = match transport {
            Transport::Unix => (&self.unix, &self.uri_unix),
            Transport::Tcp => (&self.tcp, &self.uri_tcp),
        };
        Some(([&self.command[..], more].concat(), uri.as_deref()?))
    }

    /// The same with volumes that nobody uses.
    pub(crate) fn with_idle_volumes(mut self, count: u32) -> Self {
        self.name = WITH_IDLE.to_owned();
        self.idle_volumes = count;
        self
    }

    /// The same with so many data cores.
    pub(crate) fn with_cores(mut self, name: &str, cores: &str) -> Self {
        self.name = name.to_owned();
        let more = ["--cores", cores].map(str::to_owned);
        self.command.extend(more);
        self
    }

    /// The same, but so many written bytes stay in the WAL alone: nothing commits them.
    pub(crate) fn without_commits(mut self, bytes: u64) -> Self {
        self.name = LOG_ONLY.to_owned();
        // Half of the WAL may be pending at most, and what begins a commit is to be out of reach.
        let (pending, wal) = (2 * bytes, 4 * bytes);
        let commits =
            format!("--set commit.interval_seconds=3600 --set commit.pending_size={pending}");
        let more = format!("--wal-size {wal} {commits}");
        let options = self.command.iter().position(|word| word == "--wal-size");
        if let Some(at) = options {
            let end = self.command.len().min(at + 2);
            self.command.drain(at..end);
        }
        self.command
            .extend(more.split_whitespace().map(str::to_owned));
        // Comparisons have what is pending committed over it.
        self.control = None;
        self
    }

    /// Where its program is.
    ///
    /// # Errors
    /// One of its programs is not there.
    pub(crate) fn program(&self, texts: &Texts) -> Result<PathBuf> {
        let first = self.command.first().context("no command")?;
        for name in &self.needs {
            found(&texts.fill(name))?;
        }
        found(&texts.fill(first))
    }

    fn validate(&self) -> Result<()> {
        ensure!(!self.command.is_empty(), "peer {}: no command", self.name);
        ensure!(
            self.uri_unix.is_some() || self.uri_tcp.is_some(),
            "peer {}: neither uri_unix nor uri_tcp",
            self.name
        );
        for uri in [&self.uri_unix, &self.uri_tcp].into_iter().flatten() {
            let scheme = uri.starts_with("nbd://") || uri.starts_with("nbd+unix://");
            ensure!(scheme, "peer {}: {uri:?} is no NBD address", self.name);
        }
        Ok(())
    }
}

/// The built-in servers, and those of a user's file in their places or behind them.
pub(crate) fn all(file: Option<&Path>) -> Result<Vec<Peer>> {
    let mut peers = parse(BUILT_IN).context("the built-in peers")?;
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the peers in {}", path.display()))?;
        let more = parse(&text).with_context(|| format!("peers in {}", path.display()))?;
        for peer in more {
            match peers.iter_mut().find(|known| known.name == peer.name) {
                Some(known) => *known = peer,
                None => peers.push(peer),
            }
        }
    }
    Ok(peers)
}

fn parse(text: &str) -> Result<Vec<Peer>> {
    let peers = toml::from_str::<PeersFile>(text)?.peer;
    for peer in &peers {
        peer.validate()?;
    }
    Ok(peers)
}

/// What stands for the placeholders.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts(BTreeMap<&'static str, String>);

impl Texts {
    /// Sets one.
    pub(crate) fn set(&mut self, name: &'static str, text: impl std::fmt::Display) -> &mut Self {
        self.0.insert(name, text.to_string());
        self
    }

    /// A text with all known placeholders filled in.
    pub(crate) fn fill(&self, text: &str) -> String {
        let fill = |text: String, (name, value): (&&str, &String)| {
            text.replace(&format!("{{{name}}}"), value)
        };
        self.0.iter().fold(text.to_owned(), fill)
    }
}

/// A program by its path, or by its name.
fn found(name: &str) -> Result<PathBuf> {
    let path = if name.contains('/') {
        Some(PathBuf::from(name)).filter(|path| path.is_file())
    } else {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        // Servers often lie where only root looks.
        let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
        std::env::split_paths(&folders)
            .chain(more)
            .map(|folder| folder.join(name))
            .find(|path| path.is_file())
    };
    path.with_context(|| format!("{name} is not there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_peers_are_whole() {
        let peers = all(None).unwrap();
        let names: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "taipand",
                "nbdkit memory",
                "nbdkit file",
                "qemu-nbd",
                "nbd-server"
            ]
        );
        for peer in &peers {
            for transport in [Transport::Unix, Transport::Tcp] {
                assert!(peer.over(transport).is_some(), "{}", peer.name);
            }
        }
    }

    #[test]
    fn a_users_peer_is_added_or_takes_the_place_of_a_known_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "
            [[peer]]
            name = 'mine'
            command = ['no-such-program-here', '--size', '{size}']
            unix = ['{socket}']
            uri_unix = 'nbd+unix:///?socket={socket}'
            survives = 'who knows'
            durable_flush = false
            [[peer]]
            name = 'qemu-nbd'
            command = ['sh']
            uri_tcp = 'nbd://h/'
            survives = 'all'
            durable_flush = true
        ";
        std::fs::write(file.path(), text).unwrap();
        let peers = all(Some(file.path())).unwrap();
        assert_eq!(peers.len(), 6);
        let (mine, qemu) = (&peers[5], &peers[3]);
        assert_eq!(
            (mine.name.as_str(), qemu.survives.as_str()),
            ("mine", "all")
        );
        let mut texts = Texts::default();
        texts.set("size", 4096).set("socket", "/s");
        let (command, uri) = mine.over(Transport::Unix).unwrap();
        let command: Vec<_> = command.iter().map(|word| texts.fill(word)).collect();
        assert_eq!(command, ["no-such-program-here", "--size", "4096", "/s"]);
        assert_eq!(texts.fill(uri), "nbd+unix:///?socket=/s");
        assert!(mine.program(&texts).is_err() && qemu.program(&texts).is_ok());
        assert!(mine.over(Transport::Tcp).is_none());
    }

    #[test]
    fn a_peer_lacks_what_its_command_takes() {
        let mut peer = all(None).unwrap().remove(4);
        peer.command[0] = "sh".to_owned();
        peer.needs = vec!["sh".to_owned(), "no-such-program-here".to_owned()];
        let error = peer.program(&Texts::default()).unwrap_err().to_string();
        assert_eq!(error, "no-such-program-here is not there");
    }

    #[test]
    fn a_wrong_peer_is_refused() {
        let whole = "[[peer]]\nname='a'\ncommand=['x']\nsurvives=''\ndurable_flush=true\n";
        for (more, words) in [
            ("", "neither uri_unix nor uri_tcp"),
            ("uri_tcp='http://x'\n", "no NBD address"),
            ("colour=1\n", "unknown field `colour`"),
        ] {
            let error = format!("{:#}", parse(&format!("{whole}{more}")).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
