//! Scripted faults: which requests they hit, how often, and what happens to those.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::body::Limiter;
use super::call::Verb;
use super::locked;
use super::store::Past;

/// What happens to a request that a rule hits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Answered later; the request takes effect at the end of the delay, unless the client is gone
    /// by then.
    Delay {
        /// For how long.
        ms: u64,
    },
    /// At most so many bytes per second, all requests that the rule hits together.
    Bandwidth {
        /// The rate.
        bytes_per_second: u64,
    },
    /// 503 SlowDown, no effect.
    SlowDown,
    /// 429 TooManyRequests, no effect.
    TooManyRequests,
    /// 500 InternalError, no effect.
    ErrorBefore,
    /// 500 InternalError although it took effect.
    ErrorAfter,
    /// 403 AccessDenied, no effect.
    AccessDenied,
    /// The connection is cut before the body is read; no effect.
    CutBefore,
    /// The connection is cut after it took effect: a lost response.
    CutAfter,
    /// A GET's body ends early although the head told its whole length.
    Truncate {
        /// Bytes that are sent; half of the body if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<usize>,
    },
    /// One bit of a GET's body is flipped.
    Flip {
        /// Which, modulo the body's bits; any if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bit: Option<u64>,
    },
    /// 409 ConditionalRequestConflict to a conditional write, no effect.
    Conflict,
    /// 412 to a conditional write although its condition may hold, no effect.
    FalsePreconditionFailed,
    /// Another writer's object gets in just before a conditional write, which is then judged
    /// honestly.
    Rival {
        /// The other writer's bytes.
        body: String,
    },
    /// A write that hangs and then takes effect, even when the client is gone.
    Hang {
        /// For how long.
        ms: u64,
    },
    /// A listing as it was before the last so many changes, or so long ago.
    StaleList {
        /// Changes that are left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        changes: Option<usize>,
        /// Age of what is shown, if no changes are given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ms: Option<u64>,
    },
}

impl Action {
    fn fits(&self, verb: Verb, conditional: bool) -> bool {
        match self {
            Self::Truncate { .. } | Self::Flip { .. } => verb == Verb::Get,
            Self::Conflict | Self::FalsePreconditionFailed | Self::Rival { .. } => {
                conditional && verb.writes()
            }
            Self::Hang { .. } => verb.writes(),
            Self::StaleList { .. } => verb == Verb::List,
            _ => true,
        }
    }

    /// For [`Action::StaleList`]: the past that is shown.
    pub(crate) fn past(&self) -> Option<Past> {
        match self {
            Self::StaleList { changes, ms } => Some(match changes {
                Some(changes) => Past::Changes(*changes),
                None => Past::Ago(Duration::from_millis(ms.unwrap_or(0))),
            }),
            _ => None,
        }
    }
}

/// One rule: an action and the requests that it hits. Delays and bandwidths of all rules that hit a
/// request add up; of the other actions the first one is taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What happens.
    pub action: Action,
    /// Operations that it hits; all if empty. An action never hits what it makes no sense for.
    #[serde(default)]
    pub verbs: Vec<Verb>,
    /// Beginning of the keys that it hits (of the prefix for listings, never DeleteObjects' keys).
    #[serde(default)]
    pub prefix: String,
    /// End of the keys that it hits.
    #[serde(default)]
    pub suffix: String,
    /// Part of the keys that it hits.
    #[serde(default)]
    pub contains: String,
    /// So many matching requests are spared first.
    #[serde(default)]
    pub skip: u64,
    /// How many it hits at most; no end if absent.
    #[serde(default)]
    pub count: Option<u64>,
    /// Share of the matching requests that it hits, from 0 to 1.
    #[serde(default = "always")]
    pub probability: f64,
}

fn always() -> f64 {
    1.0
}

impl Rule {
    /// A rule that hits every `verbs` request; all of them if none is given.
    pub fn on(verbs: &[Verb], action: Action) -> Self {
        Self {
            action,
            verbs: verbs.to_vec(),
            prefix: String::new(),
            suffix: String::new(),
            contains: String::new(),
            skip: 0,
            count: None,
            probability: always(),
        }
    }

    /// Only keys that begin with this.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// Only keys that end with this.
    #[must_use]
    pub fn suffix(mut self, suffix: &str) -> Self {
        suffix.clone_into(&mut self.suffix);
        self
    }

    /// Only keys that have this in them.
    #[must_use]
    pub fn contains(mut self, part: &str) -> Self {
        part.clone_into(&mut self.contains);
        self
    }

