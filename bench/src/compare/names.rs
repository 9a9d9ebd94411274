//! Names of lines and of targets in lists with commas between them; names may have commas, too.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

/// The lines that lists are about: an entry is a whole name, or a word in some names. No list: all.
pub(crate) fn lines_meant(lists: &[String], names: &[&str]) -> BTreeSet<String> {
    let all = names.iter().map(|&name| name.to_owned());
    if lists.is_empty() {
        return all.collect();
    }
    let mut meant = BTreeSet::new();
    for list in lists {
        let words: Vec<_> = list.split(',').collect();
        let mut rest = &words[..];
        while let Some(word) = rest.first() {
            let whole = (1..=rest.len()).rev().find_map(|count| {
                let name = rest[..count].join(",").trim().to_owned();
                names.contains(&name.as_str()).then_some((count, name))
            });
            let word = word.trim();
            match whole {
                Some((count, name)) => {
                    meant.insert(name);
                    rest = &rest[count..];
                    continue;
                }
                None if word.is_empty() => {}
                None => meant.extend(all.clone().filter(|name| name.contains(word))),
            }
            rest = &rest[1..];
        }
    }
    meant
}

/// The names in lists with commas between them. Names may have commas, too: the longest is meant.
pub(crate) fn names_in(lists: &[String], known: &[&str]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for list in lists {
        let words: Vec<_> = list.split(',').collect();
        let mut rest = &words[..];
        while !rest.is_empty() {
            let found = (1..=rest.len()).rev().find_map(|count| {
                let name = rest[..count].join(",").trim().to_owned();
                known.contains(&name.as_str()).then_some((count, name))
            });
            let (count, name) = found.with_context(|| {
                let (name, known) = (rest[0].trim(), known.join("; "));
                format!("there is no target {name:?}; there are {known}")
            })?;
            names.push(name);
            rest = &rest[count..];
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_named_wholly_or_by_a_word() {
        let names = [
            "write 4k d1",
            "write 4k d16",
            "write 4k, many",
            "read, many",
        ];
        let meant = |list: &str| -> Vec<String> {
            let lists = [list.to_owned()];
            lines_meant(&lists, &names).into_iter().collect()
        };
        assert_eq!(meant("write 4k d1"), ["write 4k d1"], "not d16");
        assert_eq!(meant("4k d1"), ["write 4k d1", "write 4k d16"]);
        assert_eq!(meant("write 4k, many"), ["write 4k, many"]);
        assert_eq!(
            meant("d16, many"),
            ["read, many", "write 4k d16", "write 4k, many"]
        );
        assert_eq!(
            meant("read, many,write 4k d1"),
            ["read, many", "write 4k d1"]
        );
        assert_eq!(meant("nothing,"), [""; 0]);
        assert_eq!(lines_meant(&[], &names).len(), 4);
    }

    #[test]
    fn targets_are_named_in_lists_although_names_have_commas() {
        let known = ["taipand", "taipand, two cores", "raw", "two cores"];
        let names = |lists: &[&str]| {
            let lists: Vec<_> = lists.iter().map(|&list| list.to_owned()).collect();
            names_in(&lists, &known).map_err(|error| error.to_string())
        };
        let both = Ok(vec!["raw".to_owned(), "taipand, two cores".to_owned()]);
        assert_eq!(names(&["raw,taipand, two cores"]), both);
        assert_eq!(names(&["raw", "taipand, two cores"]), both);
        assert_eq!(names(&["taipand, raw"]).unwrap(), ["taipand", "raw"]);
        assert_eq!(names(&[]).unwrap().len(), 0);
        let error = names(&["raw,rwa"]).unwrap_err();
        assert!(error.contains("\"rwa\"") && error.contains("taipand, two cores; raw"));
        assert!(names(&[""]).is_err());
    }
}
