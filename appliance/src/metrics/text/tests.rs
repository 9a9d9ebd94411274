//! Tests of the metrics text.

use std::time::Duration;

use taipan_engine::api::{MemoryPart, MemoryStatus};
use taipan_engine::identity::VolumeId;
use taipan_engine::volume::{VolumeName, VolumeSettings};

use super::*;
use crate::metrics::{Metrics, VolumeCounters};

fn volume(name: &str) -> VolumeInfo {
    VolumeInfo {
        name: VolumeName::parse(name).unwrap(),
        id: VolumeId(1),
        settings: VolumeSettings::with_size(10 << 30),
        state: VolumeState::ReadOnly,
        cause: None,
        lineage: Lineage::Broken,
        connections: 2,
        mapped_blocks: 3,
        dirty_bytes: 4,
        committed_epoch: 5,
        manifest: 6,
        generation: 7,
        chunks: 8,
        usage: Default::default(),
        index_bytes: 9,
        last_commit_age_seconds: Some(1.5),
        quarantine: None,
        upload: Default::default(),
        delays: Default::default(),
    }
}

fn text() -> String {
    let metrics = Metrics::new(2);
    let name = VolumeName::parse("a\"b").unwrap();
    let of_volume: &VolumeCounters = &metrics.volume(1, &name);
    of_volume.succeeded(RequestKind::Write, 4096);
    of_volume.failed(RequestKind::Write);
    for core in 0..2 {
        metrics
            .core(core)
            .answered(RequestKind::Write, Duration::from_micros(3));
    }
    metrics.core(1).wal.writes.add(11);
    metrics.core(0).reads.crc_mismatches.add(1);
    metrics.uploader().commits.add(12);
    metrics
        .backend()
        .done(BackendOp::Put, None, Duration::from_secs(2));
    let status = Status {
        version: "1.2.3".to_owned(),
        state: RunState::Serving,
        shards: vec![ShardStatus {
            shard: 9,
            failure: Some("EIO".to_owned()),
            wal_used_bytes: 77,
            wal_reserve_bytes: 33,
            ..ShardStatus::default()
        }],
        volumes: vec![volume("a\"b")],
        memory: MemoryStatus {
            parts: vec![MemoryPart {
                name: "packing".to_owned(),
                bytes: 5,
            }],
            ..MemoryStatus::default()
        },
        ..Status::default()
    };
    render(status, metrics.snapshot()).unwrap()
}

#[test]
fn the_text_holds_every_kind_of_value_with_its_labels() {
    let text = text();
    for line in [
        r#"taipan_build_info{version="1.2.3"} 1"#,
        r#"taipan_state{state="serving"} 1"#,
        r#"taipan_volume_mapped_bytes{volume="a\"b"} 12288"#,
        r#"taipan_volume_lineage_broken{volume="a\"b"} 1"#,
        r#"taipan_volume_state{volume="a\"b",state="read_only"} 1"#,
        r#"taipan_requests_total{volume="a\"b",kind="write"} 2"#,
        r#"taipan_request_bytes_total{volume="a\"b",kind="write"} 4096"#,
        r#"taipan_request_errors_total{volume="a\"b",kind="write"} 1"#,
        r#"taipan_request_latency_seconds_count{kind="write"} 2"#,
        r#"taipan_request_latency_seconds_bucket{le="0.000002",kind="write"} 0"#,
        r#"taipan_request_latency_seconds_bucket{le="0.000003",kind="write"} 2"#,
        r#"taipan_request_latency_seconds_bucket{le="+Inf",kind="write"} 2"#,
        r#"taipan_shard_failed{shard="9"} 1"#,
        r#"taipan_wal_used_bytes{shard="9"} 77"#,
        r#"taipan_wal_reserve_bytes{shard="9"} 33"#,
        r#"taipan_wal_writes_total{core="1"} 11"#,
        r#"taipan_crc_mismatches_total{core="0"} 1"#,
        r#"taipan_commits_total 12"#,
        r#"taipan_volume_commit_age_seconds{volume="a\"b"} 1.5"#,
        r#"taipan_backend_errors_total{operation="put"} 1"#,
        r#"taipan_backend_seconds_total{operation="put"} 2"#,
        r#"taipan_memory_budget_bytes{part="packing"} 5"#,
    ] {
        assert!(text.lines().any(|l| l == line), "missing {line} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn every_family_is_described_once_and_listed_in_the_documentation() {
    let listed = include_str!("../../../../docs/operations/api.md");
    let text = text();
    let mut names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    for name in &names {
        assert!(
            listed.contains(&format!("`{name}`")),
            "{name} is not listed"
        );
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
