//! Clients of others against connections over a core in memory: what they see of a sparse volume.
//! Programs that are not installed are left out.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use taipan_engine::core::Io;

use taipan_nbd::protocol::context;

use super::*;

const MIB: u64 = 1 << 20;
/// Bytes of the volume that is copied.
pub(super) const COPIED: u64 = 256 << 20;
const LIMITS: ConnectionLimits = ConnectionLimits {
    requests_max: 100,
    bytes_max: 64 << 20,
    handshake_ms: 60_000,
};

/// Serves whoever connects a volume of so many bytes, until `stop`.
fn serve(size: u64, tls: Option<&Arc<TlsService>>, listener: &UnixListener, stop: &AtomicBool) {
    let (begin, mut handshakes) = (Instant::now(), HandshakePace::default());
    let (mut core, directory) = core_and_directory(size);
    let (counters, volume_counters) = (CoreCounters::default(), Arc::default());
    let (allowance, mut buffers) = (Allowance::new(1 << 30), Buffers::default());
    listener.set_nonblocking(true).unwrap();
    let mut connections: Vec<Option<Connection>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok((socket, _)) = listener.accept() {
            let id = ConnectionId {
                index: connections.len() as u32,
                generation: 0,
            };
            let allowance = Arc::clone(&allowance);
            let socket = socket.into();
            connections.push(Some(Connection::new(
                id,
                socket,
                "test".into(),
                u64::MAX,
                allowance,
                tls.cloned(),
            )));
        }
        let mut around = Surroundings {
            core: &mut core,
            directory: &directory,
            counters: &counters,
            now_ns: begin.elapsed().as_nanos() as u64,
            volume_counters: &|_| Arc::clone(&volume_counters),
            limits: LIMITS,
            maps_left: &mut 2,
            buffers: &mut buffers,
            handshakes: &mut handshakes,
        };
        for slot in &mut connections {
            let Some(connection) = slot else { continue };
            connection.notice(false);
            let mut outcome = connection.turn(&mut around);
            if outcome == Outcome::Joining {
                outcome = connection.join(&mut around);
            }
            connection.flush_output();
            connection.rest(around.buffers);
            if outcome == Outcome::Closed || connection.is_over() {
                *slot = None;
            }
        }
        carry_out(&mut around, &mut |id, request, done, around| {
            if let Some(connection) = &mut connections[id.index as usize] {
                connection.done(request, done, around);
                connection.flush_output();
                connection.rest(around.buffers);
            }
        });
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A disk that forgets at once: all is read from memory. `ended` is told of each request that ends.
pub(super) fn carry_out(
    around: &mut Surroundings<'_>,
    ended: &mut dyn FnMut(ConnectionId, u32, &Done, &mut Surroundings<'_>),
) {
    around.core.pump();
    let asked: Vec<Io> = around.core.effects.io.drain(..).collect();
    for io in asked {
        match io {
            Io::WalWrite { op, .. } | Io::Barrier { op, .. } => {
                around.core.io_done(op, Ok(()), &[]);
            }
            Io::WalRead { .. } => panic!("more was written than memory holds"),
        }
    }
    around.core.pump();
    let done: Vec<Done> = around.core.effects.done.drain(..).collect();
    for done in done {
        let (id, request) = ConnectionId::of_ticket(done.ticket);
        ended(id, request, &done, around);
    }
}

/// What the program prints; `None` if there is no such program.
pub(super) fn printed(program: &str, arguments: &[&str]) -> Option<String> {
    let ran = Command::new("timeout")
        .args(["120", program])
        .args(arguments)
        .output();
    let ran = ran.expect("coreutils' timeout runs");
    if ran.status.code() == Some(127) {
        return None;
    }
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    let error = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{program} {arguments:?}: {error}");
    Some(text)
}

/// Offset, length and type of each extent that libnbd sees.
fn nbdinfo_map(uri: &str, context: &str) -> Option<Vec<(u64, u64, u64)>> {
    let text = printed("nbdinfo", &["--json", &format!("--map={context}"), uri])?;
    let map: Vec<Value> = serde_json::from_str(&text).unwrap();
    let number = |extent: &Value, name: &str| extent[name].as_u64().expect("a number");
    let one = |e: &Value| (number(e, "offset"), number(e, "length"), number(e, "type"));
    Some(map.iter().map(one).collect())
}

/// Start, length and whether it is data of each extent that QEMU sees.
fn qemu_map(uri: &str) -> Option<Vec<(u64, u64, bool)>> {
    let text = printed("qemu-img", &["map", "-f", "raw", "--output=json", uri])?;
    let map: Vec<Value> = serde_json::from_str(&text).unwrap();
    let number = |extent: &Value, name: &str| extent[name].as_u64().expect("a number");
    let one = |e: &Value| (number(e, "start"), number(e, "length"), e["data"] == true);
    Some(map.iter().map(one).collect())
}

fn see(socket: &Path) {
    let uri = format!("nbd+unix:///vol0?socket={}", socket.display());
    let commands = [
        "write -P 7 1M 64k",
        "write -P 8 2M 4k",
        "discard 1028k 8k",
        "flush",
    ];
    let commands = commands.iter().flat_map(|command| ["-c", *command]);
    let qemu_io: Vec<&str> = ["-f", "raw"]
        .into_iter()
        .chain(commands)
        .chain([&*uri])
        .collect();
    if printed("qemu-io", &qemu_io).is_none() {
        return;
    }
    let data = [(MIB, 4096), (MIB + 12_288, 53_248), (2 * MIB, 4096)];
    let mut expected = Vec::new();
    let mut at = 0;
    for (start, len) in data {
        expected.extend([(at, start - at, false), (start, len, true)]);
        at = start + len;
    }
    expected.push((at, SIZE - at, false));
    let types = |hole: u64, data: u64| -> Vec<(u64, u64, u64)> {
        let of = |is_data| if is_data { data } else { hole };
        let typed = expected
            .iter()
            .map(|(at, len, is_data)| (*at, *len, of(*is_data)));
        typed.collect()
    };
    if let Some(map) = qemu_map(&uri) {
        assert_eq!(map, expected);
    }
    if let Some(map) = nbdinfo_map(&uri, context::BASE_ALLOCATION) {
        assert_eq!(joined(&map), types(HOLE, 0));
        let depth = nbdinfo_map(&uri, context::QEMU_ALLOCATION_DEPTH);
        assert_eq!(joined(&depth.unwrap()), types(0, 1));
        let residency = nbdinfo_map(&uri, context::TAIPAN_RESIDENCY);
        assert_eq!(joined(&residency.unwrap()), [(0, SIZE, 2)]);
        let durability = nbdinfo_map(&uri, context::TAIPAN_DURABILITY);
        // Flushed, the trimmed blocks too.
        let (first, second) = ((MIB, 64 << 10, 1), (2 * MIB, 4096, 1));
        let kept = |extent: &&(u64, u64, u64)| extent.2 != u64::from(state::REMOTE_DURABLE);
        assert!(
            joined(&durability.unwrap())
                .iter()
                .filter(kept)
                .eq(&[first, second])
        );
    }
    let listed = ["-L", "-k", &socket.display().to_string()];
    if let Some(text) = printed("qemu-nbd", &listed) {
        assert!(CONTEXTS.iter().all(|name| text.contains(name)), "{text}");
        // QEMU says so from 8.2 on.
        let narrow = text.contains("transaction size:") && !text.contains("64-bit");
        assert!(!narrow, "{text}");
    }
}

/// libnbd asks in pieces below 4 GiB, and prints them as they come.
fn joined(map: &[(u64, u64, u64)]) -> Vec<(u64, u64, u64)> {
    let mut joined: Vec<(u64, u64, u64)> = Vec::new();
    for &(at, len, kind) in map {
        match joined.last_mut() {
            Some(last) if last.2 == kind && last.0 + last.1 == at => last.1 += len,
            _ => joined.push((at, len, kind)),
        }
    }
    joined
}

/// Runs `clients` against a server of a volume of so many bytes; they get its socket, and the
/// folder where that is.
pub(super) fn with_server(
    size: u64,
    tls: Option<Arc<TlsService>>,
    clients: impl FnOnce(&Path, &Path),
) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nbd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let server = std::thread::spawn(move || serve(size, tls.as_ref(), &listener, &told));
    let meet = || clients(&socket, folder.path());
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meet));
    stop.store(true, Ordering::Relaxed);
    server.join().expect("the server serves");
    if let Err(what) = seen {
        std::panic::resume_unwind(what);
    }
}

