//! The rules of docs/STYLE.md that a glance can check, checked on every file that git knows or
//! would take in.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;
/// Names of modules that say nothing.
const BANNED_NAMES: [&str; 7] = [
    "util", "utils", "common", "helper", "helpers", "misc", "shared",
];
/// Where `unsafe` may stand.
const UNSAFE_PLACES: [&str; 3] = ["engine/src/ring", "engine/src/arena", "engine/src/doorbell"];
/// What is never left behind. Written apart, so that this file passes.
const LEFTOVERS: [&str; 7] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("#[ig", "nore"),
    concat!("allow(dead", "_code)"),
    concat!("db", "g!("),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the work tree")
}

/// All files of the tree by relative path: committed ones and those not yet added.
fn files() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(listed.status.success(), "git ls-files: {listed:?}");
    let listed = String::from_utf8(listed.stdout).expect("paths in UTF-8");
    let exists = |path: &&str| root().join(path).is_file();
    let found: Vec<String> = listed.lines().filter(exists).map(str::to_owned).collect();
    assert!(found.len() > 50, "only {} files found", found.len());
    found
}

fn with_extension(extension: &str) -> Vec<(String, String)> {
    let wanted = |path: &String| Path::new(path).extension().is_some_and(|e| e == extension);
    let read = |path: String| {
        let text = fs::read_to_string(root().join(&path)).expect("a readable file in UTF-8");
        (path, text)
    };
    files().into_iter().filter(wanted).map(read).collect()
}

fn assert_none(problems: &[String]) {
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

#[test]
fn rust_files_are_short_and_say_what_they_are() {
    let mut problems = Vec::new();
    for (path, text) in with_extension("rs") {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            problems.push(format!("{path}: {lines} lines, at most {FILE_LINES_MAX}"));
        }
        if !text.starts_with("//! ") {
            problems.push(format!(
                "{path}: does not begin with a `//!` sentence of its role"
            ));
        }
    }
    assert_none(&problems);
}

#[test]
fn lines_fit() {
    let mut problems = Vec::new();
    for extension in ["rs", "py", "toml"] {
        for (path, text) in with_extension(extension) {
            for (index, line) in text.lines().enumerate() {
                let columns = line.chars().count();
                // Only code that people read: a licence list, say, is one line per entry.
                if columns > COLUMNS_MAX && extension != "toml" {
                    problems.push(format!("{path}:{}: {columns} columns", index + 1));
                }
                if line.ends_with([' ', '\t']) {
                    problems.push(format!("{path}:{}: white space at the end", index + 1));
                }
            }
        }
    }
    assert_none(&problems);
}

/// First line (from 0) and number of lines of every function with a body, as rustfmt lays it out:
/// the closing brace stands under the first line's beginning.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        if !is_function_head(line) {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", &line[..indent]);
        let ends = |line: &&str| line.ends_with('{') || line.ends_with(';') || line.ends_with('}');
        let Some(body) = lines[first..].iter().position(ends) else {
            continue;
        };
        if !lines[first + body].ends_with('{') {
            continue;
        }
        if let Some(len) = lines[first..].iter().position(|line| *line == closing) {
            found.push((first, len + 1));
        }
    }
    found
}

fn is_function_head(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|word| {
        word.starts_with("pub")
            || matches!(*word, "const" | "async" | "unsafe" | "extern" | "\"C\"")
    });
    words.next() == Some("fn")
}

#[test]
fn functions_are_short() {
    let mut problems = Vec::new();
    let mut count = 0;
    for (path, text) in with_extension("rs") {
        for (first, lines) in functions(&text) {
            count += 1;
            if lines > FUNCTION_LINES_MAX {
                problems.push(format!("{path}:{}: a function of {lines} lines", first + 1));
            }
        }
    }
    assert!(
        count > 500,
        "only {count} functions found: the search is broken"
    );
    assert_none(&problems);
}

#[test]
fn functions_are_measured_rightly() {
    let text = "fn one() {}\n\
                pub(crate) fn two(\n    a: u8,\n) -> u8 {\n    if a > 1 {\n    }\n    a\n}\n\
                trait T {\n    fn none(&self);\n    async fn three() {\n    }\n}\n";
    assert_eq!(functions(text), [(1, 7), (10, 2)]);
}

