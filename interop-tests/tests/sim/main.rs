//! Simulations: no socket, no clock, one seed. `TIDEGATE_SEED` replays the seed that a failure printed as SEED=..

mod lab;
mod moving;
mod session;
mod storm;
