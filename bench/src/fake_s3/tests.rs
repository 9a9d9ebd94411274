//! The server as a client on a raw socket sees it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::*;

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    /// Whether the body was as long as the head said.
    whole: bool,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("text")
    }

    fn etag(&self) -> &str {
        &self.headers["etag"]
    }
}

/// One request on a connection of its own; none if the connection ended before the head.
fn send(to: SocketAddr, head: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(to).expect("a connection");
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).expect("a timeout");
    let mut text = format!("{head} HTTP/1.1\r\nHost: {to}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    // The server may cut the connection in the middle: then there is no answer.
    let _ = stream.write_all(&[text.as_bytes(), body].concat());
    receive_answer(stream, head.starts_with("HEAD"))
}

fn receive_answer(stream: TcpStream, headless: bool) -> Option<Answer> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return None;
    }
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_owned(), value.to_owned());
    }
    let told = headers
        .get("content-length")
        .map_or(0, |told| told.parse().expect("a length"));
    let told = if headless { 0 } else { told };
    let mut body = Vec::new();
    let ended = reader.take(told).read_to_end(&mut body);
    Some(Answer {
        status: status.expect("a status"),
        headers,
        whole: ended.is_ok() && body.len() as u64 == told,
        body,
    })
}

fn start() -> FakeS3 {
    FakeS3::start(Config {
        part_bytes_min: 4,
        ..Config::default()
    })
    .expect("a server")
}

fn ask(server: &FakeS3, head: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    send(server.address(), head, headers, body).expect("an answer")
}

const CREATE: (&str, &str) = ("If-None-Match", "*");

#[test]
fn objects_come_and_go() {
    let server = start();
    let put = ask(
        &server,
        "PUT /taipan/a/b%20c",
        &[("x-amz-meta-token", "t")],
        b"0123456789",
    );
    assert_eq!(put.status, 200);
    let got = ask(&server, "GET /taipan/a/b%20c", &[], b"");
    assert_eq!((got.status, got.body.as_slice()), (200, &b"0123456789"[..]));
    assert_eq!(
        (got.etag(), got.headers["x-amz-meta-token"].as_str()),
        (put.etag(), "t")
    );
    let head = ask(&server, "HEAD /taipan/a/b%20c", &[], b"");
    assert_eq!(
        (head.status, head.headers["content-length"].as_str()),
        (200, "10")
    );
    let range = ask(
        &server,
        "GET /taipan/a/b%20c",
        &[("Range", "bytes=2-4")],
        b"",
    );
    assert_eq!((range.status, range.text().as_str()), (206, "234"));
    assert_eq!(range.headers["content-range"], "bytes 2-4/10");
    let beyond = ask(
        &server,
        "GET /taipan/a/b%20c",
        &[("Range", "bytes=10-")],
        b"",
    );
    assert_eq!(beyond.status, 416);
    assert_eq!(ask(&server, "DELETE /taipan/a/b%20c", &[], b"").status, 204);
    let gone = ask(&server, "GET /taipan/a/b%20c", &[], b"");
    assert_eq!(gone.status, 404);
    assert!(
        gone.text().contains("<Code>NoSuchKey</Code>"),
        "{}",
        gone.text()
    );
    assert_eq!(ask(&server, "HEAD /taipan/a/b%20c", &[], b"").status, 404);
    assert_eq!(ask(&server, "HEAD /taipan", &[], b"").status, 200);
    assert_eq!(ask(&server, "HEAD /other", &[], b"").status, 404);
    let stats = server.stats();
    assert_eq!(stats.requests_of(Verb::Get), 4);
    assert_eq!((stats.bytes_in[&Verb::Put], stats.statuses[&206]), (10, 1));
    assert_eq!(server.log()[3].range.as_deref(), Some("bytes=2-4"));
}

#[test]
fn conditional_writes_and_checksums() {
    let server = start();
    let put = |headers: &[(&str, &str)], body: &[u8]| ask(&server, "PUT /taipan/k", headers, body);
    let absent = put(&[("If-Match", "\"e\"")], b"x");
    assert_eq!(absent.status, 404);
    let created = put(&[CREATE], b"one");
    assert_eq!(created.status, 200);
    let again = put(&[CREATE], b"two");
    assert_eq!(again.status, 412);
    assert!(again.text().contains("<Code>PreconditionFailed</Code>"));
    assert_eq!(put(&[("If-Match", "\"e\"")], b"two").status, 412);
    assert_eq!(put(&[("If-Match", created.etag())], b"two").status, 200);
    assert_eq!(server.object("k").expect("an object"), "two");

    let wrong = put(&[("x-amz-checksum-crc32c", "AAAAAA==")], b"123456789");
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("<Code>BadDigest</Code>"));
    assert_eq!(
        put(&[("x-amz-checksum-crc32c", "4waSgw==")], b"123456789").status,
        200
    );
    let got = ask(
        &server,
        "GET /taipan/k",
        &[("x-amz-checksum-mode", "ENABLED")],
        b"",
    );
    assert_eq!(got.headers["x-amz-checksum-crc32c"], "4waSgw==");
}

