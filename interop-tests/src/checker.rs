//! Proves a run correct, or says precisely where it was not: who published what and was told what, what each subscriber
//! was brought, what history holds in the end.
//!
//! [`History`] takes everything down as it happens, compactly: what was seen at a position is kept once for all
//! subscribers, and of each subscriber only from where to where it got. [`History::report`] then says that
//!
//! - what was acknowledged reached everybody who was subscribed, unless they were told that something was missed, and is
//!   in history still;
//! - all subscribers of a channel got the same publications, in the order of their offsets, none twice, none left out
//!   without a word;
//! - a position holds one publication for ever, and an epoch is left only by saying so;
//! - a payload is stored once, however often its publish was repeated with its key, and never where it was refused;
//!
//! or what of this does not hold ([`Kind`]), with the first few cases of each. [`Recorder`] fills a history from clients.

mod history;
mod numbering;
mod record;
mod report;
mod verdict;

#[cfg(test)]
mod plants;

pub use history::{Attempt, Begun, History, Outcome, View};
pub use record::{Load, Observer, Reader, Recorder, Writer, payload, payload_id};
pub use report::{Bounds, Kind, Report, Violation};
