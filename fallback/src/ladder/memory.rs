//! Sans-io: what a client remembers of networks: which transports work there, and how far the server is.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_transport::TransportKind;

use super::LadderConfig;

/// What is known of networks, by server and network. Serialize it to keep it over a restart of the app; it names servers
/// and networks, no users. Times are milliseconds of Unix time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LadderMemory {
    /// The one used last stands last.
    networks: Vec<Network>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Network {
    origin: String,
    key: String,
    rtt_ms: Option<u32>,
    records: Vec<Record>,
}

/// One transport on one network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    transport: String,
    /// When it last proved to work.
    worked_ms: Option<u64>,
    /// Failures since then.
    failures: u32,
    /// Early deaths since then.
    deaths: u32,
    /// Left out until then.
    broken_until_ms: u64,
    /// How often it was left out since it last worked.
    times_broken: u32,
}

impl LadderMemory {
    /// What an older run left, made fit: nothing lasts longer than the configuration allows.
    pub(super) fn restored(mut self, config: &LadderConfig, wall_ms: u64) -> Self {
        self.networks.retain(|network| {
            network.origin.len() <= MAX_NAME
                && network.key.len() <= MAX_NAME
                && network.records.len() <= MAX_RECORDS
        });
        let surplus = self.networks.len().saturating_sub(MAX_NETWORKS);
        self.networks.drain(..surplus);
        let latest = wall_ms.saturating_add(millis(config.broken_cap));
        for record in self.networks.iter_mut().flat_map(|network| &mut network.records) {
            record.broken_until_ms = record.broken_until_ms.min(latest);
            record.worked_ms = record.worked_ms.filter(|worked| *worked <= wall_ms);
        }
        self
    }

    /// The entry of a network, if there is one.
    pub(super) fn peek(&self, origin: &str, key: &str) -> Option<&Network> {
        self.networks.iter().find(|network| network.origin == origin && network.key == key)
    }

    /// The entry of a network, as the newest. The one that was not used for longest makes room.
    pub(super) fn network(&mut self, origin: &str, key: &str) -> &mut Network {
        let known = self.networks.iter().position(|network| network.origin == origin && network.key == key);
        let network = match known {
            Some(index) => self.networks.remove(index),
            None => Network { origin: origin.to_owned(), key: key.to_owned(), ..Network::default() },
        };
        if self.networks.len() >= MAX_NETWORKS {
            self.networks.remove(0);
        }
        self.networks.push(network);
        self.networks.last_mut().expect("one was pushed")
    }
}

impl Network {
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt_ms.map(|rtt| Duration::from_millis(rtt.into()))
    }

    /// Takes a measurement into the average.
    pub(super) fn measured(&mut self, rtt: Duration) {
        let sample = u32::try_from(rtt.as_millis()).unwrap_or(u32::MAX).min(MAX_RTT_MS);
        self.rtt_ms = Some(self.rtt_ms.map_or(sample, |old| (old.min(MAX_RTT_MS) * 3 + sample) / 4));
    }

    pub(super) fn is_broken(&self, transport: TransportKind, wall_ms: u64) -> bool {
        self.find(transport).is_some_and(|record| wall_ms < record.broken_until_ms)
    }

    /// It proved to work.
    pub(super) fn worked(&mut self, transport: TransportKind, wall_ms: u64) {
        let record = self.record(transport);
        *record = Record {
            transport: std::mem::take(&mut record.transport),
            worked_ms: Some(wall_ms),
            ..Record::default()
        };
    }

    /// It failed while another worked.
    pub(super) fn failed(&mut self, transport: TransportKind, config: &LadderConfig, wall_ms: u64) {
        let record = self.record(transport);
        record.deaths = 0;
        record.failures = record.failures.saturating_add(1);
        let lately = record
            .worked_ms
            .is_some_and(|worked| wall_ms.saturating_sub(worked) < millis(config.tolerance_window));
        if lately && record.failures <= config.tolerated_failures {
            return;
        }
        let out = LadderConfig::doubled(config.broken_base, record.times_broken, config.broken_cap);
        record.times_broken = record.times_broken.saturating_add(1);
        record.broken_until_ms = wall_ms.saturating_add(millis(out));
    }

    /// It died young, and nobody knows whose fault it was: true where that happened before.
    pub(super) fn died(&mut self, transport: TransportKind) -> bool {
        let record = self.record(transport);
        record.deaths = record.deaths.saturating_add(1);
        record.deaths > 1
    }

    /// The network may be another: what failed is tried again.
    pub(super) fn forgive(&mut self) {
        for record in &mut self.records {
            *record = Record {
                transport: std::mem::take(&mut record.transport),
                worked_ms: record.worked_ms,
                ..Record::default()
            };
        }
    }

    #[cfg(test)]
    pub(super) fn broken_until(&self, transport: TransportKind) -> u64 {
        self.find(transport).map_or(0, |record| record.broken_until_ms)
    }

    #[cfg(test)]
    pub(super) fn failures(&self, transport: TransportKind) -> u32 {
        self.find(transport).map_or(0, |record| record.failures)
    }

    fn find(&self, transport: TransportKind) -> Option<&Record> {
        self.records.iter().find(|record| record.transport == transport.name())
    }

    fn record(&mut self, transport: TransportKind) -> &mut Record {
        let name = transport.name();
        let index = self.records.iter().position(|record| record.transport == name).unwrap_or_else(|| {
            self.records.push(Record { transport: name.to_owned(), ..Record::default() });
            self.records.len() - 1
        });
        &mut self.records[index]
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Names are the app's; an entry has a bound all the same.
pub(super) fn cut(name: &str) -> String {
    name.chars().take(MAX_NAME / 4).collect()
}

const MAX_NETWORKS: usize = 32;
const MAX_NAME: usize = 512;
const MAX_RECORDS: usize = 8;
const MAX_RTT_MS: u32 = 60_000;
