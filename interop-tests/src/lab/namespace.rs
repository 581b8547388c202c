//! One end of the laboratory: a network namespace with a TUN device in it.

use std::fs::{self, File};
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::setup::{NAMESPACES, ip, remove};

/// One end of the laboratory. Any program runs inside by [`Namespace::command`]; this process's own code by
/// [`Namespace::run`] and its kin: a socket stays in the namespace of the thread that made it, wherever it is used then.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
    address: Ipv4Addr,
}

impl Namespace {
    pub(super) fn create(name: String, address: Ipv4Addr) -> Result<Self> {
        ip(&["netns", "add", &name], "").context("making a network namespace")?;
        let file = File::open(Path::new(NAMESPACES).join(&name)).context("the namespace just made");
        // From here on Drop removes it.
        let namespace = Self { file: file?, name, address };
        namespace.run(quieten)??;
        Ok(namespace)
    }

    /// Opens the device from inside and brings everything up.
    pub(super) fn open_device(&mut self, mtu: u16) -> Result<SyncDevice> {
        let device = self
            .run(|| DeviceBuilder::new().name(DEVICE).mtu(mtu).offload(false).build_sync())?
            .context("opening a TUN device")?;
        device.set_nonblocking(true).context("the TUN device")?;
        let commands = format!(
            "link set lo up\naddress add {}/32 dev {DEVICE}\nlink set {DEVICE} txqueuelen {QUEUE} up\n\
             route add default dev {DEVICE}\n",
            self.address
        );
        ip(&["-netns", &self.name, "-batch", "-"], &commands)?;
        Ok(device)
    }

    pub(super) fn change_address(&mut self, address: Ipv4Addr) -> Result<()> {
        let commands = format!(
            "address add {address}/32 dev {DEVICE}\naddress delete {}/32 dev {DEVICE}\n\
             route replace default dev {DEVICE}\n",
            self.address
        );
        ip(&["-netns", &self.name, "-batch", "-"], &commands)?;
        self.address = address;
        Ok(())
    }

    /// What `ip netns` calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of its device.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A program to run inside. `ip netns exec` becomes the program, so the process id is the program's own. For tokio:
    /// `tokio::process::Command::from(..)`.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs code inside and waits for it, on a thread of its own.
    ///
    /// ```no_run
    /// # fn main() -> anyhow::Result<()> {
    /// # let lab = tidegate_interop_tests::lab::Lab::start(Default::default())?;
    /// let socket = lab.client().run(|| std::net::UdpSocket::bind("0.0.0.0:0"))??;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the code panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                enter(&self.file)?;
                Ok(work())
            });
            entered.join().map_err(|_| anyhow!("the code inside {} panicked", self.name))?
        })
    }

    /// Starts a thread inside. Threads and child processes that it starts are inside as well.
    ///
    /// # Errors
    /// When there are no more threads or descriptors to have.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let file = self.file.try_clone().context("the namespace's descriptor")?;
        let thread = thread::Builder::new().name("lab-inside".to_owned());
        thread
            .spawn(move || {
                enter(&file)?;
                Ok(work())
            })
            .context("starting a thread")
    }

    /// Runs asynchronous code inside, on a thread and a tokio runtime of its own; the sockets and child processes that it
    /// makes are inside. Dropping the future that this returns drops the code's. The code starts at once.
    ///
    /// # Errors
    /// When there is no thread to have; the future, when the namespace cannot be entered or the code panicked.
    pub fn task<M, F, T>(&self, make: M) -> Result<impl Future<Output = Result<T>> + Send + use<M, F, T>>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T>,
        T: Send + 'static,
    {
        let (mut sender, receiver) = tokio::sync::oneshot::channel();
        self.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let done = runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = sender.closed() => None,
                    done = make() => Some(done),
                }
            });
            // Nobody waits for the stragglers of a runtime that is only for this.
            runtime.shutdown_background();
            if let Some(done) = done {
                // The other half may be gone by now; then nobody asks.
                let _ = sender.send(done);
            }
            anyhow::Ok(())
        })?;
        let name = self.name.clone();
        Ok(
            async move {
                receiver.await.map_err(|_| anyhow!("the code inside {name} panicked or had no runtime"))
            },
        )
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("the namespace {} stays: {error:#}", self.name);
        }
    }
}

/// Puts the calling thread into a namespace, for good.
fn enter(file: &File) -> Result<()> {
    setns(file, CloneFlags::CLONE_NEWNET).context("entering the namespace")
}

/// Nothing but what programs send may travel: it would shift the indices that decide about losses.
fn quieten() -> Result<()> {
    for (key, value) in [
        // Router solicitations, multicast listener reports.
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        // A connection's window and round trip must not be remembered for the next run.
        ("ipv4/tcp_no_metrics_save", "1"),
    ] {
        let path = Path::new("/proc/sys/net").join(key);
        // A kernel without IPv6 has nothing to switch off.
        if path.exists() {
            fs::write(&path, value).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

const DEVICE: &str = "lab0";
/// Packets that the kernel keeps for the relay to read: a burst from a fast sender, not a queue of the model.
const QUEUE: u32 = 8_192;
