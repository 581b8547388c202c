//! Ends in order, and certificates that change under way.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;
use tempfile::TempDir;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::clients::{
    Collector, Subscriber, from_heads, native, node_ws, python_web_socket, python_web_transport,
};
use tidegate_interop_tests::gateway::{Gateway, issue_certificates};
use tidegate_interop_tests::http::{get, send};
use tidegate_interop_tests::raw::{Carrier, Raw};
use tidegate_interop_tests::wait::{until, within};

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_tells_every_client_and_ends_within_its_grace() -> Result<()> {
    let mut gateway = Gateway::dev("[limits]\nshutdown = \"10s\"\n").await?;
    let browser = Browser::launch().await?;
    let wishes = from_heads(&["room:1"]);
    let mut clients: Vec<Box<dyn Subscriber>> = Vec::new();
    for transport in ["webtransport", "websocket", "longpoll"] {
        clients.push(Box::new(browser.subscribe(&gateway, transport, &wishes).await?));
    }
    for scheme in ["quic", "webtransport", "wss", "https"] {
        clients.push(Box::new(native(&gateway, scheme, None, &wishes).await?));
    }
    clients.push(Box::new(python_web_socket(&gateway, &wishes).await?));
    clients.push(Box::new(node_ws(&gateway, &wishes).await?));
    clients.push(Box::new(python_web_transport(&gateway, &wishes).await?));
    let mut collectors = Vec::new();
    for client in clients {
        collectors.push(Collector::begin(client, &wishes).await?);
    }
    let mut raws = Vec::new();
    for carrier in Carrier::ALL {
        raws.push(Raw::connect(&gateway, carrier).await?);
    }
    gateway.publish("room:1", json!("last")).await?;
    for collector in &mut collectors {
        collector.collect(1).await?;
    }
    // Polls must wait already: a long-poll client is told by the answer that it waits for.
    let ends = async {
        let mut ends = Vec::new();
        for raw in &mut raws {
            ends.push(raw.end());
        }
        futures_util::future::join_all(ends).await
    };
    let terminate = async {
        let opened = get("/v1/channels/room:1/poll");
        gateway.plain(opened).await?;
        let status = gateway.terminate().await?;
        anyhow::Ok(status)
    };
    let (ends, status) =
        within(Duration::from_secs(25), "the end", async { tokio::join!(ends, terminate) }).await?;
    let status = status?;
    ensure!(status.success(), "{status}: {}", gateway.log());
    for (raw, end) in raws.iter().zip(ends) {
        let end = end?;
        ensure!((end.frame, end.transport) == (4100, 4100), "{}: {end:?}", raw.carrier);
        let close = end.frames.iter().find(|frame| frame["close"].is_object()).context("a close frame")?;
        ensure!(close["close"]["reconnect"]["policy"] == "backoff", "{}: {close}", raw.carrier);
    }
    for collector in &mut collectors {
        let code = collector.closed().await?;
        ensure!(code == 4100, "{}: closed with {code}", collector.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() -> Result<()> {
    let mut gateway = Gateway::dev("[limits]\nshutdown = \"5m\"\nclose = \"5m\"\n").await?;
    // It takes the close for what it is, and stays.
    let _stubborn = Raw::connect(&gateway, Carrier::WebSocket).await?;
    gateway.signal(Signal::SIGTERM)?;
    until("the first signal is heard", || async {
        ensure!(gateway.log().contains("SIGTERM"), "not yet");
        Ok(())
    })
    .await?;
    // It may have ended already: then there is nothing to hasten.
    let _ = gateway.signal(Signal::SIGTERM);
    let status = gateway.ended().await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_ends_holds_up_no_end() -> Result<()> {
    let folder = TempDir::new()?;
    let keys = folder.path().join("keys.json");
    let key = json!({ "kty": "oct", "alg": "HS256", "k": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8" });
    fs::write(&keys, json!({ "keys": [key] }).to_string())?;
    let mut gateway = Gateway::dev(&format!("[auth]\njwks_files = [{keys:?}]\n")).await?;
    fs::remove_file(&keys)?;
    mkfifo(&keys, Mode::S_IRWXU)?;
    // There is a writer only once the gateway reads; it says nothing.
    let _silent = until("the pipe is read", || async {
        let mut options = fs::OpenOptions::new();
        Ok(options.write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&keys)?)
    })
    .await?;
    let status = gateway.terminate().await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificate_files_serve_new_handshakes_and_drop_nobody() -> Result<()> {
    let gateway =
        Gateway::serve("[auth]\nanonymous = true\n[namespaces.default]\nsubscribe = \"anyone\"\n").await?;
    let mut live = Vec::new();
    for carrier in Carrier::ALL {
        let mut raw = Raw::connect(&gateway, carrier).await?;
        raw.ask(&json!({ "id": 2, "subscribe": { "channel": "room:1" } })).await?;
        live.push(raw);
    }
    let folder = gateway.folder().join("certs");
    let old = fs::read(folder.join("leaf.pem"))?;
    // As an ACME client would: new files beside the old ones, then renamed over them.
    let next = gateway.folder().join("next");
    fs::create_dir_all(&next)?;
    for name in ["ca.pem", "ca-key.pem"] {
        fs::copy(folder.join(name), next.join(name))?;
    }
    issue_certificates(&next)?;
    fs::rename(next.join("leaf-key.pem"), folder.join("leaf-key.pem"))?;
    fs::rename(next.join("leaf.pem"), folder.join("leaf.pem"))?;
    let new = fs::read(folder.join("leaf.pem"))?;
    ensure!(old != new, "the certificate is the same");
    // Within seconds by itself.
    let expected = first_certificate(&new)?;
    until("the new certificate", || async {
        ensure!(served(&gateway).await? == expected, "the old one is served");
        Ok(())
    })
    .await?;
    gateway.publish("room:1", json!("after")).await?;
    for raw in &mut live {
        let frame = raw.frame().await?;
        ensure!(frame["publication"]["data"] == "after", "{}: {frame}", raw.carrier);
    }
    for carrier in Carrier::ALL {
        Raw::connect(&gateway, carrier).await?;
    }

    // Half of a pair cannot be used: it is said, and the old one stays.
    fs::write(folder.join("leaf-key.pem"), "no key")?;
    gateway.signal(Signal::SIGHUP)?;
    until("the complaint", || async {
        ensure!(gateway.log().contains("cannot be used"), "not yet");
        Ok(())
    })
    .await?;
    ensure!(served(&gateway).await? == expected, "another certificate is served");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_development_certificate_is_short_lived_and_survives_a_restart() -> Result<()> {
    let mut gateway = Gateway::dev("").await?;
    let hash = gateway.facts().await?["certificate_hash"].clone();
    gateway.restart().await?;
    ensure!(gateway.facts().await?["certificate_hash"] == hash, "a restart made another certificate");
    // A leaf that is gone, as one past its renewal would be, is issued anew by the same CA.
    let old = served(&gateway).await?;
    let ca = fs::read(gateway.ca_file())?;
    for name in ["leaf.pem", "leaf-key.pem"] {
        fs::remove_file(gateway.folder().join("certs").join(name))?;
    }
    gateway.restart().await?;
    ensure!(fs::read(gateway.ca_file())? == ca, "another CA");
    ensure!(served(&gateway).await? != old, "the same certificate");
    ensure!(gateway.facts().await?["certificate_hash"] != hash, "the page is told the old hash");
    let browser = Browser::launch().await?;
    browser.subscribe(&gateway, "webtransport", &from_heads(&["room:1"])).await?;
    Ok(())
}

/// The certificate that a TLS handshake shows.
async fn served(gateway: &Gateway) -> Result<Vec<u8>> {
    let config = gateway.tls(&[b"http/1.1"]);
    let stream = tokio::net::TcpStream::connect(gateway.addresses.tls).await?;
    let name = rustls::pki_types::ServerName::from(gateway.addresses.tls.ip());
    let stream = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await?;
    let chain = stream.get_ref().1.peer_certificates().context("a certificate")?;
    let leaf = chain.first().context("a certificate")?.to_vec();
    // It also answers.
    ensure!(send(gateway.addresses.tls, Some(config), get("/v1/nothing")).await?.status == 404, "no answer");
    Ok(leaf)
}

fn first_certificate(pem: &[u8]) -> Result<Vec<u8>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    Ok(CertificateDer::from_pem_slice(pem)?.to_vec())
}
