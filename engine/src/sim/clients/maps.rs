//! Maps asked now and then beside reads: what is said to hold no data must be zeros that a read
//! could return.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::oracle::Oracle;
use super::super::pattern::Lattice;
use super::super::world::World;
use crate::core::{Done, Failure, Origin, Progress, Ticket};
use crate::extents::{Content, Extent, MapQuery, View};
use crate::shard::VolumeSlot;

/// So many reads bring one map.
const READS_PER_MAP: u64 = 5;
/// Bit of a ticket that says that it is of a map.
const MAP_BIT: u64 = 1 << 31;

/// A map that was asked of a core.
pub(super) struct AskedMap {
    cells: Range<u32>,
    began: u64,
}

/// Maps not yet answered, by ticket.
pub(super) type AskedMaps = BTreeMap<u64, AskedMap>;

impl World {
    /// Asks for the map of what the read `ticket` is of, if it is its turn.
    pub(super) fn ask_map(&mut self, number: u32, ticket: u64, cells: &Range<u32>) {
        if !ticket.is_multiple_of(READS_PER_MAP) {
            return;
        }
        let connection = self.clients.at(number);
        let (volume, core) = (connection.volume, connection.core);
        let bytes = self.oracle.lattices[volume].bytes(cells);
        let query = MapQuery {
            offset: bytes.start,
            len: bytes.end - bytes.start,
            view: View {
                stored: ticket.is_multiple_of(2),
                residence: ticket.is_multiple_of(3),
                ..View::default()
            },
            extents_max: 1 + (ticket % 9) as usize,
        };
        let map = AskedMap {
            cells: cells.clone(),
            began: self.oracle.tick(),
        };
        let origin = Origin::Client(Ticket(u64::from(number) << 32 | MAP_BIT | ticket));
        let core = &mut self.node.as_mut().expect("it runs").cores[core];
        let mut extents = Vec::new();
        match core.map(origin, VolumeSlot(volume as u32), query, &mut extents) {
            Progress::Done => self.judge_map(volume, &map, Ok(&extents)),
            Progress::Failed(failure) => self.judge_map(volume, &map, Err(failure)),
            Progress::Pending(_) => {
                self.coverage.hit("two cores shared a map");
                self.clients.at(number).maps.insert(ticket, map);
            }
        }
    }

    /// Takes the end of a map; false if it is of another request.
    pub(super) fn map_done(&mut self, number: u32, done: &Done) -> bool {
        if done.ticket.0 & MAP_BIT == 0 {
            return false;
        }
        let connection = self.clients.at(number);
        let volume = connection.volume;
        let map = connection.maps.remove(&(done.ticket.0 & (MAP_BIT - 1)));
        let map = map.expect("a map is answered once");
        self.judge_map(volume, &map, done.result.map(|()| &done.extents[..]));
        true
    }

    fn judge_map(&mut self, volume: usize, map: &AskedMap, told: Result<&[Extent], Failure>) {
        let Ok(extents) = told else {
            // The volume is gone.
            return;
        };
        let lattice = self.oracle.lattices[volume];
        if extents
            .iter()
            .any(|extent| extent.state.content != Content::Data)
        {
            self.coverage.hit("a map told of zeros");
        }
        if let Err(what) = judge(&mut self.oracle, lattice, volume, map, extents) {
            self.violate(format!("map of {:?}: {what}", map.cells));
        }
    }
}

fn judge(
    oracle: &mut Oracle,
    lattice: Lattice,
    volume: usize,
    map: &AskedMap,
    extents: &[Extent],
) -> Result<(), String> {
    let bytes = lattice.bytes(&map.cells);
    let mut at = bytes.start;
    let mut cell = map.cells.start;
    for extent in extents {
        at += extent.len;
        let first = cell;
        while cell < map.cells.end && lattice.start(cell + 1) <= at {
            cell += 1;
        }
        if extent.state.content != Content::Data && first < cell {
            let cells = first..cell;
            let part = lattice.bytes(&cells);
            let zeros = vec![0; (part.end - part.start) as usize];
            oracle.read((volume, &cells), map.began, &zeros, false)?;
        }
    }
    if extents.is_empty() || at > bytes.end {
        return Err(format!("{extents:?} does not fit {bytes:?}"));
    }
    Ok(())
}
