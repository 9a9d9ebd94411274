//! The servers over real sockets, with a pretended daemon behind them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use taipan_engine::api::{
    Lineage, RunState, Status, VolumeInfo, VolumePatch, VolumeState, resize_path, volume_path,
};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::volume::{VolumeName, VolumeSettings};

use super::{Appliance, Servers};
use crate::metrics::MetricsSnapshot;

#[derive(Default)]
struct Pretended {
    volumes: Mutex<BTreeMap<VolumeName, VolumeInfo>>,
    state: Mutex<RunState>,
    drains: Mutex<u32>,
}

impl Pretended {
    fn change(
        &self,
        name: &VolumeName,
        change: impl FnOnce(&mut VolumeSettings) -> Result<()>,
    ) -> Result<VolumeInfo> {
        let mut volumes = self.volumes.lock().unwrap();
        let info = volumes.get_mut(name).ok_or_else(|| not_found(name))?;
        change(&mut info.settings)?;
        Ok(info.clone())
    }
}

fn not_found(name: &VolumeName) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no volume {name}"))
}

impl Appliance for Pretended {
    fn status(&self) -> Status {
        Status {
            version: "9".to_owned(),
            state: *self.state.lock().unwrap(),
            volumes: self.list(),
            problems: vec!["shard 03 failed".to_owned()],
            ..Status::default()
        }
    }

    fn list(&self) -> Vec<VolumeInfo> {
        self.volumes.lock().unwrap().values().cloned().collect()
    }

    fn show(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.change(name, |_| Ok(()))
    }

    fn create(&self, name: VolumeName, settings: VolumeSettings) -> Result<VolumeInfo> {
        let mut volumes = self.volumes.lock().unwrap();
        if volumes.contains_key(&name) {
            let text = format!("volume {name} exists");
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        let info = VolumeInfo {
            name: name.clone(),
            id: VolumeId(1),
            settings,
            state: VolumeState::Online,
            cause: None,
            lineage: Lineage::Intact,
            connections: 0,
            mapped_blocks: 0,
            dirty_bytes: 0,
            committed_epoch: 0,
            manifest: 1,
            generation: 1,
            chunks: 0,
            index_bytes: 0,
            last_commit_age_seconds: None,
        };
        volumes.insert(name, info.clone());
        Ok(info)
    }

    fn resize(&self, name: &VolumeName, size_bytes: u64) -> Result<VolumeInfo> {
        self.change(name, |settings| {
            if size_bytes < settings.size_bytes {
                return Err(Error::invalid("volumes only grow"));
            }
            settings.size_bytes = size_bytes;
            Ok(())
        })
    }

    fn configure(&self, name: &VolumeName, patch: VolumePatch) -> Result<VolumeInfo> {
        self.change(name, |settings| {
            *settings = patch.apply(settings);
            Ok(())
        })
    }

    fn delete(&self, name: &VolumeName) -> Result<()> {
        if name.as_str() == "busy" {
            return Err(Error::new(ErrorKind::Busy, "2 clients are connected"));
        }
        let removed = self.volumes.lock().unwrap().remove(name);
        removed.map(drop).ok_or_else(|| not_found(name))
    }

    fn drain(&self) -> Result<()> {
        *self.drains.lock().unwrap() += 1;
        Ok(())
    }

    fn metrics(&self) -> MetricsSnapshot {
        MetricsSnapshot::default()
    }
}

struct Running {
    appliance: Arc<Pretended>,
    servers: Servers,
    control: PathBuf,
    metrics: SocketAddr,
    _dir: tempfile::TempDir,
}

fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control.sock");
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut servers = Servers::bind(&control, Some(any_port)).unwrap();
    let appliance = Arc::new(Pretended::default());
    let shared: Arc<dyn Appliance> = appliance.clone();
    servers.start(shared, None).unwrap();
    Running {
        appliance,
        metrics: servers.metrics_address().unwrap(),
        servers,
        control,
        _dir: dir,
    }
}

/// One answer: code, head and body.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> (u16, String, String) {
    // A server that refuses a body early may close before it is all sent.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("no HTTP answer");
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_owned(), body.to_owned())
}

