//! What the bucket lacks of each volume, counted from what clients were told: never more than what
//! the appliance counts itself, so that its limits hold for this count, too.

use std::collections::VecDeque;

use super::plan::{MS, VolumePlan};
use crate::identity::Epoch;

/// Answered writes that no commit holds, by volume.
pub(super) struct Risk {
    volumes: Vec<Account>,
}

struct Account {
    limit_bytes: u64,
    limit_ms: u64,
    missing: VecDeque<Missing>,
    bytes: u64,
    /// Cuts made of it.
    cuts: u64,
    /// Bytes of writes that are being carried out now, and at most.
    under_way: u64,
    under_way_max: u64,
}

/// A write that is being carried out.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    bytes: u64,
    cuts: u64,
}

struct Missing {
    bytes: u64,
    answered_us: u64,
    /// The cut that holds it, once it is made.
    cut: Option<Epoch>,
}

impl Risk {
    pub(super) fn new(volumes: &[VolumePlan]) -> Self {
        let account = |plan: &VolumePlan| Account {
            limit_bytes: plan.rpo_bytes,
            limit_ms: plan.rpo_seconds * 1000,
            missing: VecDeque::new(),
            bytes: 0,
            cuts: 0,
            under_way: 0,
            under_way_max: 0,
        };
        Self {
            volumes: volumes.iter().map(account).collect(),
        }
    }

    /// The process is gone; the next one counts what it finds in the log.
    pub(super) fn restart(&mut self) {
        for account in &mut self.volumes {
            account.missing.clear();
            account.bytes = 0;
            (account.under_way, account.under_way_max) = (0, 0);
        }
    }

    /// A write of so many bytes arrives at its core.
    pub(super) fn begins(&mut self, volume: usize, bytes: u64) -> Begun {
        let account = &mut self.volumes[volume];
        account.under_way += bytes;
        account.under_way_max = account.under_way_max.max(account.under_way);
        let cuts = account.cuts;
        Begun { bytes, cuts }
    }

    /// A write is answered; `at_once`: it was looked at a moment ago and never waited. The limit is
    /// looked at when a write arrives, so those under way by then come on top of it.
    pub(super) fn answered(
        &mut self,
        volume: usize,
        begun: Begun,
        now_us: u64,
        at_once: bool,
    ) -> Result<(), String> {
        let account = &mut self.volumes[volume];
        let bytes = begun.bytes;
        account.under_way -= bytes.min(account.under_way);
        let verdict = account.judge(now_us, at_once);
        if account.cuts == begun.cuts {
            // Else a part of it may be in a cut already.
            account.bytes += bytes;
            account.missing.push_back(Missing {
                bytes,
                answered_us: now_us,
                cut: None,
            });
        }
        verdict.map_err(|what| format!("volume {volume}: {what}"))
    }

    /// Everything answered so far is in this cut.
    pub(super) fn cut(&mut self, volume: usize, cut: Epoch) {
        let account = &mut self.volumes[volume];
        account.cuts += 1;
        for missing in account
            .missing
            .iter_mut()
            .filter(|missing| missing.cut.is_none())
        {
            missing.cut = Some(cut);
        }
    }

    /// The bucket holds all cuts up to this one.
    pub(super) fn committed(&mut self, volume: usize, through: Epoch) {
        let account = &mut self.volumes[volume];
        let is_there = |missing: &Missing| missing.cut.is_some_and(|cut| cut <= through);
        while account.missing.front().is_some_and(is_there) {
            let missing = account.missing.pop_front().expect("looked at");
            account.bytes -= missing.bytes;
        }
    }
}

impl Account {
    fn judge(&self, now_us: u64, at_once: bool) -> Result<(), String> {
        let over = match at_once {
            true => 0,
            false => self.under_way_max,
        };
        if self.limit_bytes > 0 && self.bytes > self.limit_bytes + over {
            let (bytes, limit) = (self.bytes, self.limit_bytes);
            return Err(format!(
                "a write is answered while the bucket lacks {bytes} bytes, not {limit} + {over}"
            ));
        }
        let oldest = self.missing.front().map_or(now_us, |m| m.answered_us);
        let age_ms = now_us / MS - oldest / MS;
        if self.limit_ms > 0 && at_once && age_ms > self.limit_ms {
            return Err(format!(
                "a write is answered while the bucket lacks something for {age_ms} ms"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::dice::Dice;
    use super::super::plan::Plan;
    use super::*;

    #[test]
    fn more_than_the_limit_is_noticed_and_a_commit_makes_room() {
        let mut plan = Plan::new(&mut Dice::new(1)).volumes[0].clone();
        (plan.rpo_bytes, plan.rpo_seconds) = (100, 1);
        let mut risk = Risk::new(&[plan]);
        let answer = |risk: &mut Risk, bytes, now_us| {
            let begun = risk.begins(0, bytes);
            risk.answered(0, begun, now_us, true)
        };
        assert_eq!(answer(&mut risk, 90, 0), Ok(()));
        let early = risk.begins(0, 81);
        assert_eq!(answer(&mut risk, 90, 10), Ok(()));
        assert!(answer(&mut risk, 1, 20).is_err());
        assert_eq!(risk.answered(0, early, 20, false), Ok(()), "it came first");
        risk.cut(0, Epoch(4));
        risk.committed(0, Epoch(3));
        assert!(answer(&mut risk, 1, 30).is_err());
        risk.committed(0, Epoch(4));
        assert_eq!(answer(&mut risk, 1, 30), Ok(()));
        assert!(answer(&mut risk, 1, 1_002_000).is_err(), "too old");
    }
}
