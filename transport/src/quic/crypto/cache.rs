//! What packet keys expand to, for as many of them as are in use: a bounded cache per thread.
//!
//! An expanded key is ten times the size of the key and takes a quarter of a microsecond to make. So a thread keeps
//! [`CAPACITY`] of them, whatever the number of connections: the keys of a thousand busy ones stay expanded, idle ones
//! hold nothing, and where more are busy than fit, some packets cost that quarter more. No clock and no timer:
//! what is not used is displaced, or goes with its key.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aws_lc_rs::aead::LessSafeKey;
use aws_lc_rs::aead::quic::HeaderProtectionKey;

/// An expanded key.
pub(super) enum Context {
    Packet(LessSafeKey),
    // Boxed: it is large, and slots move when their table grows.
    Header(Box<HeaderProtectionKey>),
}

/// Where one key's context is, if anywhere.
#[derive(Default)]
pub(super) struct Place {
    /// Unlike any other key's; 0 until it is first used.
    id: AtomicU64,
    /// Where it was last. The id there says whether it still is.
    slot: AtomicU32,
}

impl Place {
    /// Applies to the key's context, which `build` makes where there is none. A key that several threads use has a
    /// context on each.
    pub(super) fn with<R>(&self, build: impl FnOnce() -> Context, apply: impl FnOnce(&Context) -> R) -> R {
        CACHE.with_borrow_mut(|cache| {
            let mut id = self.id.load(Ordering::Relaxed);
            if id == 0 {
                // Two threads at once: the later id stays, and the other thread's context is displaced some day.
                id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
                self.id.store(id, Ordering::Relaxed);
            }
            let mut index = self.slot.load(Ordering::Relaxed) as usize;
            if cache.slots.get(index).is_none_or(|slot| slot.id != id) {
                index = cache.insert(id, build());
                self.slot.store(index as u32, Ordering::Relaxed);
            }
            apply(cache.slots[index].context.as_ref().expect("a slot with an id has a context"))
        })
    }
}

impl Drop for Place {
    /// Frees the slot, where that is on this thread.
    fn drop(&mut self) {
        let (id, index) = (*self.id.get_mut(), *self.slot.get_mut());
        if id != 0 {
            // Fails at the end of a thread, which takes its cache along.
            let _ended = CACHE.try_with(|cache| cache.borrow_mut().remove(id, index));
        }
    }
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::default();
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

#[derive(Default)]
struct Cache {
    /// At most [`CAPACITY`].
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Picks who makes room. By chance and not by age: under a fan-out that goes round more keys than fit, the oldest
    /// is the very one that is needed next.
    chance: u32,
}

struct Slot {
    /// 0: free.
    id: u64,
    context: Option<Context>,
}

impl Cache {
    fn insert(&mut self, id: u64, context: Context) -> usize {
        let slot = Slot { id, context: Some(context) };
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None if self.slots.len() < CAPACITY => {
                self.slots.push(slot);
                return self.slots.len() - 1;
            }
            None => {
                // Knuth's MMIX-like step; its high bits are the good ones.
                self.chance = self.chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (self.chance >> 8) as usize % CAPACITY
            }
        };
        self.slots[index] = slot;
        index
    }

    fn remove(&mut self, id: u64, index: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize)
            && slot.id == id
        {
            *slot = Slot { id: 0, context: None };
            self.free.push(index);
        }
    }
}

/// Contexts of one thread, 2.5 MiB in all. A busy connection has four: packet and header, in and out.
const CAPACITY: usize = 4096;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use aws_lc_rs::aead::{AES_128_GCM, UnboundKey};

    use super::*;

    fn context() -> Context {
        Context::Packet(LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[1; 16]).unwrap()))
    }

    /// Runs in a thread of its own: another test may share this one's cache.
    fn on_a_thread(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    fn len() -> usize {
        CACHE.with_borrow(|cache| cache.slots.iter().filter(|slot| slot.context.is_some()).count())
    }

    #[test]
    fn a_key_in_use_is_expanded_once() {
        on_a_thread(|| {
            let place = Place::default();
            let built = Cell::new(0);
            for _ in 0..3 {
                place.with(
                    || {
                        built.set(built.get() + 1);
                        context()
                    },
                    |_| (),
                );
            }
            assert_eq!((built.get(), len()), (1, 1));
        });
    }

    #[test]
    fn what_is_dropped_makes_room() {
        on_a_thread(|| {
            for _ in 0..3 * CAPACITY {
                Place::default().with(context, |_| ());
            }
            assert_eq!(len(), 0);
            assert_eq!(CACHE.with_borrow(|cache| cache.slots.len()), 1);
        });
    }

    #[test]
    fn there_is_a_bound_and_displaced_keys_still_work() {
        on_a_thread(|| {
            let places: Vec<Place> = (0..CAPACITY + 500).map(|_| Place::default()).collect();
            let built = Cell::new(0);
            let build = || {
                built.set(built.get() + 1);
                context()
            };
            for place in places.iter().chain(&places) {
                place.with(build, |_| ());
            }
            assert_eq!(len(), CAPACITY);
            let again = built.get() - places.len();
            assert!((500..CAPACITY).contains(&again), "the second round built {again} anew");
            // A key whose slot is another's by now frees nothing.
            drop(places);
            assert_eq!(len(), 0);
        });
    }

    #[test]
    fn each_thread_has_its_own() {
        on_a_thread(|| {
            let place = Place::default();
            place.with(context, |_| ());
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    assert_eq!(len(), 0);
                    place.with(context, |_| ());
                    assert_eq!(len(), 1);
                });
            });
            place.with(|| unreachable!("still there"), |_| ());
        });
    }
}
