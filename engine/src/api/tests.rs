//! Bodies of the control API as JSON.

use super::*;

#[test]
fn creation_takes_text_or_numbers_and_fills_defaults() {
    let text = r#"{"name":"tenant/vol","size":"10GiB","block_size":65536,"ack":"durable"}"#;
    let create: CreateVolume = serde_json::from_str(text).unwrap();
    let settings = create.settings().unwrap();
    assert_eq!(settings.size_bytes, 10 << 30);
    assert_eq!(settings.block_size_bytes, 65536);
    assert_eq!(settings.chunk_size_bytes, 4 << 20);
    assert_eq!(settings.ack, Ack::Durable);
    let again = serde_json::to_string(&create).unwrap();
    assert_eq!(
        serde_json::from_str::<CreateVolume>(&again).unwrap(),
        create
    );
}

#[test]
fn requests_refuse_unknown_fields_and_bad_names() {
    for bad in [
        r#"{"name":"a","size_bytes":512,"colour":1}"#,
        r#"{"name":"a@b","size_bytes":512}"#,
        r#"{"name":"a"}"#,
        r#"{"name":"a","size_bytes":"10GB"}"#,
    ] {
        assert!(serde_json::from_str::<CreateVolume>(bad).is_err(), "{bad}");
    }
    assert!(serde_json::from_str::<VolumePatch>(r#"{"acc":"durable"}"#).is_err());
}

#[test]
fn a_block_size_above_32_bits_is_refused_not_truncated() {
    let create = CreateVolume {
        name: VolumeName::parse("a").unwrap(),
        size_bytes: 512,
        block_size_bytes: Some((1 << 32) + 4096),
        chunk_size_bytes: None,
        ack: None,
        on_lost_cache: None,
        durability: None,
        rpo_seconds: None,
        rpo_bytes: None,
        commit_interval_seconds: None,
        requests_per_hour: None,
        pitr_window_seconds: None,
        iops: None,
        bandwidth_bytes: None,
        burst_seconds: None,
    };
    assert!(create.settings().is_err());
}

#[test]
fn patches_change_only_what_they_name() {
    let settings = VolumeSettings::with_size(1 << 20);
    let patch: VolumePatch = serde_json::from_str(r#"{"ack":"durable"}"#).unwrap();
    let patched = patch.apply(&settings);
    assert_eq!(patched.ack, Ack::Durable);
    assert_eq!(patched.on_lost_cache, settings.on_lost_cache);
    assert!(!patch.is_empty() && VolumePatch::default().is_empty());
}

#[test]
fn unknown_error_classes_are_read_as_other() {
    let text = r#"{"error":{"kind":"novel","message":"m"}}"#;
    let body: ErrorBody = serde_json::from_str(text).unwrap();
    assert_eq!(body.error.kind, ErrorCode::Other);
}

#[test]
fn paths_keep_slashes_inside_the_name() {
    let name = VolumeName::parse("tenant/vol 1").unwrap();
    assert_eq!(resize_path(&name), "/v1/volumes/tenant%2Fvol%201/resize");
}

#[test]
fn volume_info_round_trips_with_its_settings_flat() {
    let info = VolumeInfo {
        name: VolumeName::parse("v").unwrap(),
        id: VolumeId(7),
        settings: VolumeSettings::with_size(1 << 30),
        state: VolumeState::Online,
        cause: None,
        lineage: Lineage::Intact,
        connections: 1,
        mapped_blocks: 2,
        dirty_bytes: 3,
        committed_epoch: 4,
        manifest: 5,
        generation: 6,
        chunks: 7,
        usage: ChunkUsage::default(),
        index_bytes: 8,
        last_commit_age_seconds: None,
        quarantine: None,
        upload: UploadInfo::default(),
        delays: DelayInfo::default(),
    };
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["size_bytes"], 1 << 30);
    assert_eq!(json["id"], "0000000000000007");
    assert_eq!(serde_json::from_value::<VolumeInfo>(json).unwrap(), info);
}
