//! Which transport a native client uses, and how it comes from one to another, where networks misbehave.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tidegate_client::{
    Builder, Client, ClientEvent, Events, LadderConfig, Payload, QuicOptions, Subscription,
    SubscriptionEvent, Transport,
};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::middle::Relay;
use tidegate_interop_tests::wait::{PATIENCE, until, within};
use tokio::net::UdpSocket;

use crate::support::ROOMY;

const CHANNEL: &str = "room:ladder";

/// Climbs soon, and gives dials up soon.
fn impatient() -> LadderConfig {
    LadderConfig {
        dial_timeout: Duration::from_secs(2),
        climb_base: Duration::from_millis(500),
        climb_cap: Duration::from_secs(1),
        trial_time: Duration::from_millis(500),
        ..LadderConfig::default()
    }
}

fn builder(gateway: &Gateway, quic: impl std::fmt::Display) -> Builder {
    Client::builder(format!("quic://{quic}")).with_ca_file(gateway.ca_file())
}

/// A client with its events, and one subscription that must bring 1, 2, 3, .. and nothing else.
struct Listener {
    client: Client,
    events: Events,
    room: Subscription,
    last: u64,
}

impl Listener {
    async fn begin(builder: Builder) -> Result<Self> {
        let client = builder.connect().await?;
        let events = client.take_events().context("events")?;
        let room = client.subscribe(CHANNEL).await?;
        let mut listener = Self { client, events, room, last: 0 };
        match listener.event().await? {
            SubscriptionEvent::Subscribed { position, .. } => listener.last = position.offset.0,
            other => bail!("{other:?}"),
        }
        Ok(listener)
    }

    async fn event(&mut self) -> Result<SubscriptionEvent> {
        within(PATIENCE, "an event", self.room.next()).await?.context("the subscription ended")
    }

