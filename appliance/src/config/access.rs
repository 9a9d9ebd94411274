//! Settings of who may use which volume.

use std::fmt::{self, Display, Write};
use std::str::FromStr;

use super::document::Document;
use super::print::{text, word};
use crate::access::{Access, Grant, Listing, Rule};

const LISTINGS: [(&str, Listing); 3] = [
    ("all", Listing::All),
    ("unix", Listing::Unix),
    ("none", Listing::None),
];
const GRANTS: [(&str, Grant); 3] = [
    ("write", Grant::Write),
    ("read", Grant::Read),
    ("none", Grant::None),
];

/// Reads the keys.
pub(super) fn read(doc: &mut Document) -> Access {
    let listing = doc.choice("nbd.listing", &LISTINGS).unwrap_or_default();
    let rules = (0..doc.tables("access"))
        .map(|index| read_rule(doc, index))
        .collect();
    Access { listing, rules }
}

fn read_rule(doc: &mut Document, index: usize) -> Rule {
    let key = |field: &str| format!("access[{index}].{field}");
    Rule {
        volumes: read_list(doc, &key("volumes"), true),
        clients: read_list(doc, &key("clients"), !doc.has(&key("certificates"))),
        certificates: read_list(doc, &key("certificates"), false),
        grant: doc.choice(&key("grant"), &GRANTS).unwrap_or_else(|| {
            if !doc.has(&key("grant")) {
                doc.problem(format!("{}: missing", key("grant")));
            }
            Grant::None
        }),
    }
}

/// A list that must not be empty: a rule for nobody is a mistake. If it is not `required`, it may
/// be left out.
fn read_list<T: FromStr<Err = String>>(doc: &mut Document, key: &str, required: bool) -> Vec<T> {
    let texts = doc.texts(key).unwrap_or_default();
    if texts.is_empty() && (required || doc.has(key)) {
        doc.refuse(key, "missing or empty");
    }
    let mut list = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(item) => list.push(item),
            Err(why) => doc.refuse(key, why),
        }
    }
    list
}

/// Prints the setting of the section `nbd`.
pub(super) fn print_listing(out: &mut String, access: &Access) -> fmt::Result {
    writeln!(out, "listing = {}", word(&LISTINGS, access.listing))
}

/// Prints the rules.
pub(super) fn print_rules(out: &mut String, access: &Access) -> fmt::Result {
    for rule in &access.rules {
        writeln!(out, "\n[[access]]")?;
        writeln!(out, "volumes = [{}]", list(&rule.volumes))?;
        if !rule.clients.is_empty() {
            writeln!(out, "clients = [{}]", list(&rule.clients))?;
        }
        if !rule.certificates.is_empty() {
            writeln!(out, "certificates = [{}]", list(&rule.certificates))?;
        }
        writeln!(out, "grant = {}", word(&GRANTS, rule.grant))?;
    }
    Ok(())
}

fn list(items: &[impl Display]) -> String {
    let items = items.iter().map(|item| text(&item.to_string()));
    items.collect::<Vec<_>>().join(", ")
}
