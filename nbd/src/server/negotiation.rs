//! The options that change the transmission phase: structured replies, extended headers, contexts.

use super::answer::reply;
use super::{Features, ServerHandshake};
use crate::codec::{Cursor, string};
use crate::export::ExportDirectory;
use crate::protocol::{option, option_reply};
use crate::session::{CONTEXTS_MAX, HeaderStyle, MetaContext, Session};

/// Most queries of one LIST_META_CONTEXT or SET_META_CONTEXT that are looked at.
const QUERIES_MAX: usize = 256;

/// What a client has negotiated so far.
#[derive(Debug, Default)]
pub(super) struct Negotiated {
    headers: HeaderStyle,
    /// Name of the export that the contexts belong to.
    export: String,
    contexts: Vec<MetaContext>,
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug)]
pub(super) struct ContextRequest<'a> {
    export: &'a str,
    queries: Vec<&'a str>,
}

/// Why there is no [`ContextRequest`].
#[derive(Debug, PartialEq, Eq)]
enum BadRequest {
    Invalid(&'static str),
    TooMany,
}

impl Negotiated {
    pub(super) fn headers(&self) -> HeaderStyle {
        self.headers
    }

    /// The session that starts with the export of that name: contexts selected for another one are
    /// forgotten.
    pub(super) fn session(&self, export: &str, features: &Features) -> Session {
        let contexts = if self.export == export {
            self.contexts.clone()
        } else {
            Vec::new()
        };
        Session::new(
            self.headers,
            contexts,
            features.block_status_payload,
            features.df_bytes(),
        )
    }
}

impl ServerHandshake {
    /// Is the option looked at by [`negotiate`](Self::negotiate)?
    pub(super) fn offers(&self, option: u32) -> bool {
        let features = &self.features;
        match option {
            option::STRUCTURED_REPLY => features.structured_replies,
            option::EXTENDED_HEADERS => features.extended_headers,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => features.meta_contexts,
            _ => false,
        }
    }

    /// Answers an offered option; `data` is `None` when it was too long and thrown away.
    pub(super) fn negotiate(
        &mut self,
        option: u32,
        data: Option<&[u8]>,
        out: &mut Vec<u8>,
        exports: &dyn ExportDirectory,
    ) {
        match option {
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                let empty = data.is_some_and(<[u8]>::is_empty);
                self.choose_headers(option, empty, out);
            }
            _ => self.contexts(option, data, out, exports),
        }
    }

    /// A context that SET_META_CONTEXT selects and that is not there yet.
    pub(super) fn context_awaited(
        &self,
        option: u32,
        data: &[u8],
        exports: &dyn ExportDirectory,
    ) -> Option<String> {
        let selects = option == option::SET_META_CONTEXT && self.negotiated.headers.has_chunks();
        if !selects || !self.offers(option) {
            return None;
        }
        let request = ContextRequest::parse(data).ok()?;
        let mut queries = request.queries.into_iter();
        let awaited = queries.find(|query| exports.awaits_context(request.export, query));
        awaited.map(str::to_owned)
    }

    fn choose_headers(&mut self, option: u32, empty: bool, out: &mut Vec<u8>) {
        let wanted = if option == option::EXTENDED_HEADERS {
            HeaderStyle::Extended
        } else {
            HeaderStyle::Structured
        };
        let headers = &mut self.negotiated.headers;
        let (error, text) = if !empty {
            (option_reply::ERR_INVALID, "this option takes no data")
        } else if *headers == wanted {
            (option_reply::ERR_INVALID, "already negotiated")
        } else if *headers > wanted {
            (
                option_reply::ERR_EXT_HEADER_REQD,
                "extended headers are in use and have structured replies",
            )
        } else {
            *headers = wanted;
            return reply(out, option, option_reply::ACK, &[]);
        };
        self.refuse(out, option, error, text);
    }

