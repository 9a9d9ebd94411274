//! Tests of the configuration as a whole.

use std::path::Path;
use std::time::Duration;

use clap::Parser;
use proptest::prelude::*;
use taipan_engine::volume::{Ack, Durability, OnLostCache};

use super::document::Document;
use super::load::interpret;
use super::*;

fn machine() -> Machine {
    Machine {
        cpus: vec![0, 1, 2, 3],
        memory_bytes: 16 << 30,
    }
}

/// Loads with a data directory that exists, and a file of the given text.
fn load_with(file: Option<&str>, args: &[&str]) -> Result<Config, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let mut line = vec!["taipand", "--data", &data];
    line.extend(args);
    let config_path = dir.path().join("taipan.toml");
    let config_text = config_path.display().to_string();
    if let Some(text) = file {
        std::fs::write(&config_path, text).unwrap();
        line.extend(["--config", &config_text]);
    }
    let cli = Cli::try_parse_from(line).unwrap();
    load(&cli.flags, &machine()).map_err(|problems| problems.list().to_vec())
}

fn problems_of(file: Option<&str>, args: &[&str]) -> String {
    load_with(file, args).unwrap_err().join("\n")
}

#[test]
fn without_flags_and_file_the_defaults_of_the_design_hold() {
    let config = load_with(None, &[]).unwrap();
    assert_eq!(config.listen, ["127.0.0.1:10809".parse().unwrap()]);
    assert_eq!(config.metrics, Some("127.0.0.1:10880".parse().unwrap()));
    assert_eq!(config.socket, config.data_dir.join("nbd.sock"));
    assert_eq!(config.control_socket, config.data_dir.join("control.sock"));
    let objects = config.data_dir.join("objects");
    assert_eq!(config.backend, format!("dir:{}", objects.display()));
    assert_eq!(config.cores.data, [0, 1, 2]);
    assert_eq!((config.cores.uploader, config.cores.pin), (3, true));
    assert_eq!(config.wal.sync, WalSync::Auto);
    assert_eq!(config.wal.flush_interval, Duration::from_millis(100));
    assert_eq!(config.wal.flush_size_bytes, 64 << 20);
    assert_eq!(config.wal.on_full, OnFull::Wait);
    assert_eq!(config.commit.interval, Duration::from_secs(30));
    assert_eq!(config.commit.pending_bytes, 64 << 20);
    assert_eq!(
        (config.wal.size_bytes, config.cache.size_bytes),
        (None, None)
    );
    assert!(!config.drain_on_stop && config.volumes.is_empty());
}

#[test]
fn the_automatic_wal_is_four_gib_or_a_tenth_of_the_free_disk() {
    let config = load_with(None, &[]).unwrap();
    assert_eq!(config.wal.bytes_on(1 << 40), 4 << 30);
    assert_eq!(config.wal.bytes_on(20 << 30), 2 << 30);
    assert_eq!(config.wal.bytes_on(0), WAL_BYTES_MIN);
    let config = load_with(None, &["--wal-size", "256MiB"]).unwrap();
    assert_eq!(config.wal.bytes_on(1 << 40), 256 << 20);
}

