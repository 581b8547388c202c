//! Minimal scanners of what servers send: no allocation, no copy, nothing that is not needed to count.

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use memchr::memmem::{self, Finder};

use crate::bench::ledger::{Delivery, read_payload};

/// Finds publications in JSON text.
#[derive(Debug)]
pub(crate) struct Publications {
    offset: Finder<'static>,
    data: Finder<'static>,
}

impl Publications {
    pub(crate) fn new() -> Self {
        Self { offset: Finder::new(b"\"offset\":"), data: Finder::new(b"\"data\":\"") }
    }

    /// Calls `each` with every publication in the text.
    pub(crate) fn find(&self, mut text: &[u8], mut each: impl FnMut(Delivery)) -> Result<()> {
        while let Some(at) = self.offset.find(text) {
            text = &text[at + self.offset.needle().len()..];
            let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
            let offset = digits.fold(0, |value: u64, digit| value.wrapping_mul(10) + u64::from(digit - b'0'));
            let Some(at) = self.data.find(text) else { bail!("a publication without a payload of ours") };
            text = &text[at + self.data.needle().len()..];
            let Some((number, sent)) = read_payload(text) else { bail!("a payload that is not ours") };
            each(Delivery { offset, number, sent });
        }
        Ok(())
    }
}

/// A whole WebSocket frame at the beginning of `bytes` (RFC 6455 §5.2): opcode and payload. Servers do not mask, and
/// this one does not fragment.
pub(crate) fn websocket(bytes: &[u8]) -> Result<Option<(u8, Range<usize>)>> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    ensure!(first & 0x80 != 0 && second & 0x80 == 0, "a WebSocket frame that is masked or a fragment");
    let (length, header) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (usize::from(u16::from_be_bytes([*a, *b])), 4),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            (usize::try_from(u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))?, 10)
        }
        (126 | 127, _) => return Ok(None),
        (length, _) => (usize::from(length), 2),
    };
    let end = header + length;
    Ok((bytes.len() >= end).then_some((first & 0x0f, header..end)))
}

/// A whole HTTP/1.1 response at the beginning of `bytes`: status and body. It must tell its length.
pub(crate) fn response(bytes: &[u8]) -> Result<Option<(u16, Range<usize>)>> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let length = lines.filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let (Some(status), Some(length)) = (status, length) else {
        bail!("an answer without status or length: {head}")
    };
    let body = end + 4..end + 4 + length;
    Ok((bytes.len() >= body.end).then_some((status, body)))
}

/// The value of a text or number field, from its first place in JSON text.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let at = text.find(&format!("\"{name}\":"))? + name.len() + 3;
    let rest = text[at..].trim_start_matches('"');
    rest.split(['"', ',', '}']).next()
}

/// A client's text message: masked with zero, so that nothing needs to be masked.
pub(crate) fn masked_text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("the generator's own frames are short");
    let mut frame = Vec::with_capacity(text.len() + 8);
    match u8::try_from(length) {
        Ok(length @ 0..=125) => frame.extend_from_slice(&[0x81, 0x80 | length]),
        _ => {
            frame.extend_from_slice(&[0x81, 0x80 | 126]);
            frame.extend_from_slice(&length.to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::ledger::payload;

    #[test]
    fn publications_are_found_one_by_one_and_in_arrays() {
        let one = |offset: u64| {
            format!(
                "{{\"publication\":{{\"channel\":\"bench:1\",\"offset\":{offset},\"data\":{}}}}}",
                payload(offset + 7, 9, 64)
            )
        };
        for text in [format!("{}{}", one(1), one(20)), format!("[{},{}]", one(1), one(20))] {
            let mut found = Vec::new();
            Publications::new().find(text.as_bytes(), |delivery| found.push(delivery)).expect("well formed");
            let expected = [(1, 8), (20, 27)].map(|(offset, number)| Delivery { offset, number, sent: 9 });
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_strange_payload_is_an_error() {
        for text in ["{\"offset\":1}", "{\"offset\":1,\"data\":\"hello\"}"] {
            let outcome = Publications::new().find(text.as_bytes(), |_| ());
            assert!(outcome.is_err(), "{text}");
        }
    }

    #[test]
    fn websocket_frames_are_cut_at_their_length() {
        let cases = [
            (&b"\x81"[..], None),
            (b"\x81\x03ab", None),
            (b"\x81\x03abc\x81", Some((1, 2..5))),
            (b"\x81\x7e\x00", None),
            (b"\x89\x7e\x00\x02ab", Some((9, 4..6))),
        ];
        for (bytes, expected) in cases {
            assert_eq!(websocket(bytes).expect("well formed"), expected, "{bytes:?}");
        }
        assert!(websocket(b"\x01\x03abc").is_err(), "a fragment");
    }

    #[test]
    fn texts_are_masked_with_nothing_at_any_length() {
        for (length, head) in
            [(5, &[0x81, 0x85][..]), (126, &[0x81, 0xfe, 0, 126]), (300, &[0x81, 0xfe, 1, 44])]
        {
            let text = "x".repeat(length);
            assert_eq!(masked_text(&text), [head, &[0; 4], text.as_bytes()].concat(), "{length}");
        }
    }

    #[test]
    fn responses_are_whole_or_not_yet() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(response(text.as_bytes()).expect("well formed"), Some((200, 38..41)));
        for cut in [0, 10, 37, 40] {
            assert_eq!(response(&text.as_bytes()[..cut]).expect("well formed"), None, "{cut}");
        }
        assert!(response(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn fields_are_read_by_name() {
        let text = "{\"session\":\"abc\",\"batch\":12,\"frames\":[]}";
        assert_eq!(
            (field(text, "session"), field(text, "batch"), field(text, "x")),
            (Some("abc"), Some("12"), None)
        );
    }
}
