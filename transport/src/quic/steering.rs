//! Sans-io: which socket of a port a datagram belongs to, and the program that tells the kernel.
//!
//! All sockets of a port are one group (`SO_REUSEPORT`), in the order in which they were bound: each worker of each
//! process that shares the port has one. A classic BPF program on the group reads the place off the destination
//! connection id ([`super::ids`]) and answers with the socket's number, so that a connection stays at its worker when the
//! client's address changes (RFC 9000 §9), and at its process while another takes over. What carries no id of ours is a
//! client's first packet, or lost: it goes to the process that serves, and spreads over its workers.

use super::ids::{
    FACTORS, GENERATIONS, IdKey, LONG, LONG_HEADER, SHORT, TAIL, UNROUTABLE, WORD, WORKER_BITS,
    place_in_datagram,
};

/// The processes of a port and their sockets. All of them know the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steering {
    key: IdKey,
    /// Never empty. The last one serves; those before it still have connections.
    sets: Vec<WorkerSet>,
}

/// The sockets of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerSet {
    /// Of the process.
    pub generation: u8,
    /// The number of its first socket in the group.
    pub first: u16,
    /// How many it has: one for each worker.
    pub workers: u8,
}

/// Why sockets cannot be steered so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SteeringError {
    /// No worker, or more than one byte of a connection id can name.
    #[error("{0} workers: between 1 and {MAX_WORKERS} can share a UDP port")]
    Workers(usize),
    /// Every generation has its process.
    #[error("{GENERATIONS} processes share the port already: those before this one have yet to end")]
    Full,
    /// A generation or number out of range, or two of the same.
    #[error("the sockets of a port are described in a way that cannot be")]
    Malformed,
}

/// The most workers that share a port.
pub const MAX_WORKERS: usize = 1 << WORKER_BITS;

impl Steering {
    /// For the first process, with `workers` workers.
    ///
    /// # Errors
    /// When `workers` is 0 or over [`MAX_WORKERS`].
    pub fn new(workers: usize, key: IdKey) -> Result<Self, SteeringError> {
        let set = WorkerSet { generation: 0, first: 0, workers: worker_count(workers)? };
        Ok(Self { key, sets: vec![set] })
    }

    /// As another process described it, by [`Steering::key`] and [`Steering::sets`].
    ///
    /// # Errors
    /// When that cannot be.
    pub fn of(key: IdKey, sets: Vec<WorkerSet>) -> Result<Self, SteeringError> {
        if sets.is_empty() {
            return Err(SteeringError::Malformed);
        }
        for (index, set) in sets.iter().enumerate() {
            worker_count(usize::from(set.workers))?;
            let others = &sets[..index];
            let twice = others.iter().any(|other| other.generation == set.generation || other.overlaps(set));
            if twice || set.generation >= GENERATIONS || set.end() > MAX_MEMBERS {
                return Err(SteeringError::Malformed);
            }
        }
        Ok(Self { key, sets })
    }

    /// With one process more, which serves from now on. It takes the first numbers that nobody has: of sockets that
    /// processes left behind where there are some.
    ///
    /// # Errors
    /// When `workers` is out of range, or there are as many processes as can be.
    pub fn joined(&self, workers: usize) -> Result<Self, SteeringError> {
        let workers = worker_count(workers)?;
        let last = self.serving().generation;
        let generation = (1..GENERATIONS)
            .map(|step| (last + step) % GENERATIONS)
            .find(|generation| self.sets.iter().all(|set| set.generation != *generation))
            .ok_or(SteeringError::Full)?;
        let free = |first: &u16| {
            let set = WorkerSet { generation, first: *first, workers };
            self.sets.iter().all(|other| !other.overlaps(&set))
        };
        let mut firsts: Vec<u16> = self.sets.iter().map(WorkerSet::end).collect();
        firsts.push(0);
        firsts.sort_unstable();
        let first = firsts.into_iter().find(free).ok_or(SteeringError::Malformed)?;
        let mut sets = self.sets.clone();
        sets.push(WorkerSet { generation, first, workers });
        Ok(Self { key: self.key, sets })
    }

    /// Without the processes before: they have ended.
    #[must_use]
    pub fn without(&self, generation: u8) -> Self {
        let serving = self.serving();
        let keep = |set: &&WorkerSet| set.generation != generation || **set == serving;
        Self { key: self.key, sets: self.sets.iter().filter(keep).copied().collect() }
    }

    /// What masks places.
    pub fn key(&self) -> IdKey {
        self.key
    }

    /// All processes; the last one serves.
    pub fn sets(&self) -> &[WorkerSet] {
        &self.sets
    }

