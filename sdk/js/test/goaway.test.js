/** A server that asks to be left: when and where the client goes, and where it does not. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { WebSocket } from "ws";

import { seededRandom } from "../src/backoff.js";
import { Client } from "../src/index.js";
import { endpointOf, urlAt } from "../src/session/goaway.js";
import { Gateway } from "./gateway.js";
import { World } from "./world.js";

/** A live session that was told of other places. */
function live(hosts = ["edge-2", "edge-3:9"], plan = {}) {
  const world = new World(1, { hasTickets: true });
  const { server } = world;
  const handleFrame = server.handleFrame.bind(server);
  server.handleFrame = (connection, frame) => {
    handleFrame(connection, frame);
    const reply = frame.name === "connect" && server.connection.lanes.get("control").at(-1);
    if (reply?.name === "connected") reply.body.plan = { ...plan, alternatives: hosts.map((host) => ({ host, weight: 1 })) };
  };
  world.session.open(0);
  world.session.subscribe("room:1", null);
  world.run();
  assert.equal(world.session.state, "live");
  world.events.length = world.sent.length = 0;
  return world;
}

function goaway(world, endpoint, { after_ms = 0, deadline_ms = 30_000, connection } = {}) {
  const body = { ...(endpoint && { endpoint }), slot: `slot for ${endpoint}`, after_ms, deadline_ms, reason: "drained" };
  world.receive("goaway", body, 0, connection);
}

/** Where it was asked to go, and when; each time that leads nowhere. */
function leaves(world, ms) {
  const [start, found] = [world.now, []];
  for (let seen = world.events.length; world.now - start < ms; ) {
    world.wait(ms - (world.now - start));
    world.settle();
    for (; seen < world.events.length; seen += 1) {
      if (world.events[seen].type !== "goaway") continue;
      found.push([world.now - start, world.events[seen].endpoint]);
      world.session.notLeft(world.now);
    }
  }
  return found;
}

test("a silent server is left as the plan says, unless it is heard again", () => {
  const wait = 8_000 * ((3 * 0.618_033_988_749_894_9) % 1);
  for (const isHeard of [false, true]) {
    const world = live(["edge-2"], { epoch: 1, node_ms: 8_000, rank: 3 });
    world.session.networkChanged(world.now);
    world.pass(3_000);
    assert.deepEqual(world.last("suspect"), { type: "suspect", isSuspect: true });
    if (isHeard) world.receive("ping", {});
    const found = leaves(world, 5_000);
    assert.equal(world.session.state, "live");
    if (isHeard) assert.deepEqual(found, []);
    else {
      assert.equal(found[0][1], "edge-2:4433");
      const after = 3_000 + found[0][0];
      assert.ok(after >= wait && after < wait + 300);
    }
  }
  // Where there are no windows, nobody knows when.
  const world = live(["edge-2"]);
  world.session.networkChanged(world.now);
  assert.deepEqual(leaves(world, 12_000), []);
});

test("it is told when it is time, moves, and shows its slot", () => {
  const world = live();
  goaway(world, "https://EDGE-2", { after_ms: 2_000 });
  world.pass(1_999);
  assert.equal(world.count("goaway"), 0);
  world.pass(1);
  assert.deepEqual(world.last("goaway"), { type: "goaway", endpoint: "edge-2:4433" });
  assert.ok(world.session.move(world.now));
  world.run();
  const [, connect] = world.sentFrames("connect")[0];
  assert.equal(connect.slot, "slot for https://EDGE-2");
  assert.ok(connect.resume && connect.moves);
  assert.equal(world.count("moved"), 1);
  assert.equal(world.sentFrames("done").length, 1);
  assert.deepEqual(leaves(world, 60_000), [], "it has left");
});

test("a server that stayed after it had asked to be left is left when it falls silent", () => {
  const world = live(["edge-2"], { epoch: 1, node_ms: 8_000, rank: 3 });
  goaway(world, undefined, { deadline_ms: 5_000 });
  assert.ok(leaves(world, 6_000).length > 0);
  world.receive("ping", {});
  world.session.networkChanged(world.now);
  world.pass(3_000);
  assert.deepEqual(world.last("suspect"), { type: "suspect", isSuspect: true });
  assert.equal(leaves(world, 8_000)[0]?.[1], "edge-2:4433");
});

/** The next connection is refused: full, with a place kept for later. */
function refuse(world) {
  world.answersDials = false;
  assert.ok(world.session.move(world.now));
  world.settle();
  world.accept(world.dials[0]);
  world.settle();
  world.receive("close", { code: 4101, reason: "full", reconnect: { policy: "backoff", after_ms: 20_000, slot: "kept" } });
  world.settle();
  assert.equal(world.last("move_failed").why.code, 4101);
  world.answersDials = true;
}

