//! Client of the control API: HTTP/1.1 with JSON bodies over the daemon's unix socket.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use taipan_engine::api::{
    CONNECTIONS_PATH, CloneList, CloneSnapshot, ConnectionList, ConnectionName, CreateVolume,
    DRAIN_PATH, ErrorBody, FlattenStatus, ResizeVolume, RollBack, SNAPSHOT_GROUPS_PATH,
    STATUS_PATH, SnapshotInfo, SnapshotList, SnapshotState, Status, SweepReport, SweepVolume,
    TakeSnapshot, TakeSnapshotGroup, VOLUMES_PATH, VolumeChanges, VolumeHistory, VolumeInfo,
    VolumeList, VolumePatch, WarmStatus, WarmVolume, changes_path, clones_of_path, clones_path,
    commit_path, connection_path, flatten_path, history_path, resize_path, rollback_path,
    snapshot_path, snapshots_path, sweep_path, takeover_path, volume_path, warm_path,
};
use taipan_engine::snapshot::{ImageName, SnapshotName};
use taipan_engine::volume::VolumeName;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::failure::{Exit, Failure, Outcome, exit_of};
use crate::waiting::{NOTICE_EVERY, notice};

/// Most bytes of an answer that are read: the status of some ten thousand volumes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long an ordinary answer may take. A creation waits for the backend, and the daemon says
/// within nine minutes at most how it stands.
const ANSWER_SECONDS: u64 = 600;
/// How long the status may take, of which no more is made than a line.
const STATUS_SECONDS: u64 = 5;

/// A client of one daemon. Every call opens its own connection.
pub(crate) struct Control {
    socket: PathBuf,
    runtime: Runtime,
}

