//! Import and export against a foreign NBD server: exact, sparse, and honest when they fail.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use crate::rig::{Nbdkit, Scratch, ran};

const MIB: usize = 1 << 20;

/// Bytes that differ everywhere and hold runs of zeros of many lengths and alignments.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut data = Vec::with_capacity(len);
    while data.len() < len {
        let run = (next() % 60_000) as usize + 1;
        if next() % 3 == 0 {
            data.resize(data.len() + 3 * run, 0);
        } else {
            data.extend((0..run).map(|_| next() as u8));
        }
    }
    data.truncate(len);
    data
}

/// `nbdkit memory` of so many bytes.
fn memory(scratch: &Scratch, bytes: usize) -> Nbdkit {
    scratch.nbdkit(&["memory", &format!("size={bytes}")])
}

#[test]
fn a_copy_in_and_out_is_exact_whatever_the_window() {
    let scratch = Scratch::new();
    let data = pattern(9 * MIB + 512);
    fs::write(scratch.path("in"), &data).unwrap();
    let _server = memory(&scratch, data.len());
    for requests in ["1", "16", "256"] {
        let args = ["import", &scratch.text("in"), "v", "--requests", requests];
        let imported = scratch.run(&args);
        assert_eq!(imported.code, 0, "{}", imported.err);
        assert!(imported.out.contains("imported"), "{}", imported.out);
        let out = scratch.text("out");
        let exported = scratch.run(&["export", "v", &out, "--force", "--requests", requests]);
        assert_eq!(exported.code, 0, "{}", exported.err);
        assert!(
            fs::read(&out).unwrap() == data,
            "differs at {requests} requests"
        );
    }
}

#[test]
fn zeros_in_the_file_replace_data_in_the_volume() {
    let scratch = Scratch::new();
    let _server = memory(&scratch, 4 * MIB);
    fs::write(scratch.path("ones"), vec![1; 4 * MIB]).unwrap();
    assert_eq!(scratch.run(&["import", &scratch.text("ones"), "v"]).code, 0);

    // A hole, then data, then a hole up to the end: half of the volume.
    let sparse = File::create(scratch.path("sparse")).unwrap();
    sparse.set_len(2 * MIB as u64).unwrap();
    sparse.write_all_at(&[2; 5000], MIB as u64).unwrap();
    let imported = scratch.run(&["import", &scratch.text("sparse"), "v"]);
    assert_eq!(imported.code, 0, "{}", imported.err);
    assert!(imported.out.contains("the last 2 MiB"), "{}", imported.out);

    let mut expected = fs::read(scratch.path("sparse")).unwrap();
    expected.resize(4 * MIB, 1);
    scratch.run(&["export", "v", &scratch.text("out")]);
    assert!(fs::read(scratch.path("out")).unwrap() == expected);

    let args = [
        "import",
        &scratch.text("sparse"),
        "v",
        "--zero-rest",
        "--json",
    ];
    let report: serde_json::Value = serde_json::from_str(&scratch.run(&args).out).unwrap();
    assert_eq!(report["bytes"], 2 * MIB);
    expected[2 * MIB..].fill(0);
    scratch.run(&["export", "v", &scratch.text("out"), "--force"]);
    assert!(fs::read(scratch.path("out")).unwrap() == expected);
}

#[test]
fn an_exported_file_is_sparse() {
    let scratch = Scratch::new();
    let _server = memory(&scratch, 64 * MIB);
    fs::write(scratch.path("in"), vec![7; MIB]).unwrap();
    scratch.run(&["import", &scratch.text("in"), "v"]);
    let ran = scratch.run(&["export", "v", &scratch.text("out"), "--json"]);
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["data_bytes"], MIB);
    assert_eq!(report["zero_bytes"], 63 * MIB);
    let meta = fs::metadata(scratch.path("out")).unwrap();
    assert_eq!(meta.len(), 64 * MIB as u64);
    let used = meta.blocks() * 512;
    assert!(used < 2 * MIB as u64, "{used} bytes on disk");
}

#[test]
fn servers_without_zeroes_flush_or_byte_grain_are_served_too() {
    let scratch = Scratch::new();
    let data = pattern(3 * MIB + 1000);
    fs::write(scratch.path("in"), &data).unwrap();
    let _server = scratch.nbdkit(&[
        "--filter=nozero",
        "--filter=blocksize-policy",
        "memory",
        "size=4M",
        "blocksize-minimum=8192",
        "blocksize-preferred=8192",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
    ]);
    let imported = scratch.run(&["import", &scratch.text("in"), "v"]);
    assert_eq!(imported.code, 0, "{}", imported.err);
    let exported = scratch.run(&["export", "v", &scratch.text("out")]);
    assert_eq!(exported.code, 0, "{}", exported.err);
    let mut expected = data;
    expected.resize(4 * MIB, 0);
    assert!(fs::read(scratch.path("out")).unwrap() == expected);
}

