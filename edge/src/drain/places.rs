//! Sans-io: which nodes the clients of a drained one are sent to, as the fleet changes.

use std::collections::BTreeSet;

use tidegate_protocol::endpoint::endpoint_of;
use tidegate_protocol::link::fleet::{EdgeCondition, EdgeState, Known};
use tidegate_protocol::{NodeId, Region};

use crate::fleet::FleetView;

/// Where clients may go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Whither {
    /// To nodes, regions, or `https://host[:port]`; where none is named, to the others of the region.
    Named(Vec<String>),
    /// To the others of the region, or where there are none, of any.
    Anywhere,
    /// To the process that listens in place of this one, so many per second.
    Successor(f64),
}

/// A target.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// Which node; one that is not of the fleet goes by its address.
    pub(crate) node: NodeId,
    /// `host:port`; `None`: wherever the addresses lead that clients have.
    pub(crate) endpoint: Option<String>,
    /// Who says how many may come.
    pub(crate) pace: Pace,
}

/// How many may come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// The target says.
    Leased,
    /// Nobody does: they are spread over half of the time.
    Even,
    /// Per second.
    PerSecond(f64),
}

/// Finds targets.
#[derive(Debug)]
pub(crate) struct Places {
    own: NodeId,
    region: Region,
    whither: Whither,
    /// Addresses of edges that were there, `host:port`: never taken for places outside of the fleet.
    edges: BTreeSet<String>,
    /// Others were there.
    has_company: bool,
}

impl Places {
    pub(crate) fn new(own: NodeId, region: Region, whither: Whither) -> Self {
        Self { own, region, whither, edges: BTreeSet::new(), has_company: false }
    }

    /// Somewhere else from now on.
    pub(crate) fn set(&mut self, whither: Whither) {
        self.whither = whither;
    }

    /// The targets, by the fleet as it is now.
    pub(crate) fn handle_view(&mut self, view: &FleetView) -> Vec<Place> {
        self.handle_edges(view.edges().iter().map(|known: &Known| &known.state))
    }

    /// The same, by all edges that there are now.
    pub(crate) fn handle_edges<'a>(
        &mut self,
        edges: impl Iterator<Item = &'a EdgeState> + Clone,
    ) -> Vec<Place> {
        let own = self.own.clone();
        let others = || edges.clone().filter(|state| state.node != own);
        self.has_company |= others().next().is_some();
        for endpoint in others().flat_map(|state| &state.endpoints).filter_map(|url| host_of(url)) {
            if self.edges.len() < MAX_KNOWN {
                self.edges.insert(endpoint);
            }
        }
        let serving = || others().filter(|state| state.condition == EdgeCondition::Serve);
        let near = || serving().filter(|state| state.region == self.region);
        let mut places: Vec<Place> = match &self.whither {
            Whither::Successor(rate) => {
                vec![Place { node: self.own.clone(), endpoint: None, pace: Pace::PerSecond(*rate) }]
            }
            Whither::Named(to) if to.is_empty() && !self.has_company => {
                vec![Place { node: self.own.clone(), endpoint: None, pace: Pace::Even }]
            }
            Whither::Named(to) if to.is_empty() => near().filter_map(leased).collect(),
            Whither::Named(to) => to.iter().flat_map(|name| self.named(name, serving())).collect(),
            Whither::Anywhere if near().next().is_some() => near().filter_map(leased).collect(),
            Whither::Anywhere => serving().filter_map(leased).collect(),
        };
        places.sort_by(|one, other| one.node.cmp(&other.node));
        places.dedup_by(|one, other| one.node == other.node);
        places
    }

    fn named<'a>(&self, name: &str, serving: impl Iterator<Item = &'a EdgeState>) -> Vec<Place> {
        let Some(endpoint) = name.strip_prefix("https://").and_then(endpoint_of) else {
            let is_meant = |state: &&EdgeState| state.node.as_str() == name || state.region.as_str() == name;
            return serving.filter(is_meant).filter_map(leased).collect();
        };
        let has =
            |state: &EdgeState| state.endpoints.iter().any(|url| host_of(url).as_deref() == Some(&*endpoint));
        let endpoint = Some(endpoint.to_string());
        let there: Vec<Place> = serving
            .filter(|state| has(state))
            .map(|state| Place { node: state.node.clone(), endpoint: endpoint.clone(), pace: Pace::Leased })
            .collect();
        let is_edge = endpoint.as_ref().is_some_and(|endpoint| self.edges.contains(endpoint));
        if there.is_empty() && !is_edge {
            return vec![Place { node: NodeId::new(name), endpoint, pace: Pace::Even }];
        }
        there
    }
}

