//! Sans-io: which web pages may connect. Browsers name the page in `Origin`; other programs name none.

use std::collections::BTreeSet;

/// The pages that may connect: exact origins, or those of any port of a host.
///
/// Scheme, host and port must be equal, once case is folded and default ports are left out. There are no patterns but
/// the port `*`: matching by suffix is how such lists are broken.
#[derive(Debug, Clone, Default)]
pub struct OriginPolicy {
    any: bool,
    /// The literal `null` of sandboxed pages and local files.
    null: bool,
    origins: BTreeSet<Origin>,
    /// Those whose port does not count; they have none.
    any_port: BTreeSet<Origin>,
}

impl OriginPolicy {
    /// Reads a list of origins such as `https://app.example` or `http://localhost:8080`; `http://localhost:*` stands for
    /// every port of that host, `*` for every page (but not for `null`), `null` for pages without an origin. An empty
    /// list lets no page in.
    ///
    /// # Errors
    /// Names the entry that is no origin.
    pub fn new(list: &[impl AsRef<str>]) -> Result<Self, OriginError> {
        let mut policy = Self::default();
        for entry in list {
            match entry.as_ref() {
                "*" => policy.any = true,
                "null" => policy.null = true,
                text => {
                    let refuse = || OriginError(text.to_owned());
                    match text.strip_suffix(":*") {
                        Some(host) => {
                            // With some port in the star's place it must be an origin.
                            let origin = Origin::parse(&format!("{host}:1")).ok_or_else(refuse)?;
                            policy.any_port.insert(Origin { port: None, ..origin })
                        }
                        None => policy.origins.insert(Origin::parse(text).ok_or_else(refuse)?),
                    };
                }
            }
        }
        Ok(policy)
    }

    /// Whether the page that a browser names may connect.
    pub fn allows(&self, origin: &str) -> bool {
        if origin == "null" {
            return self.null;
        }
        let Some(mut origin) = Origin::parse(origin) else { return false };
        self.any || self.origins.contains(&origin) || {
            origin.port = None;
            self.any_port.contains(&origin)
        }
    }
}

/// An entry of the list is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no origin: write scheme://host, scheme://host:port or scheme://host:*, nothing behind it; or * or null"
)]
pub struct OriginError(String);

/// The page may not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this page's origin is not on the allow-list")]
pub struct OriginRefused;

/// RFC 6454 §4, normalised.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Origin {
    scheme: String,
    host: String,
    /// `None` for the scheme's default.
    port: Option<u16>,
}

impl Origin {
    /// Strict: only what browsers send.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        {
            return None;
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (address, behind) = rest.split_once(']')?;
                let address: std::net::Ipv6Addr = address.parse().ok()?;
                let port = if behind.is_empty() { None } else { Some(behind.strip_prefix(':')?) };
                (format!("[{address}]"), port)
            }
            None => {
                let (host, port) = match authority.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (authority, None),
                };
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                if host.is_empty() || !host.bytes().all(plain) {
                    return None;
                }
                (host.to_ascii_lowercase(), port)
            }
        };
        let port = match port {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse::<u16>().ok().filter(|port| *port != 0)?)
            }
            Some(_) => return None,
            None => None,
        };
        let scheme = scheme.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "https" | "wss" => Some(443),
            "http" | "ws" => Some(80),
            _ => None,
        };
        Some(Self { scheme, host, port: port.filter(|port| Some(*port) != default) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_pages_are_allowed_however_they_are_spelled() {
        let policy =
            OriginPolicy::new(&["https://App.example:443", "http://localhost:8080", "http://[::1]:8080"])
                .expect("a policy");
        for origin in [
            "https://app.example",
            "HTTPS://APP.EXAMPLE",
            "https://app.example:443",
            "http://localhost:8080",
            "http://[::1]:8080",
            "http://[0:0:0:0:0:0:0:1]:8080",
        ] {
            assert!(policy.allows(origin), "{origin}");
        }
    }

    #[test]
    fn hostile_origins_are_refused() {
        let policy = OriginPolicy::new(&["https://app.example", "http://localhost:8080"]).expect("a policy");
        let hostile = [
            "",
            "null",
            "*",
            "app.example",
            "//app.example",
            "http://app.example",
            "wss://app.example",
            "https://app.example:8443",
            "https://app.example:80",
            "https://app.example:",
            "https://app.example:0",
            "https://app.example:+443",
            "https://app.example:65979",
            "https://app.example:443:443",
            "https://app.example/",
            "https://app.example/path",
            "https://app.example?x",
            "https://app.example#x",
            "https://app.example.evil.example",
            "https://evil.example/https://app.example",
            "https://app.example@evil.example",
            "https://evil.example@app.example",
            "https://app.example\\.evil.example",
            "https://app.example%2eevil.example",
            "https://app.example%00",
            "https://evilapp.example",
            "https://sub.app.example",
            "https://app.example.",
            "https://.app.example",
            "https://app_example",
            "https://аpp.example",
            " https://app.example",
            "https://app.example ",
            "https://app.example https://app.example",
            "https://app.example,https://evil.example",
            "https:app.example",
            "https:///app.example",
            "https://",
            "://app.example",
            "1https://app.example",
            "javascript://app.example",
            "http://localhost",
            "http://localhost:80800",
            "http://127.0.0.1:8080",
            "https://[app.example]",
            "https://[::1",
            "file://",
        ];
        assert!(hostile.len() >= 30);
        for origin in hostile {
            assert!(!policy.allows(origin), "{origin}");
        }
    }

    #[test]
    fn a_star_for_the_port_stands_for_every_port_and_nothing_else() {
        let policy = OriginPolicy::new(&["http://LOCALHOST:*", "http://[::1]:*", "https://app.example"])
            .expect("a policy");
        for origin in
            ["http://localhost", "http://localhost:80", "http://localhost:3000", "http://[::1]:5173"]
        {
            assert!(policy.allows(origin), "{origin}");
        }
        let hostile = [
            "https://localhost:3000",
            "http://localhost:",
            "http://localhost:*",
            "http://localhost:0",
            "http://localhost.evil.example:3000",
            "http://evil.localhost:3000",
            "http://localhost:3000@evil.example",
            "http://127.0.0.1:3000",
            "https://app.example:3000",
            "null",
        ];
        for origin in hostile {
            assert!(!policy.allows(origin), "{origin}");
        }
        for entry in ["http://localhost:80:*", "http://*:*", "*:*", "http://:*", "http://localhost:*:*", ":*"]
        {
            assert!(OriginPolicy::new(&[entry]).is_err(), "{entry}");
        }
    }

    #[test]
    fn stars_and_null_are_only_by_name() {
        let nobody = OriginPolicy::default();
        assert!(!nobody.allows("https://app.example"));
        let any = OriginPolicy::new(&["*"]).expect("a policy");
        assert!(any.allows("https://whoever.example:99"));
        assert!(!any.allows("null"));
        assert!(!any.allows("rubbish"));
        assert!(OriginPolicy::new(&["null"]).expect("a policy").allows("null"));
        for entry in ["https://*.example", "https://app.example/", "app.example", ""] {
            assert!(OriginPolicy::new(&[entry]).is_err(), "{entry}");
        }
    }
}
