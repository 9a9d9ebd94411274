//! What a core says to the others at the end of a turn, in an order that keeps old writes ahead of
//! new ones.

use taipan_engine::core::PeerMessage;

use crate::inbox::CoreMessage;

/// Answers that wait for the end of the turn.
#[derive(Default)]
pub(super) struct Outbox {
    /// Core that asked, and its connection.
    dead_closed: Vec<(usize, u64)>,
}

impl Outbox {
    /// Answers a [`CoreMessage::CloseDead`] of core `to`.
    pub(super) fn dead_closed(&mut self, to: usize, connection: u64) {
        self.dead_closed.push((to, connection));
    }

    /// Everything that core `from` of `cores` has to say now: first what its requests ask of other
    /// cores, one message each, then the answers. A client that joins because of such an answer
    /// must find parts and cancellations of its former requests in the inboxes already.
    pub(super) fn take(
        &mut self,
        from: usize,
        cores: usize,
        peers: &mut Vec<(usize, PeerMessage)>,
    ) -> Vec<(usize, CoreMessage)> {
        let mut out = Vec::new();
        if !peers.is_empty() {
            let mut by_core: Vec<Vec<_>> = (0..cores).map(|_| vec![]).collect();
            for (core, message) in peers.drain(..) {
                by_core[core].push(message);
            }
            for (core, messages) in by_core.into_iter().enumerate() {
                if !messages.is_empty() {
                    out.push((core, CoreMessage::Peers { from, messages }));
                }
            }
        }
        let answers = self.dead_closed.drain(..);
        out.extend(answers.map(|(to, connection)| (to, CoreMessage::DeadClosed { connection })));
        out
    }
}

#[cfg(test)]
mod tests {
    use taipan_engine::core::RequestKey;

    use super::*;

    fn named(message: &CoreMessage) -> String {
        match message {
            CoreMessage::Peers { from, messages } => format!("{} of {from}", messages.len()),
            CoreMessage::DeadClosed { connection } => format!("closed for {connection}"),
            _ => "other".to_owned(),
        }
    }

    #[test]
    fn requests_of_dead_connections_reach_the_others_before_a_successor_may_join() {
        let mut outbox = Outbox::default();
        // The answer is known before the cancellations that belong to it are queued.
        outbox.dead_closed(2, 77);
        let cancel = |request| PeerMessage::Cancel {
            request: RequestKey(request),
        };
        let mut peers = vec![(2, cancel(1)), (0, cancel(1)), (2, cancel(5))];
        let said = outbox.take(1, 3, &mut peers);
        let said: Vec<(usize, String)> = said.iter().map(|(to, m)| (*to, named(m))).collect();
        let expected = [(0, "1 of 1"), (2, "2 of 1"), (2, "closed for 77")];
        let expected = expected.map(|(to, text)| (to, text.to_owned()));
        assert_eq!(said, expected);
        assert!(peers.is_empty());
        assert!(outbox.take(1, 3, &mut peers).is_empty(), "said once");
    }
}
