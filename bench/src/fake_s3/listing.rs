//! ListObjectsV2: pages in key order, with prefixes rolled up at a delimiter.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::call::Call;
use super::dates::iso_date;
use super::reply::{Refusal, Reply};
use super::store::{Listed, Past, Store};
use super::xml::escaped;

const PAGE_KEYS_MAX: usize = 1000;

/// One question for a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Question {
    prefix: String,
    /// Only keys behind this one.
    after: String,
    delimiter: String,
    keys_max: usize,
    url_encoded: bool,
}

#[derive(Debug, Default)]
struct Page {
    objects: Vec<Listed>,
    prefixes: Vec<String>,
    last: String,
    truncated: bool,
}

impl Question {
    fn of(call: &Call) -> Result<Self, Refusal> {
        let text = |name| call.parameter(name).unwrap_or_default().to_owned();
        let token = call.parameter("continuation-token");
        let after = match token.filter(|token| !token.is_empty()) {
            Some(token) => key_of(token)?,
            None => text("start-after"),
        };
        Ok(Self {
            prefix: text("prefix"),
            after,
            delimiter: text("delimiter"),
            keys_max: call
                .number("max-keys")?
                .unwrap_or(PAGE_KEYS_MAX)
                .min(PAGE_KEYS_MAX),
            url_encoded: call.parameter("encoding-type") == Some("url"),
        })
    }

    fn page(&self, objects: impl Iterator<Item = Listed>) -> Page {
        let mut page = Page::default();
        for object in objects.filter(|object| object.key.starts_with(&self.prefix)) {
            let rolled = self.rolled_up(&object.key);
            let name = rolled.unwrap_or(&object.key);
            let seen = rolled.is_some() && page.last == name;
            if name <= self.after.as_str() || seen {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == self.keys_max {
                page.truncated = self.keys_max > 0;
                break;
            }
            page.last = name.to_owned();
            match rolled {
                Some(prefix) => page.prefixes.push(prefix.to_owned()),
                None => page.objects.push(object),
            }
        }
        page
    }

    fn rolled_up<'a>(&self, key: &'a str) -> Option<&'a str> {
        if self.delimiter.is_empty() {
            return None;
        }
        let rest = &key[self.prefix.len()..];
        let end = rest.find(&self.delimiter)? + self.delimiter.len();
        Some(&key[..self.prefix.len() + end])
    }

    fn written(&self, key: &str) -> String {
        if self.url_encoded {
            return utf8_percent_encode(key, NON_ALPHANUMERIC).to_string();
        }
        escaped(key)
    }
}

/// Answers the call, from the past if a fault says so.
pub(crate) fn list(
    store: &Store,
    call: &Call,
    bucket: &str,
    past: Option<Past>,
) -> Result<Reply, Refusal> {
    let question = Question::of(call)?;
    let from = question.prefix.as_str().max(question.after.as_str());
    let page = match past {
        Some(past) => question.page(store.past(past).into_values()),
        None => {
            let under = |one: &Listed| one.key.starts_with(&question.prefix);
            question.page(store.from(from).take_while(under))
        }
    };
    let mut inner = format!(
        "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{}</Name>\
         <Prefix>{}</Prefix><KeyCount>{}</KeyCount><MaxKeys>{}</MaxKeys>\
         <IsTruncated>{}</IsTruncated>",
        escaped(bucket),
        question.written(&question.prefix),
        page.objects.len() + page.prefixes.len(),
        question.keys_max,
        page.truncated,
    );
    if question.url_encoded {
        inner.push_str("<EncodingType>url</EncodingType>");
    }
    if page.truncated {
        let token = token_of(&page.last);
        inner.push_str(&format!(
            "<NextContinuationToken>{token}</NextContinuationToken>"
        ));
    }
    for object in &page.objects {
        inner.push_str(&format!(
            "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>&quot;{}&quot;</ETag>\
             <Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
            question.written(&object.key),
            iso_date(object.modified),
            object.etag,
            object.bytes,
        ));
    }
    for prefix in &page.prefixes {
        let prefix = question.written(prefix);
        inner.push_str(&format!(
            "<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>"
        ));
    }
    inner.push_str("</ListBucketResult>");
    Ok(Reply::xml(&inner))
}

/// An opaque token: a client that reads it as a key gets nowhere.
fn token_of(key: &str) -> String {
    let mut token = String::from("1");
    for byte in key.bytes() {
        token.push_str(&format!("{byte:02x}"));
    }
    token
}

fn key_of(token: &str) -> Result<String, Refusal> {
    let wrong = || Refusal::invalid_argument("The continuation token provided is incorrect");
    let hex = token.strip_prefix('1').ok_or_else(wrong)?;
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(pair).collect();
    String::from_utf8(bytes.ok_or_else(wrong)?).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::store::Object;
    use super::*;

    fn store() -> Store {
        let mut store = Store::default();
        for key in ["a/1", "a/2", "a/b/3", "a/b/4", "a/c/5", "b/6"] {
            store.put(key, Object::of(Bytes::from_static(b"x")));
        }
        store
    }

    fn names(page: &Page) -> Vec<&str> {
        page.objects.iter().map(|one| one.key.as_str()).collect()
    }

    #[test]
    fn pages_join_without_gap_or_double() {
        let store = store();
        let mut question = Question {
            prefix: "a/".to_owned(),
            keys_max: 2,
            ..Question::default()
        };
        let mut all = Vec::new();
        loop {
            let page = question.page(store.from(""));
            all.extend(names(&page).into_iter().map(str::to_owned));
            if !page.truncated {
                break;
            }
            question.after = page.last;
        }
        assert_eq!(all, ["a/1", "a/2", "a/b/3", "a/b/4", "a/c/5"]);
    }

    #[test]
    fn prefixes_are_rolled_up_once_over_all_pages() {
        let store = store();
        let mut question = Question {
            prefix: "a/".to_owned(),
            delimiter: "/".to_owned(),
            keys_max: 3,
            ..Question::default()
        };
        let page = question.page(store.from(""));
        assert_eq!(names(&page), ["a/1", "a/2"]);
        assert_eq!(page.prefixes, ["a/b/"]);
        assert!(page.truncated);
        question.after = page.last;
        let page = question.page(store.from(""));
        assert_eq!(page.prefixes, ["a/c/"]);
        assert!(names(&page).is_empty() && !page.truncated);
    }

    #[test]
    fn tokens_are_keys_in_disguise() {
        assert_eq!(key_of(&token_of("a/é")).expect("a key"), "a/é");
        for wrong in ["", "a/1", "1zz", "1ff"] {
            assert!(key_of(wrong).is_err(), "{wrong}");
        }
    }
}
