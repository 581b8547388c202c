//! quinn endpoints, both sides.
