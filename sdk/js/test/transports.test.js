import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { WebSocket } from "ws";

import { seededRandom } from "../src/backoff.js";
import { Client } from "../src/index.js";
import { Gateway } from "./gateway.js";

/** The same scenarios over every carrier that Node has. */
const CARRIERS = {
  "websocket, json": { transports: ["websocket"], WebSocket },
  "websocket, proto": { transports: ["websocket"], encoding: "proto", WebSocket },
  "long poll": { transports: ["longpoll"] },
};

let gateway;
let urls;
let clients;

beforeEach(async () => {
  gateway = new Gateway();
  urls = await gateway.listen();
  clients = [];
});

afterEach(async () => {
  await Promise.all(clients.map((client) => client.close()));
  await gateway.close();
});

function client(options) {
  const made = new Client(urls, { random: seededRandom(3), ...options });
  clients.push(made);
  return made;
}

/** Resolves once `count` publications came. */
function collect(subscription, count) {
  const got = [];
  return new Promise((resolve) => {
    subscription.on("publication", (publication) => {
      got.push(publication);
      if (got.length === count) resolve(got);
    });
  });
}

for (const [name, options] of Object.entries(CARRIERS)) {
  test(`${name}: subscribe, publish JSON and bytes, history, ephemeral`, async () => {
    const one = client(options);
    await one.connect();
    assert.equal(one.transport, options.transports[0]);
    assert.deepEqual([one.state, one.node], ["connected", "gateway"]);
    const subscription = one.subscribe("room:1");
    const got = collect(subscription, 3);
    await subscription.ready();
    const bytes = Uint8Array.of(0, 255, 7);
    assert.deepEqual(await one.publish("room:1", { text: "комната" }), { epoch: "e", offset: 1 });
    await one.publish("room:1", bytes);
    await one.publish("room:1", null);
    assert.deepEqual((await got).map(({ data }) => data), [{ text: "комната" }, bytes, null]);
    assert.deepEqual(subscription.position, { epoch: "e", offset: 3 });
    const { publications, recovered } = await one.history("room:1", { since: { epoch: "e", offset: 1 } });
    assert.deepEqual(publications.map(({ offset }) => offset), [2, 3]);
    assert.equal(recovered, true);
    const seen = new Promise((resolve) => subscription.on("ephemeral", resolve));
    assert.equal(one.publishEphemeral("room:1", { typing: true }), true);
    assert.deepEqual((await seen).data, { typing: true });
    assert.ok(one.rtt > 0);
  });

  test(`${name}: a dropped connection comes back and brings what was missed, once`, async () => {
    const one = client(options);
    const subscription = one.subscribe("room:1");
    await one.connect();
    await subscription.ready();
    gateway.publish("room:1", { data: 1 });
    await collect(subscription, 1);
    const rest = collect(subscription, 4);
    const events = [];
    subscription.on("subscribed", (event) => events.push(event));
    one.disconnect({ holdMs: 50 });
    assert.equal(one.state, "waiting");
    for (const data of [2, 3, 4]) gateway.publish("room:1", { data });
    await subscription.ready();
    gateway.publish("room:1", { data: 5 });
    const publications = await rest;
    assert.deepEqual(publications.map(({ data }) => data), [2, 3, 4, 5]);
    assert.deepEqual(publications.map(({ recovered }) => recovered), [true, true, true, false]);
    assert.deepEqual(events.map(({ how, missed }) => [how, missed]), [["recovered", 3]]);
  });

  test(`${name}: a refused token is replaced by a fresh one`, async () => {
    const close = { code: 4004, reason: "bad token", reconnect: { policy: "fresh_token" } };
    gateway.refuses = (token) => (token === "good" ? null : close);
    const one = client({ ...options, token: "bad", getToken: ({ fresh }) => (fresh ? "good" : "bad") });
    await one.connect();
    assert.deepEqual(gateway.tokens, ["bad", "good"]);
  });

  test(`${name}: without a fresh token it ends, and says why`, async () => {
    gateway.refuses = () => ({ code: 4004, reason: "bad token" });
    const one = client({ ...options, token: "bad" });
    await assert.rejects(one.connect(), /getToken/);
    assert.equal(one.state, "closed");
    await assert.rejects(one.publish("room:1", 1), { code: 0 });
  });

  test(`${name}: iteration ends with the subscription`, async () => {
    const one = client(options);
    await one.connect();
    const subscription = one.subscribe("room:1");
    await subscription.ready();
    const got = [];
    const iterating = (async () => {
      for await (const { data } of subscription) {
        got.push(data);
        if (data === 3) subscription.unsubscribe();
      }
    })();
    for (const data of [1, 2, 3]) gateway.publish("room:1", { data });
    await iterating;
    assert.deepEqual(got, [1, 2, 3]);
    assert.equal(subscription.state, "ended");
  });
}

