//! What happens next: a virtual clock and a heap.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use tidegate_transport::clock;

/// Things to come, by time; of the same moment in the order in which they were put down.
#[derive(Debug)]
pub(super) struct Agenda<E> {
    base: Instant,
    micros: u64,
    next: u64,
    heap: BinaryHeap<Entry<E>>,
}

#[derive(Debug)]
struct Entry<E> {
    micros: u64,
    number: u64,
    event: E,
}

impl<E> Agenda<E> {
    pub(super) fn new() -> Self {
        Self { base: clock::now(), micros: 0, next: 0, heap: BinaryHeap::new() }
    }

    /// Now, as machines take it.
    pub(super) fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.micros)
    }

    /// Since the beginning.
    pub(super) fn micros(&self) -> u64 {
        self.micros
    }

    pub(super) fn seconds(&self) -> f64 {
        self.micros as f64 / 1e6
    }

    /// Since the beginning, of an instant that a machine named.
    pub(super) fn micros_of(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.base).as_micros() as u64
    }

    pub(super) fn after(&mut self, delay: Duration, event: E) {
        self.at(self.micros + delay.as_micros() as u64, event);
    }

    pub(super) fn at(&mut self, micros: u64, event: E) {
        self.next += 1;
        self.heap.push(Entry { micros: micros.max(self.micros), number: self.next, event });
    }

    /// The next event; the clock goes there.
    pub(super) fn pop(&mut self) -> Option<E> {
        let entry = self.heap.pop()?;
        self.micros = entry.micros;
        Some(entry.event)
    }
}

impl<E> Ord for Entry<E> {
    /// The earliest is the greatest: the heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.micros, other.number).cmp(&(self.micros, self.number))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}
