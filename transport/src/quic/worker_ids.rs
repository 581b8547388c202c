//! Makes the connection ids of one worker.

use std::sync::Arc;
use std::time::Duration;

use quinn::ConnectionIdGenerator;
use quinn_proto::{ConnectionId, InvalidCid};
use rand_chacha::ChaCha8Rng;

use super::ids::{self, IdKey, Place, Routing};
use super::steering::Steering;

/// What the ids of a process have in common.
#[derive(Debug, Clone)]
pub(crate) struct IdScheme {
    key: IdKey,
    generation: u8,
    workers: u8,
    routing: Option<Arc<Routing>>,
}

impl IdScheme {
    /// Of the process that serves.
    pub(crate) fn new(steering: &Steering, routing: Option<Arc<Routing>>) -> Self {
        let serving = steering.serving();
        Self { key: steering.key(), generation: serving.generation, workers: serving.workers, routing }
    }

    pub(crate) fn key(&self) -> IdKey {
        self.key
    }

    /// Of a worker. Panics where there is none.
    pub(crate) fn place(&self, worker: usize) -> Place {
        assert!(worker < usize::from(self.workers), "worker {worker} of {}", self.workers);
        Place { generation: self.generation, worker: worker as u8 }
    }
}

/// Makes ids that name one worker.
pub(crate) struct WorkerIds {
    scheme: IdScheme,
    place: Place,
    rng: ChaCha8Rng,
}

impl WorkerIds {
    pub(crate) fn new(scheme: IdScheme, place: Place, rng: ChaCha8Rng) -> Self {
        Self { scheme, place, rng }
    }
}

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let routing = self.scheme.routing.as_deref();
        let (id, length) = ids::encode(self.scheme.key, self.place, routing, &mut self.rng);
        ConnectionId::new(&id[..length])
    }

    /// Whether a stateless reset may answer a packet with this id, where no connection has it: for what is ours and of no
    /// other worker. Of another process there is none that lives, or the packet had come there.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let place = ids::place(self.scheme.key, id).ok_or(InvalidCid)?;
        let here = place.generation != self.place.generation || place.worker == self.place.worker;
        if here { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        ids::length(self.scheme.routing.as_deref())
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::quic::MAX_WORKERS;

    #[test]
    fn ids_name_their_worker_and_no_other() {
        for workers in [1, 2, 5, MAX_WORKERS] {
            for routing in [None, Some(Arc::new(Routing::new(0, b"x", [1; 16]).unwrap()))] {
                let scheme = IdScheme::new(&Steering::new(workers, IdKey(3)).unwrap(), routing);
                let at = |worker| WorkerIds::new(scheme.clone(), scheme.place(worker), clock::rng());
                for worker in 0..workers {
                    let mut ids = at(worker);
                    for _ in 0..10 {
                        let id = ids.generate_cid();
                        assert_eq!(id.len(), ids.cid_len());
                        for other in 0..workers {
                            assert_eq!(at(other).validate(&id).is_ok(), other == worker, "{worker} {other}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn only_ids_of_ours_are_answered_by_a_reset_and_those_of_processes_that_ended_too() {
        let before = Steering::new(2, IdKey(3)).unwrap();
        let now = IdScheme::new(&before.joined(2).unwrap(), None);
        let ids = WorkerIds::new(now.clone(), now.place(1), clock::rng());
        let before = IdScheme::new(&before, None);
        let id = WorkerIds::new(before.clone(), before.place(0), clock::rng()).generate_cid();
        assert!(ids.validate(&id).is_ok());
        let foreign = IdScheme::new(&Steering::new(2, IdKey(4)).unwrap(), None);
        let id = WorkerIds::new(foreign.clone(), foreign.place(1), clock::rng()).generate_cid();
        assert!(ids.validate(&id).is_err());
    }
}
