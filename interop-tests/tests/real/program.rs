//! The program as somebody meets it who has just built it: what it prints can be pasted, and works.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tidegate_interop_tests::gateway::{Gateway, command, run};
use tidegate_interop_tests::programs;
use tidegate_interop_tests::wait::{PATIENCE, until, within};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn dev_prints_addresses_and_commands_that_work_when_pasted() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let text = until("the banner", || async {
        let text = gateway.output();
        ensure!(text.contains("Ctrl-C"), "{text}");
        Ok(text)
    })
    .await?;
    let addresses = gateway.addresses;
    for expected in [
        format!("http://localhost:{}/", addresses.plain.port()),
        format!("https://{}/v1/connect", addresses.quic),
        format!("quic://{}", addresses.quic),
        format!("ws://{}/v1/connect", addresses.plain),
        format!("wss://{}/v1/connect", addresses.tls),
        format!("http://{}", addresses.api),
        gateway.ca_file().display().to_string(),
    ] {
        ensure!(text.contains(&expected), "{expected} is not in {text}");
    }
    let curls: Vec<_> = text.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    let [publish, poll, follow] = curls.as_slice() else {
        bail!("three curl commands are expected in {text}")
    };
    let published = shell(publish).await?;
    ensure!(published["position"]["offset"] == 1, "{publish}: {published}");
    let polled = shell(poll).await?;
    ensure!(polled["publications"][0]["data"] == json!({ "text": "hello" }), "{poll}: {polled}");
    ensure!(polled["position"] == published["position"], "{poll}: {polled}");
    // Following does not end by itself.
    let mut follow = Command::new("sh")
        .arg("-c")
        .arg(format!("exec {follow} -s"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(follow.stdout.take().context("stdout")?).lines();
    loop {
        let line = within(PATIENCE, "the stream's position", lines.next_line()).await??;
        if line.context("the stream ended")?.starts_with("event: position") {
            break;
        }
    }
    // Over TLS with the CA that it names.
    let tls = format!(
        "curl -s --cacert {} 'https://{}/v1/channels/room:1/poll?offset=0'",
        gateway.ca_file().display(),
        addresses.tls
    );
    ensure!(shell(&tls).await?["recovered"] == true, "{tls}");
    Ok(())
}

/// Runs a line as it would be pasted, and reads what it prints as JSON.
async fn shell(line: &str) -> Result<Value> {
    let output =
        within(PATIENCE, line, Command::new("sh").arg("-c").arg(line).kill_on_drop(true).output()).await??;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{line}: {}", String::from_utf8_lossy(&output.stdout)))
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_and_subscribe_reach_each_other_from_the_shell() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let api = format!("http://{}", gateway.addresses.api);
    for scheme in ["quic", "wss", "ws", "https", "http"] {
        let channel = format!("room:{scheme}");
        let mut subscribe = command()?
            .args(["subscribe", &channel, "--url", &gateway.url(scheme)])
            .arg("--ca")
            .arg(gateway.ca_file())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(subscribe.stdout.take().context("stdout")?).lines();
        gateway.until_metric("tidegate_edge_subscriptions", |now| now == 1.0).await?;
        for data in [r#"{"text":"hi"}"#, "no JSON at all"] {
            let published = run(&["publish", &channel, data, "--api", &api]).await?;
            ensure!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
            let line = loop {
                let line = within(PATIENCE, "a line of `tidegate subscribe`", lines.next_line())
                    .await??
                    .context("`tidegate subscribe` ended")?;
                if line.contains("hi") || line.contains("no JSON at all") {
                    break line;
                }
            };
            ensure!(line.contains(if data.starts_with('{') { r#"{"text":"hi"}"# } else { data }), "{line}");
        }
        // Ctrl-C: it leaves in order.
        let pid = i32::try_from(subscribe.id().context("it runs")?)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)?;
        within(PATIENCE, "the end of `tidegate subscribe`", subscribe.wait()).await??;
        gateway.until_metric("tidegate_edge_subscriptions", |now| now == 0.0).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_named_with_what_to_do() -> Result<()> {
    for (arguments, words) in [
        (&["serve", "--set", "listen.quick=127.0.0.1:0"][..], "listen.quic"),
        (&["serve", "--api", "127.0.0.1:0"], "certificate"),
        (&["publish", "room:1", "x", "--api", "http://127.0.0.1:9"], "listen.api"),
        (&["token", "--user", "ann"], "--secret-file"),
        (&["dev", "--config", "/nowhere/tidegate.toml"], "/nowhere/tidegate.toml"),
        (&["config", "check", "--set", "limits.payload=lots"], "limits.payload"),
    ] {
        let output = run(arguments).await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{arguments:?} succeeded");
        ensure!(error.starts_with("error: ") && error.contains(words), "{arguments:?}: {error}");
    }
    let gateway = Gateway::dev("").await?;
    let taken = gateway.addresses.api.to_string();
    let certs = gateway.folder().join("others");
    let output = run(&["dev", "--api", &taken, "--certs-dir", certs.to_str().context("a path")?]).await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.contains(&taken) && error.contains("--api"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_configuration_is_accepted_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for dev in [true, false] {
        let flags: &[&str] = if dev { &["--dev"] } else { &[] };
        let printed = run(&[&["config", "default"], flags].concat()).await?;
        ensure!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        let file = folder.path().join("tidegate.toml");
        std::fs::write(&file, &printed.stdout)?;
        let path = file.to_str().context("a path")?;
        let explained =
            run(&[&["config", "explain", "limits.payload", "--config", path], flags].concat()).await?;
        ensure!(explained.status.success(), "{}", String::from_utf8_lossy(&explained.stderr));
        let text = String::from_utf8_lossy(&explained.stdout);
        ensure!(text.contains("64KiB") && text.contains("tidegate.toml"), "{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_the_readme_exist() -> Result<()> {
    let Ok(readme) = std::fs::read_to_string(programs::root().join("README.md")) else {
        // Nothing to hold the program to.
        return Ok(());
    };
    let gateway = Gateway::dev("").await?;
    for line in sh_lines(&readme) {
        // What is told of the standard ports holds for the ports of this gateway.
        let line = line
            .replace("127.0.0.1:9090", &gateway.addresses.api.to_string())
            .replace("localhost:9090", &gateway.addresses.api.to_string())
            .replace("127.0.0.1:8080", &gateway.addresses.plain.to_string())
            .replace("localhost:8080", &gateway.addresses.plain.to_string());
        if line.starts_with("curl ") {
            shell(&line).await.with_context(|| format!("README: {line}"))?;
            continue;
        }
        let Some(arguments) = tidegate_arguments(&line) else { continue };
        let mut help: Vec<&str> =
            arguments.iter().take_while(|word| !word.starts_with('-')).map(String::as_str).collect();
        // Values come after the commands' names: only names are looked up.
        help.truncate(if help.first() == Some(&"config") { 2 } else { 1 });
        help.push("--help");
        let output = within(Duration::from_secs(10), &line, run(&help)).await??;
        ensure!(output.status.success(), "README: {line}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for flag in arguments.iter().filter(|word| word.starts_with("--")) {
            let flag = flag.split('=').next().unwrap_or(flag);
            ensure!(text.contains(flag), "README: {line}: no {flag} in `tidegate {}`", help.join(" "));
        }
    }
    Ok(())
}

/// Lines of the blocks that are marked `sh`, continued ones joined, without comments.
fn sh_lines(markdown: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = false;
    let mut joined = String::new();
    for line in markdown.lines() {
        let line = line.trim();
        if let Some(fence) = line.strip_prefix("```") {
            inside = !inside && matches!(fence, "sh" | "bash" | "console");
        } else if inside {
            let line = line.strip_prefix("$ ").unwrap_or(line);
            match line.strip_suffix('\\') {
                Some(begun) => joined.push_str(begun),
                None => {
                    lines.push(std::mem::take(&mut joined) + line.split(" #").next().unwrap_or(line).trim())
                }
            }
        }
    }
    lines
}

/// What `tidegate` is told, also through `cargo run`.
fn tidegate_arguments(line: &str) -> Option<Vec<String>> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let first = words.first()?;
    if first == "tidegate" || first.ends_with("/tidegate") {
        return Some(words[1..].to_vec());
    }
    (words.starts_with(&["cargo".to_owned(), "run".to_owned()]))
        .then(|| words.iter().position(|word| word == "--"))?
        .map(|at| words[at + 1..].to_vec())
}