#[test]
fn flags_win_over_the_file_and_volumes_add_up() {
    let file = r#"
        drain_on_stop = true
        [nbd]
        listen = ["0.0.0.0:1000", "[::1]:1000"]
        [wal]
        size = "1GiB"
        sync = "dsync"
        on_full = "enospc"
        [cores]
        data = [2, 3]
        [[volume]]
        name = "tenant/a"
        size = "1TiB"
        block_size = "64KiB"
        chunk_size = "32MiB"
        ack = "durable"
        on_lost_cache = "refuse"
        durability = "remote"
        rpo_seconds = 60
        rpo_bytes = "256MiB"
        commit_interval_seconds = 5
        requests_per_hour = 60
        iops = 500
        bandwidth = "100MiB"
        burst_seconds = 5
        pitr_window_seconds = 3600
    "#;
    let args = [
        "--wal-size",
        "512MiB",
        "--volume",
        "a:b:10GiB",
        "--metrics",
        "off",
    ];
    let config = load_with(Some(file), &args).unwrap();
    assert_eq!(config.wal.size_bytes, Some(512 << 20));
    assert_eq!(config.wal.sync, WalSync::Dsync);
    assert_eq!(config.wal.on_full, OnFull::Enospc);
    assert_eq!(config.listen.len(), 2);
    assert_eq!(
        (config.cores.data.as_slice(), config.cores.uploader),
        (&[2, 3][..], 0)
    );
    assert!(config.drain_on_stop && config.metrics.is_none());
    let names: Vec<&str> = config.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["tenant/a", "a:b"]);
    let first = &config.volumes[0].settings;
    assert_eq!((first.size_bytes, first.block_size_bytes), (1 << 40, 65536));
    assert_eq!(
        (first.ack, first.on_lost_cache),
        (Ack::Durable, OnLostCache::Refuse)
    );
    assert_eq!(first.durability, Durability::Remote);
    assert_eq!((first.rpo_seconds, first.rpo_bytes), (60, 256 << 20));
    assert_eq!(first.commit_interval_seconds, 5);
    assert_eq!(first.requests_per_hour, 60);
    let limits = (first.iops, first.bandwidth_bytes, first.burst_seconds);
    assert_eq!(limits, (500, 100 << 20, 5));
    assert_eq!(first.pitr_window_seconds, 3600);
}

#[test]
fn every_problem_is_reported_at_once() {
    let file = r#"
        colour = "green"
        [wal]
        size = "10GB"
        flush_interval_ms = 0
        snyc = "auto"
        [log]
        format = "xml"
        [[volume]]
        name = "a@b"
        size = "1GiB"
        [[volume]]
        size = "1000"
    "#;
    let args = [
        "--cores",
        "0-9",
        "--listen",
        "localhost:1",
        "--volume",
        "x",
        "--backend",
        "ftp:x",
    ];
    let problems = load_with(Some(file), &args).unwrap_err();
    let text = problems.join("\n");
    for part in [
        "taipan.toml:2: colour: unknown key",
        "taipan.toml:4: wal.size: size \"10GB\" is refused",
        "taipan.toml:5: wal.flush_interval_ms: 0 is not within 1 to 60000",
        "taipan.toml:6: wal.snyc: unknown key; did you mean wal.sync?",
        "taipan.toml:8: log.format: \"xml\" is not one of \"text\", \"json\"",
        "taipan.toml:10: volume[0].name: volume name \"a@b\" is refused",
        "volume[1].name: missing",
        "taipan.toml:13: volume[1].size: size 1000 is not a positive multiple of 512",
        "--cores: CPU 4 is not among those allowed: 0-3",
        "--listen: \"localhost:1\" is not ADDR:PORT",
        "--volume x: write NAME:SIZE",
        "--backend: \"ftp:x\" is not a backend",
    ] {
        assert!(text.contains(part), "missing {part:?} in\n{text}");
    }
    assert_eq!(problems.len(), 12, "{text}");
}

#[test]
fn clashing_settings_are_refused() {
    let twice = "[[volume]]\nname = \"v\"\nsize = \"1GiB\"\n";
    for (file, args, part) in [
        (
            None,
            &["--volume", "v:1GiB", "--volume", "v:2GiB"][..],
            "also at --volume v:1GiB",
        ),
        (Some(twice), &["--volume", "v:1GiB"], "also at"),
        (
            None,
            &["--no-listen", "--listen", "127.0.0.1:1"],
            "contradict",
        ),
        (
            None,
            &["--listen", "127.0.0.1:1", "--listen", "127.0.0.1:1"],
            "listed twice",
        ),
        (
            None,
            &["--metrics", "127.0.0.1:10809"],
            "address for NBD too",
        ),
        (
            None,
            &["--cache-size", "128MiB", "--set", "wal.flush_size=65MiB"],
            "more than half",
        ),
        (
            None,
            &["--wal-size", "128MiB", "--set", "commit.pending_size=1GiB"],
            "more than half",
        ),
        (
            None,
            &[
                "--set",
                "limits.request_bytes_total=64MiB",
                "--set",
                "limits.request_bytes_per_connection=65MiB",
            ],
            "request_bytes_total",
        ),
        (None, &["--set", "wal.flush_size"], "write KEY=VALUE"),
        (
            None,
            &["--set", "cores.uploader=9"],
            "CPU 9 is not among 0-3",
        ),
        (
            None,
            &["--wal-size", "1MiB"],
            "1MiB is not within 128MiB to 16TiB",
        ),
        (None, &["--cache-size", "95%"], "1% to 90%"),
        (None, &["--log", "a=b=c"], "not a log filter"),
    ] {
        let text = problems_of(file, args);
        assert!(text.contains(part), "{args:?}: {text}");
    }
}

