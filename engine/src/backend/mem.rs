//! A backend in memory, with scripted faults: for tests, the simulator, and `mem:`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::channel::oneshot;

use super::{Backend, BoxFuture, ConditionalWrites, Listed, Probe, Put};
use crate::error::{Error, ErrorKind, Result};
use crate::object::ObjectKey;

/// The operations on which a fault can be scripted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Backend::delete`].
    Delete,
    /// [`Backend::get`].
    Get,
    /// [`Backend::get_range`].
    GetRange,
    /// [`Backend::head`].
    Head,
    /// [`Backend::list`].
    List,
    /// [`Backend::put`].
    Put,
    /// [`Backend::put_if_absent`].
    PutIfAbsent,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has no effect.
    FailBefore(ErrorKind),
    /// It takes effect, and the response is lost.
    FailAfter(ErrorKind),
    /// It waits, without effect, until [`MemBackend::release_next`]; then it takes effect, even if
    /// its future was dropped meanwhile (a request that hangs and lands late).
    Hold,
    /// The byte at this position of the returned bytes is flipped (the last one if they are fewer).
    CorruptByte(usize),
    /// At most so many bytes of the body are returned, without an error.
    Truncate(usize),
}

/// A scripted fault: applies to the matching operations after `skip` of them, `times` times.
#[derive(Clone, Debug)]
pub struct FaultRule {
    /// Which operation; `None` is any.
    pub operation: Option<Operation>,
    /// Only keys (or list prefixes) that contain this text.
    pub key_contains: String,
    /// Matching operations that pass first.
    pub skip: u32,
    /// Matching operations that are hit then.
    pub times: u32,
    /// What happens to them.
    pub fault: Fault,
}

impl FaultRule {
    /// Hits one operation, whichever it is, after `skip` others.
    pub fn nth(skip: u32, fault: Fault) -> Self {
        Self {
            operation: None,
            key_contains: String::new(),
            skip,
            times: 1,
            fault,
        }
    }

    /// Hits the next `operation` on a key that contains `key_contains`, once.
    pub fn once(operation: Operation, key_contains: &str, fault: Fault) -> Self {
        Self {
            operation: Some(operation),
            key_contains: key_contains.to_owned(),
            skip: 0,
            times: 1,
            fault,
        }
    }
}

type Objects = BTreeMap<String, Bytes>;
type HeldEffect = Box<dyn FnOnce(&mut State) + Send>;

#[derive(Default)]
struct State {
    objects: Objects,
    capacity_bytes: Option<u64>,
    rules: Vec<FaultRule>,
    held: VecDeque<HeldEffect>,
    counts: BTreeMap<&'static str, u64>,
}

/// Objects in memory. Clones share them: each clone can stand for another machine.
#[derive(Clone, Default)]
pub struct MemBackend {
    state: Arc<Mutex<State>>,
}

impl MemBackend {
    /// An empty backend.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a scripted fault; rules are tried in the order in which they were added.
    pub fn script(&self, rule: FaultRule) {
        self.state().rules.push(rule);
    }

    /// Forgets all scripted faults (held operations stay held).
    pub fn clear_script(&self) {
        self.state().rules.clear();
    }

    /// Lets the oldest held operation take effect now; `false` if none is held.
    pub fn release_next(&self) -> bool {
        let mut state = self.state();
        let Some(effect) = state.held.pop_front() else {
            return false;
        };
        effect(&mut state);
        true
    }

    /// Operations held at the moment.
    pub fn held(&self) -> usize {
        self.state().held.len()
    }

    /// Refuses puts with `Full` once the objects' bytes would exceed this.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// Flips one byte of a stored object (rot at rest); `false` if there is no such byte.
    pub fn rot(&self, key: &ObjectKey, at: usize) -> bool {
        let mut state = self.state();
        let Some(body) = state.objects.get_mut(key.as_str()).filter(|b| at < b.len()) else {
            return false;
        };
        *body = flipped(body, at);
        true
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// How often an operation was started.
    pub fn count(&self, operation: Operation) -> u64 {
        let name = operation.name();
        self.state().counts.get(name).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `effect` under the scripted faults of this operation.
    fn run<T: Bend + Send + 'static>(
        &self,
        operation: Operation,
        key: &str,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let (shared, key) = (self.clone(), key.to_owned());
        Box::pin(async move {
            let begun = shared.state().begin(operation, &key, effect);
            match begun {
                Begun::Ready(result) => result,
                Begun::Held(receiver) => receiver.await.unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Transient, "the backend went away"))
                }),
            }
        })
    }
}

enum Begun<T> {
    Ready(Result<T>),
    Held(oneshot::Receiver<Result<T>>),
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Get => "get",
            Self::GetRange => "get_range",
            Self::Head => "head",
            Self::List => "list",
            Self::Put => "put",
            Self::PutIfAbsent => "put_if_absent",
        }
    }
}

