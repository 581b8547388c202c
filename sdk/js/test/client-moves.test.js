/** The client over real sockets: it moves between transports under load, away from black holes, and back. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { WebSocket } from "ws";

import { seededRandom } from "../src/backoff.js";
import { Client } from "../src/index.js";
import { Gateway } from "./gateway.js";

let gateway;
let urls;
let clients;

beforeEach(async () => {
  gateway = new Gateway();
  gateway.hasTickets = true;
  urls = await gateway.listen();
  clients = [];
});

afterEach(async () => {
  gateway.isSilent = false;
  await Promise.all(clients.map((client) => client.close()));
  await gateway.close();
});

function client(options) {
  const made = new Client(urls, { WebSocket, random: seededRandom(3), ...options });
  clients.push(made);
  return made;
}

/** What the app sees of a channel, and of the connection. */
function record(one, channel = "room:1") {
  const seen = { offsets: [], subscribed: [], moves: [], transports: [], disconnected: 0, suspect: [] };
  const subscription = one.subscribe(channel);
  subscription.on("publication", ({ offset, recovered }) => seen.offsets.push(recovered ? -offset : offset));
  subscription.on("subscribed", ({ how }) => seen.subscribed.push(how));
  one.on("moved", ({ from, to, resumed }) => seen.moves.push(`${from} ${to} ${resumed}`));
  one.on("transport", (name) => seen.transports.push(name));
  one.on("disconnected", () => (seen.disconnected += 1));
  one.on("suspect", (isSuspect) => seen.suspect.push(isSuspect));
  return { seen, subscription };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

/** Until it holds; a wait that would never end fails. */
async function until(holds) {
  const deadline = Date.now() + 15_000;
  while (!holds()) {
    assert.ok(Date.now() < deadline, `it never came to ${holds}`);
    await turn();
  }
}

/** WebSockets that go nowhere while `isBlocked()`. */
function blocking(isBlocked) {
  return class extends WebSocket {
    constructor(url, protocols) {
      super(isBlocked() ? url.replace(/:\d+/, ":1") : url, protocols);
    }
  };
}

for (const hasTickets of [true, false]) {
  test(`it moves to and fro under load: nothing is lost, nothing comes twice (tickets: ${hasTickets})`, { timeout: 30_000 }, async () => {
    gateway.hasTickets = hasTickets;
    const one = client();
    const { seen, subscription } = record(one);
    await one.connect();
    await subscription.ready();
    let isMoving = true;
    const publishing = (async () => {
      const positions = [];
      for (let count = 0; isMoving; count += 1) {
        gateway.publish("room:1", { data: count });
        positions.push(one.publish("room:1", { own: count }));
        await turn();
      }
      return Promise.all(positions);
    })();
    for (const name of ["longpoll", "websocket", "longpoll", "websocket"]) {
      assert.equal(await one.useTransport(name), name);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    isMoving = false;
    const positions = await publishing;
    const { length } = gateway.channels.get("room:1");
    await until(() => seen.offsets.length >= length);
    assert.deepEqual(seen.offsets, Array.from({ length }, (_, index) => index + 1), "in order, none as a repeat");
    assert.equal(new Set(positions.map(({ offset }) => offset)).size, positions.length);
    assert.equal(length, 2 * positions.length, "each was stored once");
    const moves = ["websocket longpoll", "longpoll websocket", "websocket longpoll", "longpoll websocket"];
    assert.deepEqual(seen.moves, moves.map((each) => `${each} ${hasTickets}`));
    assert.deepEqual([seen.disconnected, seen.subscribed], [0, ["begun"]]);
    assert.deepEqual(seen.transports, ["websocket", "longpoll", "websocket", "longpoll", "websocket"]);
    await until(() => gateway.sessions.size === 1);
  });
}

test("a session keeps its name over moves and reconnects", async () => {
  const one = client();
  await one.connect();
  const { session } = one;
  await one.useTransport("longpoll");
  assert.equal(one.session, session);
  const again = new Promise((resolve) => one.on("connected", resolve));
  one.disconnect();
  assert.equal((await again).resumed, true);
  assert.equal(one.session, session);
});

test("where it cannot move it stays, and the session goes on", async () => {
  urls.longpoll = urls.longpoll.replace(/:\d+/, ":1");
  const one = client();
  const { seen, subscription } = record(one);
  await one.connect();
  await subscription.ready();
  assert.equal(await one.useTransport("longpoll"), "websocket");
  gateway.publish("room:1", { data: 1 });
  await until(() => seen.offsets.length === 1);
  assert.deepEqual([one.state, seen.moves, seen.disconnected], ["connected", [], 0]);
});

test("out of a black hole it moves to the next transport, and misses nothing", { timeout: 30_000 }, async () => {
  // As short as can be: the probe's own times are the session machine's, and tested there.
  const one = client({ WebSocket: blocking(() => gateway.isSilent) });
  const { seen, subscription } = record(one);
  await one.connect();
  await subscription.ready();
  gateway.publish("room:1", { data: 1 });
  await until(() => seen.offsets.length === 1);
  gateway.isSilent = true;
  gateway.publish("room:1", { data: 2 });
  one.networkChanged();
  await until(() => one.transport === "longpoll");
  gateway.publish("room:1", { data: 3 });
  await until(() => seen.offsets.length === 3);
  assert.deepEqual(seen.suspect, [true, false]);
  assert.deepEqual([seen.offsets.map(Math.abs), seen.moves.length], [[1, 2, 3], 1]);
});

test("from a fallback it climbs back by itself", { timeout: 30_000 }, async () => {
  const one = client({ ladder: { climbMs: 100 } });
  const { seen, subscription } = record(one);
  // The proxy in between lets no WebSocket through, for now.
  let isBlocked = true;
  const two = client({ WebSocket: blocking(() => isBlocked), ladder: { climbMs: 100 } });
  const other = record(two);
  await Promise.all([one.connect(), two.connect()]);
  await Promise.all([subscription.ready(), other.subscription.ready()]);
  assert.deepEqual([one.transport, two.transport], ["websocket", "longpoll"]);
  isBlocked = false;
  await until(() => two.transport === "websocket");
  gateway.publish("room:1", { data: 1 });
  await until(() => seen.offsets.length === 1 && other.seen.offsets.length === 1);
  assert.deepEqual(other.seen.moves, ["longpoll websocket true"]);
  assert.deepEqual(seen.moves, []);
});

test("a connection that the app itself drops is no transport's fault", async () => {
  const one = client();
  await one.connect();
  await one.useTransport("longpoll");
  await one.useTransport("websocket"); // It is watched now.
  const again = new Promise((resolve) => one.on("connected", resolve));
  one.disconnect();
  assert.equal((await again).transport, "websocket");
});

test("what is known of the transports is kept for the next page", async () => {
  const items = new Map();
  const storage = { getItem: (key) => items.get(key) ?? null, setItem: (key, value) => void items.set(key, value) };
  const blocked = { ...urls, websocket: urls.websocket.replace(/:\d+/, ":1") };
  const options = { WebSocket, storage, networkKey: () => "wifi", random: seededRandom(1) };
  const errors = [];
  for (const expected of [1, 1]) {
    const one = new Client(blocked, options);
    clients.push(one);
    one.on("error", ({ message }) => errors.push(message));
    await one.connect();
    assert.equal(one.transport, "longpoll");
    assert.equal(errors.length, expected, errors.join());
    await one.close();
  }
  assert.match([...items.values()][0], /"wifi".*"websocket".*"brokenUntil":1/);
});

test("a round trip is measured by a ping, on every transport", async () => {
  const one = client();
  assert.equal(await one.measureRtt(), null);
  await one.connect();
  assert.ok((await one.measureRtt()) > 0);
  await one.useTransport("longpoll");
  assert.ok((await one.measureRtt()) > 0);
  const cut = one.measureRtt();
  one.disconnect();
  assert.equal(await cut, null);
});

test("ranks are checked", async () => {
  const one = client();
  for (const rank of [-129, 128, 0.5, NaN, "1"]) assert.throws(() => one.subscribe("a", { rank }), RangeError);
  assert.equal(one.subscriptions.size, 0);
});