    /// Spares the first `skip` matching requests.
    #[must_use]
    pub fn skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Hits at most `count` requests.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// Hits only this share of the matching requests.
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    fn matches(&self, verb: Verb, key: &str, conditional: bool) -> bool {
        (self.verbs.is_empty() || self.verbs.contains(&verb))
            && key.starts_with(&self.prefix)
            && key.ends_with(&self.suffix)
            && key.contains(&self.contains)
            && self.action.fits(verb, conditional)
    }
}

/// How a server plays dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Down {
    /// Connections are refused, open ones cut.
    Refuse,
    /// Connections are taken and never answered; cut when it lives again.
    Silent,
}

/// All faults of a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Decides what probabilities and flipped bits come to.
    pub seed: u64,
    /// Whether it plays dead.
    pub down: Option<Down>,
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// How often a rule matched and hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCounts {
    /// Requests that it is about.
    pub matched: u64,
    /// Requests that it hit.
    pub fired: u64,
}

/// What is to happen to one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) delay: Duration,
    pub(crate) limits: Vec<Arc<Limiter>>,
    pub(crate) action: Option<Action>,
    /// A number that decides what the action leaves open.
    pub(crate) dice: u64,
}

struct Armed {
    rule: Rule,
    counts: RuleCounts,
    limiter: Option<Arc<Limiter>>,
}

impl Armed {
    fn of(rule: Rule) -> Self {
        let limiter = match rule.action {
            Action::Bandwidth { bytes_per_second } => {
                Some(Arc::new(Limiter::new(bytes_per_second)))
            }
            _ => None,
        };
        Self {
            rule,
            counts: RuleCounts::default(),
            limiter,
        }
    }
}

#[derive(Default)]
struct State {
    seed: u64,
    rules: Vec<Armed>,
}

/// The faults of a running server; clones are the same faults.
#[derive(Clone)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    down: watch::Sender<Option<Down>>,
}

impl Faults {
    pub(crate) fn new(script: Script, down: watch::Sender<Option<Down>>) -> Self {
        let faults = Self {
            state: Arc::default(),
            down,
        };
        faults.set(script);
        faults
    }

    /// Replaces all faults; counters begin anew.
    pub fn set(&self, script: Script) {
        let rules = script.rules.into_iter().map(Armed::of).collect();
        *locked(&self.state) = State {
            seed: script.seed,
            rules,
        };
        self.down(script.down);
    }

    /// Appends a rule.
    pub fn add(&self, rule: Rule) {
        locked(&self.state).rules.push(Armed::of(rule));
    }

    /// No faults any more, and no playing dead.
    pub fn clear(&self) {
        self.set(Script::default());
    }

    /// Plays dead, or lives again.
    pub fn down(&self, down: Option<Down>) {
        self.down.send_replace(down);
    }

    /// The faults as they stand.
    pub fn script(&self) -> Script {
        let state = locked(&self.state);
        Script {
            seed: state.seed,
            down: *self.down.borrow(),
            rules: state.rules.iter().map(|armed| armed.rule.clone()).collect(),
        }
    }

    /// How often every rule matched and hit, in their order.
    pub fn counts(&self) -> Vec<RuleCounts> {
        locked(&self.state)
            .rules
            .iter()
            .map(|armed| armed.counts)
            .collect()
    }

    pub(crate) fn watch_down(&self) -> watch::Receiver<Option<Down>> {
        self.down.subscribe()
    }

    /// Decides on one request. Same seed, same order of requests: same decisions.
    pub(crate) fn plan(&self, verb: Verb, key: &str, conditional: bool) -> Plan {
        let mut state = locked(&self.state);
        let seed = state.seed;
        let mut plan = Plan::default();
        for (place, armed) in state.rules.iter_mut().enumerate() {
            let Armed {
                rule,
                counts,
                limiter,
            } = armed;
            if !rule.matches(verb, key, conditional) {
                continue;
            }
            counts.matched += 1;
            let dice = mixed(seed, place as u64, counts.matched);
            let spared = counts.matched <= rule.skip
                || rule.count.is_some_and(|count| counts.fired >= count)
                || (dice >> 11) as f64 / (1u64 << 53) as f64 >= rule.probability;
            let gentle = matches!(rule.action, Action::Delay { .. } | Action::Bandwidth { .. });
            if spared || (!gentle && plan.action.is_some()) {
                continue;
            }
            counts.fired += 1;
            match rule.action {
                Action::Delay { ms } => plan.delay += Duration::from_millis(ms),
                Action::Bandwidth { .. } => plan.limits.extend(limiter.clone()),
                _ => {
                    plan.action = Some(rule.action.clone());
                    plan.dice = mixed(dice, 1, 1);
                }
            }
        }
        plan
    }
}

