//! The commands that speak to the control API: what they ask, what they show, how they end.

use std::os::unix::net::UnixListener;
use std::process::Stdio;

use crate::rig::{Scratch, ran};

/// A volume as the API describes it, with `rest` in place of the fields that vary.
fn volume(name: &str, rest: &str) -> String {
    format!(
        r#"{{"name":"{name}","id":"00000000000000ab","size_bytes":10737418240,
        "block_size_bytes":4096,"chunk_size_bytes":4194304,"ack":"memory",
        "on_lost_cache":"continue","state":"online","lineage":"intact","connections":2,
        "mapped_blocks":262144,"dirty_bytes":1048576,"committed_epoch":7,"manifest":9,
        "generation":1,"chunks":12,"index_bytes":4096,"novelty":true{rest}}}"#
    )
}

#[test]
fn create_sends_the_settings_and_says_what_was_made() {
    let scratch = Scratch::new();
    let control = scratch.control(&[(201, &volume("tenant/a", ""))]);
    let ran = scratch.run(&[
        "volume",
        "create",
        "tenant/a",
        "--size",
        "10GiB",
        "--block-size",
        "8KiB",
        "--ack",
        "durable",
        "--on-lost-cache",
        "read-only",
    ]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(
        ran.out,
        "volume \"tenant/a\" of 10GiB is created (id 00000000000000ab)\n"
    );
    let asked = control.asked();
    assert_eq!(asked.line, "POST /v1/volumes");
    let body: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
    let expected = serde_json::json!({"name": "tenant/a", "size_bytes": 10u64 << 30,
        "block_size_bytes": 8192, "ack": "durable", "on_lost_cache": "read_only"});
    assert_eq!(body, expected);
}

#[test]
fn list_is_aligned_and_its_json_reads_back() {
    let scratch = Scratch::new();
    let second = volume("b", r#","last_commit_age_seconds":1.5"#);
    let list = format!(r#"{{"volumes":[{},{second}]}}"#, volume("tenant/a", ""));
    let _control = scratch.control(&[(200, &list), (200, &list), (200, r#"{"volumes":[]}"#)]);
    let human = scratch.run(&["volume", "list"]);
    assert_eq!(
        human.out,
        "NAME        SIZE   DATA  IN WAL ONLY  CLIENTS  ACK     STATE\n\
         tenant/a  10 GiB  1 GiB        1 MiB        2  memory  online\n\
         b         10 GiB  1 GiB        1 MiB        2  memory  online\n"
    );
    let json = scratch.run(&["--json", "volume", "list"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["volumes"][1]["name"], "b");
    assert_eq!(json["volumes"][1]["mapped_blocks"], 262_144);
    let empty = scratch.run(&["volume", "list"]);
    assert!(empty.out.contains("no volumes"), "{}", empty.out);
}

#[test]
fn show_resize_set_and_delete_name_the_volume_in_the_path() {
    let scratch = Scratch::new();
    let broken = volume("t/v 1", r#","cause":"because","lineage":"broken""#);
    let broken = broken.replacen(r#""lineage":"intact","#, "", 1);
    let answer = volume("t/v 1", "");
    let control = scratch.control(&[(200, &broken), (200, &answer), (200, &answer), (204, "")]);

    let shown = scratch.run(&["volume", "show", "t/v 1"]);
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(
        shown
            .out
            .contains("\nsize            10GiB (10737418240 bytes)\n")
    );
    assert!(
        shown
            .out
            .contains("\nlineage         BROKEN: a power cut may have taken "),
        "{}",
        shown.out
    );
    assert!(
        shown.out.contains("\ncause           because\n"),
        "{}",
        shown.out
    );
    assert_eq!(control.asked().line, "GET /v1/volumes/t%2Fv%201");

    let resized = scratch.run(&["volume", "resize", "t/v 1", "20GiB"]);
    assert!(
        resized.out.contains("when they reconnect"),
        "{}",
        resized.out
    );
    let asked = control.asked();
    assert_eq!(asked.line, "POST /v1/volumes/t%2Fv%201/resize");
    assert_eq!(asked.body, r#"{"size_bytes":21474836480}"#);

    let set = scratch.run(&["volume", "set", "t/v 1", "--ack", "durable"]);
    assert_eq!(set.code, 0, "{}", set.err);
    let asked = control.asked();
    assert_eq!(asked.line, "PATCH /v1/volumes/t%2Fv%201");
    assert_eq!(asked.body, r#"{"ack":"durable"}"#);

    let deleted = scratch.run(&["volume", "delete", "t/v 1", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&deleted.out).unwrap();
    assert_eq!(json["deleted"], "t/v 1");
    assert_eq!(control.asked().line, "DELETE /v1/volumes/t%2Fv%201");
}

#[test]
fn speed_limits_are_asked_for_and_shown_with_who_waited() {
    let scratch = Scratch::new();
    let limits = r#","iops":500,"bandwidth_bytes":104857600,
        "delays":{"requests":7,"seconds":2.5}"#;
    let answer = volume("v", limits);
    let control = scratch.control(&[(200, &answer)]);
    let flags = [
        "--iops",
        "500",
        "--bandwidth",
        "100MiB",
        "--burst-seconds",
        "0",
    ];
    let set = scratch.run(&[&["volume", "set", "v"], &flags[..]].concat());
    assert_eq!(set.code, 0, "{}", set.err);
    let body: serde_json::Value = serde_json::from_str(&control.asked().body).unwrap();
    let expected = serde_json::json!({"iops": 500, "bandwidth_bytes": 100 << 20,
        "burst_seconds": 0});
    assert_eq!(body, expected);
    let shown = "\nspeed limits    500 requests/s, 100MiB/s, bursts of 1 s; 7 requests waited";
    assert!(set.out.contains(shown), "{}", set.out);
}

#[test]
fn a_sweep_says_what_it_found_and_what_became_of_it() {
    let scratch = Scratch::new();
    let answer = r#"{"volume":"v","dry_run":true,"objects":9,"bytes":9437184,"orphans":3,
        "orphan_bytes":2097152,"names":["v1/x/chunks/a","v1/x/chunks/b"],"strange":1}"#;
    let control = scratch.control(&[(200, answer), (200, &answer.replace("true", "false"))]);
    let dry = scratch.run(&["volume", "sweep", "v", "--dry-run"]);
    assert_eq!(
        dry.out,
        "3 of 9 objects that nothing names would be deleted: 2 MiB of 9 MiB\n  v1/x/chunks/a\n  \
         v1/x/chunks/b\n  and 1 more\n1 objects have strange names, left alone\n"
    );
    let asked = control.asked();
    assert_eq!(asked.line, "POST /v1/volumes/v/sweep");
    assert_eq!(asked.body, r#"{"dry_run":true}"#);
    let swept = scratch.run(&["volume", "sweep", "v"]);
    assert!(
        swept.out.contains(" deleted: 2 MiB of 9 MiB\n"),
        "{}",
        swept.out
    );
    assert_eq!(control.asked().body, r#"{"dry_run":false}"#);
}

#[test]
fn durability_limits_of_loss_and_commits_are_asked_for() {
    let scratch = Scratch::new();
    let upload = r#","durability":"remote","rpo_seconds":60,"requests_per_hour":90,
        "upload":{"risk_bytes":2097152,"risk_seconds":3.0,"phase":"chunks","failures":2,
        "last_failure":"no answer","requests_last_hour":40,"held_seconds":12.5}"#;
    let answer = volume("v", upload);
    let control = scratch.control(&[(200, &answer), (200, &answer)]);
    let set = scratch.run(&[
        "volume",
        "set",
        "v",
        "--durability",
        "remote",
        "--rpo-seconds",
        "60",
        "--rpo-bytes",
        "256MiB",
        "--commit-interval-seconds",
        "0",
        "--requests-per-hour",
        "90",
    ]);
    assert_eq!(set.code, 0, "{}", set.err);
    let body: serde_json::Value = serde_json::from_str(&control.asked().body).unwrap();
    let expected = serde_json::json!({"durability": "remote", "rpo_seconds": 60,
        "rpo_bytes": 256 << 20, "commit_interval_seconds": 0, "requests_per_hour": 90});
    assert_eq!(body, expected);
    for shown in [
        "\ndurability      remote (",
        "\nloss limits     60 s; then writes wait\n",
        "\nrequests        40 by commits in the last hour, 90 budgeted; the next commit by the \
         interval in 12 s\n",
        "\nat risk         2 MiB, 3.0 s old\n",
        "\ncommit          chunks, failed 2 times: no answer\n",
    ] {
        assert!(set.out.contains(shown), "{shown:?}: {}", set.out);
    }

    let committed = scratch.run(&["volume", "flush", "v", "--remote"]);
    assert_eq!(committed.out, "volume \"v\" is committed (manifest 9)\n");
    assert_eq!(control.asked().line, "POST /v1/volumes/v/commit");
}

#[test]
fn refusals_of_the_daemon_become_exit_codes() {
    let scratch = Scratch::new();
    let refusals = [
        (404, "not_found", 3),
        (409, "already_exists", 4),
        (409, "busy", 4),
        (400, "invalid", 2),
        (507, "full", 1),
        (500, "corrupt", 6),
        (503, "novel_class", 1),
    ];
    let answers: Vec<(u16, String)> = refusals
        .iter()
        .map(|(status, kind, _)| {
            let body = format!(r#"{{"error":{{"kind":"{kind}","message":"the reason"}}}}"#);
            (*status, body)
        })
        .collect();
    let answers: Vec<(u16, &str)> = answers.iter().map(|a| (a.0, a.1.as_str())).collect();
    let _control = scratch.control(&answers);
    for (_, kind, code) in refusals {
        let ran = scratch.run(&["volume", "show", "v"]);
        assert_eq!(ran.code, code, "{kind}: {}", ran.err);
        assert_eq!(ran.err, "taipan: cannot show volume \"v\": the reason\n");
        assert_eq!(ran.out, "");
    }
}

#[test]
fn answers_that_make_no_sense_are_reported_not_trusted() {
    let scratch = Scratch::new();
    let answers = [(200, "{\"pid\":"), (502, "<html>no</html>"), (200, "[]")];
    let _control = scratch.control(&answers);
    for _ in answers {
        let ran = scratch.run(&["status"]);
        assert_eq!(ran.code, 1);
        assert!(
            ran.err.contains("cannot read the status over "),
            "{}",
            ran.err
        );
        assert!(ran.err.contains("control.sock"), "{}", ran.err);
    }
}

#[test]
fn a_missing_and_a_dead_daemon_are_told_apart() {
    let scratch = Scratch::new();
    let missing = scratch.run(&["volume", "list"]);
    assert_eq!(missing.code, 5);
    assert!(
        missing.err.contains("Is taipand running"),
        "{}",
        missing.err
    );

    // A socket whose listener has gone, as after kill -9.
    drop(UnixListener::bind(scratch.path("control.sock")).unwrap());
    let dead = scratch.run(&["volume", "list", "--json"]);
    assert_eq!(dead.code, 5);
    let json: serde_json::Value = serde_json::from_str(&dead.err).unwrap();
    assert_eq!(json["error"]["kind"], "unreachable");
    assert_eq!(json["error"]["exit_code"], 5);
    let message = json["error"]["message"].as_str().unwrap();
    assert!(message.contains("was killed"), "{message}");

    let long = "d".repeat(120);
    let too_long = scratch.run(&["--control", &long, "drain"]);
    assert_eq!(too_long.code, 5);
    assert!(too_long.err.contains("too long"), "{}", too_long.err);
}

#[test]
fn mistakes_on_the_command_line_need_no_daemon() {
    let scratch = Scratch::new();
    for (args, why) in [
        (&["volume", "show", "a@b"][..], "separates a snapshot"),
        (
            &["volume", "create", "a", "--size", "1000"],
            "multiple of 512",
        ),
        (
            &[
                "volume",
                "create",
                "a",
                "--size",
                "1GiB",
                "--block-size",
                "5KiB",
            ],
            "block size 5120",
        ),
        (&["volume", "set", "a"], "nothing to change"),
        (&["volume", "rename", "a"], "unrecognized subcommand"),
        (&["connection", "kick", "0-1"], "no connection"),
    ] {
        let ran = scratch.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(why), "{args:?}: {}", ran.err);
    }
}

#[test]
fn status_shows_problems_first_and_a_failed_shard() {
    let scratch = Scratch::new();
    let mut status = serde_json::json!(taipan_engine::api::Status::default());
    status["problems"] = serde_json::json!(["shard 3 refuses writes: EIO"]);
    status["version"] = "0.1.0".into();
    status["state"] = "serving".into();
    status["listeners"] = serde_json::json!(["127.0.0.1:10809", "unix:/x/nbd.sock"]);
    status["pace"]["commit_interval_seconds"] = 30.into();
    status["wal"]["total_bytes"] = (120 << 20).into();
    status["wal"]["reserve_bytes"] = (48 << 20).into();
    status["wal"]["used_bytes"] = (54 << 20).into();
    status["pace"]["flush_interval_ms"] = 100.into();
    status["shards"] = serde_json::json!([serde_json::json!(taipan_engine::api::ShardStatus {
        shard: 3,
        wal_total_bytes: 256 << 20,
        wal_used_bytes: 3 << 19,
        failure: Some("EIO".to_owned()),
        ..Default::default()
    })]);
    let status = status.to_string();
    let _control = scratch.control(&[(200, &status), (200, &status)]);
    let ran = scratch.run(&["status"]);
    assert!(
        ran.out.starts_with("PROBLEM  shard 3 refuses"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("FAILED: EIO"), "{}", ran.out);
    assert!(ran.out.contains("1.5 MiB"), "{}", ran.out);
    let room = "54 MiB of 72 MiB used (75.0 %), and 48 MiB in reserve";
    for shown in ["after 100 ms, at most", "after 30 s or", room] {
        assert!(ran.out.contains(shown), "{}", ran.out);
    }
    let json = scratch.run(&["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["shards"][0]["failure"], "EIO");
}

#[test]
fn drain_waits_and_says_so() {
    let scratch = Scratch::new();
    let control = scratch.control(&[(200, "{}")]);
    let ran = scratch.run(&["drain"]);
    assert_eq!(ran.out, "everything is packed into the backend\n");
    assert_eq!(control.asked().line, "POST /v1/drain");
}

#[test]
fn connections_are_listed_and_one_is_closed_by_its_name() {
    let scratch = Scratch::new();
    let list = r#"{"connections":[{"id":"1-7-2","client":"10.0.0.7:40812","volume":"tenant/a",
        "state":"serving","seconds":90.0,"requests":7,"errors":0,"read_bytes":4096,
        "written_bytes":8192,"in_flight":1,"unsent_bytes":0,"features":["structured_replies"],
        "novelty":1}]}"#;
    let none = r#"{"error":{"kind":"not_found","message":"there is no connection 1-7-2"}}"#;
    let control = scratch.control(&[(200, list), (200, list), (204, ""), (404, none)]);
    let shown = scratch.run(&["connection", "list"]);
    assert!(
        shown
            .out
            .contains("\n1-7-2  10.0.0.7:40812  tenant/a  serving")
    );
    assert_eq!(control.asked().line, "GET /v1/connections");
    let json = scratch.run(&["connection", "list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["connections"][0]["id"], "1-7-2");
    control.asked();
    let kick = ["connection", "kick", "1-7-2", "--json"];
    let closed: serde_json::Value = serde_json::from_str(&scratch.run(&kick).out).unwrap();
    assert_eq!(closed, serde_json::json!({"closed": "1-7-2"}));
    assert_eq!(control.asked().line, "DELETE /v1/connections/1-7-2");
    let gone = scratch.run(&kick);
    assert_eq!((gone.code, gone.out.as_str()), (3, ""));
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let scratch = Scratch::new();
    let list = format!(r#"{{"volumes":[{}]}}"#, volume("a", ""));
    let _control = scratch.control(&[(200, &list)]);
    let mut child = scratch
        .command(&["volume", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = ran(&child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}