impl Control {
    /// A client of the daemon behind `socket`; does not connect yet.
    pub(crate) fn new(socket: PathBuf) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::io("cannot start the I/O runtime", &e))?;
        Ok(Self { socket, runtime })
    }

    /// How the appliance is doing.
    pub(crate) fn status(&self) -> Outcome<Status> {
        self.call("read the status", Method::GET, STATUS_PATH, None::<&()>)
    }

    /// All volumes.
    pub(crate) fn volumes(&self) -> Outcome<VolumeList> {
        self.call("list the volumes", Method::GET, VOLUMES_PATH, None::<&()>)
    }

    /// One volume.
    pub(crate) fn volume(&self, name: &VolumeName) -> Outcome<VolumeInfo> {
        let what = format!("show volume \"{name}\"");
        self.call(&what, Method::GET, &volume_path(name), None::<&()>)
    }

    /// Creates a volume.
    pub(crate) fn create(&self, volume: &CreateVolume) -> Outcome<VolumeInfo> {
        let what = format!("create volume \"{}\"", volume.name);
        self.call(&what, Method::POST, VOLUMES_PATH, Some(volume))
    }

    /// Grows a volume.
    pub(crate) fn resize(&self, name: &VolumeName, size_bytes: u64) -> Outcome<VolumeInfo> {
        let what = format!("resize volume \"{name}\"");
        let body = ResizeVolume { size_bytes };
        self.call(&what, Method::POST, &resize_path(name), Some(&body))
    }

    /// Changes settings of a volume.
    pub(crate) fn configure(&self, name: &VolumeName, patch: &VolumePatch) -> Outcome<VolumeInfo> {
        let what = format!("change volume \"{name}\"");
        self.call(&what, Method::PATCH, &volume_path(name), Some(patch))
    }

    /// Commits everything of a volume answered before, however long that takes.
    pub(crate) fn commit(&self, name: &VolumeName) -> Outcome<VolumeInfo> {
        let what = format!("commit volume \"{name}\"");
        let path = commit_path(name);
        // The command shows its progress itself.
        let exchange = self.exchange_unlimited(&what, Method::POST, &path, Bytes::new());
        let answer = self.runtime.block_on(exchange)?;
        self.read(&what, &answer)
    }

    /// Takes a volume over from another appliance.
    pub(crate) fn take_over(&self, name: &VolumeName) -> Outcome<VolumeInfo> {
        let what = format!("take volume \"{name}\" over");
        self.call(&what, Method::POST, &takeover_path(name), None::<&()>)
    }

    /// Starts to fill the caches with a volume's blocks.
    pub(crate) fn warm(&self, name: &VolumeName, warm: &WarmVolume) -> Outcome<WarmStatus> {
        let what = format!("warm volume \"{name}\"");
        self.call(&what, Method::POST, &warm_path(name), Some(warm))
    }

    /// How the last warm-up of a volume is getting on.
    pub(crate) fn warm_status(&self, name: &VolumeName) -> Outcome<WarmStatus> {
        let what = format!("show the warm-up of volume \"{name}\"");
        self.call(&what, Method::GET, &warm_path(name), None::<&()>)
    }

    /// Deletes a volume.
    pub(crate) fn delete(&self, name: &VolumeName) -> Outcome<()> {
        let what = format!("delete volume \"{name}\"");
        self.delete_at(&what, &volume_path(name))
    }

    /// Has a clone made independent of its parent.
    pub(crate) fn flatten(&self, name: &VolumeName) -> Outcome<FlattenStatus> {
        let what = format!("flatten volume \"{name}\"");
        self.call(&what, Method::POST, &flatten_path(name), None::<&()>)
    }

    /// How that is getting on.
    pub(crate) fn flatten_status(&self, name: &VolumeName) -> Outcome<FlattenStatus> {
        let what = format!("show the flatten of volume \"{name}\"");
        self.call(&what, Method::GET, &flatten_path(name), None::<&()>)
    }

    /// The clones of a volume.
    pub(crate) fn clones(&self, name: &VolumeName) -> Outcome<CloneList> {
        let what = format!("list the clones of volume \"{name}\"");
        self.call(&what, Method::GET, &clones_of_path(name), None::<&()>)
    }

    /// Sweeps a volume's orphans, however long that takes.
    pub(crate) fn sweep(&self, name: &VolumeName, dry_run: bool) -> Outcome<SweepReport> {
        let what = format!("sweep volume \"{name}\"");
        self.call_for_long((&what, None), &sweep_path(name), &SweepVolume { dry_run })
    }

    /// Takes a snapshot, however long what is waited for takes.
    pub(crate) fn take_snapshot(
        &self,
        volume: &VolumeName,
        request: &TakeSnapshot,
    ) -> Outcome<SnapshotInfo> {
        let what = format!("take snapshot \"{volume}@{}\"", request.name);
        let watched = snapshot_path(volume, &request.name);
        self.call_for_long((&what, Some(&watched)), &snapshots_path(volume), request)
    }

    /// Takes snapshots of several volumes by one cut, however long what is waited for takes.
    pub(crate) fn take_snapshot_group(&self, request: &TakeSnapshotGroup) -> Outcome<SnapshotList> {
        let what = format!("take the group of snapshots \"{}\"", request.name);
        let first = request.volumes.first();
        let watched = first.map(|first| snapshot_path(first, &request.name));
        self.call_for_long((&what, watched.as_deref()), SNAPSHOT_GROUPS_PATH, request)
    }

    /// Posts something whose answer may take any time; `watched` is the path of a snapshot that is
    /// taken by it.
    fn call_for_long<T: DeserializeOwned>(
        &self,
        (what, watched): (&str, Option<&str>),
        path: &str,
        body: &impl Serialize,
    ) -> Outcome<T> {
        let body = serde_json::to_vec(body)
            .map_err(|e| Failure::new(Exit::Failed, format!("cannot {what}: {e}")))?;
        let exchange = self.exchange_unlimited(what, Method::POST, path, Bytes::from(body));
        let answer = self.await_answer((what, watched), exchange, None)?;
        self.read(what, &answer)
    }

    /// All snapshots of a volume.
    pub(crate) fn snapshots(&self, volume: &VolumeName) -> Outcome<SnapshotList> {
        let what = format!("list the snapshots of volume \"{volume}\"");
        self.call(&what, Method::GET, &snapshots_path(volume), None::<&()>)
    }

    /// One snapshot.
    pub(crate) fn snapshot(&self, of: &VolumeName, name: &SnapshotName) -> Outcome<SnapshotInfo> {
        let what = format!("show snapshot \"{of}@{name}\"");
        self.call(&what, Method::GET, &snapshot_path(of, name), None::<&()>)
    }

    /// What changed in a volume since a snapshot.
    pub(crate) fn changes(
        &self,
        volume: &VolumeName,
        from: &SnapshotName,
        to: Option<&SnapshotName>,
    ) -> Outcome<VolumeChanges> {
        let what = format!("tell what changed in volume \"{volume}\" since snapshot \"{from}\"");
        let path = changes_path(volume, from, to);
        self.call(&what, Method::GET, &path, None::<&()>)
    }

    /// Deletes a snapshot.
    pub(crate) fn delete_snapshot(&self, of: &VolumeName, name: &SnapshotName) -> Outcome<()> {
        let what = format!("delete snapshot \"{of}@{name}\"");
        self.delete_at(&what, &snapshot_path(of, name))
    }

    /// The points in time of a volume.
    pub(crate) fn history(&self, volume: &VolumeName) -> Outcome<VolumeHistory> {
        let what = format!("tell the history of volume \"{volume}\"");
        self.call(&what, Method::GET, &history_path(volume), None::<&()>)
    }

    /// Takes a volume back to an earlier image.
    pub(crate) fn roll_back(&self, of: &VolumeName, to: &ImageName) -> Outcome<VolumeInfo> {
        let what = format!("roll volume \"{of}\" back to \"{to}\"");
        let snapshot = to.clone();
        self.call(
            &what,
            Method::POST,
            &rollback_path(of),
            Some(&RollBack { snapshot }),
        )
    }

    /// Creates a volume as a clone of a snapshot.
    pub(crate) fn clone_image(
        &self,
        (of, image): (&VolumeName, &ImageName),
        name: &VolumeName,
    ) -> Outcome<VolumeInfo> {
        let what = format!("clone \"{of}@{image}\"");
        let body = CloneSnapshot { name: name.clone() };
        self.call(&what, Method::POST, &clones_path(of, image), Some(&body))
    }

    fn delete_at(&self, what: &str, path: &str) -> Outcome<()> {
        let limit = Some(Duration::from_secs(ANSWER_SECONDS));
        self.exchange(what, Method::DELETE, path, Bytes::new(), limit)
            .map(drop)
    }

    /// All NBD connections.
    pub(crate) fn connections(&self) -> Outcome<ConnectionList> {
        let what = "list the connections";
        self.call(what, Method::GET, CONNECTIONS_PATH, None::<&()>)
    }

    /// Closes a connection.
    pub(crate) fn kick(&self, name: ConnectionName) -> Outcome<()> {
        let what = format!("close connection {name}");
        self.delete_at(&what, &connection_path(name))
    }

    /// Packs everything into the backend; takes as long as that takes.
    pub(crate) fn drain(&self) -> Outcome<()> {
        self.exchange("drain", Method::POST, DRAIN_PATH, Bytes::new(), None)
            .map(drop)
    }

    /// One request with an optional JSON body and a JSON answer.
    fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<&Q>,
    ) -> Outcome<A> {
        let body = match body.map(serde_json::to_vec).transpose() {
            Ok(body) => Bytes::from(body.unwrap_or_default()),
            Err(e) => return Err(self.failed(what, Exit::Failed, &e)),
        };
        let limit = Some(Duration::from_secs(ANSWER_SECONDS));
        let answer = self.exchange(what, method, path, body, limit)?;
        self.read(what, &answer)
    }

    fn read<A: DeserializeOwned>(&self, what: &str, answer: &[u8]) -> Outcome<A> {
        serde_json::from_slice(answer).map_err(|e| {
            let why = format!("the answer is not understood ({e}); are both of one version?");
            self.failed(what, Exit::Failed, &why)
        })
    }

    /// Sends one request and returns the body of its successful answer.
    fn exchange(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Option<Duration>,
    ) -> Outcome<Bytes> {
        let exchange = self.exchange_unlimited(what, method, path, body);
        self.await_answer((what, None), exchange, limit)
    }

    /// Waits for an answer, and says meanwhile how it stands; `watched` is the path of a snapshot
    /// that is to be taken.
    fn await_answer(
        &self,
        (what, watched): (&str, Option<&str>),
        exchange: impl Future<Output = Outcome<Bytes>>,
        limit: Option<Duration>,
    ) -> Outcome<Bytes> {
        let began = Instant::now();
        self.runtime.block_on(async {
            let mut exchange = pin!(exchange);
            loop {
                let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
                let next = left.map_or(NOTICE_EVERY, |left| left.min(NOTICE_EVERY));
                if let Ok(answer) = tokio::time::timeout(next, exchange.as_mut()).await {
                    return answer;
                }
                if let Some(limit) = limit.filter(|limit| began.elapsed() >= *limit) {
                    let why = format!(
                        "no answer within {} s; it may still take effect, see `taipan status`",
                        limit.as_secs()
                    );
                    return Err(self.failed(what, Exit::Failed, &why));
                }
                self.tell_waiting(what, watched, began.elapsed()).await;
            }
        })
    }

    /// Says how it stands, on standard error. A courtesy: nothing comes of it if that fails.
    async fn tell_waiting(&self, what: &str, watched: Option<&str>, waited: Duration) {
        let status = self.glance::<Status>(STATUS_PATH).await;
        let snapshot = match watched {
            Some(path) => self.glance::<SnapshotInfo>(path).await,
            None => None,
        };
        let is_taken = snapshot.is_some_and(|info| info.state != SnapshotState::Asked);
        let what = match is_taken {
            true => format!(
                "{} (it is taken: its content is fixed)",
                what.replacen("take ", "commit ", 1)
            ),
            false => what.to_owned(),
        };
        let _ = writeln!(io::stderr(), "{}", notice(&what, waited, status.as_ref()));
    }

    /// What the daemon says there, if it says it soon.
    async fn glance<A: DeserializeOwned>(&self, path: &str) -> Option<A> {
        let asked = self.exchange_unlimited("look", Method::GET, path, Bytes::new());
        let asked = tokio::time::timeout(Duration::from_secs(STATUS_SECONDS), asked).await;
        let body = asked.ok()?.ok()?;
        serde_json::from_slice(&body).ok()
    }

    async fn exchange_unlimited(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Outcome<Bytes> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| unreachable(&format!("cannot {what}"), &self.socket, &e))?;
        let broken = |e: hyper::Error| {
            let why = format!("the connection broke ({e}); it may still take effect");
            self.failed(what, Exit::Failed, &why)
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Ends by itself when the sender is dropped; its errors reach the sender too.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "taipan")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| self.failed(what, Exit::Failed, &e))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| match e.downcast_ref::<LengthLimitError>() {
                Some(_) => self.failed(what, Exit::Failed, &"the answer is above 64 MiB"),
                None => self.failed(what, Exit::Failed, &format!("the answer broke off: {e}")),
            })?
            .to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            Err(self.refused(what, status, &body))
        }
    }

    /// The failure that an unsuccessful answer stands for.
    fn refused(&self, what: &str, status: StatusCode, body: &[u8]) -> Failure {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => Failure::new(
                exit_of(body.error.kind),
                format!("cannot {what}: {}", body.error.message),
            ),
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let start: String = text.chars().take(200).collect();
                let why = format!("HTTP status {status}, {start:?}");
                self.failed(what, Exit::Failed, &why)
            }
        }
    }

    fn failed(&self, what: &str, exit: Exit, why: &dyn std::fmt::Display) -> Failure {
        let socket = self.socket.display();
        Failure::new(exit, format!("cannot {what} over {socket}: {why}"))
    }
}

/// Why no daemon answers behind `socket`, with what to do about it.
pub(crate) fn unreachable(what: &str, socket: &Path, error: &io::Error) -> Failure {
    let why = match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such socket. Is taipand running with this data directory? \
             Name the directory with --data"
        }
        io::ErrorKind::ConnectionRefused => {
            "nobody listens on it: taipand has ended or was killed. Start it again"
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied. Run this as the user who runs taipand, or as root"
        }
        io::ErrorKind::InvalidInput => {
            "the path is too long for a unix socket (107 bytes). Use a relative path"
        }
        _ => {
            return Failure::new(
                Exit::Unreachable,
                format!("{what}: {}: {error}", socket.display()),
            );
        }
    };
    Failure::new(
        Exit::Unreachable,
        format!("{what}: {}: {why}", socket.display()),
    )
}
