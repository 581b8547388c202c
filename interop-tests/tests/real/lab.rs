//! The link laboratory measured from outside: what programs inside see is what the model says.

mod model;
mod path;
mod probe;
mod programs;