#[test]
fn streams_go_in_and_out_in_order() {
    let scratch = Scratch::new();
    let data = pattern(5 * MIB);
    fs::write(scratch.path("in"), &data).unwrap();
    // Delays let the server's threads overtake each other.
    let _server = scratch.nbdkit(&[
        "--filter=delay",
        "memory",
        "size=5M",
        "rdelay=1ms",
        "delay-trim=0",
    ]);
    let mut import = scratch.command(&["import", "-", "v"]);
    import.stdin(File::open(scratch.path("in")).unwrap());
    let imported = ran(&import.output().unwrap());
    assert_eq!(imported.code, 0, "{}", imported.err);
    let output = scratch.command(&["export", "v", "-"]).output().unwrap();
    assert!(output.stdout == data);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("exported volume"), "{told}");
}

#[test]
fn a_file_that_is_too_large_is_refused_before_anything_is_written() {
    let scratch = Scratch::new();
    let _server = memory(&scratch, MIB);
    fs::write(scratch.path("in"), vec![1; MIB + 1]).unwrap();
    let file = scratch.run(&["import", &scratch.text("in"), "v"]);
    assert_eq!(file.code, 2);
    assert!(file.err.contains("1048577 bytes"), "{}", file.err);
    scratch.run(&["export", "v", &scratch.text("out")]);
    assert!(fs::read(scratch.path("out")).unwrap() == vec![0; MIB]);

    // Of a stream that shows only at the end.
    let mut import = scratch.command(&["import", "-", "v"]);
    import.stdin(File::open(scratch.path("in")).unwrap());
    let stream = ran(&import.output().unwrap());
    assert_eq!(stream.code, 2);
    assert!(stream.err.contains("longer than volume"), "{}", stream.err);
    assert!(stream.err.contains("may hold part"), "{}", stream.err);
}

