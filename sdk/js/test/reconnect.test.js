/** Coming back: by the plan, by a slot, by nothing but jitter. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";

import { seededRandom } from "../src/backoff.js";
import { Client } from "../src/index.js";
import { Reconnect, believed, hintOf } from "../src/reconnect.js";
import { Gateway } from "./gateway.js";
import { World } from "./world.js";

const place = (host, elsewhere = false, weight = 1) => ({ host, weight, elsewhere });

/** A session that was open for an hour, and told of this plan; its dials wait. */
function settled(plan, seed = 1) {
  const world = new World(seed, { hasTickets: true });
  const { server } = world;
  const handleFrame = server.handleFrame.bind(server);
  server.handleFrame = (connection, frame) => {
    handleFrame(connection, frame);
    const reply = frame.name === "connect" && server.connection.lanes.get("control").at(-1);
    if (reply?.name === "connected") reply.body.plan = plan;
  };
  world.session.open(0);
  world.run();
  assert.equal(world.session.state, "live");
  world.now += 3_600_000;
  world.session.handleActivity(world.now, world.connection);
  world.settle();
  world.answersDials = false;
  world.events.length = world.sent.length = 0;
  return world;
}

const PLAN = { epoch: 3, node_ms: 2_000, region_ms: 100_000, rank: 1, alternatives: [place("Near:1"), place("far", true), place("no host")] };

/** Lets the wait pass; the `dial` that follows. */
function dial(world) {
  const { retryInMs } = world.last("disconnected");
  world.pass(Math.ceil(retryInMs) + 1);
  return world.last("dial");
}

test("a lost server means the plan, and its first dial has little time", () => {
  const world = settled(PLAN);
  world.lose();
  world.settle();
  const { retryInMs } = world.last("disconnected");
  assert.ok(retryInMs >= 1_236 && retryInMs < 1_537, String(retryInMs));
  const first = dial(world);
  assert.deepEqual([first.host, first.isFirst], ["near:1", true]);
  const before = world.count("disconnected");
  world.pass(2_990);
  assert.equal(world.count("disconnected"), before);
  world.pass(20);
  assert.equal(world.count("disconnected"), before + 1, "others wait to be tried");
  assert.equal(world.last("hangup").connection, first.connection);
  const second = world.last("disconnected").retryInMs;
  assert.ok(second > 57_000 && second < 61_000, `what is left of the region's window: ${second}`);
  const next = dial(world);
  assert.deepEqual([next.host, next.isFirst], ["far:4433", false]);
  const count = world.count("disconnected");
  world.pass(60_000);
  assert.equal(world.count("disconnected"), count, "later dials have their usual time");
  world.failDial();
  world.settle();
  assert.ok(world.last("disconnected").retryInMs < 1_000, "then full jitter");
});

test("the newest plan of the last connection holds", () => {
  const world = settled(PLAN);
  world.receive("ping", { plan: { ...PLAN, epoch: 4, node_ms: 200_000 } });
  world.receive("ping", { plan: { ...PLAN, epoch: 2 } });
  world.lose();
  world.settle();
  assert.ok(world.last("disconnected").retryInMs > 100_000);
  const none = settled({ alternatives: [place("near")] });
  none.lose();
  none.settle();
  assert.ok(none.last("disconnected").retryInMs < 1_000);
  assert.equal(dial(none).host, null, "without windows it only names places");
});

test("a place that is kept is claimed when it is time, and once", () => {
  const close = (reconnect, reason = "") => ({ code: 4101, reason, ...(reconnect && { reconnect }) });
  const refusals = [
    (world) => world.receive("close", close({ policy: "backoff", after_ms: 7_321, slot: "ticket" })),
    (world) => world.receive("close", close(null, "ra=7321;t=ticket")),
    (world) => world.session.handleClosed(world.now, world.connection, close(null, "ra=7321;t=ticket")),
    (world) => world.session.handleClosed(world.now, world.connection, { code: 1013, reason: "ra=7321;t=ticket" }),
  ];
  for (const refuse of refusals) {
    const world = settled(PLAN);
    refuse(world);
    world.settle();
    assert.equal(world.last("disconnected").retryInMs, 7_321);
    assert.ok(["", "ra=7321;t=(hidden)"].includes(world.last("disconnected").reason), "whoever has a ticket can use it");
    const { host, connection } = dial(world);
    assert.equal(host, null, "there");
    world.accept(connection);
    world.settle();
    assert.equal(world.sentFrames("connect").at(-1)[1].slot, "ticket");
    world.lose();
    world.settle();
    world.accept(dial(world).connection);
    world.settle();
    assert.equal(world.sentFrames("connect").at(-1)[1].slot, undefined);
  }
  const sent = settled(PLAN);
  sent.session.handleClosed(sent.now, sent.connection, { code: 4101, reason: "elsewhere" });
  sent.settle();
  assert.equal(dial(sent).host, "far:4433");
  // Advice of another kind is not taken from a text.
  const denied = settled(PLAN);
  denied.session.handleClosed(denied.now, denied.connection, { code: 4006, reason: "ra=7321;t=ticket" });
  assert.equal(denied.session.state, "ended");
});

