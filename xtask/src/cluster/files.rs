//! Keys, configurations and addresses of a cluster on this machine.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::members::Members;
use super::{Args, Engine};
use crate::process;
use crate::workspace::Workspace;

/// Everything that is written before the first process starts.
pub(super) struct Files {
    folder: PathBuf,
    pub(super) members: Vec<Member>,
}

/// What a process is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nats,
    Core,
    Edge,
}

/// One process to be.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) kind: Kind,
    region: &'static str,
    pub(super) arguments: Vec<String>,
    pub(super) log: PathBuf,
    /// Asked whether it is ready.
    pub(super) probe: SocketAddr,
    pub(super) probe_path: &'static str,
    /// Clients, links or the server itself.
    serves: SocketAddr,
    /// Edges: TCP without TLS, with the demo page.
    plain: Option<SocketAddr>,
}

impl Files {
    pub(super) fn prepare(workspace: &Workspace, args: &Args, program: &Path) -> Result<Self> {
        let folder = match &args.dir {
            Some(folder) => std::path::absolute(folder)?,
            None => {
                let folder = workspace.target_directory.join("cluster");
                if folder.exists() {
                    fs::remove_dir_all(&folder)
                        .with_context(|| format!("cannot empty {}", folder.display()))?;
                }
                folder
            }
        };
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut ports = Ports::new(args.port);
        let mut this = Self { folder, members: Vec::new() };
        let servers =
            if args.engine == Engine::Nats { this.nats(args.nats, &mut ports)? } else { Vec::new() };
        let names = |kind: &str, count: usize| (1..=count).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
        let (cores, edges) = (names("core", args.cores), names("edge", args.edges));
        this.certificates(program, cores.iter().chain(&edges))?;
        let links = this.cores(&cores, args.engine, &servers, &mut ports)?;
        this.edges(&edges, &links, &mut ports)?;
        Ok(this)
    }

    /// URLs of the servers.
    fn nats(&mut self, count: usize, ports: &mut Ports) -> Result<Vec<String>> {
        let mut addresses = Vec::new();
        for _ in 0..count {
            addresses.push((ports.next()?, ports.next()?, ports.next()?));
        }
        let routes: Vec<String> = addresses.iter().map(|(_, _, route)| format!("nats://{route}")).collect();
        for (n, (client, monitor, route)) in (1..).zip(&addresses) {
            let name = format!("nats-{n}");
            let mut text = format!(
                "server_name: {name}\nlisten: {client}\nhttp: {monitor}\njetstream {{\n  store_dir: {:?}\n  sync_interval: \
                 always\n}}\n",
                self.folder.join(&name).display().to_string()
            );
            if count > 1 {
                let _ = writeln!(
                    text,
                    "cluster {{\n  name: tidegate-eu\n  listen: {route}\n  routes: [{}]\n}}",
                    routes.join(", ")
                );
            }
            let config = self.write(&format!("{name}.conf"), &text)?;
            self.members.push(Member {
                log: self.folder.join(format!("{name}.log")),
                name,
                kind: Kind::Nats,
                region: HOME,
                arguments: vec!["--config".to_owned(), config],
                probe: *monitor,
                probe_path: "/healthz",
                serves: *client,
                plain: None,
            });
        }
        Ok(addresses.iter().map(|(client, ..)| format!("nats://{client}")).collect())
    }

