//! Settings as the crates take them. Nothing else knows both.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use tidegate_certs::CertificateFiles;
use tidegate_core::CoreConfig;
use tidegate_edge::auth::{AuthConfig, KeyConfig, KeyError, KeySource, Secret};
use tidegate_edge::config::Config as EdgeConfig;
use tidegate_edge::policy::admission::{AddressLimits, AdmissionConfig};
use tidegate_edge::resume::{TicketKeyError, TicketKeys};
use tidegate_edge::{About, Addresses, HomeRules};
use tidegate_protocol::grants::ChannelPattern;
use tidegate_protocol::namespace::Namespaces;
use tidegate_protocol::plan::Alternative;
use tidegate_protocol::{NodeId, Region};
use tidegate_transport::quic::{ROUTING_KEY_BYTES, Routing};

use super::{AuthKey, Balancer, Settings};

impl Settings {
    /// For the edge.
    pub(crate) fn edge(&self) -> EdgeConfig {
        EdgeConfig {
            node: NodeId::new(&self.node_name()),
            region: Region::new(&self.node.region),
            workers: self.workers(),
            quic: self.listen.quic,
            tls: self.listen.tls,
            plain: self.listen.plain,
            // Nobody would be told of it.
            http3: self.listen.http3.filter(|_| self.listen.tls.is_some()),
            namespaces: self.namespaces(),
            anonymous: self.auth.anonymous,
            alternatives: self.alternatives(),
            resume: self.resume.enabled.then_some(self.resume.times),
            admission: self.admission(),
            limits: self.limits.edge.clone(),
        }
    }

    fn admission(&self) -> AdmissionConfig {
        let set = &self.admission;
        // Checked before: what is no network was reported.
        let exempt = set.exempt.iter().filter_map(|network| network.parse().ok()).collect();
        let defaults = AdmissionConfig::for_rate(self.admission_rate().into());
        AdmissionConfig {
            handshakes: set.handshakes,
            addresses: AddressLimits {
                rate: set.address_rate.into(),
                burst: set.address_burst,
                exempt,
                ..defaults.addresses
            },
            ..defaults
        }
    }

    /// What other nodes are told of this one, which listens at `bound`.
    pub(crate) fn about(&self, bound: &Addresses) -> About {
        About {
            node: NodeId::new(&self.node_name()),
            region: Region::new(&self.node.region),
            endpoints: self.endpoints(bound),
            rate: self.admission_rate(),
        }
    }

    /// As set, else where it listens: but for "every address", which is none that a client could go to.
    fn endpoints(&self, bound: &Addresses) -> Vec<String> {
        if !self.node.endpoints.is_empty() {
            return self.node.endpoints.clone();
        }
        let schemes = [
            ("quic", bound.quic),
            ("wss", bound.tls),
            ("https", bound.tls),
            ("ws", bound.plain),
            ("http", bound.plain),
        ];
        let concrete = schemes.into_iter().filter_map(|(scheme, address)| {
            let address = address.filter(|address| !address.ip().is_unspecified())?;
            Some(format!("{scheme}://{address}"))
        });
        concrete.collect()
    }

    /// Clients per second: as set, else by the number of workers.
    fn admission_rate(&self) -> u32 {
        match self.admission.rate {
            0 => u32::try_from(self.workers().get()).unwrap_or(u32::MAX).saturating_mul(RATE_OF_WORKER),
            rate => rate,
        }
    }

    fn alternatives(&self) -> Vec<Alternative> {
        let hosts = self.node.alternatives.iter();
        hosts.map(|host| Alternative { host: host.clone(), weight: 1, elsewhere: false }).collect()
    }

    /// Where channels live.
    pub(crate) fn homes(&self) -> HomeRules {
        let cluster = &self.cluster;
        let home = Region::new(&self.home_region());
        let rules = cluster.homes.iter().fold(HomeRules::new(home), |rules, rule| {
            rules.with_pattern(ChannelPattern::new(&rule.pattern), Region::new(&rule.region))
        });
        let named = self.namespaces.named.iter();
        named
            .filter_map(|(name, namespace)| Some((name, namespace.home.as_ref()?)))
            .fold(rules, |rules, (name, region)| rules.with_namespace(name, Region::new(region)))
    }

    /// Where the cores of each region are.
    pub(crate) fn regions(&self) -> BTreeMap<Region, Vec<String>> {
        let regions = self.cluster.regions.iter();
        regions.map(|(name, region)| (Region::new(name), region.cores.clone())).collect()
    }

    /// For the core.
    pub(crate) fn core(&self) -> CoreConfig {
        CoreConfig { max_payload: self.limits.edge.payload, ..self.core.clone() }
    }

    /// Rules of channels, for edge and core.
    pub(crate) fn namespaces(&self) -> Namespaces {
        let all = &self.namespaces;
        let named = all.named.iter().map(|(name, namespace)| (name.clone(), namespace.rules.clone()));
        Namespaces::new(all.default.rules.clone(), named.collect(), all.refuse_unknown)
    }

