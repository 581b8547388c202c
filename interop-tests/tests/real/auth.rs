//! Tokens: where they go, what they grant, how they end.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tidegate_interop_tests::clients::{Collector, Event, native};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::get;
use tidegate_interop_tests::raw::{Carrier, Greeting, Raw};
use tidegate_interop_tests::wait::within;

const STRICT: &str = "auth.anonymous = false\n[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n\
                      [namespaces.default]\npublish = \"granted\"\nsubscribe = \"granted\"\n\
                      [namespaces.open]\npublish = \"users\"\nsubscribe = \"anyone\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_come_by_header_query_or_frame_and_grants_what_it_says() -> Result<()> {
    let gateway = Gateway::dev(STRICT).await?;
    let token = gateway.token(&["--user", "ann", "--subscribe", "room:*", "--publish", "room:1"]).await?;
    for carrier in Carrier::ALL {
        let header = Greeting { bearer: Some(token.clone()), ..Greeting::default() };
        let query = Greeting { query: Some(token.clone()), ..Greeting::default() };
        let mut ways = vec![(Greeting::default(), Some(token.as_str()))];
        if carrier != Carrier::Quic {
            ways.extend([(header, None), (query, None)]);
        }
        for (greeting, frame) in ways {
            let (mut raw, connected) = Raw::connect_as(&gateway, carrier, &greeting, frame).await?;
            ensure!(connected["user"] == "ann", "{carrier}: {connected}");
            ensure!(
                connected["expires_ms"].as_u64().is_some_and(|ms| ms > 3_000_000),
                "{carrier}: {connected}"
            );
            for (id, request, code) in [
                (2, json!({ "subscribe": { "channel": "room:1" } }), None),
                (3, json!({ "publish": { "channel": "room:1", "data": 1 } }), None),
                (4, json!({ "publish": { "channel": "room:2", "data": 1 } }), Some(403)),
                (5, json!({ "subscribe": { "channel": "user:1" } }), Some(403)),
                (6, json!({ "history": { "channel": "user:1" } }), Some(403)),
                (7, json!({ "subscribe": { "channel": "open:1" } }), None),
                (8, json!({ "publish": { "channel": "open:1", "data": 1 } }), None),
            ] {
                let mut request = request;
                request["id"] = id.into();
                let reply = raw.ask(&request).await?;
                ensure!(reply["error"]["code"].as_u64() == code, "{carrier}: {request}: {reply}");
            }
        }
    }
    let history = gateway.api(get("/v1/channels/room:1/history")).await?.json();
    ensure!(history["publications"][0]["user"] == "ann", "{history}");
    let poll =
        |token: &str, channel: &str| get(&format!("/v1/channels/{channel}/poll?offset=0&token={token}"));
    let answer = gateway.plain(poll(&token, "room:1")).await?;
    ensure!(answer.json()["recovered"] == true, "{}", answer.text());
    let answer = gateway.plain(poll(&token, "user:1")).await?;
    ensure!(answer.status == 403 && answer.json()["error"]["code"] == 403, "{}", answer.text());
    let answer = gateway.plain(get("/v1/channels/room:1/poll")).await?;
    ensure!(answer.status == 401, "{}", answer.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_of_the_token_are_there_without_a_round_trip() -> Result<()> {
    let gateway = Gateway::dev(STRICT).await?;
    let token =
        gateway.token(&["--user", "456", "--subscription", "user:456", "--subscription", "room:all"]).await?;
    for carrier in Carrier::ALL {
        let (mut raw, connected) =
            Raw::connect_as(&gateway, carrier, &Greeting::default(), Some(&token)).await?;
        let subscriptions = connected["subscriptions"].as_array().with_context(|| connected.to_string())?;
        let mut names: Vec<_> = subscriptions.iter().filter_map(|each| each["channel"].as_str()).collect();
        names.sort_unstable();
        ensure!(names == ["room:all", "user:456"], "{carrier}: {connected}");
        let data = json!(carrier.to_string());
        gateway.publish("user:456", data.clone()).await?;
        let frame = raw.frame().await?;
        ensure!(frame["publication"]["data"] == data, "{carrier}: {frame}");
        // It may ask from a position, which is not a second subscription.
        let reply = raw
            .ask(&json!({ "id": 2, "subscribe": { "channel": "user:456", "position": { "epoch": "", "offset": 0 } } }))
            .await?;
        ensure!(reply["subscribed"]["recovered"] == true, "{carrier}: {reply}");
    }
    // The SDK hands them to the app.
    for scheme in ["quic", "webtransport", "wss", "https"] {
        let client = native(&gateway, scheme, Some(token.clone()), &[]).await?;
        let mut collector = Collector::begin(client, &[]).await?;
        for _ in 0..2 {
            collector.until(|event| matches!(event, Event::Subscribed { .. })).await?;
        }
        gateway.publish("user:456", json!(scheme)).await?;
        collector.collect(1).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_refreshed_in_place_or_the_session_ends_with_4005() -> Result<()> {
    let gateway = Gateway::dev(STRICT).await?;
    let arguments = ["--user", "ann", "--subscribe", "room:*", "--expires"];
    let lasting = gateway.token(&[&arguments[..], &["1h"]].concat()).await?;
    let narrow = gateway.token(&["--user", "ann", "--subscribe", "room:1"]).await?;
    let bob = gateway.token(&["--user", "bob", "--subscribe", "*"]).await?;
    let mut ending = Vec::new();
    for carrier in Carrier::ALL {
        let brief = gateway.token(&[&arguments[..], &["4s"]].concat()).await?;
        let (raw, _) = Raw::connect_as(&gateway, carrier, &Greeting::default(), Some(&brief)).await?;
        ending.push(raw);
        let (mut raw, connected) =
            Raw::connect_as(&gateway, carrier, &Greeting::default(), Some(&brief)).await?;
        ensure!(connected["expires_ms"].as_u64().is_some_and(|ms| ms <= 4_000), "{carrier}: {connected}");
        for (id, channel) in [(2, "room:1"), (3, "room:2")] {
            raw.ask(&json!({ "id": id, "subscribe": { "channel": channel } })).await?;
        }
        let reply = raw.ask(&json!({ "id": 4, "refresh": { "token": bob } })).await?;
        ensure!(reply["error"]["code"] == 401, "{carrier}: another user: {reply}");
        let reply = raw.ask(&json!({ "id": 5, "refresh": { "token": lasting } })).await?;
        ensure!(
            reply["refreshed"]["expires_ms"].as_u64().is_some_and(|ms| ms > 3_000_000),
            "{carrier}: {reply}"
        );
        // What a new token does not grant ends, and only that.
        raw.send(&json!({ "id": 6, "refresh": { "token": narrow } })).await?;
        let mut told = Vec::new();
        while told.len() < 2 {
            told.push(raw.frame().await?);
        }
        let ended = told
            .iter()
            .find(|frame| frame["unsubscribed"].is_object())
            .with_context(|| format!("{told:?}"))?;
        ensure!(
            ended["unsubscribed"]["channel"] == "room:2" && ended["unsubscribed"]["error"]["code"] == 403,
            "{carrier}: {ended}"
        );
        let reply = raw.ask(&json!({ "id": 7, "subscribe": { "channel": "room:1" } })).await?;
        ensure!(reply["error"]["code"] == 409, "{carrier}: room:1 ended too: {reply}");
        ending.push(raw);
    }
    for mut pair in ending.chunks_mut(2).map(Vec::from_iter) {
        let end = pair[0].end().await?;
        ensure!((end.frame, end.transport) == (4005, 4005), "{}: {end:?}", pair[0].carrier);
        let reply = pair[1].ask(&json!({ "id": 8, "history": { "channel": "room:1" } })).await?;
        ensure!(reply["history"].is_object(), "{}: the refreshed session: {reply}", pair[1].carrier);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_token_provider_outlives_its_tokens() -> Result<()> {
    let gateway = Gateway::dev(STRICT).await?;
    let lasting = gateway.token(&["--user", "ann", "--subscribe", "room:*"]).await?;
    for scheme in ["quic", "webtransport", "wss", "https"] {
        let lasting = lasting.clone();
        let first = gateway.token(&["--user", "ann", "--subscribe", "room:*", "--expires", "2s"]).await?;
        let client = tidegate_client::Client::builder(gateway.url(scheme))
            .with_ca_file(gateway.ca_file())
            .with_token_provider(move || {
                let token = lasting.clone();
                async move { Ok::<_, std::convert::Infallible>(token) }
            })
            .with_token(first)
            .connect()
            .await
            .with_context(|| scheme.to_owned())?;
        let mut room = client.subscribe("room:1").await?;
        let outlived = gateway.token(&["--user", "ann", "--subscribe", "room:1", "--expires", "3s"]).await?;
        let (mut watch, _) =
            Raw::connect_as(&gateway, Carrier::Quic, &Greeting::default(), Some(&outlived)).await?;
        // By the time that a token of 3 s ends a session, one of 2 s would have ended the client's.
        watch.end().await?;
        gateway.publish("room:1", json!(scheme)).await?;
        let publication = within(Duration::from_secs(10), "a publication", async {
            loop {
                match room.next().await {
                    Some(tidegate_client::SubscriptionEvent::Publication(publication)) => {
                        return Ok(publication);
                    }
                    Some(tidegate_client::SubscriptionEvent::Subscribed { .. }) => {}
                    other => anyhow::bail!("{other:?}"),
                }
            }
        })
        .await??;
        ensure!(
            publication.payload == tidegate_client::Payload::Json(json!(scheme).to_string().into()),
            "{scheme}"
        );
        client.close().await;
    }
    Ok(())
}
