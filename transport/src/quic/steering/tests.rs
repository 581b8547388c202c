//! The program against the rule, in an interpreter of its own; the kernel's is in `group.rs`.

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::quic::ids::{Place, Routing, encode};

/// What a classic BPF program answers for a datagram, as the kernel would: 0 where it reads beyond the end.
fn run(program: &[Instruction], data: &[u8]) -> usize {
    let (mut a, mut x, mut memory) = (0_u32, 0_u32, [0_u32; 16]);
    let load = |at: usize, bytes: usize| {
        let read = data.get(at..at + bytes)?;
        Some(read.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    };
    let mut next = 0;
    loop {
        let (code, holds, fails, k) = program[next];
        next += 1;
        let jump = |condition| usize::from(if condition { holds } else { fails });
        let at_x = x.wrapping_add(k) as usize;
        let loaded = match code {
            LOAD_BYTE => load(k as usize, 1),
            LOAD_BYTE_AT_X => load(at_x, 1),
            LOAD_HALF_AT_X => load(at_x, 2),
            LOAD_WORD_AT_X => load(at_x, 4),
            _ => Some(a),
        };
        match loaded {
            Some(value) => a = value,
            None => return 0,
        }
        match code {
            LOAD => a = k,
            LOAD_X => x = k,
            LOAD_LENGTH => a = data.len() as u32,
            LOAD_STORED => a = memory[k as usize],
            LOAD_X_STORED => x = memory[k as usize],
            STORE => memory[k as usize] = a,
            COPY_TO_X => x = a,
            ADD => a = a.wrapping_add(k),
            MULTIPLY => a = a.wrapping_mul(k),
            MODULO => a %= k,
            AND => a &= k,
            SHIFT_RIGHT => a >>= k,
            XOR => a ^= k,
            XOR_X => a ^= x,
            JUMP_IF_SET => next += jump(a & k != 0),
            JUMP_IF_EQUAL => next += jump(a == k),
            JUMP_IF_EQUAL_X => next += jump(a == x),
            JUMP_IF_AT_LEAST => next += jump(a >= k),
            RETURN => return a as usize,
            LOAD_BYTE | LOAD_BYTE_AT_X | LOAD_HALF_AT_X | LOAD_WORD_AT_X => {}
            other => panic!("{other:#x} is none of ours"),
        }
    }
}

/// Processes that came and went: for each, its workers, and whether the one before it has ended.
fn steering(history: &[(usize, bool)], seed: u64) -> Steering {
    let mut steering = Steering::new(history[0].0, IdKey(seed as u32)).unwrap();
    for (workers, ended) in &history[1..] {
        let before = steering.serving().generation;
        if let Ok(joined) = steering.joined(*workers) {
            steering = joined;
        }
        if *ended {
            steering = steering.without(before);
        }
    }
    steering
}

#[test]
fn worker_counts_out_of_range_are_refused() {
    for workers in [0, MAX_WORKERS + 1, 256, 1000] {
        assert_eq!(Steering::new(workers, IdKey(1)), Err(SteeringError::Workers(workers)));
        assert_eq!(steering(&[(1, false)], 1).joined(workers), Err(SteeringError::Workers(workers)));
    }
}

#[test]
fn a_process_takes_the_sockets_that_another_left_behind() {
    let first = steering(&[(4, false)], 1);
    let second = first.joined(3).unwrap();
    assert_eq!(second.serving(), WorkerSet { generation: 1, first: 4, workers: 3 });
    let third = second.without(0).joined(4).unwrap();
    assert_eq!(third.serving(), WorkerSet { generation: 2, first: 0, workers: 4 });
    // Five do not fit into the four at the beginning, and the second process is still there.
    let wider = second.without(0).joined(5).unwrap();
    assert_eq!(wider.serving(), WorkerSet { generation: 2, first: 7, workers: 5 });
    assert_eq!(wider.members(), 12);
}

#[test]
fn there_are_as_many_processes_as_generations_and_the_serving_one_is_never_forgotten() {
    let mut all = steering(&[(2, false), (2, false), (2, false), (2, false)], 1);
    assert_eq!(all.sets().len(), usize::from(GENERATIONS));
    assert_eq!(all.joined(2), Err(SteeringError::Full));
    all = all.without(1);
    assert_eq!(all.joined(2).unwrap().serving(), WorkerSet { generation: 1, first: 2, workers: 2 });
    assert_eq!(all.without(3), all);
}

#[test]
fn descriptions_that_cannot_be_are_refused() {
    let set = |generation, first, workers| WorkerSet { generation, first, workers };
    for sets in [
        vec![],
        vec![set(4, 0, 1)],
        vec![set(0, 0, 0)],
        vec![set(0, 0, 65)],
        vec![set(0, 1020, 8)],
        vec![set(0, u16::MAX, 8)],
        vec![set(0, 0, 2), set(0, 2, 2)],
        vec![set(0, 0, 2), set(1, 1, 2)],
    ] {
        assert!(Steering::of(IdKey(1), sets.clone()).is_err(), "{sets:?}");
    }
    let good = steering(&[(3, false), (5, false)], 1);
    assert_eq!(Steering::of(good.key(), good.sets().to_vec()), Ok(good));
}

proptest! {
    #[test]
    fn the_program_answers_as_the_rule_does(
        history in proptest::collection::vec((1..=MAX_WORKERS, any::<bool>()), 1..8),
        seed: u64,
        noise in proptest::collection::vec(any::<u8>(), 0..64),
        generation in 0..GENERATIONS,
        worker in 0..MAX_WORKERS as u8,
        routable: bool,
    ) {
        let steering = steering(&history, seed);
        let program = steering.program();
        prop_assert_eq!(run(&program, &noise), steering.socket_of(&noise));
        let routing = routable.then(|| Routing::new(3, b"edge1", [7; 16]).unwrap());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let place = Place { generation, worker };
        let (id, length) = encode(steering.key(), place, routing.as_ref(), &mut rng);
        for header in [&[0x43][..], &[0xe3, 0, 0, 0, 1, length as u8], &[0xc3, 0, 0, 0, 1, 8]] {
            let datagram = [header, &id[..length], &[0; 20]].concat();
            let answer = run(&program, &datagram);
            prop_assert_eq!(answer, steering.socket_of(&datagram));
            prop_assert!(answer < steering.members());
            let ours = header.len() == 1 || header[5] != 8;
            match steering.sets().iter().find(|set| set.generation == generation) {
                Some(set) if ours && worker < set.workers => {
                    prop_assert_eq!(answer, usize::from(set.first) + usize::from(worker));
                }
                Some(_) if ours => {}
                // Nobody's: the process that serves says so to the client.
                _ => {
                    let serving = steering.serving();
                    let range = usize::from(serving.first)..usize::from(serving.end());
                    prop_assert!(range.contains(&answer), "{} is not in {:?}", answer, range);
                }
            }
        }
    }
}