impl Running {
    fn raw(&self, method: &str, path: &str, body: &[u8]) -> (u16, String, String) {
        let stream = UnixStream::connect(&self.control).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: taipan\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        exchange(stream, &[head.as_bytes(), body].concat())
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (code, _, body) = self.raw(method, path, text.as_bytes());
        (code, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    fn get_http(&self, path: &str) -> (u16, String, String) {
        let stream = TcpStream::connect(self.metrics).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: taipan\r\nConnection: close\r\n\r\n");
        exchange(stream, request.as_bytes())
    }
}

#[test]
fn a_volume_lives_from_creation_to_deletion() {
    let daemon = start();
    let name = VolumeName::parse("tenant/vol 1").unwrap();
    let path = volume_path(&name);

    let body = json!({"name": name.as_str(), "size": "10GiB", "block_size": "64KiB"});
    let (code, head, body_text) = daemon.raw("POST", "/v1/volumes", body.to_string().as_bytes());
    assert_eq!(code, 201, "{body_text}");
    assert!(
        head.contains("location: /v1/volumes/tenant%2Fvol%201"),
        "{head}"
    );
    let created: VolumeInfo = serde_json::from_str(&body_text).unwrap();
    assert_eq!(created.settings.block_size_bytes, 65536);

    let (code, shown) = daemon.call("GET", &path, &Value::Null);
    assert_eq!((code, &shown["name"]), (200, &json!("tenant/vol 1")));
    let size = json!({"size_bytes": 20_u64 << 30});
    let (code, resized) = daemon.call("POST", &resize_path(&name), &size);
    assert_eq!((code, &resized["size_bytes"]), (200, &json!(20_u64 << 30)));
    let (code, patched) = daemon.call("PATCH", &path, &json!({"ack": "durable"}));
    assert_eq!((code, &patched["ack"]), (200, &json!("durable")));
    let (code, list) = daemon.call("GET", "/v1/volumes", &Value::Null);
    assert_eq!((code, list["volumes"].as_array().unwrap().len()), (200, 1));

    assert_eq!(daemon.call("DELETE", &path, &Value::Null).0, 204);
    let (code, gone) = daemon.call("GET", &path, &Value::Null);
    assert_eq!((code, &gone["error"]["kind"]), (404, &json!("not_found")));
}

#[test]
fn every_refusal_has_its_code_its_kind_and_a_message() {
    let daemon = start();
    let one = json!({"name": "v", "size": "1GiB"});
    assert_eq!(daemon.call("POST", "/v1/volumes", &one).0, 201);
    for (method, path, body, code, kind) in [
        ("POST", "/v1/volumes", one, 409, "already_exists"),
        (
            "POST",
            "/v1/volumes",
            json!({"name": "x", "size": "1GB"}),
            400,
            "invalid",
        ),
        (
            "POST",
            "/v1/volumes",
            json!({"name": "x", "size": 1000}),
            400,
            "invalid",
        ),
        (
            "POST",
            "/v1/volumes",
            json!({"name": "a@b", "size": 512}),
            400,
            "invalid",
        ),
        (
            "POST",
            "/v1/volumes",
            json!({"name": "x", "size": 512, "y": 1}),
            400,
            "invalid",
        ),
        ("POST", "/v1/volumes", Value::Null, 400, "invalid"),
        (
            "POST",
            "/v1/volumes/v/resize",
            json!({"size": 512}),
            400,
            "invalid",
        ),
        (
            "POST",
            "/v1/volumes/none/resize",
            json!({"size": 512}),
            404,
            "not_found",
        ),
        ("PATCH", "/v1/volumes/v", json!({}), 400, "invalid"),
        (
            "PATCH",
            "/v1/volumes/v",
            json!({"ack": "never"}),
            400,
            "invalid",
        ),
        ("DELETE", "/v1/volumes/busy", Value::Null, 409, "busy"),
        ("GET", "/v1/volumes/a%40b", Value::Null, 400, "invalid"),
        ("GET", "/v1/volumes/%FF", Value::Null, 400, "invalid"),
        ("GET", "/v1/volumes/%2E%2E", Value::Null, 400, "invalid"),
        ("GET", "/v2/status", Value::Null, 404, "not_found"),
        ("PUT", "/v1/volumes", Value::Null, 405, "method_not_allowed"),
    ] {
        let (got, answer) = daemon.call(method, path, &body);
        assert_eq!(got, code, "{method} {path} {body}: {answer}");
        assert_eq!(answer["error"]["kind"], kind, "{method} {path} {body}");
        assert!(
            answer["error"]["message"]
                .as_str()
                .is_some_and(|m| !m.is_empty())
        );
    }
}

#[test]
fn bodies_are_bounded() {
    let daemon = start();
    let (code, _, body) = daemon.raw("POST", "/v1/volumes", &vec![b' '; 65 << 10]);
    assert_eq!(code, 413, "{body}");
    assert!(body.contains("too_large"), "{body}");
}

#[test]
fn status_and_drain_reach_the_daemon() {
    let daemon = start();
    let (code, status) = daemon.call("GET", "/v1/status", &Value::Null);
    assert_eq!((code, &status["version"]), (200, &json!("9")));
    assert_eq!(daemon.call("POST", "/v1/drain", &Value::Null).0, 204);
    assert_eq!(*daemon.appliance.drains.lock().unwrap(), 1);
}

#[test]
fn health_follows_the_state_of_the_daemon() {
    let daemon = start();
    for (state, code, word) in [
        (RunState::Starting, 503, "starting"),
        (RunState::Serving, 200, "serving"),
        (RunState::Draining, 200, "draining"),
        (RunState::Stopping, 503, "stopping"),
    ] {
        *daemon.appliance.state.lock().unwrap() = state;
        let (got, _, body) = daemon.get_http("/healthz");
        assert_eq!(got, code);
        assert_eq!(body, format!("{word}\nshard 03 failed\n"));
    }
}

#[test]
fn metrics_are_served_as_openmetrics() {
    let daemon = start();
    let (code, head, body) = daemon.get_http("/metrics");
    assert_eq!(code, 200);
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(body.contains("taipan_uptime_seconds") && body.ends_with("# EOF\n"));
}

#[test]
fn the_control_socket_is_private_and_goes_with_the_daemon() {
    let mut daemon = start();
    let mode = daemon.control.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // An idle connection does not hold up the end.
    let _idle = UnixStream::connect(&daemon.control).unwrap();
    daemon.servers.stop();
    assert!(!daemon.control.exists());
    assert!(TcpStream::connect(daemon.metrics).is_err());
}

#[test]
fn a_clash_of_addresses_is_seen_before_anything_starts() {
    let daemon = start();
    let dir = tempfile::tempdir().unwrap();
    let error = Servers::bind(&dir.path().join("c"), Some(daemon.metrics)).unwrap_err();
    assert!(error.to_string().contains("metrics"), "{error}");
    let error = Servers::bind(&daemon.control, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}
