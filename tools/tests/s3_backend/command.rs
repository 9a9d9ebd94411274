//! `taipan backend probe` against the fake server.

use std::process::{Command, Output};

use taipan_bench::fake_s3::{Action, ConditionalWrites, Config, Rule};

use crate::servers::Fake;

fn probe(url: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taipan"));
    command.args(["backend", "probe", url]).args(more);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_good_bucket_is_described_for_people_and_scripts() {
    let fake = Fake::start(Config::default());
    let url = fake.url("p");
    let output = probe(&url, &[]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(shown.contains("full: creation and replacement"), "{shown}");
    let output = probe(&url, &["--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["conditional_writes"], "full");
    assert_eq!(found["notes"], serde_json::json!([]));
    assert!(
        found["backend"]
            .as_str()
            .unwrap()
            .starts_with("s3://taipan/p at http://")
    );
}

#[test]
fn a_bucket_that_taipand_would_refuse_is_a_failure() {
    let fake = Fake::start(Config {
        conditional_writes: ConditionalWrites::None,
        ..Config::default()
    });
    let output = probe(&fake.url("p"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("none: two appliances"));
    assert!(text(&output.stderr).contains("fencing"));
}

#[test]
fn what_is_wrong_is_named() {
    let output = probe("s3://bucket?endpoint=here", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("endpoint must start with"));
    let fake = Fake::start(Config::default());
    fake.server
        .faults()
        .add(Rule::on(&[], Action::AccessDenied));
    let output = probe(&fake.url("p"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no permission"));
}
