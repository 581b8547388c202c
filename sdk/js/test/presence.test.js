/** Who is there: asked once, and told as they come and go. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { connected } from "./world.js";

const room = "room:1";

/** What the client sent of one kind since `from`. */
function sent(world, name, from = 0) {
  return world.sent.slice(from).map(([, frame]) => frame).filter((frame) => frame.name === name);
}

function receive(world, name, body, id = 0) {
  world.session.handleFrame(world.now, world.connection, { id, name, body });
  world.settle();
}

test("a watch is asked for, on every connection, and only where it was wanted", () => {
  const world = connected();
  world.session.subscribe(room, null, 0, true);
  world.session.subscribe("room:2", null);
  world.run();
  const asked = sent(world, "subscribe").map(({ body }) => body.presence);
  assert.deepEqual(asked, [true, undefined]);
  const before = world.sent.length;
  world.lose();
  world.wait(5_000);
  world.run();
  assert.deepEqual(sent(world, "subscribe", before).map(({ body }) => body.presence), [true, undefined]);
});

test("joins and leaves of a subscription are handed on, others are not", () => {
  const world = connected();
  world.session.subscribe(room, null, 0, true);
  world.run();
  receive(world, "join", { channel: room, user: "bo", time_ms: 7 });
  receive(world, "join", { channel: "room:2", user: "bo", time_ms: 7 });
  receive(world, "leave", { channel: room, user: "bo", time_ms: 8 });
  for (const channel of [room, "room:2"]) receive(world, "presence_gap", { channel });
  const told = world.events.filter(({ type }) => ["join", "leave", "presence_gap"].includes(type));
  assert.deepEqual(told, [
    { type: "join", body: { channel: room, user: "bo", time_ms: 7 } },
    { type: "leave", body: { channel: room, user: "bo", time_ms: 8 } },
    { type: "presence_gap", body: { channel: room } },
  ]);
});

test("who is there is asked again after a loss, and answered once", () => {
  const world = connected();
  const id = world.session.request(world.now, "presence", { channel: room });
  world.settle();
  const before = world.sent.length;
  world.lose();
  world.wait(5_000);
  world.run();
  assert.deepEqual(sent(world, "presence", before).map((frame) => frame.id), [id]);
  const body = { channel: room, users: [{ user: "bo", sessions: 2 }], users_total: 1, sessions: 3, exact: true };
  receive(world, "presence", body, id);
  receive(world, "presence", body, id);
  assert.equal(world.outcomes.get(id).type, "reply");
  assert.equal(world.events.filter((event) => event.type === "reply" && event.id === id).length, 1);
});