    /// LIST_META_CONTEXT names contexts, SET_META_CONTEXT selects them. The latter forgets the
    /// former selection whatever comes of it.
    fn contexts(
        &mut self,
        option: u32,
        data: Option<&[u8]>,
        out: &mut Vec<u8>,
        exports: &dyn ExportDirectory,
    ) {
        let select = option == option::SET_META_CONTEXT;
        if select {
            self.negotiated.contexts.clear();
        }
        let request = match data.map(ContextRequest::parse) {
            Some(Ok(_)) if select && !self.negotiated.headers.has_chunks() => {
                let text = "contexts need structured replies or extended headers";
                return self.refuse(out, option, option_reply::ERR_INVALID, text);
            }
            Some(Ok(request)) => request,
            Some(Err(BadRequest::Invalid(text))) => {
                return self.refuse(out, option, option_reply::ERR_INVALID, text);
            }
            Some(Err(BadRequest::TooMany)) | None => {
                let text = "too many queries in one option";
                return self.refuse(out, option, option_reply::ERR_TOO_BIG, text);
            }
        };
        let mut names: Vec<String> = Vec::new();
        let found = exports.contexts(request.export, &mut |name| {
            // A selection that is too large is refused: one more name tells.
            let taken = !select || names.len() <= CONTEXTS_MAX;
            if taken && request.wants(name, select) {
                names.push(name.to_owned());
            }
        });
        if let Err(error) = found {
            return self.refuse_lookup(out, option, &error);
        }
        if select && names.len() > CONTEXTS_MAX {
            let text = format!("more than {CONTEXTS_MAX} contexts");
            return self.refuse(out, option, option_reply::ERR_TOO_BIG, &text);
        }
        let mut contexts = Vec::new();
        for (index, name) in names.into_iter().enumerate() {
            // 0 is reserved in a list; ids that start at 1 are never mistaken for it.
            let id = if select { index as u32 + 1 } else { 0 };
            let parts = [&id.to_be_bytes()[..], name.as_bytes()];
            reply(out, option, option_reply::META_CONTEXT, &parts);
            contexts.push(MetaContext { id, name });
        }
        if select {
            self.negotiated.contexts = contexts;
            request.export.clone_into(&mut self.negotiated.export);
        }
        reply(out, option, option_reply::ACK, &[]);
    }
}

impl<'a> ContextRequest<'a> {
    /// Name, count, queries; lengths must not lie and nothing may be left over. A query without a
    /// namespace is refused, one of an unknown namespace finds nothing.
    fn parse(data: &'a [u8]) -> Result<Self, BadRequest> {
        const MALFORMED: BadRequest = BadRequest::Invalid("malformed export name or queries");
        let mut cursor = Cursor::new(data);
        let name_len = cursor.u32().ok_or(MALFORMED)?;
        let name = cursor.take(name_len as usize).ok_or(MALFORMED)?;
        let export = string(name).ok_or(MALFORMED)?;
        let count = cursor.u32().ok_or(MALFORMED)? as usize;
        // Each query takes four bytes at least: a lying count is told from a large one.
        if count > cursor.rest().len() / 4 {
            return Err(MALFORMED);
        }
        if count > QUERIES_MAX {
            return Err(BadRequest::TooMany);
        }
        let mut queries = Vec::with_capacity(count);
        for _ in 0..count {
            let len = cursor.u32().ok_or(MALFORMED)?;
            let query = cursor.take(len as usize).ok_or(MALFORMED)?;
            let query = string(query).ok_or(MALFORMED)?;
            if !query.contains(':') {
                return Err(BadRequest::Invalid("a query is a namespace and a colon"));
            }
            queries.push(query);
        }
        if !cursor.is_empty() {
            return Err(MALFORMED);
        }
        Ok(Self { export, queries })
    }

    /// Does a query ask for the context? A list without queries asks for everything, and one with a
    /// colon at its end for all that begin so; a selection is by full name only.
    fn wants(&self, name: &str, select: bool) -> bool {
        let legal = name.contains(':') && !name.ends_with(':') && string(name.as_bytes()).is_some();
        let all = !select && self.queries.is_empty();
        let matches = |query: &&str| {
            *query == name || !select && query.ends_with(':') && name.starts_with(*query)
        };
        legal && (all || self.queries.iter().any(matches))
    }
}

#[cfg(test)]
pub(super) mod tests;
