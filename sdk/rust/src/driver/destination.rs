//! Where servers sent the session: places that the app's own URLs need not name.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_fallback::ladder::AttemptId;

use crate::Transport;
use crate::endpoint::Endpoint;

/// Where the session is on its way to, and where it got to.
#[derive(Debug, Default)]
pub(super) struct Destination {
    /// As host and port; `None` for wherever the app's URLs lead.
    next: Option<Arc<str>>,
    /// The latest dials to there.
    attempts: BTreeSet<AttemptId>,
    /// Whom the session wants while it has no connection, by its plan.
    wanted: Option<Arc<str>>,
    /// Where it was sent last, and went.
    home: Option<Arc<str>>,
}

impl Destination {
    /// The server wants the session to go there. True where that is another place than before.
    pub(super) fn set(&mut self, endpoint: Option<Arc<str>>) -> bool {
        if self.next == endpoint {
            return false;
        }
        self.next = endpoint;
        self.attempts.clear();
        true
    }

    /// The session has no connection, and wants one to there; `None` for wherever it was dialled last.
    pub(super) fn want(&mut self, host: Option<Arc<str>>) {
        if host.is_some() {
            self.wanted = host;
        }
    }

    /// That led nowhere: what the app's URLs name comes next. False where it was among them.
    pub(super) fn fall_back(&mut self, endpoints: &[Endpoint]) -> bool {
        let of_app =
            |place: &Arc<str>| endpoints.iter().any(|one| one.authority().eq_ignore_ascii_case(place));
        let leads_elsewhere = self.wanted.as_ref().is_some_and(|place| !of_app(place));
        (self.wanted, self.home) = (None, None);
        leads_elsewhere
    }

    /// True where the plan names whom to dial: what is known of servers is not of this one.
    pub(super) fn is_another(&self) -> bool {
        self.wanted.is_some()
    }

    /// The session has a connection again.
    pub(super) fn settle(&mut self) {
        if let Some(wanted) = self.wanted.take() {
            self.home = Some(wanted);
        }
    }

    /// Which of the app's `endpoints`, and which others, to dial for `transport`, best first. With `leaving` the session is
    /// to leave its server by this attempt.
    pub(super) fn choose(
        &mut self,
        endpoints: &[Endpoint],
        transport: Transport,
        leaving: Option<AttemptId>,
    ) -> Vec<Endpoint> {
        let of_app = endpoints.iter().filter(|endpoint| endpoint.transport == transport);
        if let Some(attempt) = leaving {
            self.attempts.insert(attempt);
            if self.attempts.len() > MAX_ATTEMPTS {
                self.attempts.pop_first();
            }
            if let Some(next) = &self.next {
                return at(of_app, next, transport);
            }
            // Away from where it is, if there is any choice.
            let mut chosen: Vec<Endpoint> = of_app.cloned().collect();
            let away = usize::from(chosen.len() > 1);
            chosen.rotate_left(away);
            return chosen;
        }
        if let Some(wanted) = &self.wanted {
            return at(of_app, wanted, transport);
        }
        let mut chosen =
            self.home.as_ref().map(|home| at(of_app.clone(), home, transport)).unwrap_or_default();
        for endpoint in of_app {
            if !chosen.contains(endpoint) {
                chosen.push(endpoint.clone());
            }
        }
        chosen
    }

    /// The session lives on this connection now; where that was the way to leave its server, where it is.
    pub(super) fn arrived(&mut self, attempt: AttemptId) -> Option<Arc<str>> {
        if !self.attempts.contains(&attempt) {
            return None;
        }
        self.attempts.clear();
        self.home = self.next.take();
        self.home.clone()
    }
}

/// The app's own URLs of that place; where it has none, that of the transport's usual path.
fn at<'a>(of_app: impl Iterator<Item = &'a Endpoint>, place: &str, transport: Transport) -> Vec<Endpoint> {
    let known: Vec<Endpoint> =
        of_app.filter(|endpoint| endpoint.authority().eq_ignore_ascii_case(place)).cloned().collect();
    if !known.is_empty() {
        return known;
    }
    // Host and port, checked before.
    Endpoint::parse(&format!("{}://{place}", transport.scheme())).into_iter().collect()
}

/// More than race at once.
const MAX_ATTEMPTS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(destination: &mut Destination, leaving: Option<u64>) -> Vec<String> {
        let urls = ["wss://one/a?token=t", "quic://one", "wss://two:9/b"];
        let endpoints = urls.map(|url| Endpoint::parse(url).unwrap());
        let chosen = destination.choose(&endpoints, Transport::WebSocket, leaving.map(AttemptId));
        chosen.iter().map(|endpoint| format!("{} {}", endpoint.authority(), endpoint.path)).collect()
    }

    #[test]
    fn the_session_goes_where_it_is_sent_and_stays_there() {
        let mut destination = Destination::default();
        let own = ["one:4433 /a?token=t", "two:9 /b"];
        assert_eq!(chosen(&mut destination, None), own);
        destination.set(Some("three:1".into()));
        assert_eq!(chosen(&mut destination, Some(7)), ["three:1 /v1/connect"]);
        assert_eq!(destination.arrived(AttemptId(6)), None, "a climb came between");
        assert_eq!(chosen(&mut destination, None), own);
        assert_eq!(destination.arrived(AttemptId(7)).as_deref(), Some("three:1"));
        assert_eq!(chosen(&mut destination, None), ["three:1 /v1/connect", own[0], own[1]]);
        destination.set(Some("two:9".into()));
        assert_eq!(chosen(&mut destination, Some(8)), ["two:9 /b"], "by the app's own URL, where it has one");
        assert!(destination.arrived(AttemptId(8)).is_some());
        assert_eq!(chosen(&mut destination, None), [own[1], own[0]]);
        destination.set(None);
        assert_eq!(chosen(&mut destination, Some(9)), [own[1], own[0]], "anywhere, but here last");
    }

    #[test]
    fn whom_the_plan_names_is_dialled_alone_and_the_apps_own_after_it() {
        let mut destination = Destination::default();
        let own = ["one:4433 /a?token=t", "two:9 /b"];
        destination.want(Some("three:1".into()));
        assert_eq!(chosen(&mut destination, None), ["three:1 /v1/connect"]);
        destination.want(None);
        assert_eq!(chosen(&mut destination, None), ["three:1 /v1/connect"], "a place is kept there");
        let endpoints = [Endpoint::parse("wss://one/a").unwrap()];
        assert!(destination.fall_back(&endpoints) && !destination.fall_back(&endpoints));
        assert_eq!(chosen(&mut destination, None), own);
        destination.want(Some("two:9".into()));
        destination.settle();
        assert_eq!(chosen(&mut destination, None), [own[1], own[0]], "it lives there now");
        destination.want(Some("one:4433".into()));
        assert!(!destination.fall_back(&endpoints), "that would be the same again");
    }
}
