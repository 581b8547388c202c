//! Any program runs inside, and nothing stays behind.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use tidegate_interop_tests::lab::{Lab, LabConfig, SERVER};
use tidegate_interop_tests::programs::{python, tidegate};
use tokio::io::AsyncReadExt as _;

use super::probe::until;

#[test]
fn curl_meets_a_python_server_over_a_slow_link() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("index.html"), "x".repeat(20_000))?;
    let serve = format!("{} -m http.server 80 --directory {}", python()?.display(), folder.path().display());
    let curl = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{size_download} %{time_total}"];
    let output = lab()
        .args([
            "--rtt", "100ms", "--rate", "10mbit", "--seed", "7", "--server", &serve, "--ready", "80", "--",
        ])
        .args(curl)
        .arg(format!("http://{SERVER}/"))
        .output()?;
    let (told, counted) = texts(&output);
    let (size, time) = told.trim().split_once(' ').with_context(|| format!("{told}{counted}"))?;
    ensure!(output.status.success() && size == "20000", "{told}{counted}");
    // One round trip for the handshake, one for the request, and the window's growth.
    ensure!(time.parse::<f64>()? >= 0.2, "{told}");
    ensure!(counted.contains("seed 7") && counted.contains("lab: down"), "{counted}");
    Ok(())
}

#[test]
fn tidegate_serves_inside() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dev = format!(
        "{} dev --certs-dir {}/certs --tls {SERVER}:4433 --quic {SERVER}:4433",
        tidegate()?.display(),
        folder.path().display()
    );
    let output = lab()
        .args(["--rtt", "20ms", "--server", &dev, "--ready", "4433", "--"])
        .args([
            "curl",
            "--silent",
            "--show-error",
            "--insecure",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ])
        .arg(format!("https://{SERVER}:4433/v1/channels/room:1/poll"))
        .output()?;
    let (told, counted) = texts(&output);
    ensure!(told == "200", "{told}{counted}");
    Ok(())
}

#[test]
fn the_programs_status_is_the_labs() -> Result<()> {
    let output = lab().args(["--", "sh", "-c", "exit 7"]).output()?;
    ensure!(output.status.code() == Some(7), "{output:?}");
    let output = lab().args(["--", "/no/such/program"]).output()?;
    ensure!(!output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn without_root_it_says_what_to_do() -> Result<()> {
    // Where users other than root cannot look, the program must lie elsewhere.
    let folder = tempfile::Builder::new().permissions(open_to_all()).tempdir_in("/tmp")?;
    let program = folder.path().join("lab");
    fs::copy(env!("CARGO_BIN_EXE_lab"), &program)?;
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let output = Command::new("setpriv").args(nobody).arg(&program).args(["--", "true"]).output()?;
    let (_, said) = texts(&output);
    ensure!(!output.status.success() && said.contains("needs root") && said.contains("sudo"), "{said}");
    Ok(())
}

#[tokio::test]
async fn asynchronous_code_runs_inside() -> Result<()> {
    let lab = Lab::start(LabConfig::default())?;
    let server = lab.server().run(|| TcpListener::bind((SERVER, 80)))??;
    let client = lab.client().task(|| async {
        let mut stream = tokio::net::TcpStream::connect((SERVER, 80)).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        anyhow::Ok(text)
    })?;
    let answering = std::thread::spawn(move || std::io::Write::write_all(&mut server.accept()?.0, b"hello"));
    ensure!(client.await?? == "hello", "another text");
    answering.join().ok().context("the server panicked")??;
    Ok(())
}

#[test]
fn dropping_it_ends_the_programs_and_removes_the_namespaces() -> Result<()> {
    let lab = Lab::start(LabConfig::default())?;
    let names = [lab.client().name().to_owned(), lab.server().name().to_owned()];
    let mut sleeper = lab.client().command("sleep").arg("1000").spawn()?;
    until("the program to be inside", || inside(&names[0]).contains(&sleeper.id()))?;
    drop(lab);
    ensure!(!sleeper.wait()?.success(), "it was killed");
    ensure!(names.iter().all(|name| !exists(name)), "{names:?} are still there");
    Ok(())
}

#[test]
fn what_a_killed_laboratory_left_is_swept_by_the_next() -> Result<()> {
    let mut killed = lab().args(["--", "sleep", "1000"]).stderr(Stdio::null()).spawn()?;
    let mine = format!("tidegate-lab-{}-", killed.id());
    let left = || -> Vec<String> {
        let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&mine))
            .collect()
    };
    until("the program to run", || left().iter().any(|name| !inside(name).is_empty()))?;
    killed.kill()?;
    killed.wait()?;
    ensure!(left().len() == 2, "{:?}", left());
    let _next = Lab::start(LabConfig::default())?;
    ensure!(left().is_empty(), "{:?}", left());
    Ok(())
}

/// Without this test run's own settings, which `tidegate` would take for its own.
fn lab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(name);
        }
    }
    command
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

/// The processes inside.
fn inside(name: &str) -> Vec<u32> {
    let output = Command::new("ip").args(["netns", "pids", name]).output();
    let text = output.map(|output| texts(&output).0).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

fn open_to_all() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}
