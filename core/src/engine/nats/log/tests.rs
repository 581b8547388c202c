//! Frames whose fate is in doubt, against a server that answers by the book of the test.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::*;

/// An attempt that nobody answered may be on its way still when the next one is refused for lack of room: it is no
/// refusal until the place is taken.
#[tokio::test]
async fn what_is_refused_after_an_unanswered_attempt_is_not_known_to_be_missing() {
    let bench = Bench::start([Answer::None, Answer::Full, Answer::FullAndArrived]).await;
    assert_eq!(bench.store().await, Outcome::Stored);
}

/// The same where the unanswered attempt was of an earlier call: its owner was told that the outcome is unknown, and sends
/// the frame again.
#[tokio::test]
async fn what_an_earlier_call_left_in_doubt_is_in_doubt() {
    let unanswered = [Answer::None; 4];
    let bench = Bench::start(unanswered.into_iter().chain([Answer::Full, Answer::FullAndArrived])).await;
    assert!(matches!(bench.store().await, Outcome::Unknown(_)));
    assert_eq!(bench.store().await, Outcome::Stored);
}

#[tokio::test]
async fn what_is_refused_at_once_is_refused() {
    let bench = Bench::start([Answer::Full]).await;
    let refused = bench.store().await;
    assert!(matches!(&refused, Outcome::Refused(reason) if reason.contains("make room")), "{refused:?}");
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    None,
    /// There is no room.
    Full,
    /// There is none, and the frame of an earlier attempt has just got to its place.
    FullAndArrived,
}

/// A log, and the server that it is on.
struct Bench {
    log: Log,
    wire: Wire,
    server: JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Bench {
    /// Attempts are answered in order; there is none beyond these.
    async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let answers: VecDeque<Answer> = answers.into_iter().collect();
        let server = TaskTracker::new().spawn(async move {
            let (socket, _) = listener.accept().await.expect("accepted");
            Server { answers, arrived: None }.serve(socket).await;
        });
        let client = async_nats::connect(address.to_string()).await.expect("connected");
        let wire = Wire { jetstream: async_nats::jetstream::new(client.clone()), client };
        Self { log: Log::new(&Names::new("t", "r"), 0), wire, server }
    }

    async fn store(&self) -> Outcome {
        let header = Header { kind: Kind::Data, term: 1, epoch: 9, position: 1, before: NO_HASH };
        self.log.store(&self.wire, 1, frame::encode(&header, b"payload")).await
    }
}

/// As much of a NATS server as a log asks.
struct Server {
    answers: VecDeque<Answer>,
    arrived: Option<Vec<u8>>,
}

impl Server {
    async fn serve(&mut self, socket: TcpStream) {
        let (reader, mut writer) = socket.into_split();
        let info = json!({
            "server_id": "T", "server_name": "t", "version": "2.11.0", "proto": 1, "headers": true,
            "host": "127.0.0.1", "port": 1, "max_payload": 1_048_576, "jetstream": true,
        });
        writer.write_all(format!("INFO {info}\r\n").as_bytes()).await.expect("written");
        let (mut reader, mut line, mut inbox) = (BufReader::new(reader), String::new(), String::new());
        while reader.read_line(&mut line).await.is_ok_and(|bytes| bytes > 0) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["PING"] => writer.write_all(b"PONG\r\n").await.expect("written"),
                ["SUB", _, id] => id.clone_into(&mut inbox),
                ["PUB" | "HPUB", subject, reply, .., bytes] => {
                    let headers = if words.len() == 5 { words[3].parse().expect("a number") } else { 0 };
                    let mut body = vec![0; bytes.parse::<usize>().expect("a number") + 2];
                    reader.read_exact(&mut body).await.expect("a body");
                    body.truncate(body.len() - 2);
                    if let Some(answer) = self.answer(subject, &body[headers..]) {
                        let answer = format!("MSG {reply} {inbox} {}\r\n{answer}\r\n", answer.len());
                        writer.write_all(answer.as_bytes()).await.expect("written");
                    }
                }
                _ => {}
            }
            line.clear();
        }
    }

    fn answer(&mut self, subject: &str, body: &[u8]) -> Option<String> {
        let error = |code: u32, err_code: u32, description: &str| {
            json!({ "error": { "code": code, "err_code": err_code, "description": description } }).to_string()
        };
        match subject {
            "t-r.log.0" => {
                let full = Some(error(503, 10023, "insufficient resources"));
                match self.answers.pop_front().expect("no attempt beyond these") {
                    Answer::None => None,
                    Answer::Full => full,
                    Answer::FullAndArrived => {
                        self.arrived = Some(body.to_vec());
                        full
                    }
                }
            }
            "$JS.API.STREAM.MSG.GET.t-r-log-0" => Some(match &self.arrived {
                None => error(404, 10037, "no message found"),
                Some(frame) => {
                    let data = STANDARD.encode(frame);
                    let time = "2026-01-01T00:00:00Z";
                    json!({ "message": { "subject": "t-r.log.0", "seq": 2, "data": data, "time": time } })
                        .to_string()
                }
            }),
            "$JS.API.STREAM.INFO.t-r-log-0" => {
                let time = "2026-01-01T00:00:00Z";
                let state = json!({
                    "messages": 1, "bytes": 1, "first_seq": 1, "first_ts": time, "last_seq": 1, "last_ts": time,
                    "consumer_count": 0,
                });
                let config = json!({
                    "name": "t-r-log-0", "retention": "limits", "discard": "old", "storage": "file",
                    "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "num_replicas": 1,
                });
                Some(json!({ "config": config, "created": time, "state": state }).to_string())
            }
            other => panic!("nobody asks {other}"),
        }
    }
}