#[test]
fn clients_of_others_see_the_map() {
    with_server(SIZE, None, |socket, _| see(socket));
}

fn copy_there_and_back(socket: &Path, folder: &Path) {
    let uri = format!("nbd+unix:///vol0?socket={}", socket.display());
    if copy(&uri, folder) {
        let (from, compare) = (folder.join("source"), ["compare", "-f", "raw", "-F", "raw"]);
        let paths = [from.to_str().unwrap(), &uri];
        printed("qemu-img", &[&compare[..], &paths].concat());
    }
}

/// Copies a sparse file to the volume and back; false if nobody can.
pub(super) fn copy(uri: &str, folder: &Path) -> bool {
    let (source, copy) = (folder.join("source"), folder.join("copy"));
    let file = File::create(&source).unwrap();
    file.set_len(COPIED).unwrap();
    for place in [0, 5, 127, 255] {
        let data = vec![1 + (place % 200) as u8; 100_000];
        file.write_all_at(&data, place * MIB + 4096).unwrap();
    }
    let (from, to) = (source.to_str().unwrap(), copy.to_str().unwrap());
    if printed("nbdcopy", &["--flush", from, uri]).is_none() {
        return false;
    }
    printed("nbdcopy", &[uri, to]);
    printed("cmp", &[from, to]);
    let stored = std::fs::metadata(&copy).unwrap().blocks() * 512;
    assert!(stored < 4 * MIB, "the copy holds {stored} bytes");
    true
}

#[test]
fn a_sparse_copy_comes_back_sparse() {
    with_server(COPIED, None, copy_there_and_back);
}