/// A number as random as SplitMix64's, from three.
fn mixed(a: u64, b: u64, c: u64) -> u64 {
    let mut out = 0;
    for part in [a, b, c] {
        let mut z = (out ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out = z ^ (z >> 31);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(seed: u64, rules: Vec<Rule>) -> Faults {
        let script = Script {
            seed,
            down: None,
            rules,
        };
        Faults::new(script, watch::channel(None).0)
    }

    #[test]
    fn skip_and_count_choose_the_nth() {
        let rule = Rule::on(&[Verb::Put], Action::SlowDown)
            .prefix("m/")
            .suffix(".x");
        let faults = faults(0, vec![rule.contains("7").skip(2).times(2)]);
        let hit = |verb, key| faults.plan(verb, key, false).action.is_some();
        assert!(!hit(Verb::Get, "m/7.x") && !hit(Verb::Put, "m/8.x") && !hit(Verb::Put, "m/7.y"));
        let hits: Vec<bool> = (0..6).map(|_| hit(Verb::Put, "m/7.x")).collect();
        assert_eq!(hits, [false, false, true, true, false, false]);
        let wanted = RuleCounts {
            matched: 6,
            fired: 2,
        };
        assert_eq!(faults.counts(), [wanted]);
    }

    #[test]
    fn chance_is_the_seed_s() {
        let draw = |seed| -> Vec<bool> {
            let rule = Rule::on(&[], Action::ErrorBefore).probability(0.3);
            let faults = faults(seed, vec![rule]);
            let plan = |_| faults.plan(Verb::Put, "k", false).action.is_some();
            (0..1000).map(plan).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let hits = draw(7).iter().filter(|&&hit| hit).count();
        assert!((250..350).contains(&hits), "{hits}");
    }

    #[test]
    fn delays_add_up_beside_one_action() {
        let delay = |ms| Rule::on(&[], Action::Delay { ms });
        let cut = Rule::on(&[], Action::CutAfter);
        let slow = Rule::on(&[], Action::SlowDown);
        let faults = faults(0, vec![delay(5), cut, slow, delay(7)]);
        let plan = faults.plan(Verb::Get, "k", false);
        assert_eq!(plan.delay, Duration::from_millis(12));
        assert_eq!(plan.action, Some(Action::CutAfter));
        assert_eq!(faults.counts()[2].fired, 0);
    }

    #[test]
    fn an_action_hits_only_what_it_makes_sense_for() {
        let faults = faults(0, vec![Rule::on(&[], Action::Conflict)]);
        assert_eq!(faults.plan(Verb::Put, "k", false).action, None);
        assert_eq!(
            faults.plan(Verb::Put, "k", true).action,
            Some(Action::Conflict)
        );
        assert_eq!(faults.plan(Verb::Get, "k", true).action, None);
        let get = |action| Rule::on(&[], action);
        faults.set(Script {
            rules: vec![get(Action::Flip { bit: None })],
            ..Script::default()
        });
        assert_eq!(faults.plan(Verb::Put, "k", true).action, None);
        assert!(faults.plan(Verb::Get, "k", false).action.is_some());
    }

    #[test]
    fn scripts_are_json() {
        let text = r#"{"seed": 3, "down": "silent", "rules": [
            {"verbs": ["put", "complete_upload"], "prefix": "v1/", "skip": 1, "count": 2,
             "action": {"kind": "hang", "ms": 600000}},
            {"probability": 0.05, "action": {"kind": "slow_down"}},
            {"action": {"kind": "stale_list", "changes": 4}}]}"#;
        let script: Script = serde_json::from_str(text).expect("a script");
        let hang = Rule::on(
            &[Verb::Put, Verb::CompleteUpload],
            Action::Hang { ms: 600_000 },
        );
        assert_eq!(script.rules[0], hang.prefix("v1/").skip(1).times(2));
        assert_eq!(script.rules[1].probability, 0.05);
        assert_eq!(script.down, Some(Down::Silent));
        let again = serde_json::to_string(&script).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Script>(&again).expect("a script"),
            script
        );
        assert!(serde_json::from_str::<Script>(r#"{"rulez": []}"#).is_err());
    }

    #[test]
    fn the_script_in_the_documentation_is_one() {
        let page = include_str!("../../../docs/internals/fake-s3.md");
        let (_, rest) = page.split_once("```json\n").expect("a script");
        let (text, _) = rest.split_once("```").expect("its end");
        let script: Script = serde_json::from_str(text).expect("a script");
        assert_eq!((script.seed, script.rules.len()), (7, 3));
        assert_eq!(script.rules[0].action, Action::CutAfter);
    }
}
