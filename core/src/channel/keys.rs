//! Sans-io: the idempotency keys of one channel.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::Offset;

/// Keys that were published lately, and what became of them. Bounded by age and count: the oldest go first.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    offsets: HashMap<Arc<str>, Offset>,
    by_age: VecDeque<(u64, Arc<str>)>,
}

impl Keys {
    /// The offset that `key` was stored with, if it is still remembered.
    pub(crate) fn find(&self, key: &str) -> Option<Offset> {
        self.offsets.get(key).copied()
    }

    /// Remembers a key that is not remembered yet; `limit` of at least 1 is how many are kept.
    pub(crate) fn remember(&mut self, key: &str, offset: Offset, unix_ms: u64, limit: usize) {
        while self.by_age.len() >= limit.max(1) {
            self.drop_oldest();
        }
        let key: Arc<str> = Arc::from(key);
        self.by_age.push_back((unix_ms, Arc::clone(&key)));
        self.offsets.insert(key, offset);
    }

    /// Forgets what is as old as `age`.
    pub(crate) fn expire(&mut self, unix_ms: u64, age: Duration) {
        while self
            .by_age
            .front()
            .is_some_and(|(at, _)| u128::from(unix_ms.saturating_sub(*at)) >= age.as_millis())
        {
            self.drop_oldest();
        }
    }

    /// True where none is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }

    fn drop_oldest(&mut self) {
        if let Some((_, key)) = self.by_age.pop_front() {
            self.offsets.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_list(limit in 1usize..5, steps in prop::collection::vec((0u64..40, 0u8..8), 0..60)) {
            let age = Duration::from_millis(100);
            let (mut keys, mut model, mut now) = (Keys::default(), Vec::<(u64, String, u64)>::new(), 0);
            for (offset, (wait, key)) in (1..).zip(steps) {
                now += wait;
                keys.expire(now, age);
                model.retain(|(at, ..)| now - at < 100);
                let key = key.to_string();
                let found = model.iter().find(|(_, k, _)| *k == key).map(|(.., o)| Offset(*o));
                prop_assert_eq!(keys.find(&key), found);
                if found.is_none() {
                    keys.remember(&key, Offset(offset), now, limit);
                    model.push((now, key, offset));
                    let over = model.len().saturating_sub(limit);
                    model.drain(..over);
                }
                prop_assert_eq!(keys.is_empty(), model.is_empty());
                prop_assert_eq!(keys.offsets.len(), model.len());
            }
        }
    }
}