#[test]
fn a_failed_export_leaves_no_file_and_no_part_of_one() {
    let scratch = Scratch::new();
    let server = scratch.nbdkit(&[
        "--filter=error",
        "memory",
        "size=8M",
        "error-pread=EIO",
        "error-pread-rate=30%",
    ]);
    let ran = scratch.run(&["export", "v", &scratch.text("out")]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("cannot read 256 KiB at byte"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("EIO"), "{}", ran.err);
    assert!(!scratch.path("out").exists() && !scratch.path("out.partial").exists());
    drop(server);

    // An older export of that name stays.
    fs::remove_file(scratch.path("nbd.sock")).unwrap();
    let _server = scratch.nbdkit(&["--filter=error", "memory", "size=8M", "error-pread-rate=1"]);
    fs::write(scratch.path("out"), b"older").unwrap();
    let ran = scratch.run(&["export", "v", &scratch.text("out"), "--force"]);
    assert_eq!(ran.code, 1);
    assert_eq!(fs::read(scratch.path("out")).unwrap(), b"older");
}

#[test]
fn a_failed_import_says_what_the_volume_may_hold() {
    let scratch = Scratch::new();
    fs::write(scratch.path("in"), pattern(MIB)).unwrap();
    let _server = scratch.nbdkit(&[
        "--filter=error",
        "memory",
        "size=1M",
        "error-pwrite=ENOSPC",
        "error-pwrite-rate=1",
    ]);
    let ran = scratch.run(&["import", &scratch.text("in"), "v"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("no space is left"), "{}", ran.err);
    assert!(
        ran.err.contains("Volume \"v\" may hold part"),
        "{}",
        ran.err
    );
}

#[test]
fn existing_files_are_replaced_only_when_forced() {
    let scratch = Scratch::new();
    let _server = memory(&scratch, MIB);
    fs::write(scratch.path("real"), b"mine").unwrap();
    symlink(scratch.path("real"), scratch.path("link")).unwrap();
    let ran = scratch.run(&["export", "v", &scratch.text("link")]);
    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("--force"), "{}", ran.err);
    assert_eq!(fs::read(scratch.path("real")).unwrap(), b"mine");

    assert_eq!(
        scratch
            .run(&["export", "v", &scratch.text("link"), "--force"])
            .code,
        0
    );
    assert!(
        fs::symlink_metadata(scratch.path("link"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(
        fs::metadata(scratch.path("real")).unwrap().len(),
        MIB as u64
    );
}

#[test]
fn two_exports_to_one_file_do_not_mix() {
    let scratch = Scratch::new();
    let _server = memory(&scratch, MIB);
    let partial = File::create(scratch.path("out.partial")).unwrap();
    partial.lock().unwrap();
    let held = scratch.run(&["export", "v", &scratch.text("out")]);
    assert_eq!(held.code, 4);
    assert!(held.err.contains("another export"), "{}", held.err);
    // The left-over of a killed export is in nobody's way, and nothing of it stays.
    partial.set_len(3 * MIB as u64).unwrap();
    partial.write_all_at(b"left over", 0).unwrap();
    drop(partial);
    assert_eq!(scratch.run(&["export", "v", &scratch.text("out")]).code, 0);
    assert!(fs::read(scratch.path("out")).unwrap() == vec![0; MIB]);
}

#[test]
fn missing_things_are_named() {
    let scratch = Scratch::new();
    fs::write(scratch.path("in"), b"x").unwrap();
    let no_daemon = scratch.run(&["import", &scratch.text("in"), "v"]);
    assert_eq!(no_daemon.code, 5);
    assert!(no_daemon.err.contains("nbd.sock"), "{}", no_daemon.err);

    let no_file = scratch.run(&["import", &scratch.text("nothing"), "v"]);
    assert_eq!(no_file.code, 3);
    assert!(
        no_file.err.contains("nothing: No such file"),
        "{}",
        no_file.err
    );

    let _server = memory(&scratch, MIB);
    let no_dir = scratch.run(&["export", "v", &scratch.text("no/such/dir")]);
    assert_eq!(no_dir.code, 3, "{}", no_dir.err);
    let empty = scratch.text("empty");
    File::create(&empty).unwrap();
    assert!(
        scratch
            .run(&["import", &empty, "v"])
            .err
            .contains("it is empty")
    );
}

#[test]
fn an_unknown_volume_is_not_found() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("exports")).unwrap();
    fs::write(scratch.path("exports/known"), vec![0; 4096]).unwrap();
    let dir = format!("dir={}", scratch.text("exports"));
    let _server = scratch.nbdkit(&["file", &dir]);
    assert_eq!(
        scratch.run(&["export", "known", &scratch.text("out")]).code,
        0
    );
    let ran = scratch.run(&["export", "unknown", &scratch.text("other")]);
    assert_ne!(ran.code, 0);
    assert!(ran.err.contains("volume \"unknown\""), "{}", ran.err);
    assert!(!scratch.path("other").exists());
}

#[test]
fn read_only_volumes_are_not_imported_into() {
    let scratch = Scratch::new();
    fs::write(scratch.path("in"), pattern(4096)).unwrap();
    let _server = scratch.nbdkit(&["--readonly", "memory", "size=1M"]);
    let ran = scratch.run(&["import", &scratch.text("in"), "v"]);
    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("it is read-only"), "{}", ran.err);
}

#[test]
fn import_can_create_the_volume_as_large_as_the_file() {
    let scratch = Scratch::new();
    let data = pattern(2 * MIB + 100);
    fs::write(scratch.path("in"), &data).unwrap();
    let server = memory(&scratch, 2 * MIB + 512);
    let answer = r#"{"name":"v","id":"00000000000000ab","size_bytes":2097664,
        "block_size_bytes":4096,"chunk_size_bytes":4194304,"state":"online","lineage":"intact",
        "connections":0,"mapped_blocks":0,"dirty_bytes":0,"committed_epoch":0,"manifest":1,
        "generation":1,"chunks":0,"index_bytes":0}"#;
    let control = scratch.control(&[(201, answer), (201, answer)]);
    let ran = scratch.run(&["import", &scratch.text("in"), "v", "--create"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(control.asked().body, r#"{"name":"v","size_bytes":2097664}"#);
    scratch.run(&["export", "v", &scratch.text("out")]);
    let mut expected = data;
    expected.resize(2 * MIB + 512, 0);
    assert!(fs::read(scratch.path("out")).unwrap() == expected);

    drop(server);
    let ran = scratch.run(&["import", &scratch.text("in"), "v", "--create"]);
    assert_eq!(ran.code, 5);
    assert!(ran.err.contains("Volume \"v\" was created"), "{}", ran.err);
    let unsized_input = scratch.run(&["import", "-", "v", "--create"]);
    assert_eq!(unsized_input.code, 2);
    assert!(
        unsized_input.err.contains("--size"),
        "{}",
        unsized_input.err
    );
}

#[test]
fn a_server_that_speaks_no_nbd_is_told_apart() {
    use std::io::Write;
    let scratch = Scratch::new();
    let listener = UnixListener::bind(scratch.path("nbd.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let ran = scratch.run(&["export", "v", &scratch.text("out")]);
    server.join().unwrap();
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("does not speak NBD"), "{}", ran.err);
}

#[test]
fn a_server_that_dies_within_the_copy_fails_it() {
    let scratch = Scratch::new();
    let server = scratch.nbdkit(&["--filter=delay", "memory", "size=64M", "rdelay=1000ms"]);
    let child = scratch
        .command(&["export", "v", &scratch.text("out"), "--requests", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !scratch.path("out.partial").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(server);
    let ran = ran(&child.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("is lost"), "{}", ran.err);
    assert!(!scratch.path("out").exists() && !scratch.path("out.partial").exists());
}