    /// The process that serves.
    pub fn serving(&self) -> WorkerSet {
        *self.sets.last().expect("never empty")
    }

    /// Sockets that the group must have.
    pub fn members(&self) -> usize {
        self.sets.iter().map(|set| usize::from(set.end())).max().unwrap_or(0)
    }

    /// The number of the socket that a datagram belongs to: what the program says.
    pub fn socket_of(&self, datagram: &[u8]) -> usize {
        let known = || {
            // What is shorter is no packet of QUIC.
            let place = place_in_datagram(self.key, datagram.get(..LEAST)?)?;
            let set = self.sets.iter().find(|set| set.generation == place.generation)?;
            Some(usize::from(set.first) + usize::from(place.worker % set.workers))
        };
        let serving = self.serving();
        known().unwrap_or_else(|| {
            let byte = match datagram.get(..LEAST) {
                Some(datagram) if datagram[0] & LONG_HEADER != 0 => datagram[SPREAD_LONG as usize],
                Some(datagram) => datagram[SPREAD_SHORT as usize],
                None => 0,
            };
            usize::from(serving.first) + usize::from(byte % serving.workers)
        })
    }

    /// The classic BPF program. Its data begin at the UDP payload: a long header has flags, version, length of the
    /// id, id (RFC 9000 §17.2); a short one flags, id (§17.3).
    pub(crate) fn program(&self) -> Vec<Instruction> {
        let mut program = Program::default();
        let (short_header, long_header) = (program.label(), program.label());
        let (routable, unroutable) = (program.label(), program.label());
        let (read, foreign, stray) = (program.label(), program.label(), program.label());

        // Nothing below reads beyond this, so that nothing ends the program early: with 0, the first socket.
        program.push(LOAD_LENGTH, 0);
        program.branch(JUMP_IF_AT_LEAST, LEAST as u32, Target::Next, Target::Label(stray));
        program.push(LOAD_BYTE, 0);
        let header = (Target::Label(long_header), Target::Label(short_header));
        program.branch(JUMP_IF_SET, u32::from(LONG_HEADER), header.0, header.1);

        // A: the byte by which foreign ids spread, kept; X: where the hashed word is.
        program.place(long_header);
        program.push(LOAD_BYTE, SPREAD_LONG);
        program.push(STORE, SPREAD);
        program.push(LOAD_BYTE, 6);
        program.push(AND, 0xe0);
        let kind = (Target::Label(unroutable), Target::Label(routable));
        program.branch(JUMP_IF_EQUAL, u32::from(UNROUTABLE) << 5, kind.0, kind.1);
        program.place(unroutable);
        program.push(LOAD_BYTE, 5);
        program.push(LOAD_X, 6 + word(SHORT));
        program.branch(JUMP_IF_EQUAL, SHORT as u32, Target::Label(read), Target::Label(foreign));
        program.place(routable);
        program.push(LOAD_BYTE, 5);
        program.push(LOAD_X, 6 + word(LONG));
        program.branch(JUMP_IF_EQUAL, LONG as u32, Target::Label(read), Target::Label(foreign));

        program.place(short_header);
        program.push(LOAD_BYTE, SPREAD_SHORT);
        program.push(STORE, SPREAD);
        program.push(LOAD_BYTE, 1);
        program.push(AND, 0xe0);
        program.push(LOAD_X, 1 + word(SHORT));
        program.branch(JUMP_IF_EQUAL, u32::from(UNROUTABLE) << 5, Target::Label(read), Target::Next);
        program.push(LOAD_X, 1 + word(LONG));

        program.place(read);
        program.push(LOAD_HALF_AT_X, WORD as u32 + 1);
        program.push(STORE, CHECK);
        program.push(LOAD_BYTE_AT_X, WORD as u32);
        program.push(STORE, PLACE);
        program.push(LOAD_WORD_AT_X, 0);
        program.push(XOR, self.key.0);
        program.push(MULTIPLY, FACTORS[0]);
        program.push(COPY_TO_X, 0);
        program.push(SHIFT_RIGHT, 15);
        program.push(XOR_X, 0);
        program.push(MULTIPLY, FACTORS[1]);
        program.push(STORE, HASH);
        program.push(SHIFT_RIGHT, 16);
        program.push(LOAD_X_STORED, CHECK);
        program.branch(JUMP_IF_EQUAL_X, 0, Target::Next, Target::Label(foreign));
        program.push(LOAD_STORED, HASH);
        program.push(SHIFT_RIGHT, 8);
        program.push(AND, 0xff);
        program.push(LOAD_X_STORED, PLACE);
        program.push(XOR_X, 0);
        program.push(STORE, PLACE);

        for set in &self.sets {
            let other = program.label();
            program.push(LOAD_STORED, PLACE);
            program.push(SHIFT_RIGHT, u32::from(WORKER_BITS));
            program.branch(JUMP_IF_EQUAL, u32::from(set.generation), Target::Next, Target::Label(other));
            program.push(LOAD_STORED, PLACE);
            program.push(AND, MAX_WORKERS as u32 - 1);
            program.answer(*set);
            program.place(other);
        }

        program.place(foreign);
        program.push(LOAD_STORED, SPREAD);
        program.answer(self.serving());
        program.place(stray);
        program.push(LOAD, 0);
        program.answer(self.serving());
        program.finish()
    }
}