#[test]
fn places_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.display().to_string();
    let long = dir.path().join("x".repeat(110)).display().to_string();
    for (args, part) in [
        (
            ["--data", "/no/such/place"],
            "/no/such/place does not exist, nor does /no/such",
        ),
        (["--data", &file], "is not a directory"),
        (
            ["--runtime-dir", "/no/such/place"],
            "create the directory first",
        ),
        (
            ["--backend", "dir:/no/such/place"],
            "create the directory first",
        ),
        (["--backend", "dir:"], "needs a path"),
        (["--socket", &file], "exists and is not a socket"),
        (
            ["--socket", "/no/such/nbd.sock"],
            "the directory /no/such does not exist",
        ),
        (["--socket", &long], "a socket's path may have 107"),
        (["--config", "/no/such.toml"], "cannot be read"),
    ] {
        let cli = Cli::try_parse_from([&["taipand"], &args[..]].concat()).unwrap();
        let problems = load(&cli.flags, &machine()).unwrap_err().to_string();
        assert!(problems.contains(part), "{args:?}: {problems}");
    }
}

#[test]
fn the_backend_may_not_share_the_daemons_own_directories() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    for own in ["", "/wal", "/volumes"] {
        let url = format!("dir:{data}{own}");
        let cli = Cli::try_parse_from(["taipand", "--data", &data, "--backend", &url]).unwrap();
        let problems = load(&cli.flags, &machine()).unwrap_err().to_string();
        assert!(problems.contains("a directory of its own"), "{problems}");
    }
}

#[test]
fn relative_backends_mean_the_same_wherever_they_are_read() {
    let config = load_with(None, &["--backend", "dir:objects"]).unwrap();
    let path = config.backend.strip_prefix("dir:").unwrap();
    assert!(Path::new(path).is_absolute() && path.ends_with("/objects"));
}

#[test]
fn the_effective_configuration_reads_back_the_same() {
    let args = [
        "--volume",
        "tenant/\"q\":1GiB",
        "--cache-size",
        "10%",
        "--wal-size",
        "256MiB",
        "--drain",
        "--metrics",
        "off",
        "--no-listen",
        "--cores",
        "0,2-3",
        "--set",
        "cores.spin_us=5",
        "--runtime-dir",
        "/dev/shm/x",
        "--set",
        "log.format=json",
        "--wal-sync",
        "fdatasync",
    ];
    for args in [&args[..], &[]] {
        let config = load_with(None, args).unwrap();
        let mut document = Document::default();
        document.read_file("effective", &config.to_toml());
        assert_eq!(interpret(&mut document, &[], &machine()), config);
        assert_eq!(document.finish(), Vec::<String>::new());
    }
}

#[test]
fn percentages_of_memory_are_resolved() {
    let config = load_with(None, &["--cache-size", "50%"]).unwrap();
    assert_eq!(config.cache.size_bytes, Some((16 << 30) / 100 * 50));
}

#[test]
fn every_key_is_documented() {
    let listed = include_str!("../../../docs/operations/config.md");
    let mut document = Document::default();
    document.read_file(
        "t",
        "[[volume]]\nname = \"v\"\n[[access]]\ngrant = \"read\"\n",
    );
    interpret(&mut document, &[], &machine());
    for key in document.known_keys() {
        let key = key.replace("[0].", ".");
        assert!(
            listed.contains(&format!("`{key}`")),
            "{key} is not in config.md"
        );
    }
}

