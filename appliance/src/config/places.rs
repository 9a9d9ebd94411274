//! Whether the directories and sockets of a configuration can exist where they are wanted.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use taipan_engine::backend::S3Location;

use super::document::Document;
use super::load::backend_dir;
use super::settings::Config;

/// Longest path of a unix socket: `sun_path` without its final zero byte.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Looks at every place, changes nothing, and reports all problems.
pub(super) fn check(doc: &mut Document, config: &Config) {
    check_directory(doc, "data", &config.data_dir, &config.data_dir);
    if let Some(path) = &config.runtime_dir {
        check_directory(doc, "runtime_dir", path, &config.data_dir);
    }
    check_backend(doc, config);
    for (key, path) in [
        ("nbd.socket", &config.socket),
        ("control.socket", &config.control_socket),
    ] {
        check_socket(doc, key, path, &config.data_dir);
    }
}

/// A directory must exist, or its parent must, so that a misspelt path is not created.
fn check_directory(doc: &mut Document, key: &str, path: &Path, data_dir: &Path) {
    match path.metadata() {
        Ok(found) if found.is_dir() => {}
        Ok(_) => doc.refuse(key, format!("{} is not a directory", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or_else(|| Path::new("/"));
            if parent != data_dir && !parent.is_dir() {
                doc.refuse(
                    key,
                    format!(
                        "{} does not exist, nor does {}; create the directory first",
                        path.display(),
                        parent.display()
                    ),
                );
            }
        }
        Err(error) => doc.refuse(key, format!("{} is not usable: {error}", path.display())),
    }
}

fn check_backend(doc: &mut Document, config: &Config) {
    if config.backend == "mem:" {
        return;
    }
    if config.backend.starts_with("s3:") {
        if let Err(why) = S3Location::parse(&config.backend) {
            doc.refuse("backend", why);
        }
        return;
    }
    match backend_dir(&config.backend) {
        Some(path) if path.is_absolute() => {
            check_directory(doc, "backend", path, &config.data_dir);
        }
        Some(_) => doc.refuse("backend", "dir: needs a path, such as dir:/srv/objects"),
        None => doc.refuse(
            "backend",
            format!(
                "{:?} is not a backend; write s3://bucket/…, dir:/path, or mem: to keep nothing",
                config.backend
            ),
        ),
    }
}

fn check_socket(doc: &mut Document, key: &str, path: &Path, data_dir: &Path) {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        doc.refuse(
            key,
            format!(
                "{} has {bytes} bytes, a socket's path may have {SOCKET_PATH_BYTES_MAX}; \
                 set {key} to a shorter one",
                path.display()
            ),
        );
    }
    let parent = path.parent().unwrap_or_else(|| Path::new("/"));
    if parent != data_dir && !parent.is_dir() {
        let parent = parent.display();
        doc.refuse(key, format!("the directory {parent} does not exist"));
    }
    if let Ok(found) = path.symlink_metadata()
        && !found.file_type().is_socket()
    {
        doc.refuse(
            key,
            format!("{} exists and is not a socket", path.display()),
        );
    }
}