/// A target of the fleet, by the address that most clients can use.
fn leased(state: &EdgeState) -> Option<Place> {
    let endpoint = PREFERRED.iter().find_map(|scheme| {
        let url = state.endpoints.iter().find(|url| url.starts_with(scheme))?;
        host_of(url)
    })?;
    Some(Place { node: state.node.clone(), endpoint: Some(endpoint), pace: Pace::Leased })
}

/// `host:port` of a URL as SDKs take it, with TLS.
fn host_of(url: &str) -> Option<String> {
    let rest = PREFERRED.iter().find_map(|scheme| url.strip_prefix(scheme))?;
    let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    Some(endpoint_of(host)?.to_string())
}

const PREFERRED: [&str; 3] = ["https://", "wss://", "quic://"];
/// Beyond these, a place that is an edge's and gone may be taken for one that never was.
const MAX_KNOWN: usize = 16_384;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn edge(node: &str, region: &str, condition: EdgeCondition) -> Known {
        let endpoints = vec![
            format!("ws://{node}:80"),
            format!("quic://{node}:4433"),
            format!("https://{node}.example:443/v1/poll"),
        ];
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        let heard = Instant::now();
        Known {
            state: EdgeState {
                node: NodeId::new(node),
                region: Region::new(region),
                endpoints,
                sessions: 1,
                rate: 100,
                slack: 100,
                condition,
                started_unix_ms: 1,
                sequence: 1,
            },
            heard,
        }
    }

    fn view(states: &[(&str, &str, EdgeCondition)]) -> FleetView {
        FleetView::new(
            states.iter().map(|(node, region, condition)| edge(node, region, *condition)).collect(),
        )
    }

    fn places(whither: Whither) -> Places {
        Places::new(NodeId::new("a"), Region::new("eu"), whither)
    }

    fn names(places: &[Place]) -> Vec<&str> {
        places.iter().map(|place| place.node.as_str()).collect()
    }

    const SERVE: EdgeCondition = EdgeCondition::Serve;
    const DUCK: EdgeCondition = EdgeCondition::LameDuck;

    #[test]
    fn the_others_of_the_region_are_targets_while_they_serve() {
        let mut places = places(Whither::Named(Vec::new()));
        let all = [("a", "eu", SERVE), ("b", "eu", SERVE), ("c", "eu", DUCK), ("d", "us", SERVE)];
        let found = places.handle_view(&view(&all));
        assert_eq!(names(&found), ["b"]);
        assert_eq!(found[0].endpoint.as_deref(), Some("b.example:443"), "not as others have it");
        assert_eq!(found[0].pace, Pace::Leased);
        assert!(places.handle_view(&view(&all[..1])).is_empty(), "gone is not alone");
        places.set(Whither::Anywhere);
        assert_eq!(names(&places.handle_view(&view(&all))), ["b"]);
        assert_eq!(names(&places.handle_view(&view(&all[2..]))), ["d"]);
    }

    #[test]
    fn alone_clients_go_where_their_own_addresses_lead() {
        let mut places = places(Whither::Named(Vec::new()));
        let found = places.handle_view(&view(&[("a", "eu", SERVE)]));
        assert_eq!((found[0].endpoint.as_deref(), found[0].pace), (None, Pace::Even));
        places.set(Whither::Successor(7.0));
        let found = places.handle_view(&FleetView::default());
        assert_eq!((found[0].endpoint.as_deref(), found[0].pace), (None, Pace::PerSecond(7.0)));
    }

    #[test]
    fn nodes_regions_and_addresses_can_be_named() {
        let to = |names: &[&str]| Whither::Named(names.iter().map(|name| (*name).to_owned()).collect());
        let all = view(&[
            ("a", "eu", SERVE),
            ("b", "eu", SERVE),
            ("c", "us", SERVE),
            ("d", "us", SERVE),
            ("e", "us", DUCK),
        ]);
        let mut places = places(to(&["us", "d", "b", "a", "nobody"]));
        assert_eq!(names(&places.handle_view(&all)), ["b", "c", "d"]);
        places.set(to(&["https://C.example:443/", "https://elsewhere"]));
        let found = places.handle_view(&all);
        assert_eq!(names(&found), ["c", "https://elsewhere"]);
        assert_eq!((found[0].pace, found[1].pace), (Pace::Leased, Pace::Even));
        assert_eq!(found[1].endpoint.as_deref(), Some("elsewhere:4433"));
        let found = places.handle_view(&view(&[("a", "eu", SERVE)]));
        assert_eq!(
            names(&found),
            ["https://elsewhere"],
            "an edge that is gone is no place outside of the fleet"
        );
    }
}
