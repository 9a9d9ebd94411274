//! Loom's model of the sleep flag: the same code, built of loom's atomics.

mod sync {
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

// The point of this file: the same protocol over other atomics.
#[allow(clippy::duplicate_mod, unreachable_pub)]
#[path = "sleep_flag.rs"]
mod sleep_flag;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use sleep_flag::SleepFlag;

#[test]
fn no_message_is_slept_through() {
    loom::model(|| {
        let flag = Arc::new(SleepFlag::awake());
        let inbox = Arc::new(AtomicUsize::new(0));
        let (sender_flag, sender_inbox) = (Arc::clone(&flag), Arc::clone(&inbox));
        let sender = loom::thread::spawn(move || {
            // The queue's own ordering is at least this.
            sender_inbox.store(1, Ordering::Release);
            sender_flag.must_wake()
        });
        flag.prepare();
        let seen = inbox.load(Ordering::Acquire) == 1;
        let woken = sender.join().unwrap();
        flag.clear();
        assert!(seen || woken, "the core sleeps with a message in its inbox");
    });
}