test("what a refusal says is read, and nothing else is", () => {
  const later = (afterMs, ticket = null) => ({ cause: "deferred", afterMs, ticket });
  for (const [text, hint] of [
    ["ra=1500;t=4QJ0-_x", later(1_500, "4QJ0-_x")],
    ["t=4QJ0;ra=7", later(7, "4QJ0")],
    ["ra=1500", later(1_500)],
    ["t=4QJ0", later(0, "4QJ0")],
    ["ra=1500;later=field;t=x", later(1_500, "x")],
    ["ra=99999999999999999999999", later(120_000)],
    ["ra=1;t=no ticket", later(1)],
    [`ra=1;t=${"x".repeat(65)}`, later(1)],
    ["elsewhere", { cause: "elsewhere" }],
    ...["", "ra=", "ra=-1", "ra=1e3", "ra", "the server is busy", "elsewhere;"].map((none) => [none, null]),
  ]) {
    assert.deepEqual(hintOf(text), hint, text);
  }
});

test("who changed networks waits for nobody", () => {
  const plan = { ...PLAN, node_ms: 200_000 };
  const died = settled(plan);
  died.session.networkChanged(died.now);
  died.settle();
  died.now += 4_000;
  died.lose();
  died.settle();
  assert.ok(died.last("disconnected").retryInMs < 500);
  assert.equal(dial(died).host, null, "the server is not to blame");
  const waiting = settled(plan);
  waiting.session.handleClosed(waiting.now, waiting.connection, { code: 4101, reason: "ra=60000;t=ticket" });
  waiting.session.networkChanged(waiting.now);
  waiting.pass(500);
  const { connection } = waiting.last("dial");
  waiting.accept(connection);
  waiting.settle();
  assert.equal(waiting.sentFrames("connect").at(-1)[1].slot, undefined, "it was for the address that it had");
});

test("a crowd comes back over the window, and by weight", () => {
  const tenths = new Array(10).fill(0);
  let near = 0;
  for (let client = 0; client < 1_000; client += 1) {
    const reconnect = new Reconnect(seededRandom(client));
    const alternatives = [place("near"), place("second", false, 3), place("far", true)];
    reconnect.handlePlan(believed({ node_ms: 10_000, region_ms: 20_000, rank: 4_000_000_000 + client, alternatives }));
    const { delayMs, host } = reconnect.handleEnded(0, { cause: "lost" });
    tenths[Math.min(9, Math.floor(delayMs / 1_000))] += 1;
    near += Number(host === "near:4433");
  }
  assert.ok(tenths.every((count) => count > 75 && count < 125), String(tenths));
  assert.ok(near > 240 && near < 260, String(near));
});

test("a client goes where the plan says, and by its own addresses where that is gone", { timeout: 30_000 }, async () => {
  const [first, second] = [new Gateway(), new Gateway()];
  first.hasTickets = second.hasTickets = true;
  second.share(first);
  const [urls, others] = [await first.listen(), await second.listen()];
  const windows = { epoch: 1, node_ms: 1, region_ms: 1, rank: 7 };
  first.plan = { ...windows, alternatives: [place(new URL(others.longpoll).host)] };
  const client = new Client({ websocket: urls.websocket }, { WebSocket, random: seededRandom(5) });
  const offsets = [];
  const subscription = client.subscribe("room:1", { onPublication: ({ offset }) => offsets.push(offset) });
  const connected = () => new Promise((resolve) => client.on("connected", resolve));
  try {
    await client.connect();
    await subscription.ready();
    first.publish("room:1", { data: 1 });
    let back = connected();
    await first.close();
    second.publish("room:1", { data: 2 });
    assert.equal((await back).resumed, true);
    assert.equal(second.sessions.size, 1);
    // It names a place where nobody is; the app's own is there again.
    second.plan = first.plan;
    second.plan.alternatives = [place("127.0.0.1:1")];
    second.cut();
    await connected();
    second.publish("room:1", { data: 3 });
    await new Promise((resolve) => subscription.on("publication", ({ offset }) => offset === 3 && resolve()));
    assert.deepEqual(offsets, [1, 2, 3]);
  } finally {
    await client.close();
    await second.close();
  }
});
