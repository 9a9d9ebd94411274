//! The servers over real sockets, with a pretended daemon behind them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use taipan_engine::api::{ErrorBody, RunState, VolumeInfo, resize_path, volume_path};
use taipan_engine::error::ErrorKind;
use taipan_engine::volume::VolumeName;

use super::{Appliance, Pretended, Servers};
use crate::inherited::Inherited;

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
    let mut servers = Servers::bind(&control, Some(any_port), &mut Inherited::default()).unwrap();
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
    for (request, code, kind) in [
        (
            r#"POST /v1/volumes {"name":"v","size":"1GiB"}"#,
            409,
            "already_exists",
        ),
        (
            r#"POST /v1/volumes {"name":"x","size":"1GB"}"#,
            400,
            "invalid",
        ),
        (
            r#"POST /v1/volumes {"name":"x","size":1000}"#,
            400,
            "invalid",
        ),
        (
            r#"POST /v1/volumes {"name":"a@b","size":512}"#,
            400,
            "invalid",
        ),
        (
            r#"POST /v1/volumes {"name":"x","size":512,"y":1}"#,
            400,
            "invalid",
        ),
        ("POST /v1/volumes ", 400, "invalid"),
        (r#"POST /v1/volumes/v/resize {"size":512}"#, 400, "invalid"),
        (
            r#"POST /v1/volumes/none/resize {"size":512}"#,
            404,
            "not_found",
        ),
        ("PATCH /v1/volumes/v {}", 400, "invalid"),
        (r#"PATCH /v1/volumes/v {"ack":"never"}"#, 400, "invalid"),
        ("DELETE /v1/volumes/busy ", 409, "busy"),
        ("DELETE /v1/connections/0-1-2 ", 404, "not_found"),
        ("DELETE /v1/connections/0-1 ", 400, "invalid"),
        ("GET /v1/volumes/a%40b ", 400, "invalid"),
        ("GET /v1/volumes/%FF ", 400, "invalid"),
        ("GET /v1/volumes/%2E%2E ", 400, "invalid"),
        ("GET /v2/status ", 404, "not_found"),
        ("PUT /v1/volumes ", 405, "method_not_allowed"),
    ] {
        let mut parts = request.splitn(3, ' ');
        let mut part = || parts.next().unwrap();
        let (got, _, body) = daemon.raw(part(), part(), part().as_bytes());
        assert_eq!(got, code, "{request}: {body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["error"]["kind"], kind, "{request}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(!message.is_empty(), "{request}");
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
    let nobody = json!({"connections": []});
    let listed = daemon.call("GET", "/v1/connections", &Value::Null);
    assert_eq!(listed, (200, nobody));
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
    let (dir, mut none) = (tempfile::tempdir().unwrap(), Inherited::default());
    let error = Servers::bind(&dir.path().join("c"), Some(daemon.metrics), &mut none).unwrap_err();
    assert!(error.to_string().contains("metrics"), "{error}");
    let error = Servers::bind(&daemon.control, None, &mut none).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}

/// A JSON body that is nearly one of ours: its fields with values of all types, some characters
/// replaced; or noise.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    const FIELDS: [&str; 10] = [
        "name",
        "size",
        "size_bytes",
        "block_size",
        "block_size_bytes",
        "chunk_size",
        "chunk_size_bytes",
        "ack",
        "on_lost_cache",
        "other",
    ];
    const VALUES: [&str; 20] = [
        "null",
        "true",
        "0",
        "512",
        "-1",
        "1.5",
        "1e400",
        "65536",
        "4194304",
        "18446744073709551615",
        "18446744073709551616",
        r#""""#,
        r#""v""#,
        r#""a/../b""#,
        r#""\u0000\ud800""#,
        r#""1GiB""#,
        r#""16383PiB""#,
        r#""durable""#,
        "[]",
        r#"{"a":[{}]}"#,
    ];
    let field = (
        prop::sample::select(&FIELDS[..]),
        prop::sample::select(&VALUES[..]),
    )
        .prop_map(|(name, value)| format!("\"{name}\":{value}"))
        .boxed();
    let made = (
        prop::collection::vec(field, 0..5),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    )
        .prop_map(|(fields, changes)| {
            let mut body = format!("{{{}}}", fields.join(",")).into_bytes();
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
            body
        });
    let deep = (1..4000usize).prop_map(|depth| "[".repeat(depth).into_bytes());
    prop_oneof![6 => made, 1 => prop::collection::vec(any::<u8>(), 0..200), 1 => deep]
}

#[test]
fn no_body_and_no_path_gets_anything_but_an_orderly_answer() {
    let daemon = start();
    let one = json!({"name": "v", "size": "1GiB"});
    assert_eq!(daemon.call("POST", "/v1/volumes", &one).0, 201);
    let requests = prop::sample::select(vec![
        "POST /v1/volumes",
        "PATCH /v1/volumes/v",
        "POST /v1/volumes/v/resize",
        "POST /v1/volumes/v/sweep",
        "DELETE /v1/volumes/",
        "GET /v1/volumes/",
    ]);
    let config = ProptestConfig::with_cases(400);
    proptest!(config, |(request in requests, body in bodies(), tail in "[!-~]{0,12}")| {
        let (method, path) = request.split_once(' ').expect("two words");
        let path = if path.ends_with('/') { format!("{path}{tail}") } else { path.to_owned() };
        let (code, _, answer) = daemon.raw(method, &path, &body);
        prop_assert!(code < 500, "{} {}: {} {}", method, path, code, answer);
        if code >= 400 && !answer.is_empty() {
            let error: Result<ErrorBody, _> = serde_json::from_str(&answer);
            prop_assert!(error.is_ok(), "{}", answer);
        }
    });
    assert_eq!(daemon.call("GET", "/v1/status", &Value::Null).0, 200);
}

#[test]
fn snapshots_are_taken_listed_shown_and_deleted() {
    let daemon = start();
    let path = "/v1/volumes/t%2Fv/snapshots";
    let (code, _) = daemon.call("POST", path, &json!({ "name": "a" }));
    assert_eq!(code, 404, "there is no such volume");
    let volume = json!({ "name": "t/v", "size": 4096 });
    assert_eq!(daemon.call("POST", "/v1/volumes", &volume).0, 201);
    let wish = json!({ "name": "one two", "wait": "taken" });
    let (code, taken) = daemon.call("POST", path, &wish);
    assert_eq!((code, &taken["state"]), (201, &json!("taken")), "{taken}");
    assert_eq!(daemon.call("POST", path, &wish).0, 409);
    for (bad, why) in [("a@b", "'@'"), ("a/b", "'/'"), ("", "empty")] {
        let (code, error) = daemon.call("POST", path, &json!({ "name": bad }));
        let text = error["error"]["message"].as_str().unwrap();
        assert!(code == 400 && text.contains(why), "{bad}: {error}");
    }
    let (code, list) = daemon.call("GET", path, &Value::Null);
    assert_eq!((code, &list["snapshots"][0]), (200, &taken));
    let one = format!("{path}/one%20two");
    assert_eq!(daemon.call("GET", &one, &Value::Null), (200, taken));
    assert_eq!(
        daemon.call("GET", &format!("{path}/x"), &Value::Null).0,
        404
    );
    let (clones, clone) = (format!("{one}/clones"), json!({ "name": "c" }));
    let (code, cloned) = daemon.call("POST", &clones, &clone);
    assert_eq!((code, &cloned["name"]), (201, &json!("c")), "{cloned}");
    assert_eq!(daemon.call("POST", &clones, &clone).0, 409);
    assert_eq!(daemon.call("POST", &clones, &json!({})).0, 400);
    let back = "/v1/volumes/t%2Fv/rollback";
    let to = |name: &str| json!({ "snapshot": name });
    assert_eq!(daemon.call("POST", back, &to("one two")).0, 200);
    assert_eq!(daemon.call("POST", back, &to("none")).0, 404);
    assert_eq!(daemon.call("POST", back, &json!({})).0, 400);
    for (point, code) in [
        ("@12", 200),
        ("@1970-01-01T00:00:01Z", 200),
        ("@13", 404),
        ("@1970-01-01T00:00:00Z", 404),
        ("@noon", 400),
    ] {
        assert_eq!(daemon.call("POST", back, &to(point)).0, code, "{point}");
    }
    let (code, history) = daemon.call("GET", "/v1/volumes/t%2Fv/history", &Value::Null);
    let point = json!({ "manifest": 12, "epoch": 7, "committed_at_ms": 1000, "age_ms": 0,
        "added_bytes": 4096 });
    assert_eq!((code, &history["points"]), (200, &json!([point])));
    assert_eq!(daemon.call("DELETE", &one, &Value::Null).0, 204);
    assert_eq!(daemon.call("DELETE", &one, &Value::Null).0, 404);
}

#[test]
fn snapshots_of_several_volumes_are_taken_together() {
    let daemon = start();
    for name in ["a", "b"] {
        let volume = json!({ "name": name, "size": 4096 });
        assert_eq!(daemon.call("POST", "/v1/volumes", &volume).0, 201);
    }
    let path = "/v1/snapshot-groups";
    let wish = json!({ "volumes": ["a", "b"], "name": "s", "wait": "taken" });
    let (code, taken) = daemon.call("POST", path, &wish);
    let volumes: Vec<_> = (0..2)
        .map(|n| taken["snapshots"][n]["volume"].clone())
        .collect();
    assert_eq!(
        (code, volumes),
        (201, vec![json!("a"), json!("b")]),
        "{taken}"
    );
    let none = json!({ "volumes": ["a", "none"], "name": "t" });
    assert_eq!(daemon.call("POST", path, &none).0, 404);
    assert_eq!(daemon.call("POST", path, &json!({ "name": "t" })).0, 400);
}

#[test]
fn what_changed_is_told_between_snapshots_and_up_to_the_last_cut() {
    let daemon = start();
    let path = "/v1/volumes/t%2Fv/changes";
    let get = |rest: &str| daemon.call("GET", &format!("{path}/{rest}"), &Value::Null);
    assert_eq!(get("a").0, 404, "there is no such volume");
    let volume = json!({ "name": "t/v", "size": 4096 });
    assert_eq!(daemon.call("POST", "/v1/volumes", &volume).0, 201);
    let (code, changes) = get("a");
    assert_eq!((code, &changes["to"]["snapshot"]), (200, &Value::Null));
    let (code, changes) = get("a/b%20c");
    assert_eq!(code, 200, "{changes}");
    assert_eq!(
        (&changes["from"]["snapshot"], &changes["to"]["snapshot"]),
        (&json!("a"), &json!("b c"))
    );
    let range = json!({ "offset": 8192, "length": 4096, "now": "data" });
    assert_eq!(changes["ranges"], json!([range]));
    for bad in ["a%40b", "a/b%40c", "a%2Fb"] {
        assert_eq!(get(bad).0, 400, "{bad}");
    }
}
