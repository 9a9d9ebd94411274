//! A life that ends in order: nobody asks anything any more, the logs end, and note what the next
//! start would read of them. What happens to the notes until then is another matter.

use super::plan::MS;
use super::world::World;
use crate::block::ShardId;
use crate::core::Core;

/// So long it may take to come to rest, and to end.
const REST_US: u64 = 200 * MS;

impl World {
    /// Ends the logs, unless the world does not come to rest soon; the process is still to be
    /// ended, in whatever way.
    pub(super) fn end_logs(&mut self) -> Result<(), String> {
        self.clients.stop();
        self.run_until(|world| world.is_at_rest())?;
        if !self.is_at_rest() {
            return Ok(());
        }
        self.note(format_args!("the logs end"));
        let node = self.node.as_mut().expect("it runs");
        node.cores.iter_mut().for_each(Core::end_logs);
        self.wake_all();
        self.run_until(|world| !world.node_ref().cores.iter().any(Core::is_ending))?;
        let mut noted = 0;
        let node = self.node.as_ref().expect("it runs");
        for shard in node.cores.iter().flat_map(Core::shards) {
            let mut headers = Vec::new();
            if shard.log().note_headers(&mut headers) {
                self.noted[shard.id().index()] = Some(headers);
                noted += 1;
            }
        }
        self.coverage.add("a log noted its headers", noted);
        Ok(())
    }

    /// What a start finds of the notes: they may be gone, cut short or damaged, and they stay when
    /// they are old.
    pub(super) fn notes_found(&mut self, shard: ShardId) -> Option<Vec<u8>> {
        let mut noted = self.noted[shard.index()].clone()?;
        let len = noted.len() as u64;
        match self.dice.below(8) {
            0 => return None,
            1 => noted.truncate(self.dice.range(0..=len) as usize),
            2 if len > 0 => {
                let at = self.dice.below(len) as usize;
                noted[at] ^= 1 << self.dice.below(8);
            }
            _ => {}
        }
        Some(noted)
    }

    fn is_at_rest(&self) -> bool {
        let node = self.node_ref();
        self.clients.waiting() == 0
            && node.inbox.iter().all(|inbox| inbox.is_empty())
            && node.cores.iter().all(Core::is_quiet)
    }

    fn run_until(&mut self, is_reached: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = self.now_us + REST_US;
        while !is_reached(self) && self.now_us < deadline && self.step()? {}
        Ok(())
    }
}
