//! Who is there: counted over every transport, listed to whom it is granted, and told to those who asked.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_client::{Client, SubscribeOptions, SubscriptionEvent};
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::get;
use tidegate_interop_tests::raw::{Carrier, Greeting, Raw};
use tidegate_interop_tests::wait::{PATIENCE, until, within};

pub(crate) const CONFIG: &str = "[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n\
                      [core]\npresence_users = 4\n\
                      [namespaces.default]\npresence = \"granted\"\n[namespaces.silent]\npresence = \"off\"\n";

/// Somebody with a connection.
pub(crate) struct Person {
    raw: Raw,
    /// Who came and went: `+ann`, `-ann`.
    pub(crate) told: Vec<String>,
    /// How often some were missed. Never here, but for channels that another core took over.
    pub(crate) gaps: usize,
    asked: u64,
}

impl Person {
    /// Connects; `None` without a name. A name may see who is in rooms.
    pub(crate) async fn enter(gateway: &Gateway, carrier: Carrier, user: Option<&str>) -> Result<Self> {
        let token = match user {
            Some(user) => Some(token(gateway, user).await?),
            None => None,
        };
        let (raw, _) = Raw::connect_as(gateway, carrier, &Greeting::default(), token.as_deref()).await?;
        Ok(Self { raw, told: Vec::new(), gaps: 0, asked: 1 })
    }