#[test]
fn of_many_creators_one_wins() {
    let server = start();
    let (address, gate) = (server.address(), Barrier::new(8));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|racer: u8| {
                let gate = &gate;
                scope.spawn(move || {
                    gate.wait();
                    let body = vec![racer; 100_000];
                    let answer = send(address, "PUT /taipan/m", &[CREATE], &body);
                    answer.expect("an answer").status
                })
            })
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().expect("a racer"))
            .collect()
    });
    assert_eq!(
        statuses.iter().filter(|&&status| status == 200).count(),
        1,
        "{statuses:?}"
    );
    assert_eq!(
        statuses.iter().filter(|&&status| status == 412).count(),
        7,
        "{statuses:?}"
    );
}

#[test]
fn lesser_servers_ignore_conditions() {
    let start = |conditional_writes| {
        let config = Config {
            conditional_writes,
            batch_delete: false,
            checksums_verified: false,
            ..Config::default()
        };
        FakeS3::start(config).expect("a server")
    };
    let statuses = |server: &FakeS3| {
        let put = |header| ask(server, "PUT /taipan/k", &[header], b"x").status;
        [put(CREATE), put(CREATE), put(("If-Match", "e"))]
    };
    assert_eq!(statuses(&start(ConditionalWrites::Full)), [200, 412, 412]);
    assert_eq!(
        statuses(&start(ConditionalWrites::CreateOnly)),
        [200, 412, 200]
    );
    let server = start(ConditionalWrites::None);
    assert_eq!(statuses(&server), [200, 200, 200]);
    assert_eq!(ask(&server, "POST /taipan?delete", &[], b"").status, 501);
    let wrong = ("x-amz-checksum-crc32c", "AAAAAA==");
    assert_eq!(ask(&server, "PUT /taipan/k", &[wrong], b"x").status, 200);
}

#[test]
fn listings_page_and_batches_delete() {
    let server = start();
    for key in ["a", "b/1", "b/2", "b/<3>", "c"] {
        server.put_object(key, key.to_owned());
    }
    let page = ask(
        &server,
        "GET /taipan/?list-type=2&prefix=b%2F&max-keys=2",
        &[],
        b"",
    )
    .text();
    assert_eq!(xml::elements(&page, "Key"), ["b/1", "b/2"]);
    assert!(page.contains("<IsTruncated>true</IsTruncated>"));
    let token = xml::text_of(&page, "NextContinuationToken").expect("a token");
    let next = format!("GET /taipan/?list-type=2&prefix=b%2F&continuation-token={token}");
    let page = ask(&server, &next, &[], b"").text();
    assert_eq!(xml::text_of(&page, "Key").as_deref(), Some("b/<3>"));
    assert!(page.contains("<IsTruncated>false</IsTruncated>"));
    let after = "GET /taipan?list-type=2&start-after=b%2F2";
    let page = ask(&server, after, &[], b"").text();
    assert_eq!(xml::elements(&page, "Key"), ["b/&lt;3&gt;", "c"]);

    let batch = b"<Delete><Object><Key>b/&lt;3&gt;</Key></Object>\
                  <Object><Key>none</Key></Object><Object><Key>a</Key></Object></Delete>";
    let deleted = ask(&server, "POST /taipan?delete", &[], batch);
    assert_eq!(xml::elements(&deleted.text(), "Deleted").len(), 3);
    let left: Vec<String> = server.objects("").into_iter().map(|one| one.key).collect();
    assert_eq!(left, ["b/1", "b/2", "c"]);
    assert_eq!(
        ask(&server, "POST /taipan?delete", &[], b"<Delete>").status,
        400
    );
}

