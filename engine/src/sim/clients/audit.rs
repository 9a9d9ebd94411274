//! Reading everything back, and whether all has come to rest.

use std::collections::VecDeque;

use super::super::plan::MS;
use super::super::workload::Wish;
use super::super::world::World;

impl World {
    /// Reads every volume wholly, from connections of its own, and judges. `settled`: what is read
    /// must be durable already (right after a recovery).
    pub(in crate::sim) fn audit(&mut self, settled: bool) -> Result<(), String> {
        let faults = std::mem::take(&mut self.faults);
        self.note(format_args!("audit, settled: {settled}"));
        for volume in 0..self.oracle.lattices.len() {
            if self.fenced.volumes.contains(&volume) {
                continue;
            }
            let lattice = self.oracle.lattices[volume];
            let number = self.connect(usize::MAX, volume);
            self.clients.at(number).settled = settled;
            let mut first = 0;
            while first < lattice.blocks {
                let end = (first + 7).min(lattice.blocks);
                self.ask(number, Wish::Read(lattice.of_blocks(first..end)));
                first = end;
            }
            let deadline = self.now_us + 20_000 * MS;
            while !self.clients.at(number).waiting.is_empty() {
                if self.now_us > deadline || !self.step()? {
                    return Err("a read is never answered".to_owned());
                }
            }
            self.clients.at(number).dead = true;
            self.close_connection(number);
        }
        self.faults = faults;
        Ok(())
    }

    /// Whether all is answered, durable and committed.
    pub(in crate::sim) fn is_quiet(&self) -> bool {
        let node = self.node_ref();
        self.clients.waiting() == 0
            && node.inbox.iter().all(VecDeque::is_empty)
            && node
                .cores
                .iter()
                .all(|core| core.is_quiet() && core.load().pending_bytes == 0)
            && node.uploader.is_quiet()
    }

    pub(in crate::sim) fn unrest(&self) -> String {
        let node = self.node_ref();
        let cores = node.cores.iter().map(|core| {
            let parked: usize = (0..core.shards().len()).map(|p| core.parked(p)).sum();
            format!(
                "[unanswered {} parked {parked} pending {} quiet {}]",
                core.unanswered(),
                core.load().pending_bytes,
                core.is_quiet()
            )
        });
        let volumes = node
            .uploader
            .volumes
            .values()
            .map(|v| format!("{:?}", v.commit.status()));
        format!(
            "{} requests wait; cores {}; commits {}",
            self.clients.waiting(),
            cores.collect::<Vec<_>>().join(" "),
            volumes.collect::<Vec<_>>().join(" ")
        )
    }
}
