//! Bad input on every transport: it gets the documented answer, nobody else notices, memory stays bounded.

mod doors;
mod frames;
mod slow;