test("long poll: lost answers lose nothing and execute nothing twice", async () => {
  const random = seededRandom(11);
  const one = client({ transports: ["longpoll"] });
  const subscription = one.subscribe("room:1");
  await one.connect();
  await subscription.ready();
  let lost = 0;
  let inARow = 0;
  gateway.loses = () => {
    const isLost = random() < 0.3 && inARow < 2;
    inARow = isLost ? inARow + 1 : 0;
    lost += Number(isLost);
    return isLost;
  };
  const got = collect(subscription, 40);
  const positions = [];
  for (let count = 0; count < 20; count += 1) {
    const publishing = one.publish("room:1", count);
    gateway.publish("room:1", { data: `other ${count}` });
    one.publishEphemeral("room:1", count);
    positions.push(await publishing);
  }
  const offsets = (await got).map(({ offset }) => offset);
  assert.deepEqual(offsets, Array.from({ length: 40 }, (_, index) => index + 1));
  assert.equal(new Set(positions.map(({ offset }) => offset)).size, 20);
  assert.equal(gateway.channels.get("room:1").length, 40);
  assert.ok(lost > 3, `${lost} answers were lost`);
});

test("long poll: an edge that forgot the session is connected to again at once", async () => {
  const one = client({ transports: ["longpoll"] });
  const subscription = one.subscribe("room:1");
  await one.connect();
  await subscription.ready();
  const got = collect(subscription, 2);
  const gone = new Promise((resolve) => one.on("disconnected", resolve));
  gateway.forget();
  gateway.publish("room:1", { data: 1 });
  await one.publish("room:1", 2);
  assert.equal((await gone).code, 4200);
  assert.deepEqual((await got).map(({ data }) => data), [1, 2]);
});

test("what does not get through is passed over, by hand it is changed, and the order is kept", async () => {
  const refused = { ...urls, websocket: urls.websocket.replace(/:\d+/, ":1") };
  const one = new Client(refused, { WebSocket, random: () => 0 });
  clients.push(one);
  const errors = [];
  one.on("error", ({ message }) => errors.push(message));
  await one.connect();
  assert.equal(one.transport, "longpoll");
  assert.match(errors[0], /^websocket: /);
  const two = client({ WebSocket });
  const subscription = two.subscribe("room:1");
  await two.connect();
  assert.equal(two.transport, "websocket");
  const got = collect(subscription, 2);
  await two.publish("room:1", 1);
  assert.equal(await two.useTransport("longpoll"), "longpoll");
  await two.publish("room:1", 2);
  assert.deepEqual((await got).map(({ data }) => data), [1, 2]);
  assert.equal(await two.useTransport("websocket"), "websocket");
});

test("what is no frame ends the connection, and the client comes back", async () => {
  const one = client({ transports: ["websocket"], WebSocket });
  await one.connect();
  const errors = [];
  one.on("error", ({ name }) => errors.push(name));
  const again = new Promise((resolve) => one.on("connected", resolve));
  const [session] = gateway.sessions;
  session.send({ id: 0, name: "publication", body: { channel: "a", offset: 2 ** 60, time_ms: 0 } });
  await again;
  assert.deepEqual(errors, ["DecodeError"]);
});

test("payloads that no frame can carry are refused before they are sent", async () => {
  const one = client({ transports: ["websocket"], WebSocket });
  await one.connect();
  await assert.rejects(one.publish("room:1", undefined), TypeError);
  await assert.rejects(one.publish("room:1", new Uint8Array(200_000)), { code: 413 });
  await assert.rejects(one.publish("\ud800", 1), TypeError);
  assert.throws(() => one.subscribe("room:1", { position: { epoch: "e", offset: 2 ** 53 } }), RangeError);
  assert.equal(one.state, "connected");
});
