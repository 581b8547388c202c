//! The backend API: publishing, keys, history, probes, metrics.

use anyhow::{Context as _, Result, ensure};
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::clients::{Collector, from_heads, native};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{get, post};
use tidegate_interop_tests::raw::{Carrier, Raw};

#[tokio::test(flavor = "multi_thread")]
async fn publishing_one_and_many_numbers_them_densely() -> Result<()> {
    let gateway = Gateway::dev(
        "namespaces_unknown = \"refuse\"\n[namespaces.room]\n[namespaces.typing]\nephemeral_only = true\n",
    )
    .await?;
    let first = gateway.publish("room:1", json!({ "text": "hello" })).await?;
    ensure!(
        first["offset"] == 1 && first["epoch"].as_str().is_some_and(|epoch| !epoch.is_empty()),
        "{first}"
    );
    let publications = json!([
        { "channel": "room:1", "data": null },
        { "channel": "room:2", "data_base64": "AAEC" },
        { "channel": "sea:1", "data": 1 },
        { "channel": "room:1", "data": 1, "ephemeral": true },
        { "channel": "room:1" },
        { "channel": "room:1", "data": 2, "data_base64": "AAEC" },
        { "channel": "typing:1", "data": 1 },
        { "channel": "room:1", "data_base64": "" },
        { "channel": "room:1", "data": "x".repeat(65 << 10) },
        { "channel": "", "data": 1 },
    ]);
    let answer =
        gateway.api(post("/v1/publish", json!({ "publications": publications }).to_string())).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    let results = answer.json()["results"].as_array().context("results")?.clone();
    let summary: Vec<Value> = results
        .iter()
        .map(|result| match (&result["position"]["offset"], &result["error"]["code"]) {
            (Value::Null, Value::Null) => json!("taken"),
            (Value::Null, code) => json!({ "error": code }),
            (offset, _) => offset.clone(),
        })
        .collect();
    let error = |code: u64| json!({ "error": code });
    let expected = [
        json!(2),
        json!(1),
        error(404),
        json!("taken"),
        error(400),
        error(400),
        error(403),
        json!(3),
        error(413),
        error(400),
    ];
    ensure!(summary == expected, "{results:?}");

    let history = gateway.api(get("/v1/channels/room:1/history")).await?.json();
    ensure!(history["position"]["offset"] == 3, "{history}");
    let kept = history["publications"].as_array().context("publications")?;
    ensure!(kept.len() == 3 && kept[0]["data"] == json!({ "text": "hello" }), "{history}");
    ensure!(kept[1].as_object().is_some_and(|item| item.get("data") == Some(&Value::Null)), "{history}");
    ensure!(kept[2]["data_base64"] == "" && kept[2]["offset"] == 3, "{history}");
    let epoch = first["epoch"].as_str().context("an epoch")?;
    let since =
        gateway.api(get(&format!("/v1/channels/room:1/history?epoch={epoch}&offset=1"))).await?.json();
    ensure!(
        since["recovered"] == true && since["publications"].as_array().map(Vec::len) == Some(2),
        "{since}"
    );
    let limited = gateway
        .api(get(&format!("/v1/channels/room:1/history?epoch={epoch}&offset=0&limit=1")))
        .await?
        .json();
    ensure!(limited["recovered"] == false && limited["publications"][0]["offset"] == 3, "{limited}");
    let rest = gateway
        .api(get(&format!("/v1/channels/room:1/history?epoch={epoch}&offset=0&before=3")))
        .await?
        .json();
    let offsets: Vec<_> =
        rest["publications"].as_array().into_iter().flatten().map(|item| &item["offset"]).collect();
    ensure!(rest["recovered"] == true && offsets == [1, 2], "{rest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_stored_once_wherever_it_comes_from() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let wishes = from_heads(&["room:1"]);
    let mut collector = Collector::begin(native(&gateway, "quic", None, &wishes).await?, &wishes).await?;
    let body = json!({ "channel": "room:1", "data": 1, "key": "order-77" }).to_string();
    let first = gateway.api(post("/v1/publish", body.clone())).await?.json();
    let again = gateway.api(post("/v1/publish", body)).await?.json();
    let mut by_header = post("/v1/publish", json!({ "channel": "room:1", "data": "other" }).to_string());
    by_header.headers_mut().insert("idempotency-key", "order-77".parse()?);
    let header = gateway.api(by_header).await?.json();
    ensure!(
        first == again && first == header && first["position"]["offset"] == 1,
        "{first} {again} {header}"
    );
    for carrier in Carrier::ALL {
        let mut raw = Raw::connect(&gateway, carrier).await?;
        let publish = json!({ "id": 2, "publish": { "channel": "room:1", "data": 2, "key": "order-77" } });
        let reply = raw.ask(&publish).await?;
        ensure!(reply["published"]["position"] == first["position"], "{carrier}: {reply}");
    }
    // Another channel is another matter.
    let other = json!({ "channel": "room:2", "data": 1, "key": "order-77" }).to_string();
    ensure!(
        gateway.api(post("/v1/publish", other)).await?.json()["position"]["offset"] == 1,
        "another channel"
    );
    gateway.publish("room:1", json!("next")).await?;
    collector.collect(2).await?;
    ensure!(gateway.metric("tidegate_core_duplicate_keys_total").await? == 8.0, "duplicates are counted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_the_api_and_nothing_else_does() -> Result<()> {
    let gateway = Gateway::dev("[api]\nkeys = [\"0123456789abcdef\", \"fedcba9876543210\"]\n").await?;
    let with = |name: &'static str, value: &str| -> Result<Request<Full<bytes::Bytes>>> {
        let mut request = post("/v1/publish", r#"{"channel":"room:1","data":1}"#);
        request.headers_mut().insert(name, value.parse()?);
        Ok(request)
    };
    let refused = [
        post("/v1/publish", r#"{"channel":"room:1","data":1}"#),
        with("authorization", "Bearer 0123456789abcdee")?,
        with("authorization", "0123456789abcdef")?,
        with("x-api-key", "0123456789abcdef0")?,
        get("/v1/channels/room:1/history"),
    ];
    for request in refused {
        let what = format!("{request:?}");
        let answer = gateway.api(request).await?;
        ensure!(answer.status == 401 && answer.json()["error"]["code"] == 401, "{what}: {}", answer.text());
    }
    for request in [with("authorization", "Bearer 0123456789abcdef")?, with("x-api-key", "fedcba9876543210")?]
    {
        let answer = gateway.api(request).await?;
        ensure!(answer.status == 200, "{}", answer.text());
    }
    // Probes have no key.
    for path in ["/healthz", "/readyz", "/metrics"] {
        ensure!(gateway.api(get(path)).await?.status == 200, "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused() -> Result<()> {
    let gateway = Gateway::dev("[api]\nbody = \"128KiB\"\nbatch = 10\nbody_timeout = \"1s\"\n").await?;
    let many: Vec<_> = (0..11).map(|n| json!({ "channel": "room:1", "data": n })).collect();
    for (what, body, status) in [
        ("no JSON", "{".to_owned(), 400),
        ("no object", "[]".to_owned(), 400),
        ("no channel", r#"{"data":1}"#.to_owned(), 400),
        ("no payload", r#"{"channel":"room:1"}"#.to_owned(), 400),
        ("bad base64", r#"{"channel":"room:1","data_base64":"*"}"#.to_owned(), 400),
        ("a long key", json!({ "channel": "room:1", "data": 1, "key": "k".repeat(129) }).to_string(), 413),
        ("a long name", json!({ "channel": "n".repeat(256), "data": 1 }).to_string(), 400),
        ("a large body", format!(r#"{{"channel":"room:1","data":"{}"}}"#, "x".repeat(140 << 10)), 413),
        ("a long batch", json!({ "publications": many }).to_string(), 413),
    ] {
        let answer = gateway.api(post("/v1/publish", body)).await?;
        ensure!(answer.status == status, "{what}: {} {}", answer.status, answer.text());
        ensure!(answer.json()["error"]["code"] == status, "{what}: {}", answer.text());
    }
    for (request, status) in [
        (get("/v1/publish"), 405),
        (get("/v1/nothing"), 404),
        (get("/v1/channels/room:1/history?limit=many"), 400),
        (post("/metrics", ""), 405),
    ] {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = gateway.api(request).await?;
        ensure!(answer.status == status, "{what}: {} {}", answer.status, answer.text());
    }
    ensure!(gateway.publish("room:1", json!(1)).await?["offset"] == 1, "something was published");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_who_is_connected_by_what_and_what_was_done() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    ensure!(gateway.api(get("/healthz")).await?.text() == "ok\n", "/healthz");
    ensure!(gateway.api(get("/readyz")).await?.text() == "ready\n", "/readyz");
    let browser = Browser::launch().await?;
    let wishes = from_heads(&["room:1"]);
    let page = browser.subscribe(&gateway, "webtransport", &wishes).await?;
    let mut raws = Vec::new();
    for carrier in Carrier::ALL {
        let mut raw = Raw::connect(&gateway, carrier).await?;
        raw.ask(&json!({ "id": 2, "subscribe": { "channel": "room:1", "position": { "epoch": "", "offset": 0 } } })).await?;
        raws.push(raw);
    }
    let connections = |label: &str| format!("tidegate_edge_connections{{transport=\"{label}\"}}");
    for (label, count) in [("quic", 1.0), ("webtransport", 2.0), ("websocket", 3.0), ("longpoll", 1.0)] {
        gateway.until_metric(&connections(label), |now| now == count).await?;
        let connects = format!("tidegate_edge_connects_total{{transport=\"{label}\"}}");
        ensure!(gateway.metric(&connects).await? == count, "{connects}");
    }
    gateway.publish("room:1", json!(1)).await?;
    for raw in &mut raws {
        raw.frame().await?;
    }
    for (label, count) in [("quic", 1.0), ("webtransport", 2.0), ("websocket", 3.0), ("longpoll", 1.0)] {
        let deliveries = format!("tidegate_edge_deliveries_total{{transport=\"{label}\"}}");
        gateway.until_metric(&deliveries, |now| now == count).await?;
    }
    let metrics = gateway.metrics().await?;
    ensure!(metrics[r#"tidegate_core_publications_total{kind="durable"}"#] == 1.0, "publications");
    ensure!(
        metrics["tidegate_edge_subscriptions"] == 7.0,
        "subscriptions: {}",
        metrics["tidegate_edge_subscriptions"]
    );
    ensure!(metrics[r#"tidegate_edge_recoveries_total{outcome="recovered"}"#] == 6.0, "recoveries");
    ensure!(metrics["tidegate_edge_publish_to_write_seconds_count"] >= 1.0, "latency");
    for name in [
        "tidegate_edge_queue_bytes",
        "tidegate_edge_parked_subscriptions_total",
        "tidegate_edge_heartbeat_failures_total",
        "tidegate_edge_connection_age_seconds_count",
        "tidegate_edge_ephemeral_deliveries_total",
        "tidegate_core_channels",
        "tidegate_core_history_bytes",
    ] {
        ensure!(metrics.contains_key(name), "{name} is missing");
    }
    drop(page);
    browser.evaluate(&Browser::page("webtransport", 0), "await client.close()").await?;
    for mut raw in raws {
        raw.send(&json!({ "done": {} })).await?;
        raw.end().await?;
    }
    for label in ["quic", "webtransport", "websocket", "longpoll"] {
        gateway.until_metric(&connections(label), |now| now == 0.0).await?;
    }
    let closes: f64 = gateway
        .metrics()
        .await?
        .iter()
        .filter(|(name, _)| name.starts_with("tidegate_edge_closes_total") && name.contains("done"))
        .map(|(_, count)| count)
        .sum();
    ensure!(closes == 7.0, "closes with 4000: {closes}");
    ensure!(gateway.metric("tidegate_edge_subscriptions").await? == 0.0, "subscriptions are left");
    Ok(())
}
