//! Links between nodes: what the other node says.

use std::fmt::Debug;

use tidegate_protocol::link::drain::DrainFrame;
use tidegate_protocol::link::fleet::MAX_RELAY_BYTES;
use tidegate_protocol::link::lease::LeaseFrame;
use tidegate_protocol::link::wire::{Batch, LinkDecoder, LinkFrame};
use tidegate_protocol::link::{CoreFrame, EdgeFrame};

use crate::LIMIT;

/// What one edge sends another one about a drain.
pub fn lease_frame(input: &[u8]) {
    let Ok(frame) = LeaseFrame::decode(input) else { return };
    assert_eq!(LeaseFrame::decode(&frame.encode()).expect("what was encoded decodes"), frame);
}

/// What is said to an edge that is drained, and what it answers. Its frames are none of a lease.
pub fn drain_frame(input: &[u8]) {
    let Ok(frame) = DrainFrame::decode(input) else { return };
    let payload = frame.encode();
    assert!(payload.len() <= MAX_RELAY_BYTES, "{} bytes", payload.len());
    assert!(LeaseFrame::decode(&payload).is_err());
    let again = DrainFrame::decode(&payload).expect("what was encoded decodes");
    // A rate that is no number differs from itself.
    assert_eq!(format!("{again:?}"), format!("{frame:?}"));
}

/// One direction of a stream. The first byte says which: frames of an edge, frames of a core, or what is said beside
/// frames; the second how long the pieces are that it comes in.
pub fn link_decoder(input: &[u8]) {
    let [kind, piece, stream @ ..] = input else { return };
    let piece = usize::from(*piece).max(1);
    match kind % 3 {
        0 => frames::<EdgeFrame>(stream, piece),
        1 => frames::<CoreFrame>(stream, piece),
        _ => {
            let whole = beside(stream, usize::MAX);
            assert_eq!(beside(stream, piece), whole, "cuts change what is decoded");
        }
    }
}

fn frames<F: LinkFrame + PartialEq + Debug>(stream: &[u8], piece: usize) {
    let whole = decode::<F>(stream, usize::MAX);
    assert_eq!(decode::<F>(stream, piece), whole, "cuts change what is decoded");
    for frame in whole.0 {
        let mut batch = Batch::default();
        batch.put(&frame);
        let announced = batch.len();
        let bytes = batch.take().concat();
        assert_eq!(bytes.len(), announced);
        let mut decoder = LinkDecoder::default();
        decoder.push(&bytes);
        assert_eq!(decoder.next::<F>().expect("what was encoded decodes"), Some(frame));
        assert!(decoder.is_empty());
    }
}

/// The frames up to the first error, and whether there was one.
fn decode<F: LinkFrame>(stream: &[u8], piece: usize) -> (Vec<F>, bool) {
    let mut decoder = LinkDecoder::new(LIMIT);
    let mut frames = Vec::new();
    for chunk in stream.chunks(piece) {
        decoder.push(chunk);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

/// The same for what is said beside frames, each encoded again.
fn beside(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let mut decoder = LinkDecoder::new(LIMIT);
    let mut all = Vec::new();
    for chunk in stream.chunks(piece) {
        decoder.push(chunk);
        loop {
            match decoder.next_control() {
                Ok(Some(control)) => {
                    let mut batch = Batch::default();
                    batch.put_control(&control);
                    let bytes = batch.take().concat();
                    let mut again = LinkDecoder::default();
                    again.push(&bytes);
                    assert_eq!(again.next_control().expect("what was encoded decodes"), Some(control));
                    all.push(bytes);
                }
                Ok(None) => break,
                Err(_) => return (all, true),
            }
        }
    }
    (all, false)
}
