//! Deleted volumes are freed at random moments, by whoever finds their marks: cut short before any
//! step, and gone on with by somebody else.

use futures::executor::block_on;

use super::coverage::Coverage;
use super::dice::Dice;
use super::written::script;
use crate::backend::{Backend, MemBackend};
use crate::error::{ErrorKind, Result};
use crate::failpoint;
use crate::identity::VolumeId;
use crate::object::{ChunkKey, IndexKey};
use crate::registry::{Freeing, deleted_volumes};

/// Steps before which it is cut short, and what is counted then.
pub(super) const DEATHS: [(&str, &str); 2] = [
    ("delete.free", "a freeing died before a delete"),
    ("delete.done", "a freeing died before its mark was gone"),
];

/// What is being freed.
#[derive(Default)]
pub(super) struct Freeings(Option<Freeing>);

impl Freeings {
    /// Begins with a volume, or goes on. An error is a broken promise.
    pub(super) fn step(
        &mut self,
        objects: &MemBackend,
        dice: &mut Dice,
        coverage: &mut Coverage,
    ) -> std::result::Result<(), String> {
        let died = dice.chance(200).then(|| dice.pick(&DEATHS));
        if let Some((point, _)) = died {
            failpoint::fail_next(point);
        } else if dice.chance(200) {
            script(objects, dice);
        }
        let done = self.go_on(objects, dice);
        let fired = failpoint::has_fired();
        failpoint::fail_none();
        objects.clear_script();
        if let Some((_, event)) = died.filter(|_| fired) {
            coverage.hit(event);
        }
        match done {
            Ok(true) => coverage.hit("a deleted volume was freed"),
            Ok(false) => {}
            Err(error) if fired || error.kind() == ErrorKind::Transient => self.0 = None,
            Err(error) => return Err(format!("a deleted volume cannot be freed: {error}")),
        }
        Ok(())
    }

    /// Whether one was finished.
    fn go_on(&mut self, objects: &MemBackend, dice: &mut Dice) -> Result<bool> {
        if self.0.is_none() {
            let marked = block_on(deleted_volumes(objects))?;
            if marked.is_empty() {
                return Ok(false);
            }
            self.0 = Some(block_on(Freeing::begin(objects, dice.pick(&marked)))?);
        }
        let freeing = self.0.as_mut().expect("just begun");
        let max = dice.range(1..=6) as usize;
        block_on(freeing.step(objects, max))?;
        let is_over = freeing.is_over();
        if is_over {
            self.0 = None;
        }
        Ok(is_over)
    }

    /// Frees all that is marked.
    pub(super) fn finish(&mut self, objects: &MemBackend) -> std::result::Result<(), String> {
        self.0 = None;
        let all = async {
            for volume in deleted_volumes(objects).await? {
                let mut freeing = Freeing::begin(objects, volume).await?;
                while !freeing.is_over() {
                    freeing.step(objects, 100).await?;
                }
            }
            Ok::<_, crate::error::Error>(())
        };
        block_on(all).map_err(|error| format!("deleted volumes cannot be freed: {error}"))
    }

    /// Nothing is left of a deleted volume but its manifests.
    pub(super) fn check(objects: &MemBackend, id: VolumeId) -> std::result::Result<(), String> {
        for prefix in [ChunkKey::prefix(id), IndexKey::prefix(id)] {
            let left = block_on(objects.list(&prefix, None, 10));
            if let Some(object) = left.map_err(|error| error.to_string())?.first() {
                return Err(format!("{} of a deleted volume is left", object.key));
            }
        }
        Ok(())
    }
}