impl State {
    fn begin<T: Bend + Send + 'static>(
        &mut self,
        operation: Operation,
        key: &str,
        effect: impl FnOnce(&mut Self) -> Result<T> + Send + 'static,
    ) -> Begun<T> {
        let name = operation.name();
        *self.counts.entry(name).or_default() += 1;
        let fail = |kind, when| {
            let message = format!("scripted fault {when} {name} of {key}");
            Err(Error::new(kind, message))
        };
        Begun::Ready(match self.fault_of(operation, key) {
            None => effect(self),
            Some(Fault::FailBefore(kind)) => fail(kind, "before"),
            Some(Fault::FailAfter(kind)) => {
                let _lost = effect(self);
                fail(kind, "after")
            }
            Some(Fault::CorruptByte(at)) => effect(self).map(|value| value.corrupted(at)),
            Some(Fault::Truncate(len)) => effect(self).map(|value| value.truncated(len)),
            Some(Fault::Hold) => {
                let (sender, receiver) = oneshot::channel();
                self.held.push_back(Box::new(move |state| {
                    // The caller may be gone; the effect stands all the same.
                    let _gone = sender.send(effect(state));
                }));
                return Begun::Held(receiver);
            }
        })
    }

    /// The fault of this call, counting it against the first rule that matches.
    fn fault_of(&mut self, operation: Operation, key: &str) -> Option<Fault> {
        let matches = |rule: &FaultRule| {
            rule.times > 0
                && rule.operation.is_none_or(|wanted| wanted == operation)
                && key.contains(&rule.key_contains)
        };
        let rule = self.rules.iter_mut().find(|rule| matches(rule))?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault)
    }

    fn store(&mut self, key: String, body: Bytes) -> Result<()> {
        let replaced = self.objects.get(&key).map_or(0, Bytes::len);
        let used = || self.objects.values().map(Bytes::len).sum::<usize>();
        let fits = |capacity| (used() - replaced + body.len()) as u64 <= capacity;
        if !self.capacity_bytes.is_none_or(fits) {
            return Err(Error::new(
                ErrorKind::Full,
                format!("no room in memory for {key}"),
            ));
        }
        self.objects.insert(key, body);
        Ok(())
    }

    fn fetch(&self, key: &str) -> Result<&Bytes> {
        self.objects
            .get(key)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no object {key}")))
    }
}

impl Backend for MemBackend {
    fn put_if_absent<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<Put>> {
        let name = key.to_string();
        self.run(Operation::PutIfAbsent, key.as_str(), move |state| {
            if state.objects.contains_key(&name) {
                return Ok(Put::Exists);
            }
            state.store(name, body).map(|()| Put::Created)
        })
    }

    fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>> {
        let name = key.to_string();
        self.run(Operation::Put, key.as_str(), move |state| {
            state.store(name, body)
        })
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
        let name = key.to_string();
        self.run(Operation::Get, key.as_str(), move |state| {
            state.fetch(&name).cloned()
        })
    }

    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>> {
        let name = key.to_string();
        self.run(Operation::GetRange, key.as_str(), move |state| {
            let body = state.fetch(&name)?;
            match offset.checked_add(len) {
                Some(end) if end <= body.len() as u64 => {
                    Ok(body.slice(offset as usize..end as usize))
                }
                _ => Err(super::too_short(&name, offset, len, body.len() as u64)),
            }
        })
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
        let name = key.to_string();
        self.run(Operation::Head, key.as_str(), move |state| {
            Ok(state.objects.get(&name).map(|body| body.len() as u64))
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let wanted = prefix.to_owned();
        // Whichever comes later: the prefix itself, or what was listed before.
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.to_owned()),
            _ => Bound::Included(prefix.to_owned()),
        };
        self.run(Operation::List, prefix, move |state| {
            let objects = state.objects.range((from, Bound::Unbounded));
            let listed = objects
                .take_while(|(key, _)| key.starts_with(&wanted))
                .take(max)
                .map(|(key, body)| Listed {
                    key: key.clone(),
                    bytes: body.len() as u64,
                });
            Ok(listed.collect())
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
        let name = key.to_string();
        self.run(Operation::Delete, key.as_str(), move |state| {
            state.objects.remove(&name);
            Ok(())
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Probe>> {
        Box::pin(async {
            Ok(Probe {
                conditional_writes: ConditionalWrites::CreateOnly,
                notes: vec!["objects are lost when the process ends".to_owned()],
            })
        })
    }

    fn describe(&self) -> String {
        "mem: (objects in memory, lost when the process ends)".to_owned()
    }
}

/// How a result is bent by a fault on the way back; only bodies are.
trait Bend: Sized {
    fn corrupted(self, _at: usize) -> Self {
        self
    }

    fn truncated(self, _len: usize) -> Self {
        self
    }
}

impl Bend for Bytes {
    fn corrupted(self, at: usize) -> Self {
        match self.len().checked_sub(1) {
            Some(last) => flipped(&self, at.min(last)),
            None => self,
        }
    }

    fn truncated(mut self, len: usize) -> Self {
        self.truncate(len);
        self
    }
}

impl Bend for () {}
impl Bend for Put {}
impl Bend for Option<u64> {}
impl Bend for Vec<Listed> {}

fn flipped(body: &Bytes, at: usize) -> Bytes {
    let mut copy = body.to_vec();
    copy[at] ^= 0x10;
    Bytes::from(copy)
}