test("a slot that a refusal names is kept, and what a climb is told is not of the place to leave for", () => {
  const world = live();
  goaway(world, "https://edge-2", { after_ms: 10_000, deadline_ms: 300_000 });
  refuse(world);
  world.pass(9_999);
  assert.equal(world.count("goaway"), 0, "that was a climb");
  world.pass(1);
  assert.equal(world.count("goaway"), 1);
  world.sent.length = 0;
  refuse(world);
  assert.equal(world.sentFrames("connect")[0][1].slot, "slot for https://edge-2");
  world.session.notLeft(world.now);
  world.pass(19_999);
  assert.equal(world.count("goaway"), 1, "not before its time");
  world.pass(1);
  assert.equal(world.count("goaway"), 2);
  world.sent.length = 0;
  assert.ok(world.session.move(world.now));
  world.run();
  assert.equal(world.sentFrames("connect")[0][1].slot, "kept");
});

test("nobody sends it where it does not belong", () => {
  const world = live();
  const forged = ["https://evil", "https://edge-2:4434", "https://edge-2@evil", "https://evil/edge-2", "http://edge-2", "edge-2", "https://"];
  for (const endpoint of forged) {
    goaway(world, endpoint);
    assert.deepEqual(leaves(world, 1_000), []);
    assert.deepEqual(world.last("goaway_ignored"), { type: "goaway_ignored", endpoint });
  }
  assert.equal(world.count("goaway_ignored"), forged.length);
  goaway(world, "https://edge-3:9/");
  assert.equal(leaves(world, 100)[0][1], "edge-3:9");
});

test("where it cannot go it tries again, and anywhere before it is too late", () => {
  const world = live();
  goaway(world, "https://edge-2");
  const found = leaves(world, 40_000);
  const there = found.filter(([, endpoint]) => endpoint);
  assert.ok(there.length >= 4 && there.every(([at]) => at < 25_000), JSON.stringify(found));
  assert.equal(found[there.length][0], 25_000, JSON.stringify(found));
  assert.ok(found.every(([at]) => at < 30_000));
  world.server.publish("room:1", "one");
  world.run();
  assert.equal(world.count("publication"), 1, "it is served meanwhile");
});

test("a newer one takes the place of the one before, and one on the next connection holds there", () => {
  const world = live();
  goaway(world, "https://edge-2", { after_ms: 10_000 });
  goaway(world, "https://edge-3:9", { after_ms: 1_000 });
  world.pass(1_000);
  assert.equal(world.last("goaway").endpoint, "edge-3:9");
  world.session.move(world.now);
  world.settle();
  // Only `connected`.
  world.run(1);
  goaway(world, "https://edge-2");
  world.run();
  assert.equal(world.count("moved"), 1);
  world.pass(1);
  assert.equal(world.last("goaway").endpoint, "edge-2:4433");
});

test("where it was on its way to another place, that does not count any more", () => {
  const world = live();
  world.answersDials = false;
  goaway(world, "https://edge-2");
  world.pass(1);
  assert.ok(world.session.move(world.now));
  world.settle();
  assert.equal(world.dials.length, 1);
  goaway(world, "https://edge-3:9");
  world.pass(1);
  assert.equal(world.dials.length, 0, "given up");
  assert.equal(world.last("goaway").endpoint, "edge-3:9");
  world.answersDials = true;
  world.session.move(world.now);
  world.run();
  assert.equal(world.count("moved"), 1);
  assert.equal(world.sentFrames("connect")[0][1].slot, "slot for https://edge-3:9");
});

test("where it was half-way there, another place is gone to, and the same one goes on", () => {
  for (const other of ["https://edge-3:9", "https://edge-2"]) {
    const world = live();
    goaway(world, "https://edge-2");
    world.pass(1);
    const first = world.connection;
    assert.ok(world.session.move(world.now));
    world.settle();
    // Only `connected`: it would stay so for long if the place died now.
    world.run(1);
    const halfWay = world.connection;
    assert.notEqual(halfWay, first);
    assert.equal(world.count("moved"), 0);
    goaway(world, other, { connection: first });
    world.settle();
    const isElsewhere = other !== "https://edge-2";
    assert.equal(world.count("move_failed"), isElsewhere ? 1 : 0);
    assert.equal(world.session.state, "live");
    if (isElsewhere) {
      world.pass(1);
      assert.equal(world.last("goaway").endpoint, "edge-3:9");
      assert.ok(world.session.move(world.now));
    }
    world.run();
    assert.equal(world.count("moved"), 1, other);
    assert.equal(world.connection === halfWay, !isElsewhere);
  }
});