#[test]
fn module_names_say_something() {
    let banned = |path: &&String| {
        let path = Path::new(path);
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        let folders = path.parent().into_iter().flat_map(Path::components);
        let mut folders = folders.filter_map(|part| part.as_os_str().to_str());
        BANNED_NAMES.contains(&stem) || folders.any(|folder| BANNED_NAMES.contains(&folder))
    };
    let found: Vec<String> = files().iter().filter(banned).cloned().collect();
    assert_none(&found);
}

#[test]
fn unsafe_stays_in_its_modules() {
    let mut problems = Vec::new();
    let marks = [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe extern",
        "allow(unsafe_code",
    ];
    for (path, text) in with_extension("rs") {
        let allowed = UNSAFE_PLACES.iter().any(|place| path.starts_with(place));
        // This file names the marks.
        if allowed || path.ends_with("the_tree_is_tidy.rs") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if !code.starts_with("//") && marks.iter().any(|mark| code.contains(mark)) {
                problems.push(format!("{path}:{}: {code}", index + 1));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn nothing_is_left_over() {
    let mut problems = Vec::new();
    for extension in ["rs", "py", "md", "toml"] {
        for (path, text) in with_extension(extension) {
            for (index, line) in text.lines().enumerate() {
                if let Some(found) = LEFTOVERS.iter().find(|leftover| line.contains(**leftover)) {
                    problems.push(format!("{path}:{}: {found}", index + 1));
                }
            }
        }
    }
    assert_none(&problems);
}

/// Targets of the inline links of a page, code blocks and spans left out.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every second part stands between back ticks.
        for part in line.split('`').step_by(2) {
            let targets = part
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split(')').next());
            found.extend(targets.map(str::to_owned));
        }
    }
    found
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut problems = Vec::new();
    for (path, text) in with_extension("md") {
        let folder = root().join(&path).parent().expect("a folder").to_owned();
        for link in links(&text) {
            let outside = link.contains("://") || link.starts_with("mailto:");
            let target = link.split('#').next().unwrap_or_default();
            if !outside && !target.is_empty() && !folder.join(target).exists() {
                problems.push(format!("{path}: {link} leads nowhere"));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn links_are_found() {
    let text = "See [a](b.md#c), `[no](x)` and [d](../e).\n```\n[no](y)\n```\n";
    assert_eq!(links(text), ["b.md#c", "../e"]);
}

/// Names in the dependency tables of a manifest; ours left out.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut wanted = false;
    for line in manifest.lines() {
        if let Some(table) = line.strip_prefix('[') {
            wanted = table.trim_end_matches(']').ends_with("dependencies");
        } else if wanted && !line.starts_with(['#', ' ']) {
            let name = line
                .split(['=', '.', ' '])
                .next()
                .unwrap_or_default()
                .trim();
            if !name.is_empty() && !name.starts_with("taipan-") {
                found.insert(name.to_owned());
            }
        }
    }
    found
}

#[test]
fn every_direct_dependency_is_justified() {
    let page = fs::read_to_string(root().join("docs/DEPENDENCIES.md")).expect("the page");
    let named = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
    let justified: BTreeSet<String> = page.lines().filter_map(named).collect();
    let mut used = BTreeSet::new();
    for (path, text) in with_extension("toml") {
        // Fuzz targets are workspaces of their own, for a tool that brings its library along.
        if path.ends_with("Cargo.toml") && path != "Cargo.toml" && !path.contains("/fuzz/") {
            used.extend(dependencies(&text));
        }
    }
    assert!(used.len() > 20, "only {} dependencies found", used.len());
    let missing: Vec<_> = used.difference(&justified).collect();
    let stale: Vec<_> = justified.difference(&used).collect();
    assert!(missing.is_empty(), "docs/DEPENDENCIES.md lacks {missing:?}");
    assert!(
        stale.is_empty(),
        "docs/DEPENDENCIES.md names {stale:?}, which nothing uses"
    );
    let declared = dependencies(&fs::read_to_string(root().join("Cargo.toml")).expect("a file"));
    let unused: Vec<_> = declared.difference(&used).collect();
    assert!(
        unused.is_empty(),
        "Cargo.toml declares {unused:?}, which nothing uses"
    );
}
