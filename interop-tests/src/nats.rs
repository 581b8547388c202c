//! NATS servers as child processes: with JetStream, in folders of their own, gone when dropped.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::process::pause;
use crate::wait::{PATIENCE, until, within};
use crate::{ports, programs};

/// One server. Its name, address and files stay the same over restarts.
#[derive(Debug)]
pub struct NatsServer {
    name: String,
    address: SocketAddr,
    folder: TempDir,
    child: Option<Child>,
}

impl NatsServer {
    /// A server without others.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start() -> Result<Self> {
        let mut servers = together(1, false).await?;
        servers.pop().context("one server was started")
    }

    /// Its name in a cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let mut child = self.child.take().context("the NATS server is not running")?;
        within(PATIENCE, "the end of a NATS server", child.wait()).await??;
        Ok(())
    }

    /// Stops it without an end: its connections stay open, and nothing answers.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn pause(&self) -> Result<()> {
        pause(self.pid()?).await
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Starts it after [`NatsServer::kill`], with the same files at the same address.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Lets it store no more than so many bytes: starts it again, with the same files.
    ///
    /// # Errors
    /// When it is not running, or does not become ready.
    pub async fn restart_with_room(&mut self, bytes: u64) -> Result<()> {
        self.kill().await?;
        let path = self.folder.path().join(CONFIG);
        let config = fs::read_to_string(&path)?;
        let limited = config.replacen("jetstream {", &format!("jetstream {{ max_file_store: {bytes},"), 1);
        fs::write(path, limited)?;
        self.restart().await
    }

    /// Lets whoever connects store no more than so many bytes, each replica counted: starts it again, with nothing.
    ///
    /// # Errors
    /// When it is not running, or does not become ready.
    pub async fn restart_with_account(&mut self, bytes: u64) -> Result<()> {
        self.kill().await?;
        let path = self.folder.path().join(CONFIG);
        let config = fs::read_to_string(&path)?;
        let account = format!(
            "accounts {{ app {{ jetstream {{ max_file: {bytes} }}, users: [{{ user: app, password: app }}] }} }}\n\
             no_auth_user: app\n"
        );
        fs::write(path, config + &account)?;
        self.restart().await
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default()
    }

    fn prepare(name: String, ports: &Ports, others: &[Ports], synced: bool) -> Result<Self> {
        let folder = TempDir::with_prefix("tidegate-nats-")?;
        let store = folder.path().join("store");
        let sync = if synced { ", sync_interval: always" } else { "" };
        let mut config = format!(
            "server_name: {name}\nlisten: \"{}\"\njetstream {{ store_dir: {:?}{sync} }}\n",
            ports.clients, store
        );
        if others.len() > 1 {
            let routes: Vec<_> = others.iter().map(|other| format!("\"nats://{}\"", other.servers)).collect();
            let routes = routes.join(", ");
            config += &format!(
                "cluster {{ name: test, listen: \"{}\", routes: [{routes}], no_advertise: true }}\n",
                ports.servers
            );
        }
        fs::write(folder.path().join(CONFIG), config)?;
        Ok(Self { name, address: ports.clients, folder, child: None })
    }

    fn spawn(&mut self) -> Result<()> {
        let program = programs::nats_server()?;
        let log = File::options().create(true).append(true).open(self.folder.path().join(LOG))?;
        let child = Command::new(&program)
            .arg("--config")
            .arg(self.folder.path().join(CONFIG))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    async fn ready(&mut self) -> Result<()> {
        let address = self.address;
        let greeted = until("a NATS server's greeting", || async move {
            let mut greeting = [0; 5];
            TcpStream::connect(address).await?.read_exact(&mut greeting).await?;
            ensure!(&greeting == b"INFO ", "something else listens at {address}");
            Ok(())
        });
        greeted.await.with_context(|| self.log())?;
        // Whoever greets may be somebody who took the port.
        let child = self.child.as_mut().context("the NATS server was not started")?;
        ensure!(child.try_wait()?.is_none(), "the NATS server has ended: {}", self.log());
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid()?, signal).context("signalling a NATS server")
    }

    fn pid(&self) -> Result<Pid> {
        let id = self.child.as_ref().and_then(Child::id).context("the NATS server is not running")?;
        Ok(Pid::from_raw(i32::try_from(id)?))
    }
}

/// Servers that replicate, or one alone.
#[derive(Debug)]
pub struct NatsCluster {
    /// In the order of their names.
    pub servers: Vec<NatsServer>,
}

impl NatsCluster {
    /// Starts three. They elect a leader after that: who connects waits for it.
    ///
    /// # Errors
    /// When one does not become ready.
    pub async fn start() -> Result<Self> {
        Self::start_with(3, false).await
    }

    /// Starts `count`. `synced`: each write is on the disk before it is answered.
    ///
    /// # Errors
    /// When one does not become ready.
    pub async fn start_with(count: usize, synced: bool) -> Result<Self> {
        Ok(Self { servers: together(count, synced).await? })
    }

    /// Where clients find them.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(NatsServer::url).collect()
    }

    /// The server of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(&mut self, name: &str) -> Result<&mut NatsServer> {
        let server = self.servers.iter_mut().find(|server| server.name == name);
        server.with_context(|| format!("no server is called {name}"))
    }
}

/// The addresses of a server.
#[derive(Debug, Clone, Copy)]
struct Ports {
    clients: SocketAddr,
    servers: SocketAddr,
}

/// Each must know the ports of all before one of them is started. Somebody else may take one in between; then others are
/// chosen.
async fn together(count: usize, synced: bool) -> Result<Vec<NatsServer>> {
    let mut tries = 3;
    loop {
        tries -= 1;
        let error = match attempt(count, synced).await {
            Ok(servers) => return Ok(servers),
            Err(error) => error,
        };
        if tries == 0 {
            return Err(error);
        }
    }
}

async fn attempt(count: usize, synced: bool) -> Result<Vec<NatsServer>> {
    let ports = choose_ports(count)?;
    let mut servers = Vec::new();
    for (index, own) in ports.iter().enumerate() {
        servers.push(NatsServer::prepare(format!("n{index}"), own, &ports, synced)?);
    }
    for server in &mut servers {
        server.spawn()?;
    }
    for server in &mut servers {
        server.ready().await?;
    }
    Ok(servers)
}

fn choose_ports(count: usize) -> Result<Vec<Ports>> {
    (0..count).map(|_| Ok(Ports { clients: ports::free()?, servers: ports::free()? })).collect()
}

const CONFIG: &str = "server.conf";
const LOG: &str = "server.log";