#[test]
fn multipart_uploads() {
    let server = start();
    let begun = ask(
        &server,
        "POST /taipan/big?uploads",
        &[("x-amz-meta-t", "1")],
        b"",
    )
    .text();
    let id = xml::text_of(&begun, "UploadId").expect("an id");
    let part = |number: u32, body: &[u8]| {
        let head = format!("PUT /taipan/big?partNumber={number}&uploadId={id}");
        ask(&server, &head, &[], body).etag().to_owned()
    };
    let (second, first) = (part(2, b"ef"), part(1, b"abcd"));
    let complete = |parts: &[(u32, &str)], headers: &[(&str, &str)]| {
        let part = |(number, etag): &(u32, &str)| {
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
        };
        let inner: String = parts.iter().map(part).collect();
        let body = format!("<CompleteMultipartUpload>{inner}</CompleteMultipartUpload>");
        let head = format!("POST /taipan/big?uploadId={id}");
        ask(&server, &head, headers, body.as_bytes()).status
    };
    assert_eq!(
        complete(&[(2, &second), (1, &first)], &[]),
        400,
        "out of order"
    );
    assert_eq!(complete(&[(1, "\"no\"")], &[]), 400, "not that part");
    server.put_object("big", "rival");
    let both = [(1, first.as_str()), (2, second.as_str())];
    assert_eq!(complete(&both, &[CREATE]), 412);
    server.remove_object("big");
    assert_eq!(server.open_uploads().len(), 1);
    assert_eq!(complete(&both, &[CREATE]), 200);
    assert_eq!(server.object("big").expect("an object"), "abcdef");
    assert_eq!(complete(&both, &[]), 404, "completed already");
    let begun = ask(&server, "POST /taipan/other?uploads", &[], b"").text();
    let id = xml::text_of(&begun, "UploadId").expect("an id");
    let abort = format!("DELETE /taipan/other?uploadId={id}");
    assert_eq!(ask(&server, &abort, &[], b"").status, 204);
    assert!(server.open_uploads().is_empty());
}

/// Status of a PUT of `x` to `key`, 0 for a connection without an answer.
fn put_status(server: &FakeS3, key: &str, headers: &[(&str, &str)]) -> u16 {
    let answer = send(
        server.address(),
        &format!("PUT /taipan/{key}"),
        headers,
        b"x",
    );
    answer.map_or(0, |answer| answer.status)
}

#[test]
fn errors_and_cuts_have_the_effect_they_say() {
    let cases = [
        (Action::SlowDown, 503, false),
        (Action::TooManyRequests, 429, false),
        (Action::ErrorBefore, 500, false),
        (Action::AccessDenied, 403, false),
        (Action::ErrorAfter, 500, true),
        (Action::CutBefore, 0, false),
        (Action::CutAfter, 0, true),
        (Action::Conflict, 409, false),
        (Action::FalsePreconditionFailed, 412, false),
        (Action::Delay { ms: 1 }, 200, true),
        (Action::Hang { ms: 1 }, 200, true),
    ];
    for (action, status, stored) in cases {
        let server = start();
        server
            .faults()
            .add(Rule::on(&[Verb::Put], action.clone()).times(1));
        assert_eq!(put_status(&server, "k", &[CREATE]), status, "{action:?}");
        assert_eq!(server.object("k").is_some(), stored, "{action:?}");
        let then = if stored { 412 } else { 200 };
        assert_eq!(
            put_status(&server, "k", &[CREATE]),
            then,
            "after {action:?}"
        );
        assert_eq!(
            server.stats().unanswered,
            u64::from(status == 0),
            "{action:?}"
        );
    }
}

#[test]
fn a_rival_gets_in_first() {
    let server = start();
    let body = "theirs".to_owned();
    server
        .faults()
        .add(Rule::on(&[Verb::Put], Action::Rival { body }));
    assert_eq!(put_status(&server, "k", &[CREATE]), 412);
    assert_eq!(server.object("k").expect("an object"), "theirs");
}

#[test]
fn bodies_are_truncated_or_altered() {
    let server = start();
    let original: Vec<u8> = (0..200_000u32).map(|number| number as u8).collect();
    server.put_object("k", original.clone());
    let once = |action| server.faults().add(Rule::on(&[], action).times(1));
    once(Action::Truncate { bytes: Some(1000) });
    let cut = ask(&server, "GET /taipan/k", &[], b"");
    assert_eq!((cut.status, cut.whole), (200, false));
    assert_eq!(cut.body, original[..1000]);
    once(Action::Flip {
        bit: Some(8 * 7 + 2),
    });
    let flipped = ask(&server, "GET /taipan/k", &[], b"");
    assert!(flipped.whole);
    let different = |(place, byte): (usize, &u8)| (*byte != original[place]).then_some(place);
    let places: Vec<usize> = flipped
        .body
        .iter()
        .enumerate()
        .filter_map(different)
        .collect();
    assert_eq!((places, flipped.body[7]), (vec![7], 7 ^ 4));
    assert_eq!(
        ask(&server, "GET /taipan/k", &[], b"").body,
        original,
        "at rest it is whole"
    );
}

