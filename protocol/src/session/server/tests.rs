//! Sans-io: the machine driven by hand.
