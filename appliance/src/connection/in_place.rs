//! Long reads whose blocks are in batch memory: their bytes go to the socket from there.

use std::io::{ErrorKind, IoSlice, Write};
use std::os::fd::AsFd;

use taipan_engine::block::PAGE_BYTES;
use taipan_nbd::ReplyTo;

use super::replies::data_head;
use super::wire::{Socket, Wire};
use super::{Connection, Phase, Surroundings, pieces};

/// Shorter reads are copied: several replies then go in one piece.
const READ_BYTES_MIN: u32 = 64 << 10;
/// Longer ones would keep others waiting.
const READ_BYTES_MAX: u32 = 1 << 20;
/// The kernel takes 1,024 slices: what waits, the head, and blocks of which the first and the last
/// are partly wanted.
const _: () = assert!(READ_BYTES_MAX as usize / PAGE_BYTES + 3 <= 1024);

impl Connection {
    /// Answers a READ of (offset, length) with what is in memory, and sends that at once. False,
    /// and nothing has happened, if it is not all there, or to be answered in another form.
    pub(super) fn answer_in_place(
        &mut self,
        to: ReplyTo,
        (offset, len, df): (u64, u32, bool),
        around: &mut Surroundings<'_>,
    ) -> bool {
        let may_send = !self.unread && matches!(self.wire, Wire::Clear);
        if !may_send || !(READ_BYTES_MIN..=READ_BYTES_MAX).contains(&len) {
            return false;
        }
        let Phase::Transmission(session) = &self.phase else {
            return false;
        };
        let range = (offset, u64::from(len));
        let Some(content) = around.core.resident(session.volume.slot, range) else {
            return false;
        };
        if !df && !to.is_simple() && content.iter().any(|piece| pieces::has_zeros(piece)) {
            return false;
        }
        let head = data_head(to, (offset, len), df);
        let blocks = content.len();
        self.send_pieces(head.as_bytes(), &content);
        around.core.count_resident(blocks);
        if self.broken {
            self.gone(around);
        }
        true
    }

    /// Sends what waits and then a reply; keeps what the socket does not take.
    fn send_pieces(&mut self, head: &[u8], content: &[&[u8]]) {
        let waiting = &self.output[self.sent..];
        let mut slices = Vec::with_capacity(content.len() + 2);
        slices.extend([waiting, head].map(IoSlice::new));
        slices.extend(content.iter().map(|piece| IoSlice::new(piece)));
        let mut taken = loop {
            match Socket(self.socket.as_fd()).write_vectored(&slices) {
                Ok(taken) => break taken,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break 0,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        };
        self.progress.took(taken);
        let of_waiting = taken.min(waiting.len());
        taken -= of_waiting;
        self.sent_in_place += taken;
        self.sent += of_waiting;
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
        for piece in [head].iter().chain(content) {
            let of_piece = taken.min(piece.len());
            taken -= of_piece;
            self.output.extend_from_slice(&piece[of_piece..]);
        }
    }
}