    /// Enters and subscribes.
    pub(crate) async fn join(
        gateway: &Gateway,
        carrier: Carrier,
        user: Option<&str>,
        channel: &str,
        watches: bool,
    ) -> Result<Self> {
        let mut person = Self::enter(gateway, carrier, user).await?;
        let reply = person.ask(json!({ "subscribe": { "channel": channel, "presence": watches } })).await?;
        ensure!(reply["subscribed"].is_object(), "{carrier}: {reply}");
        Ok(person)
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn ask(&mut self, mut request: Value) -> Result<Value> {
        self.asked += 1;
        request["id"] = self.asked.into();
        self.raw.send(&request).await?;
        loop {
            let frame = self.raw.frame().await?;
            if frame["id"] == self.asked {
                return Ok(frame);
            }
            self.note(&frame).await?;
        }
    }

    pub(crate) async fn list(&mut self, channel: &str) -> Result<Value> {
        let reply = self.ask(json!({ "presence": { "channel": channel } })).await?;
        Ok(reply["presence"].clone())
    }

    /// Reads until all of it was told, and nothing else.
    pub(crate) async fn hears(&mut self, expected: &[&str]) -> Result<()> {
        while self.told.len() < expected.len() {
            self.hear().await.with_context(|| format!("{expected:?}, had {:?}", self.told))?;
        }
        ensure!(self.told == expected, "{}: told of {:?}, not {expected:?}", self.raw.carrier, self.told);
        self.told.clear();
        Ok(())
    }

    /// Reads one frame.
    pub(crate) async fn hear(&mut self) -> Result<()> {
        let frame = self.raw.frame().await?;
        self.note(&frame).await
    }

    async fn note(&mut self, frame: &Value) -> Result<()> {
        if frame["ping"].is_object() {
            return self.raw.send(&json!({ "pong": {} })).await;
        }
        if frame["presence_gap"].is_object() {
            self.gaps += 1;
            return Ok(());
        }
        if frame["publication"].is_object() {
            return Ok(());
        }
        let (sign, change) =
            if frame["join"].is_object() { ('+', &frame["join"]) } else { ('-', &frame["leave"]) };
        let user = change["user"].as_str().with_context(|| format!("neither join nor leave: {frame}"))?;
        self.told.push(format!("{sign}{user}"));
        Ok(())
    }

    /// Ends the session in order.
    pub(crate) async fn leave(mut self) -> Result<()> {
        self.raw.send(&json!({ "done": {} })).await?;
        let end = self.raw.end().await?;
        ensure!(end.frame == 4000, "{end:?}");
        Ok(())
    }
}

/// A token that may see who is in rooms.
async fn token(gateway: &Gateway, user: &str) -> Result<String> {
    gateway.token(&["--user", user, "--presence", "room:*", "--presence", "silent:*"]).await
}

/// What the backend API says.
pub(crate) async fn listed(gateway: &Gateway, channel: &str) -> Result<Value> {
    Ok(gateway.api(get(&format!("/v1/channels/{channel}/presence"))).await?.json())
}

pub(crate) fn presence(channel: &str, users: &[(&str, u32)], sessions: u32) -> Value {
    let listed: Vec<_> =
        users.iter().map(|(user, sessions)| json!({ "user": user, "sessions": sessions })).collect();
    let total = users.len();
    json!({ "channel": channel, "users": listed, "users_total": total, "sessions": sessions, "exact": true })
}

#[tokio::test(flavor = "multi_thread")]
async fn users_come_and_go_with_their_first_and_last_session_over_every_transport() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    for carrier in Carrier::ALL {
        let room = format!("room:{}", carrier.to_string().to_lowercase());
        let mut kim = Person::join(&gateway, carrier, Some("kim"), &room, true).await?;
        kim.hears(&["+kim"]).await?;
        let mut ann = Person::join(&gateway, carrier, Some("ann"), &room, false).await?;
        kim.hears(&["+ann"]).await?;
        let second = Person::join(&gateway, Carrier::WebSocket, Some("ann"), &room, false).await?;
        let nobody = Person::join(&gateway, carrier, None, &room, false).await?;
        let bo = Person::join(&gateway, carrier, Some("bo"), &room, false).await?;
        // Nobody was told of ann's second session, nor of one without a name.
        kim.hears(&["+bo"]).await?;
        let all = presence(&room, &[("ann", 2), ("bo", 1), ("kim", 1)], 5);
        ensure!(kim.list(&room).await? == all, "{carrier}: {}", kim.list(&room).await?);
        // Who lists need not be there.
        ensure!(Person::enter(&gateway, carrier, Some("dan")).await?.list(&room).await? == all, "{carrier}");
        ensure!(listed(&gateway, &room).await? == all, "{carrier}: {}", listed(&gateway, &room).await?);

        second.leave().await?;
        nobody.leave().await?;
        bo.leave().await?;
        kim.hears(&["-bo"]).await?;
        let left = presence(&room, &[("ann", 1), ("kim", 1)], 2);
        until("those that are left", || async {
            let listed = listed(&gateway, &room).await?;
            ensure!(listed == left, "{carrier}: {listed}");
            Ok(())
        })
        .await?;
        let reply = ann.ask(json!({ "unsubscribe": { "channel": room } })).await?;
        ensure!(reply["unsubscribed"].is_object(), "{carrier}: {reply}");
        kim.hears(&["-ann"]).await?;
        ensure!(ann.told.is_empty(), "{carrier}: told of {:?} without having asked", ann.told);
        let reply = ann.ask(json!({ "subscribe": { "channel": room } })).await?;
        ensure!(reply["subscribed"].is_object(), "{carrier}: {reply}");
        kim.hears(&["+ann"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_a_leave_and_one_channel_is_not_another() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    let mut kim = Person::join(&gateway, Carrier::Quic, Some("kim"), "room:1", true).await?;
    kim.hears(&["+kim"]).await?;
    let elsewhere = Person::join(&gateway, Carrier::WebSocket, Some("bo"), "room:2", false).await?;
    let ann = Person::join(&gateway, Carrier::WebSocket, Some("ann"), "room:1", false).await?;
    kim.hears(&["+ann"]).await?;
    drop((elsewhere, ann));
    kim.hears(&["-ann"]).await?;
    until("an empty room", || async {
        let listed = listed(&gateway, "room:2").await?;
        ensure!(listed == presence("room:2", &[], 0), "{listed}");
        Ok(())
    })
    .await?;
    // The poll and the event stream of a channel have no session.
    let poll = gateway.plain(get("/v1/channels/room:2/poll?offset=0&wait_ms=1")).await?;
    ensure!(poll.status == 200, "{}", poll.text());
    ensure!(listed(&gateway, "room:2").await?["sessions"] == 0);
    kim.leave().await?;
    gateway.until_metric("tidegate_core_presence_entries", |entries| entries == 0.0).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whom_the_token_lets_may_list_and_watch() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    for carrier in Carrier::ALL {
        let mut nobody = Person::enter(&gateway, carrier, None).await?;
        let mut ann = Person::enter(&gateway, carrier, Some("ann")).await?;
        for (channel, of_nobody, of_ann) in [
            ("room:1", Some(403), None),
            ("hall:1", Some(403), Some(403)),
            ("silent:1", Some(501), Some(501)),
        ] {
            for request in [
                json!({ "presence": { "channel": channel } }),
                json!({ "subscribe": { "channel": channel, "presence": true } }),
            ] {
                for (person, expected) in [(&mut nobody, of_nobody), (&mut ann, of_ann)] {
                    let reply = person.ask(request.clone()).await?;
                    let code = reply["error"]["code"].as_u64();
                    ensure!(code == expected, "{carrier}: {request}: {reply}");
                }
            }
        }
        // That subscribe was refused as a whole: without the watch it is taken.
        let reply = nobody.ask(json!({ "subscribe": { "channel": "room:1" } })).await?;
        ensure!(reply["subscribed"].is_object(), "{carrier}: {reply}");
        // With the grant goes the watch.
        let narrow = gateway.token(&["--user", "ann", "--presence", "room:2"]).await?;
        ann.hears(&["+ann"]).await?;
        let reply = ann.ask(json!({ "refresh": { "token": narrow } })).await?;
        ensure!(reply["refreshed"].is_object(), "{carrier}: {reply}");
        let bo = Person::join(&gateway, carrier, Some("bo"), "room:1", false).await?;
        bo.leave().await?;
        let reply = ann.ask(json!({ "history": { "channel": "room:1" } })).await?;
        ensure!(reply["history"].is_object() && ann.told.is_empty(), "{carrier}: {reply}, {:?}", ann.told);
        ann.leave().await?;
        nobody.leave().await?;
        until("an empty room", || async {
            let listed = listed(&gateway, "room:1").await?;
            ensure!(listed["sessions"] == 0, "{listed}");
            Ok(())
        })
        .await?;
    }
    let silent = gateway.api(get("/v1/channels/silent:1/presence")).await?;
    ensure!(silent.status == 501, "{}", silent.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_bound_users_are_counted() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    let mut kim = Person::join(&gateway, Carrier::Quic, Some("kim"), "room:crowd", true).await?;
    let mut crowd = Vec::new();
    for n in 0..9 {
        let user = format!("user-{n}");
        let carrier = Carrier::FOUR[n % 4];
        crowd.push(Person::join(&gateway, carrier, Some(&user), "room:crowd", false).await?);
    }
    // Four are known, kim among them.
    kim.hears(&["+kim", "+user-0", "+user-1", "+user-2"]).await?;
    let listed = kim.list("room:crowd").await?;
    let counts = (&listed["users_total"], &listed["sessions"], &listed["exact"]);
    ensure!(counts == (&json!(10), &json!(10), &json!(false)), "{listed}");
    ensure!(listed["users"].as_array().is_some_and(|users| users.len() == 4), "{listed}");
    while crowd.len() > 2 {
        crowd.pop().context("somebody")?.leave().await?;
    }
    kim.hears(&["-user-2"]).await?;
    let listed = until("the rest", || async {
        let listed = listed_now(&gateway).await?;
        ensure!(listed["sessions"] == 3, "{listed}");
        Ok(listed)
    })
    .await?;
    let expected = presence("room:crowd", &[("kim", 1), ("user-0", 1), ("user-1", 1)], 3);
    ensure!(listed == expected, "{listed}");
    Ok(())
}

async fn listed_now(gateway: &Gateway) -> Result<Value> {
    listed(gateway, "room:crowd").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_lists_and_is_told() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    for scheme in ["quic", "wss", "https"] {
        let room = format!("room:{scheme}");
        let client = async |user: &str| {
            let token = token(&gateway, user).await?;
            let builder = Client::builder(gateway.url(scheme)).with_ca_file(gateway.ca_file());
            anyhow::Ok(builder.with_token(token).connect().await?)
        };
        let (kim, ann) = (client("kim").await?, client("ann").await?);
        let options = SubscribeOptions { presence: true, ..SubscribeOptions::default() };
        let mut watched = kim.subscribe_with(&room, options).await?;
        let mut told = Vec::new();
        let mut hear = async |count: usize| {
            while told.len() < count {
                match within(PATIENCE, "a change", watched.next()).await? {
                    Some(SubscriptionEvent::Join { user, time_ms }) if time_ms > 0 => {
                        told.push(format!("+{user}"))
                    }
                    Some(SubscriptionEvent::Leave { user, time_ms }) if time_ms > 0 => {
                        told.push(format!("-{user}"))
                    }
                    // A gap: a core came or went, and may have missed somebody.
                    Some(SubscriptionEvent::Subscribed { .. } | SubscriptionEvent::PresenceGap) => {}
                    other => anyhow::bail!("{scheme}: {other:?}"),
                }
            }
            anyhow::Ok(told.clone())
        };
        hear(1).await?;
        let plain = ann.subscribe(&room).await?;
        hear(2).await?;
        let listed = plain.presence().await?;
        let users: Vec<_> = listed.users.iter().map(|each| (each.user.as_str(), each.sessions)).collect();
        ensure!(users == [("ann", 1), ("kim", 1)], "{scheme}: {listed:?}");
        ensure!((listed.users_total, listed.sessions, listed.exact) == (2, 2, true), "{scheme}: {listed:?}");
        ensure!(kim.presence(&room).await? == listed, "{scheme}");
        let refused = kim.presence("hall:1").await;
        ensure!(refused.is_err(), "{scheme}: {refused:?}");
        drop(plain);
        let told = hear(3).await?;
        ensure!(told == ["+kim", "+ann", "-ann"], "{scheme}: {told:?}");
        ann.close().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_lists_and_is_told() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    let browser = Browser::launch().await?;
    for transport in ["webtransport", "websocket", "longpoll"] {
        let room = format!("room:{transport}");
        browser.open(transport, &format!("{}dev.json", gateway.page())).await?;
        let (kim, ann) = (token(&gateway, "kim").await?, token(&gateway, "ann").await?);
        let told = browser
            .evaluate(
                transport,
                &format!(
                    "const {{ Client }} = await import('/sdk/index.js');
                     const facts = await (await fetch('/dev.json')).json();
                     const {{ webtransport, websocket, longpoll }} = facts;
                     const client = async (token) => {{
                       const options = {{ transports: ['{transport}'], certificateHashes: [facts.certificate_hash], token }};
                       const made = new Client({{ webtransport, websocket, longpoll }}, options);
                       await made.connect();
                       return made;
                     }};
                     const told = [];
                     let wake = () => {{}};
                     const hear = async (count) => {{
                       while (told.length < count) await new Promise((resolve) => (wake = resolve));
                     }};
                     const note = (sign) => ({{ user, timeMs }}) => {{
                       told.push(timeMs > 0 ? sign + user : 'no time');
                       wake();
                     }};
                     const [kim, ann] = [await client('{kim}'), await client('{ann}')];
                     const watched = kim.subscribe('{room}', {{ presence: true, onJoin: note('+'), onLeave: note('-') }});
                     await hear(1);
                     const plain = ann.subscribe('{room}', {{ onJoin: note('?'), onLeave: note('?') }});
                     await hear(2);
                     const listed = await watched.presence();
                     const refused = await kim.presence('hall:1').catch(({{ code }}) => code);
                     plain.unsubscribe();
                     await hear(3);
                     const again = await ann.presence('{room}');
                     await Promise.all([kim.close(), ann.close()]);
                     return {{ told, listed, refused, again, transport: '{transport}' }};"
                ),
            )
            .await?;
        let user = |user: &str| json!({ "user": user, "sessions": 1 });
        let expected = json!({
            "told": ["+kim", "+ann", "-ann"],
            "listed": { "users": [user("ann"), user("kim")], "usersTotal": 2, "sessions": 2, "exact": true },
            "refused": 403,
            "again": { "users": [user("kim")], "usersTotal": 1, "sessions": 1, "exact": true },
            "transport": transport,
        });
        ensure!(told == expected, "{told}");
    }
    Ok(())
}
