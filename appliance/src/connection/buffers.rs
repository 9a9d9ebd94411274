//! Spare buffers of a core: a connection without work holds none, and those that take turns use
//! the same ones, which are in the CPU's cache.

/// Spare buffers kept of each kind.
const SPARE_MAX: usize = 8;
/// A send buffer that grew beyond this for a large read is not kept.
pub(super) const SEND_BYTES_KEPT: usize = 1 << 20;

/// Buffers that no connection uses now.
#[derive(Debug, Default)]
pub struct Buffers {
    /// For receiving, all bytes initialised.
    inputs: Vec<Vec<u8>>,
    /// For sending, empty.
    outputs: Vec<Vec<u8>>,
}

impl Buffers {
    /// A receive buffer of so many bytes, whatever they are.
    pub(super) fn input(&mut self, bytes: usize) -> Vec<u8> {
        let spare = self.inputs.pop().filter(|spare| spare.len() == bytes);
        spare.unwrap_or_else(|| vec![0; bytes])
    }

    pub(super) fn give_input(&mut self, buffer: Vec<u8>) {
        if self.inputs.len() < SPARE_MAX {
            self.inputs.push(buffer);
        }
    }

    /// An empty send buffer.
    pub(super) fn output(&mut self) -> Vec<u8> {
        self.outputs.pop().unwrap_or_default()
    }

    pub(super) fn give_output(&mut self, mut buffer: Vec<u8>) {
        let kept = 1..=SEND_BYTES_KEPT;
        if self.outputs.len() < SPARE_MAX && kept.contains(&buffer.capacity()) {
            buffer.clear();
            self.outputs.push(buffer);
        }
    }
}