    /// Those that are not there yet.
    fn certificates<'a>(&self, program: &Path, nodes: impl Iterator<Item = &'a String>) -> Result<()> {
        let certs = |arguments: &[&str]| {
            let mut command = Command::new(program);
            command.arg("certs").args(arguments).arg("--dir").arg(self.folder.join("certs"));
            process::capture(&mut command)
        };
        if !self.folder.join("certs/ca.pem").exists() {
            certs(&["init"])?;
        }
        for node in nodes {
            if !self.folder.join(format!("certs/{node}.pem")).exists() {
                certs(&["node", node])?;
            }
        }
        Ok(())
    }

    /// Where their links are.
    fn cores(
        &mut self,
        names: &[String],
        engine: Engine,
        servers: &[String],
        ports: &mut Ports,
    ) -> Result<Vec<String>> {
        let mut links = Vec::new();
        for name in names {
            let (link, api) = (ports.next()?, ports.next()?);
            let mut text = node(name, HOME, api);
            let _ = writeln!(text, "[core]\nengine = \"{}\"", engine.name());
            let _ = writeln!(text, "[core.local]\npath = \"{name}-data\"");
            if engine == Engine::Nats {
                let replicas = servers.len();
                let _ = writeln!(
                    text,
                    "[core.nats]\nservers = {servers:?}\nreplicas = {replicas}\nretain_bytes = \"64MiB\""
                );
            }
            let _ = writeln!(text, "{}listen = \"{link}\"", cluster(name));
            // As `edge --dev` has it: cores keep it for them.
            text.push_str("[namespaces.default]\npresence = \"anyone\"\n");
            let config = self.write(&format!("{name}.toml"), &text)?;
            let mut arguments = vec!["core".to_owned(), "--config".to_owned(), config];
            if engine == Engine::Memory {
                // Refused in a file, where it would be a mistake.
                arguments.extend(["--set".to_owned(), "core.engine=memory".to_owned()]);
            }
            self.push(name, Kind::Core, HOME, arguments, api, link, None);
            links.push(link.to_string());
        }
        Ok(links)
    }

    fn edges(&mut self, names: &[String], links: &[String], ports: &mut Ports) -> Result<()> {
        for (name, region) in names.iter().zip(REGIONS.into_iter().cycle()) {
            let [client, http3, plain, api] = [ports.next()?, ports.next()?, ports.next()?, ports.next()?];
            let mut text = node(name, region, api);
            let _ = writeln!(
                text,
                "quic = \"{client}\"\ntls = \"{client}\"\nhttp3 = \"{http3}\"\nplain = \"{plain}\""
            );
            let _ = writeln!(text, "{}[cluster.regions.{HOME}]\ncores = {links:?}", cluster(name));
            let config = self.write(&format!("{name}.toml"), &text)?;
            let certs = self.folder.join("dev-certs").display().to_string();
            let arguments = ["edge", "--dev", "--certs-dir", &certs, "--config", &config].map(str::to_owned);
            self.push(name, Kind::Edge, region, arguments.to_vec(), api, client, Some(plain));
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "each is one field")]
    fn push(
        &mut self,
        name: &str,
        kind: Kind,
        region: &'static str,
        arguments: Vec<String>,
        api: SocketAddr,
        serves: SocketAddr,
        plain: Option<SocketAddr>,
    ) {
        let log = self.folder.join(format!("{name}.log"));
        let name = name.to_owned();
        self.members.push(Member {
            name,
            kind,
            region,
            arguments,
            log,
            probe: api,
            probe_path: "/readyz",
            serves,
            plain,
        });
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// Where everything is, and what to try.
    pub(super) fn table(&self, members: &Members, program: &Path) -> String {
        let mut out =
            format!("\nThe cluster is ready, for development only. Its files: {}\n\n", self.folder.display());
        let _ = writeln!(out, "  {:<8}{:<8}{:<9}{:<42}API", "NODE", "REGION", "PID", "SERVES");
        for member in &self.members {
            let pid = members.id(&member.name).map(|id| id.to_string()).unwrap_or_default();
            let (serves, api) = match member.kind {
                Kind::Nats => {
                    (format!("nats://{}", member.serves), format!("http://{} (its own)", member.probe))
                }
                Kind::Core => (format!("links on UDP {}", member.serves), format!("http://{}", member.probe)),
                Kind::Edge => {
                    (format!("clients on UDP and TCP {}", member.serves), format!("http://{}", member.probe))
                }
            };
            let _ = writeln!(out, "  {:<8}{:<8}{:<9}{:<42}{api}", member.name, member.region, pid, serves);
        }
        out.push('\n');
        let edges: Vec<&Member> = self.members.iter().filter(|member| member.kind == Kind::Edge).collect();
        for edge in &edges {
            if let Some(plain) = edge.plain {
                let _ = writeln!(out, "  Demo page on {}: http://localhost:{}/", edge.name, plain.port());
            }
        }
        let program = program.display();
        if let (Some(first), Some(last)) = (edges.first(), edges.last())
            && let Some(plain) = last.plain
        {
            let _ = write!(
                out,
                "\n  {program} status --api http://{0}\n  {program} subscribe room:1 --url ws://{plain}\n  {program} publish \
                 room:1 hello --api http://{0}\n",
                first.probe
            );
        }
        let _ = writeln!(out, "\n  Logs: {}\nEnd with Ctrl-C.\n", self.folder.join("NODE.log").display());
        out
    }
}

fn node(name: &str, region: &str, api: SocketAddr) -> String {
    format!("[node]\nname = \"{name}\"\nregion = \"{region}\"\nworkers = 1\n[listen]\napi = \"{api}\"\n")
}

fn cluster(name: &str) -> String {
    format!(
        "[cluster]\nhome = \"{HOME}\"\nca = \"certs/ca.pem\"\ncertificate = \"certs/{name}.pem\"\nkey = \"certs/{name}-key.pem\"\n"
    )
}

/// Ports of loopback: one after the other, or any that are free.
struct Ports {
    next: u16,
    /// Held until all are chosen: none is chosen twice.
    held: Vec<(TcpListener, UdpSocket)>,
}

impl Ports {
    fn new(first: u16) -> Self {
        Self { next: first, held: Vec::new() }
    }

    /// Free for TCP and UDP.
    fn next(&mut self) -> Result<SocketAddr> {
        if self.next != 0 {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.next));
            self.next = self.next.checked_add(1).context("--port is too high for so many processes")?;
            return Ok(address);
        }
        for _ in 0..ATTEMPTS {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = tcp.local_addr()?;
            if let Ok(udp) = UdpSocket::bind(address) {
                self.held.push((tcp, udp));
                return Ok(address);
            }
        }
        anyhow::bail!("there is no port that is free for both TCP and UDP")
    }
}

/// Where the cores are, and channels live.
const HOME: &str = "eu";
/// Of edges, in turn.
const REGIONS: [&str; 2] = [HOME, "us"];
const ATTEMPTS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_one_another_or_differ() {
        let mut fixed = Ports::new(4000);
        let ports = [fixed.next(), fixed.next()].map(|address| address.expect("no limit is near").port());
        assert_eq!(ports, [4000, 4001]);
        assert!(Ports::new(65535).next().is_err());
        let mut free = Ports::new(0);
        let mut ports: Vec<u16> = (0..20).map(|_| free.next().expect("some are free").port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}