#[test]
fn a_write_that_hangs_takes_effect_when_its_client_is_gone() {
    let server = start();
    server
        .faults()
        .add(Rule::on(&[Verb::Put], Action::Hang { ms: 300 }));
    let begun = Instant::now();
    let mut stream = TcpStream::connect(server.address()).expect("a connection");
    let head = b"PUT /taipan/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx";
    stream.write_all(head).expect("a request");
    while server.stats().bytes_in.is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(stream);
    let patience = begun + Duration::from_secs(60);
    while server.object("k").is_none() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(server.object("k").is_some());
    let hung = begun.elapsed();
    assert!(hung >= Duration::from_millis(300), "only {hung:?}");
}

#[test]
fn a_listing_may_be_stale() {
    let server = start();
    for key in ["a", "b", "c"] {
        server.put_object(key, key);
    }
    let stale = Action::StaleList {
        changes: Some(2),
        ms: None,
    };
    server.faults().add(Rule::on(&[], stale).times(1));
    let list = || ask(&server, "GET /taipan?list-type=2", &[], b"").text();
    assert_eq!(xml::elements(&list(), "Key"), ["a"]);
    assert_eq!(xml::elements(&list(), "Key"), ["a", "b", "c"]);
}

#[test]
fn a_server_that_refuses_comes_back_on_its_port() {
    let server = start();
    server.put_object("k", "x");
    server.faults().down(Some(Down::Refuse));
    let refused = || match TcpStream::connect(server.address()) {
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        Ok(_) => false,
    };
    let patience = Instant::now() + Duration::from_secs(60);
    while !refused() {
        assert!(Instant::now() < patience, "it never refused");
    }
    let answer = send(server.admin_address(), "DELETE /-/faults", &[], b"");
    assert_eq!(answer.expect("the admin endpoint answers").status, 200);
    while refused() {
        assert!(Instant::now() < patience, "it never came back");
    }
    assert_eq!(ask(&server, "GET /taipan/k", &[], b"").body, b"x");
}

#[test]
fn a_silent_server_takes_connections_and_answers_nothing() {
    let server = start();
    server.faults().down(Some(Down::Silent));
    let address = server.address();
    let asking = std::thread::spawn(move || send(address, "PUT /taipan/k", &[], b"x").is_none());
    while server.stats().requests_total() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ask(&server, "GET /-/stats", &[], b"").status, 200);
    assert!(!asking.is_finished());
    server.faults().down(None);
    assert!(
        asking.join().expect("the client"),
        "cut when it lives again"
    );
    assert!(server.object("k").is_none());
    assert_eq!(put_status(&server, "k", &[]), 200);
}

#[test]
fn the_admin_endpoint_changes_and_shows() {
    let server = start();
    let admin = |head: &str, body: &str| {
        let answer = send(server.admin_address(), head, &[], body.as_bytes()).expect("an answer");
        (answer.status, answer.text())
    };
    let script = r#"{"rules": [{"verbs": ["put"], "count": 1, "action": {"kind": "slow_down"}}]}"#;
    assert_eq!(admin("PUT /-/faults", script).0, 200);
    let rule = r#"{"prefix": "n", "action": {"kind": "error_after"}}"#;
    assert_eq!(admin("POST /-/faults", rule).0, 200);
    assert_eq!(put_status(&server, "k", &[]), 503);
    assert_eq!(put_status(&server, "k", &[]), 200);
    assert_eq!(put_status(&server, "n", &[]), 500);
    let shown: serde_json::Value =
        serde_json::from_str(&admin("GET /-/faults", "").1).expect("JSON");
    let fired = |rule: usize| shown["counts"][rule]["fired"].as_u64();
    assert_eq!((fired(0), fired(1)), (Some(1), Some(1)));
    assert_eq!(shown["rules"][1]["prefix"], "n");
    let (status, error) = admin(
        "PUT /-/faults",
        r#"{"rules": [{"action": {"kind": "no"}}]}"#,
    );
    assert!(status == 400 && error.contains("slow_down"), "{error}");
    let stats: Stats = serde_json::from_str(&admin("GET /-/stats", "").1).expect("statistics");
    assert_eq!(stats, server.stats());
    let log: Vec<Seen> = serde_json::from_str(&admin("GET /-/log", "").1).expect("a log");
    assert_eq!((log.len(), log[0].status), (3, Some(503)));
    let objects: serde_json::Value =
        serde_json::from_str(&admin("GET /-/objects?prefix=n", "").1).expect("JSON");
    assert_eq!(objects["objects"][0]["bytes"], 1);
    assert_eq!(admin("DELETE /-/stats", "").0, 200);
    assert_eq!(server.stats(), Stats::default());
    assert_eq!(admin("DELETE /-/faults", "").0, 200);
    assert!(server.faults().script().rules.is_empty());
    assert_eq!(admin("GET /-/nothing", "").0, 404);
}
