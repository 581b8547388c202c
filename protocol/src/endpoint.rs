//! Sans-io: places to connect to, as servers name them to clients.

use std::sync::Arc;

/// Host and port in one spelling, with 4433 where no port is given; `None` where it is anything else. What follows the host of a URL has no place in it,
/// lest somebody read another host there.
pub fn endpoint_of(text: &str) -> Option<Arc<str>> {
    let text = text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
    let (host, port) = match text.rfind(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u16>().ok()?
        }
        None if port.is_empty() => DEFAULT_PORT,
        _ => return None,
    };
    let of_address = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => !address.is_empty() && address.bytes().all(of_address),
        None => !host.is_empty() && host.bytes().all(of_name),
    };
    (is_host && host.len() <= MAX_HOST && port != 0).then(|| format!("{host}:{port}").into())
}

const DEFAULT_PORT: u16 = 4433;
/// Of a name in DNS, bytes.
const MAX_HOST: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_one_spelling_and_nothing_behind_it() {
        let spelt = |text| endpoint_of(text).as_deref().map(str::to_owned);
        assert_eq!(spelt("Edge-2.example.COM").as_deref(), Some("edge-2.example.com:4433"));
        assert_eq!(spelt("edge-2:443/").as_deref(), Some("edge-2:443"));
        assert_eq!(spelt("[::1]").as_deref(), Some("[::1]:4433"));
        assert_eq!(spelt("[2001:DB8::1]:9").as_deref(), Some("[2001:db8::1]:9"));
        for none in [
            "", ":1", "a:", "a:0", "a:65536", "a:+1", "a:1:2", "a/b", "a//", "a@b", "a?b", "a#b", "a b",
            "[]:1", "[::1", "::1]", "[::1]x", "[g::]", "é", "a\\b",
        ] {
            assert_eq!(spelt(none), None, "{none}");
        }
        assert_eq!(spelt(&"x".repeat(254)), None);
    }
}