    /// For the authenticator.
    ///
    /// # Errors
    /// When a key names no source, or more than one: a text for the operator.
    pub(crate) fn auth(&self) -> Result<AuthConfig, String> {
        Ok(AuthConfig {
            keys: self.auth.keys.iter().map(AuthKey::config).collect::<Result<_, _>>()?,
            jwks_files: self.auth.jwks_files.clone(),
            issuer: self.auth.issuer.clone(),
            audience: self.auth.audience.clone(),
            leeway: self.auth.leeway,
            max_token_bytes: self.limits.edge.token,
            max_subscriptions: self.limits.edge.subscriptions,
        })
    }

    /// Keys of tickets; `None` where the node makes its own.
    ///
    /// # Errors
    /// When a file cannot be used: the first such problem.
    pub(crate) fn ticket_keys(&self) -> Result<Option<TicketKeys>, TicketKeyError> {
        if self.resume.enabled && !self.resume.keys.is_empty() {
            TicketKeys::read(&self.resume.keys).map(Some)
        } else {
            Ok(None)
        }
    }

    /// What connection ids say to balancers; the key is read now.
    ///
    /// # Errors
    /// When it is set half, or out of range: a text for the operator.
    pub(crate) fn routing(&self) -> Result<Option<Routing>, String> {
        let Balancer { server_id, rotation, key_file } = &self.balancer;
        let (server_id, key_file) = match (server_id, key_file) {
            (None, None) => return Ok(None),
            (Some(server_id), Some(key_file)) => (server_id, key_file),
            _ => return Err("`quic.balancer.server_id` and `quic.balancer.key_file` go together".to_owned()),
        };
        let server_id = hexadecimal(server_id.as_bytes())
            .ok_or("`quic.balancer.server_id` is not hexadecimal, two digits a byte")?;
        let key = Secret::read(key_file).map_err(|error| error.to_string())?;
        let key: [u8; ROUTING_KEY_BYTES] =
            hexadecimal(key.expose().trim_ascii()).and_then(|key| key.try_into().ok()).ok_or_else(|| {
                let path = key_file.display();
                format!("{path} holds no balancer key: 16 bytes in hexadecimal are expected; make one with `openssl rand -hex 16`")
            })?;
        let rotation = u8::try_from(*rotation).unwrap_or(u8::MAX);
        Routing::new(rotation, &server_id, key)
            .map(Some)
            .map_err(|error| format!("[quic.balancer] cannot be used: {error}"))
    }

    /// Keys of the backend API, those in files read now.
    pub(crate) fn api_keys(&self) -> Result<Vec<Secret>, KeyError> {
        let from_files = self.api.key_files.iter().map(|path| Secret::read(path));
        self.api.keys.iter().cloned().map(Ok).chain(from_files).collect()
    }

    /// Certificates to serve.
    pub(crate) fn certificate_files(&self) -> Vec<CertificateFiles> {
        let files = self.tls.certificates.iter();
        files
            .map(|pair| CertificateFiles { certificate: pair.certificate.clone(), key: pair.key.clone() })
            .collect()
    }

    /// As set, else one per processor.
    pub(crate) fn workers(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.node.workers)
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN)
            .min(MAX_WORKERS)
    }

    /// As set, else one for every two processors: a core's tasks are short, and wake each other up. Two threads that share
    /// two or three of them between them spend more on that than on the work.
    pub(crate) fn core_threads(&self) -> NonZeroUsize {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        NonZeroUsize::new(self.node.threads)
            .or_else(|| NonZeroUsize::new(processors / 2))
            .unwrap_or(NonZeroUsize::MIN)
            .min(MAX_WORKERS)
    }
}

impl AuthKey {
    /// For the authenticator.
    ///
    /// # Errors
    /// When there is no source, or more than one: a text for the operator.
    pub(crate) fn config(&self) -> Result<KeyConfig, String> {
        let sources = [
            self.secret.clone().map(KeySource::Secret),
            self.secret_file.clone().map(KeySource::SecretFile),
            self.public_key_file.clone().map(KeySource::PublicKeyFile),
        ];
        let mut sources = sources.into_iter().flatten();
        match (sources.next(), sources.next()) {
            (Some(source), None) => Ok(KeyConfig { id: self.id.clone(), algorithm: self.algorithm, source }),
            _ => Err("a key needs exactly one of `secret`, `secret_file` and `public_key_file`".to_owned()),
        }
    }
}

/// Two digits a byte, whatever their case.
fn hexadecimal(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    };
    text.chunks(2).map(byte).collect()
}

/// As many as can share a UDP port.
pub(super) const MAX_WORKERS: NonZeroUsize =
    NonZeroUsize::new(tidegate_transport::quic::MAX_WORKERS).expect("not zero");

/// A processor does about 2,000 full QUIC handshakes per second; sessions that are there need most of it.
const RATE_OF_WORKER: u32 = 500;