impl WorkerSet {
    /// Behind its last number.
    fn end(&self) -> u16 {
        self.first.saturating_add(u16::from(self.workers))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }
}

fn worker_count(workers: usize) -> Result<u8, SteeringError> {
    match u8::try_from(workers) {
        Ok(count @ 1..) if workers <= MAX_WORKERS => Ok(count),
        _ => Err(SteeringError::Workers(workers)),
    }
}

/// Where the hashed word of an id of such a length is in it.
fn word(length: usize) -> u32 {
    (length - TAIL - WORD) as u32
}

/// `code, jt, jf, k` of a classic BPF instruction.
pub(crate) type Instruction = (u16, u8, u8, u32);

/// A program under way, with names for places in it. Jumps go forward only, and not far.
#[derive(Default)]
struct Program {
    instructions: Vec<Instruction>,
    /// By label: where it is.
    labels: Vec<usize>,
    /// Jumps: of which instruction, where to when it holds and when not.
    jumps: Vec<(usize, Target, Target)>,
}

#[derive(Clone, Copy)]
enum Target {
    Next,
    Label(usize),
}

impl Program {
    fn label(&mut self) -> usize {
        self.labels.push(usize::MAX);
        self.labels.len() - 1
    }

    /// The label is here.
    fn place(&mut self, label: usize) {
        self.labels[label] = self.instructions.len();
    }

    fn push(&mut self, code: u16, value: u32) {
        self.instructions.push((code, 0, 0, value));
    }

    fn branch(&mut self, code: u16, value: u32, holds: Target, fails: Target) {
        self.jumps.push((self.instructions.len(), holds, fails));
        self.push(code, value);
    }

    /// The socket of the set that the accumulator names.
    fn answer(&mut self, set: WorkerSet) {
        self.push(MODULO, u32::from(set.workers));
        self.push(ADD, u32::from(set.first));
        self.push(RETURN, 0);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (from, holds, fails) in self.jumps {
            let distance = |target| match target {
                Target::Next => 0,
                Target::Label(label) => {
                    let distance = self.labels[label].checked_sub(from + 1);
                    distance.and_then(|distance| u8::try_from(distance).ok()).expect("forward, and near")
                }
            };
            let (holds, fails) = (distance(holds), distance(fails));
            (self.instructions[from].1, self.instructions[from].2) = (holds, fails);
        }
        self.instructions
    }
}

/// Bytes of the shortest datagram that is looked at: a long header and the longest id. QUIC's own are longer.
const LEAST: usize = 6 + LONG;
/// In a group, dead sockets included.
const MAX_MEMBERS: u16 = 1024;
/// Bytes of ids by which those of clients spread over the workers: the second one each.
const SPREAD_LONG: u32 = 7;
const SPREAD_SHORT: u32 = 2;

/// The program's own memory.
const SPREAD: u32 = 0;
const CHECK: u32 = 1;
const PLACE: u32 = 2;
const HASH: u32 = 3;

const LOAD: u16 = 0x00;
const LOAD_X: u16 = 0x01;
const STORE: u16 = 0x02;
const ADD: u16 = 0x04;
const COPY_TO_X: u16 = 0x07;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x16;
const JUMP_IF_EQUAL_X: u16 = 0x1d;
const MULTIPLY: u16 = 0x24;
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const LOAD_WORD_AT_X: u16 = 0x40;
const JUMP_IF_SET: u16 = 0x45;
const LOAD_HALF_AT_X: u16 = 0x48;
const LOAD_BYTE_AT_X: u16 = 0x50;
const AND: u16 = 0x54;
const LOAD_STORED: u16 = 0x60;
const LOAD_X_STORED: u16 = 0x61;
const SHIFT_RIGHT: u16 = 0x74;
const LOAD_LENGTH: u16 = 0x80;
const MODULO: u16 = 0x94;
const XOR: u16 = 0xa4;
const XOR_X: u16 = 0xac;

#[cfg(test)]
mod tests;