#[test]
fn differences_to_an_existing_volume_are_named() {
    let config = load_with(None, &["--volume", "v:1GiB"]).unwrap();
    let volume = &config.volumes[0];
    assert!(volume.differences(&volume.settings).is_empty());
    let mut existing = volume.settings.clone();
    existing.size_bytes = 2 << 30;
    existing.ack = Ack::Durable;
    let found = volume.differences(&existing).join("; ");
    assert!(
        found.contains("size is 2147483648 bytes") && found.contains("ack"),
        "{found}"
    );
}

#[test]
fn check_config_takes_the_same_flags_and_no_mixture() {
    let cli = Cli::try_parse_from(["taipand", "check-config", "--wal-size", "1GiB"]).unwrap();
    let Some(Command::CheckConfig { flags }) = cli.command else {
        panic!("not understood");
    };
    assert_eq!(flags.wal_size.as_deref(), Some("1GiB"));
    let twice = ["taipand", "check-config", "--data", "a", "--data", "b"];
    let Some(Command::CheckConfig { flags }) = Cli::try_parse_from(twice).unwrap().command else {
        panic!("not understood");
    };
    assert_eq!(flags.data.as_deref(), Some("b"), "the last of two wins");
    assert!(Cli::try_parse_from(["taipand", "--drain", "check-config"]).is_err());
    assert!(Cli::try_parse_from(["taipand", "--no-such-flag"]).is_err());
}

/// Values that a person, or a broken program, might write to any key.
const VALUES: [&str; 28] = [
    "true",
    "0",
    "-1",
    "7",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551616",
    "0x10",
    "1e308",
    "nan",
    "1979-05-27T07:32:00Z",
    "\"\"",
    "\"auto\"",
    "\"off\"",
    "\"none\"",
    "\"json\"",
    "\"512MiB\"",
    "\"99999999999999999999TiB\"",
    "\"16383PiB\"",
    "\"50%\"",
    "\"18446744073709551615%\"",
    "\"ü\\u0000@/..\"",
    "\"127.0.0.1:1\"",
    "\"0-18446744073709551615\"",
    "[]",
    "[0, 18446744073709551615, \"3-1\"]",
    "[[[\"a\"], {}], 1]",
    "{ a = { b = [{}] } }",
];

/// The text of a configuration file: settings with values that may or may not fit, then with some
/// characters replaced.
fn files() -> impl Strategy<Value = String> {
    let mut document = Document::default();
    document.read_file("t", "[[volume]]\nname = \"v\"\nsize = 512\n");
    interpret(&mut document, &[], &machine());
    let (mut plain, mut of_volumes) = (vec!["other".to_owned()], Vec::new());
    for key in document.known_keys() {
        match key.strip_prefix("volume[0].") {
            Some(key) => of_volumes.push(key.to_owned()),
            None => plain.push(key.to_owned()),
        }
    }
    let line = |keys: Vec<String>| {
        let pair = (
            prop::sample::select(keys),
            prop::sample::select(&VALUES[..]),
        );
        pair.prop_map(|(key, value)| format!("{key} = {value}\n"))
    };
    let lines = prop::collection::vec(line(plain), 0..6);
    let volume = prop::collection::vec(line(of_volumes), 0..6)
        .prop_map(|lines| format!("[[volume]]\n{}", lines.concat()));
    let volumes = prop::collection::vec(volume, 0..3);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 0..3);
    (lines, volumes, changes).prop_map(|(lines, volumes, changes)| {
        let mut text: Vec<char> = (lines.concat() + &volumes.concat()).chars().collect();
        for (at, other) in changes {
            if !text.is_empty() {
                let at = at.index(text.len());
                text[at] = other;
            }
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_file_is_refused_with_reasons_or_reads_back_the_same(
        file in prop_oneof![4 => files(), 1 => any::<String>()],
        set in prop::option::of(".{0,24}"),
    ) {
        let set = set.map(|text| format!("--set={text}"));
        match load_with(Some(&file), &Vec::from_iter(set.as_deref())) {
            Ok(config) => {
                let mut document = Document::default();
                document.read_file("effective", &config.to_toml());
                prop_assert_eq!(interpret(&mut document, &[], &machine()), config);
                prop_assert_eq!(document.finish(), Vec::<String>::new());
            }
            Err(problems) => prop_assert!(problems.iter().all(|problem| !problem.is_empty())),
        }
    }
}