    /// Takes events until the publication with this offset: each once, in order.
    async fn take_up_to(&mut self, offset: u64) -> Result<()> {
        while self.last < offset {
            match self.event().await? {
                SubscriptionEvent::Publication(publication) => {
                    let got = publication.position.offset.0;
                    ensure!(got == self.last + 1, "{got} after {}", self.last);
                    self.last = got;
                }
                SubscriptionEvent::Subscribed { recovered: true, .. } => {}
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    }

    /// Publishes, and waits until it is back.
    async fn round_trip(&mut self) -> Result<()> {
        let payload = Payload::Json("{}".into());
        let position = within(PATIENCE, "a publish", self.client.publish(CHANNEL, payload)).await??;
        self.take_up_to(position.offset.0).await
    }

    /// Waits for the session to move to this transport; nothing may end meanwhile.
    async fn moved_to(&mut self, wanted: Transport) -> Result<()> {
        loop {
            let event = within(PATIENCE, format!("a move to {wanted:?}"), self.events.next()).await?;
            match event.context("the client ended")? {
                ClientEvent::Moved { transport } if transport == wanted => return Ok(()),
                ClientEvent::Disconnected { code, reason } => bail!("disconnected: {code} {reason}"),
                _ => {}
            }
        }
    }

    /// Ends the client; nothing of its connections changed since this was asked last.
    async fn never_moved(self) -> Result<()> {
        let Self { client, mut events, room, .. } = self;
        drop(room);
        client.close().await;
        while let Some(event) = events.next().await {
            match event {
                ClientEvent::Moved { .. } | ClientEvent::Disconnected { code: 4108, .. } => {
                    bail!("{event:?}")
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_anything_broken(memory: &tidegate_client::LadderMemory) -> Result<bool> {
    let memory = serde_json::to_value(memory)?;
    let networks = memory["networks"].as_array().context("networks")?;
    let records = networks.iter().flat_map(|network| network["records"].as_array().into_iter().flatten());
    Ok(records.into_iter().any(|record| record["broken_until_ms"] != json!(0)))
}

#[tokio::test(flavor = "multi_thread")]
async fn where_udp_is_blocked_the_websocket_serves_and_the_block_is_remembered() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let hole = UdpSocket::bind("127.0.0.1:0").await?;
    let builder = builder(&gateway, hole.local_addr()?).with_url(gateway.url("wss"));
    let mut listener = Listener::begin(builder.clone()).await?;
    ensure!(listener.client.transport() == Some(Transport::WebSocket));
    listener.round_trip().await?;
    let memory = listener.client.ladder_memory().await?;
    ensure!(is_anything_broken(&memory)?, "{memory:?}");
    listener.client.close().await;

    let mut buffer = [0; 2_000];
    let mut dialled = 0;
    while hole.try_recv(&mut buffer).is_ok() {
        dialled += 1;
    }
    ensure!(dialled > 0, "QUIC was not tried");
    let listener = Listener::begin(builder.with_ladder_memory(memory)).await?;
    ensure!(listener.client.transport() == Some(Transport::WebSocket));
    ensure!(hole.try_recv(&mut buffer).is_err(), "QUIC was tried although it was known to be broken");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_dies_is_left_and_taken_again_when_it_is_back() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let relay = Relay::new(gateway.addresses.quic).await?;
    let builder = builder(&gateway, relay.address).with_url(gateway.url("wss")).with_ladder(impatient());
    let mut listener = Listener::begin(builder).await?;
    ensure!(listener.client.transport() == Some(Transport::Quic));
    listener.round_trip().await?;
    let session = listener.client.session();

    relay.block(true);
    // Asked on the dead path, answered on the living one.
    listener.round_trip().await?;
    listener.moved_to(Transport::WebSocket).await?;
    ensure!(listener.client.transport() == Some(Transport::WebSocket));
    for _ in 0..20 {
        listener.round_trip().await?;
    }

    relay.block(false);
    listener.moved_to(Transport::Quic).await?;
    listener.round_trip().await?;
    ensure!(listener.client.session() == session, "another session");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_not_taken_for_a_block() -> Result<()> {
    let mut gateway = Gateway::dev(ROOMY).await?;
    let builder =
        builder(&gateway, gateway.addresses.quic).with_url(gateway.url("wss")).with_url(gateway.url("https"));
    // Where the machine is busy TCP may win the very first race, and QUIC be blamed before anything was restarted.
    let client = until("a client by QUIC", || async {
        let client = builder.clone().connect().await?;
        let memory = client.ladder_memory().await?;
        ensure!(client.transport() == Some(Transport::Quic) && !is_anything_broken(&memory)?, "{memory:?}");
        Ok(client)
    })
    .await?;
    let mut events = client.take_events().context("events")?;
    for restart in 0..2 {
        gateway.restart().await?;
        let mut lost = false;
        let transport = loop {
            match within(PATIENCE, "a connection", events.next()).await?.context("the client ended")? {
                ClientEvent::Connected { transport, .. } if lost => break transport,
                ClientEvent::Disconnected { .. } => lost = true,
                _ => {}
            }
        };
        let memory = client.ladder_memory().await?;
        ensure!(!is_anything_broken(&memory)?, "restart {restart}, by {transport:?}: {memory:?}");
        // Which of them is back first is the server's affair; QUIC serves soon.
        while client.transport() != Some(Transport::Quic) {
            let event = within(PATIENCE, "QUIC", events.next()).await?.context("the client ended")?;
            ensure!(!matches!(event, ClientEvent::Disconnected { .. }), "restart {restart}: {event:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_moves_around_under_load_without_loss_duplicate_or_disorder() -> Result<()> {
    const ROUNDS: usize = 3;
    let gateway = Gateway::dev(ROOMY).await?;
    let builder =
        builder(&gateway, gateway.addresses.quic).with_url(gateway.url("wss")).with_url(gateway.url("https"));
    let mut listener = Listener::begin(builder).await?;
    let session = listener.client.session();
    let (client, publisher) = (listener.client.clone(), listener.client.clone());
    let moves = async move {
        for _ in 0..ROUNDS {
            for transport in [Transport::WebSocket, Transport::LongPoll, Transport::Quic] {
                within(PATIENCE, format!("a move to {transport:?}"), client.move_to(transport)).await??;
                ensure!(client.transport() == Some(transport), "by {:?}", client.transport());
            }
        }
        anyhow::Ok(())
    };
    // By the client itself, over whichever connection, and by the backend.
    let mut moves = Box::pin(moves);
    let load = async {
        let mut published = 0;
        loop {
            tokio::select! { biased;
                done = &mut moves => return done.map(|()| published),
                result = publisher.publish(CHANNEL, Payload::Json("1".into())) => drop(result?),
            }
            gateway.publish(CHANNEL, json!(2)).await?;
            published += 2;
        }
    };
    let reader = async {
        loop {
            let next = listener.last + 1;
            listener.take_up_to(next).await?;
        }
        #[expect(unreachable_code, reason = "it names the type")]
        anyhow::Ok(())
    };
    let published: u64 = tokio::select! {
        published = load => published?,
        error = reader => return error,
    };
    ensure!(published > 0);
    // The last publish was cut off by the end of the moves: it may be kept or not.
    listener.round_trip().await?;
    ensure!(listener.last > published, "{} of {published}", listener.last);
    ensure!(listener.client.session() == session, "another session");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_seconds_in_an_elevator_end_nothing() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let relay = Relay::new(gateway.addresses.quic).await?;
    let mut listener = Listener::begin(builder(&gateway, relay.address)).await?;
    listener.round_trip().await?;
    relay.block(true);
    let door = async {
        // The length of the outage, not a wait for anything.
        tokio::time::sleep(Duration::from_secs(8)).await;
        relay.block(false);
    };
    let publish = listener.client.publish(CHANNEL, Payload::Json("{}".into()));
    let (position, ()) = tokio::join!(within(PATIENCE, "a publish", publish), door);
    listener.take_up_to(position??.offset.0).await?;
    listener.never_moved().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_new_addresses_cost_no_connection() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let relay = Relay::new(gateway.addresses.quic).await?;
    let builder = builder(&gateway, relay.address).with_url(gateway.url("wss"));
    let mut listener = Listener::begin(builder).await?;
    for round in 0..100 {
        if round % 2 == 0 {
            // The NAT forgets the client, whose next packet shows the server where it is now.
            relay.forget().await;
        } else {
            // The client has another address, and says so by itself.
            listener.client.network_changed().await;
        }
        listener.round_trip().await.with_context(|| format!("round {round}"))?;
    }
    ensure!(relay.made() >= 100, "{} mappings", relay.made());
    ensure!(listener.client.transport() == Some(Transport::Quic));
    listener.never_moved().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_listens_behind_a_nat_that_forgot_it_is_found_again() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let relay = Relay::new(gateway.addresses.quic).await?;
    let mut listener = Listener::begin(builder(&gateway, relay.address)).await?;
    for round in 0..3 {
        for n in 0..12 {
            gateway.publish(CHANNEL, json!(n)).await?;
        }
        let head = listener.last + 12;
        listener.take_up_to(head).await?;
        relay.forget().await;
        // Nobody is there to hear this one, until the client notices the silence.
        gateway.publish(CHANNEL, json!("lost at first")).await?;
        listener.take_up_to(head + 1).await.with_context(|| format!("round {round}"))?;
    }
    listener.never_moved().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_connection_timed_out_is_resumed_in_the_first_flight() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let relay = Relay::new(gateway.addresses.quic).await?;
    let options = QuicOptions {
        idle_timeout: Duration::from_secs(1),
        keep_alive: Duration::from_millis(300),
        ..QuicOptions::default()
    };
    let mut listener = Listener::begin(builder(&gateway, relay.address).with_quic(options)).await?;
    listener.round_trip().await?;
    let session = listener.client.session();
    relay.block(true);
    let mut lost = false;
    loop {
        match within(PATIENCE, "a connection", listener.events.next()).await?.context("the client ended")? {
            ClientEvent::Connected { resumed, early, .. } if lost => {
                ensure!(resumed, "a session of its own");
                ensure!(early, "not in the first flight");
                break;
            }
            ClientEvent::Disconnected { .. } => {
                lost = true;
                gateway.publish(CHANNEL, json!("meanwhile")).await?;
                relay.block(false);
            }
            _ => {}
        }
    }
    ensure!(listener.client.session() == session, "another session");
    let missed = listener.last + 1;
    listener.take_up_to(missed).await?;
    listener.round_trip().await
}