test("a connection that is lost first shows its slot where it comes back", () => {
  const world = live();
  goaway(world, "https://edge-2", { after_ms: 20_000 });
  world.lose();
  world.pass(5_000, { runs: true });
  assert.equal(world.sentFrames("connect")[0][1].slot, "slot for https://edge-2");
});

test("endpoints have one spelling and nothing behind it", () => {
  assert.equal(endpointOf("Edge-2.example.COM"), "edge-2.example.com:4433");
  assert.equal(endpointOf("[2001:DB8::1]:9"), "[2001:db8::1]:9");
  for (const none of ["", ":1", "a:", "a:0", "a:65536", "a:1:2", "a/b", "a@b", "a?b", "a b", "[]:1", "[::1", "é", "a\\b"]) {
    assert.equal(endpointOf(none), null, none);
  }
  assert.equal(urlAt("https://one:4433/v1/connect?x=1", "two:443"), "https://two/v1/connect?x=1");
  assert.equal(urlAt("wss://one/v1/connect", "[::1]:9"), "wss://[::1]:9/v1/connect");
});

// --- over real sockets ----------------------------------------------------------------------------------------------

let gateways;
let clients;

beforeEach(() => {
  gateways = [];
  clients = [];
});

afterEach(async () => {
  await Promise.all(clients.map((client) => client.close()));
  await Promise.all(gateways.map((gateway) => gateway.close()));
});

async function until(holds) {
  const deadline = Date.now() + 15_000;
  while (!holds()) {
    assert.ok(Date.now() < deadline, `it never came to ${holds}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Two gateways with the same channels, of which the first tells of the second. */
async function two() {
  const [first, second] = (gateways = [new Gateway(), new Gateway()]);
  first.hasTickets = second.hasTickets = true;
  second.share(first);
  const [urls, others] = [await first.listen(), await second.listen()];
  const host = new URL(others.longpoll).host;
  first.alternatives = [host];
  second.alternatives = [new URL(urls.longpoll).host];
  return { first, second, urls, host };
}

for (const name of ["websocket", "longpoll"]) {
  test(`it leaves by ${name}, under load, and stays where it went`, { timeout: 30_000 }, async () => {
    const { first, second, urls, host } = await two();
    const one = new Client({ [name]: urls[name] }, { WebSocket, random: seededRandom(3) });
    clients.push(one);
    const offsets = [];
    const moved = [];
    one.on("moved", ({ from, to, resumed }) => moved.push(`${from} ${to} ${resumed}`));
    one.on("disconnected", ({ reason }) => moved.push(reason));
    const subscription = one.subscribe("room:1", { onPublication: ({ offset }) => offsets.push(offset) });
    await one.connect();
    await subscription.ready();
    const acknowledged = [];
    for (let count = 0; count < 300; count += 1) {
      first.publish("room:1", { data: count });
      acknowledged.push(one.publish("room:1", { own: count }));
      if (count === 100) first.goaway({ endpoint: `https://${host}`, after_ms: 0, deadline_ms: 20_000, reason: "" });
      await new Promise((resolve) => setImmediate(resolve));
    }
    await Promise.all(acknowledged);
    await until(() => first.sessions.size === 0 && offsets.length >= 600);
    assert.deepEqual(offsets, Array.from({ length: 600 }, (_, index) => index + 1));
    assert.deepEqual(moved, [`${name} ${name} true`]);
    assert.equal(second.sessions.size, 1);
    one.disconnect();
    await until(() => one.state === "connected");
    assert.equal(second.sessions.size + first.sessions.size > 0 && first.sessions.size, 0, "it comes back where it was");
  });
}

test("a forged place is not gone to", { timeout: 30_000 }, async () => {
  const { first, second, urls, host } = await two();
  first.alternatives = [];
  const one = new Client(urls, { WebSocket, random: seededRandom(3) });
  clients.push(one);
  const errors = [];
  one.on("error", ({ message }) => errors.push(message));
  await one.connect();
  first.goaway({ endpoint: `https://${host}`, after_ms: 0, deadline_ms: 20_000, reason: "" });
  await until(() => errors.length > 0);
  assert.match(errors[0], new RegExp(`no right to send the session to https://${host}`));
  await one.measureRtt();
  assert.deepEqual([first.sessions.size, second.sessions.size], [1, 0]);
});
