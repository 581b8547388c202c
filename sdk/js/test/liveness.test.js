/** Probes: when one goes out, when its silence makes a connection suspect, and when silence is none. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { connected } from "./world.js";

/** A world whose channel brings a publication every `everyMs`, `count` times. */
function flowing(everyMs, count, options) {
  const world = connected(options);
  world.session.subscribe("room:1", null);
  world.run();
  for (let index = 0; index < count; index += 1) {
    world.now += everyMs;
    world.server.publish("room:1", index);
    world.run();
  }
  world.sent.length = 0;
  return world;
}

/** Pings that went out, as milliseconds since `start`. */
function pingsDuring(world, ms, { runs = false } = {}) {
  const start = world.now;
  const times = [];
  const until = world.now + ms;
  while (world.now < until) {
    const before = world.sent.length;
    world.wait(until - world.now);
    if (runs) world.run();
    else world.settle();
    for (const [, { name }] of world.sent.slice(before)) if (name === "ping") times.push(world.now - start);
  }
  return times;
}

const suspects = (world) => world.events.filter(({ type }) => type === "suspect").map(({ isSuspect }) => isSuspect);

test("traffic that stops is probed once, after two seconds or four usual gaps", () => {
  for (const [everyMs, expected] of [[100, 2_000], [1_000, 4_000], [3_000, 12_000]]) {
    const world = flowing(everyMs, 20);
    assert.deepEqual(pingsDuring(world, 20_000, { runs: true }), [expected]);
    assert.deepEqual(suspects(world), []);
  }
});

test("a channel that is quiet by nature is not probed", () => {
  const world = flowing(100, 2);
  assert.deepEqual(pingsDuring(world, 40_000, { runs: true }), []);
});

test("a probe without an answer makes the connection suspect after three seconds; anything heard ends that", () => {
  const world = flowing(100, 20);
  assert.deepEqual(pingsDuring(world, 4_999), [2_000]);
  assert.deepEqual(suspects(world), []);
  world.pass(1);
  assert.deepEqual(suspects(world), [true]);
  world.server.publish("room:1", "late");
  world.run();
  assert.deepEqual(suspects(world), [true, false]);
});

test("on a slow path it waits longer: three probe timeouts", () => {
  const world = connected();
  const { session } = world;
  for (let count = 0; count < 10; count += 1) {
    const id = session.ping(world.now);
    const { frame } = session.pollTransmit(world.now);
    assert.equal(frame.id, id);
    world.now += count % 2 === 0 ? 1_000 : 2_000;
    world.receive("pong", {}, id);
  }
  world.settle();
  session.networkChanged(world.now);
  world.pass(6_000);
  assert.deepEqual(suspects(world), []);
  world.pass(20_000);
  assert.deepEqual(suspects(world), [true]);
});

test("a request that waits for two seconds has the path probed", () => {
  const world = connected();
  world.server.handleFrame = () => {};
  world.session.request(world.now, "history", { channel: "a", limit: 0 });
  assert.deepEqual(pingsDuring(world, 4_900), [2_000]);
  world.pass(200);
  assert.deepEqual(suspects(world), [true]);
});

test("a changed network is probed at once", () => {
  const world = connected();
  world.session.networkChanged(world.now);
  world.settle();
  assert.equal(world.sent.at(-1)[1].name, "ping");
  world.pass(3_000);
  assert.deepEqual(suspects(world), [true]);
  // And it ends the wait for a reconnect, unless the server asked for that.
  const waiting = connected();
  waiting.lose();
  waiting.session.networkChanged(waiting.now);
  // Within half a second: everybody in the same train comes back.
  waiting.pass(500);
  waiting.run();
  assert.equal(waiting.session.state, "live");
  const asked = connected();
  asked.receive("close", { code: 4100, reason: "", reconnect: { policy: "backoff", after_ms: 7_000 } });
  asked.settle();
  asked.session.networkChanged(asked.now);
  assert.ok(asked.session.pollTimeout() >= 7_000);
});

test("a timer that fires late is no silence of the network's", () => {
  // The page was frozen for ten minutes. What waits in its sockets is read after the timer.
  const world = flowing(100, 20);
  world.now += 600_000;
  world.session.handleTimeout(world.now);
  world.settle();
  assert.equal(world.session.state, "live");
  assert.deepEqual(suspects(world), []);
  assert.equal(world.sent.at(-1)[1].name, "ping");
  world.run();
  world.pass(10_000, { runs: true });
  assert.deepEqual(suspects(world), []);
  // Where nothing is in them, it is dead all the same.
  const dead = flowing(100, 20);
  dead.now += 600_000;
  dead.session.handleTimeout(dead.now);
  dead.settle();
  dead.pass(3_001);
  assert.ok(suspects(dead).includes(true) || dead.session.state === "waiting");
});

test("a throttled page, whose timers fire once a second, probes no more than others", () => {
  const world = flowing(100, 20);
  let pings = 0;
  for (let second = 0; second < 30; second += 1) {
    world.now += 1_000;
    const before = world.sent.length;
    world.session.handleTimeout(world.now);
    world.run();
    pings += world.sent.slice(before).filter(([, { name }]) => name === "ping").length;
  }
  assert.deepEqual([pings, suspects(world)], [1, []]);
});

test("a connection that is watched is probed every two seconds", () => {
  const world = connected();
  world.session.watch(world.now, 10_000);
  assert.deepEqual(pingsDuring(world, 20_000, { runs: true }), [2_000, 4_000, 6_000, 8_000, 10_000]);
});

test("a suspect connection is left by a move, and is the suspect no more", () => {
  const world = flowing(100, 20);
  world.pass(5_000);
  assert.deepEqual(suspects(world), [true]);
  world.session.move(world.now);
  world.settle();
  const old = world.open[0];
  world.server.connections.get(old).lanes.clear(); // It carries nothing.
  world.run();
  assert.deepEqual(suspects(world), [true, false]);
  assert.equal(world.count("moved"), 1);
  world.pass(1_000);
  assert.deepEqual(world.open, [world.connection], "it is hung up without the server's answer");
});

test("pings measure the round trip; their number is bounded; long poll is sent no pong", () => {
  const world = connected();
  const { session } = world;
  const ids = Array.from({ length: 50 }, () => session.ping(world.now));
  world.settle();
  world.now += 30;
  world.run();
  assert.deepEqual(world.events.filter(({ type }) => type === "pong").map(({ id }) => id), ids.slice(-8));
  const polling = connected({ hasTickets: true });
  polling.lose();
  polling.answersDials = false;
  polling.pass(2_000);
  polling.accept(polling.dials[0], false);
  polling.run();
  polling.sent.length = 0;
  polling.receive("ping", { resume: "fresher" });
  polling.settle();
  assert.deepEqual(polling.sent, []);
});
