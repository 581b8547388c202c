//! A stream of events driven by hand, and against every order of answers and publications.

use std::sync::Arc;

use proptest::prelude::*;
use tidegate_protocol::frame::Publication;
use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::{ChannelName, Epoch};

use super::*;

fn at(epoch: &str, offset: u64) -> Position {
    Position::new(Epoch::new(epoch), Offset(offset))
}

fn publication(offset: u64) -> Publication {
    Publication {
        channel: "news".to_owned(),
        offset,
        data: Some(Bytes::from(offset.to_string())),
        ..Publication::default()
    }
}

fn delivery(offset: u64) -> Delivery {
    Delivery {
        channel: ChannelName::new("news").expect("valid"),
        offset: Offset(offset),
        frame: Arc::new(SharedFrame::new(ServerBody::Publication(publication(offset)))),
    }
}

fn recovery(head: Position, recovered: bool, offsets: impl IntoIterator<Item = u64>) -> Recovery {
    Recovery { position: head, recovered, publications: offsets.into_iter().map(publication).collect() }
}

/// The ids of what waits, with the type of each that is no publication.
fn read(stream: &mut Stream) -> Vec<String> {
    let mut writer = EventWriter::default();
    stream.write(&mut writer);
    let bytes = writer.take();
    let text = std::str::from_utf8(&bytes).expect("UTF-8");
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    text.split("\n\n")
        .filter(|event| !event.is_empty())
        .map(|event| {
            let id = field(event, "id").unwrap_or_default();
            match field(event, "event") {
                Some(name) => format!("{name} {id}"),
                None => id,
            }
        })
        .collect()
}

#[test]
fn from_the_head_comes_what_is_published_from_then_on() {
    let mut stream = Stream::new(None, false, 1 << 20);
    assert_eq!(stream.deliver(&[delivery(4)]), 0, "the answer knows of it");
    assert_eq!(stream.recovered(recovery(at("e", 4), false, [])), Some(Outcome::Head));
    assert_eq!(stream.deliver(&[delivery(4), delivery(5)]), 1);
    assert_eq!(read(&mut stream), ["position e:4", "e:5"]);
    assert_eq!(stream.waiting_bytes(), 0);
    assert_eq!(stream.recovered(recovery(at("e", 9), false, [])), None, "nobody asked");
}

#[test]
fn what_was_missed_comes_behind_where_the_stream_begins() {
    let mut stream = Stream::new(Some(at("", 2)), false, 1 << 20);
    assert_eq!(stream.recovered(recovery(at("e", 4), true, 3..=4)), Some(Outcome::Recovered));
    assert_eq!(stream.deliver(&[delivery(3), delivery(4), delivery(5)]), 1);
    assert_eq!(read(&mut stream), ["position e:2", "e:3", "e:4", "e:5"]);
}

#[test]
fn a_position_out_of_reach_is_told() {
    let mut stream = Stream::new(Some(at("old", 2)), false, 1 << 20);
    assert_eq!(stream.recovered(recovery(at("e", 4), false, [])), Some(Outcome::Gap));
    let mut writer = EventWriter::default();
    stream.write(&mut writer);
    let text = String::from_utf8(writer.take().to_vec()).expect("UTF-8");
    assert!(text.contains(r#""recovered":false"#) && text.contains("id: e:4"), "{text}");
}

#[test]
fn a_new_numbering_is_told_once_and_goes_on() {
    let mut stream = Stream::new(None, false, 1 << 20);
    assert!(!stream.rebased(&at("f", 0)), "the answer comes behind it");
    stream.recovered(recovery(at("e", 4), false, []));
    stream.deliver(&[delivery(5)]);
    assert!(stream.rebased(&at("f", 0)) && stream.rebased(&at("g", 0)));
    stream.deliver(&[delivery(1)]);
    assert_eq!(read(&mut stream), ["position e:4", "e:5", "rebased g:0", "g:1"]);
}

#[test]
fn on_a_conflated_channel_the_newest_waits_alone() {
    let mut stream = Stream::new(Some(at("e", 1)), true, 1 << 20);
    stream.recovered(recovery(at("e", 4), true, [4]));
    stream.deliver(&[delivery(5), delivery(6)]);
    assert_eq!(read(&mut stream), ["position e:1", "e:6"]);
}

#[test]
fn of_ephemeral_items_the_newest_waits_and_has_no_id() {
    let mut stream = Stream::new(None, false, 1 << 20);
    assert!(!stream.deliver_ephemeral(&delivery(0)));
    stream.recovered(recovery(at("e", 4), false, []));
    assert!(stream.deliver_ephemeral(&delivery(0)) && stream.deliver_ephemeral(&delivery(0)));
    stream.deliver(&[delivery(5)]);
    assert_eq!(read(&mut stream), ["position e:4", "e:5", ""]);
}

#[test]
fn a_reader_that_fell_out_of_history_is_told_so() {
    let mut stream = Stream::new(None, false, 1);
    stream.recovered(recovery(at("e", 4), false, []));
    assert_eq!(stream.deliver(&[delivery(5)]), 0);
    assert!(stream.is_parked());
    assert_eq!(stream.refill(), None, "something waits");
    assert_eq!(read(&mut stream), ["position e:4"]);
    assert_eq!(stream.refill(), Some(at("e", 4)));
    assert_eq!(stream.recovered(recovery(at("e", 9), false, [])), Some(Outcome::Gap));
    assert_eq!(read(&mut stream), ["rebased e:9"]);
}

#[derive(Debug, Clone)]
enum Step {
    Publish(u8),
    Read,
}

proptest! {
    /// However it is read, and wherever it is parked: each offset once, in order, and no more waits than may.
    #[test]
    fn nothing_is_lost_or_repeated_however_slow_the_reader(
        steps in prop::collection::vec(
            prop_oneof![(1u8..20).prop_map(Step::Publish), Just(Step::Read)],
            0..60,
        ),
        bound in 1usize..4000,
        begin in 0u64..5,
    ) {
        let mut head = 5;
        let mut stream = Stream::new(Some(at("e", begin)), false, bound);
        stream.recovered(recovery(at("e", head), true, begin + 1..=head));
        let mut seen = Vec::new();
        let mut answer = |stream: &mut Stream, head: u64| {
            for id in read(stream) {
                if let Some(offset) = id.strip_prefix("e:") {
                    seen.push(offset.parse::<u64>().expect("a number"));
                }
            }
            if let Some(after) = stream.refill() {
                stream.recovered(recovery(at("e", head), true, after.offset.0 + 1..=head));
            }
        };
        for step in steps {
            match step {
                Step::Publish(count) => {
                    let run: Vec<_> = (head + 1..=head + u64::from(count)).map(delivery).collect();
                    head += u64::from(count);
                    stream.deliver(&run);
                }
                Step::Read => answer(&mut stream, head),
            }
            // One that is alone may be larger.
            prop_assert!(stream.waiting_bytes() <= bound.max(400), "{} of {bound}", stream.waiting_bytes());
        }
        while stream.waiting_bytes() > 0 || stream.is_parked() {
            answer(&mut stream, head);
        }
        prop_assert_eq!(seen, (begin + 1..=head).collect::<Vec<_>>());
    }
}
