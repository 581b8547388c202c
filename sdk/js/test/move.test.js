/** Resuming by ticket, and moving from one connection to another: nothing lost, nothing twice, no key used twice. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { CloseCode } from "../src/close-codes.js";
import { World, connected } from "./world.js";

const SEEDS = 1_000;

test("moves, deaths and refusals at any time, over hundreds of seeds", () => {
  const total = { delivered: 0, moved: 0, failed: 0, resumed: 0, published: 0 };
  for (let seed = 0; seed < SEEDS; seed += 1) {
    try {
      simulate(seed, total);
    } catch (error) {
      error.message = `SEED=${seed}: ${error.message}`;
      throw error;
    }
  }
  // The seeds did meet what they are for.
  assert.ok(total.delivered > 20_000 && total.moved > 1_000 && total.failed > 200, JSON.stringify(total));
  assert.ok(total.resumed > 2_000 && total.published > 2_000, JSON.stringify(total));
});

function simulate(seed, total) {
  const limits = { held: { items: 12, bytes: 1 << 20 }, keyMs: Infinity };
  const world = new World(seed, { limits, hasTickets: seed % 4 !== 0, hasCarriers: true });
  const { session, server, random } = world;
  const names = ["room:1", "room:2", "ticker:1"];
  const published = [];
  const pick = (list) => list[Math.floor(random() * list.length)];
  for (const name of names) session.subscribe(name, null);
  session.open(0);
  for (let step = 0; step < 300; step += 1) {
    const name = pick(names);
    const dice = random();
    world.answersDials = random() < 0.7;
    if (dice < 0.4) server.publish(name, { step, of: server.channel(name).epoch });
    else if (dice < 0.45) {
      const body = { channel: name, data: { by: step }, key: `k${step}` };
      published.push({ id: session.request(world.now, "publish", body), body });
    } else if (dice < 0.52) session.move(world.now);
    else if (dice < 0.54 && world.open.length > 0) world.lose(1006, pick(world.open));
    else if (dice < 0.56 && world.dials.length > 0) world.failDial(pick(world.dials));
    else if (dice < 0.62 && world.dials.length > 0) world.accept(pick(world.dials));
    else if (dice < 0.63) session.abandonMove(world.now, "not needed");
    else if (dice < 0.64) session.networkChanged(world.now);
    else if (dice < 0.65) server.changeEpoch(name);
    else if (dice < 0.67 && world.open.length > 0) server.ping(pick(world.open));
    else if (dice < 0.68) server.supersede();
    else if (dice < 0.74) world.wait(500);
    else world.run(1 + Math.floor(random() * 6));
  }
  world.answersDials = true;
  for (const connection of [...world.dials]) world.accept(connection);
  for (let round = 0; round < 200; round += 1) {
    world.run();
    if (session.state === "live" && !session.isMoving && session.pollTimeout() > world.now + 20_000) break;
    world.wait(10_000);
  }
  assert.equal(session.state, "live");
  assert.equal(server.thefts, 0, "a ticket was used with two keys");
  for (const name of names) {
    const { epoch, head } = server.channel(name);
    assert.deepEqual(session.position(name), { epoch, offset: head }, `${name} caught up`);
    assert.deepEqual(world.reader.positions.get(name), { epoch, offset: head });
  }
  for (const { id } of published) assert.equal(world.outcomes.get(id)?.type, "reply", "acknowledged");
  assert.ok(world.open.length <= 1, "what was left is hung up");
  total.delivered += world.reader.delivered;
  total.moved += world.count("moved");
  total.failed += world.count("move_failed");
  total.resumed += server.resumed;
  total.published += published.length;
}

/** A world that is live with one channel, and has moved nowhere yet. */
function live(options = {}) {
  const world = connected({ hasTickets: true, ...options });
  world.session.subscribe("room:1", null);
  world.run();
  world.server.publish("room:1", "one");
  world.run();
  world.sent.length = 0;
  return world;
}

const offsets = (world) => world.events.filter(({ type }) => type === "publication").map(({ publication }) => publication.offset);

// --- moving -----------------------------------------------------------------------------------------------------------

test("a move says nothing to the app but `moved`, and leaves the old connection with `done`", () => {
  const world = live();
  const before = world.events.length;
  const [first] = world.open;
  assert.equal(world.session.move(world.now), true);
  assert.equal(world.session.move(world.now), false, "one at a time");
  world.run();
  assert.deepEqual(world.events.slice(before).map(({ type }) => type).filter((type) => type !== "rtt"), ["dial", "moved", "hangup"]);
  assert.deepEqual(world.sentFrames("done"), [[first, {}]]);
  assert.equal(world.open.length, 1);
  world.server.publish("room:1", "two");
  world.run();
  assert.deepEqual(offsets(world), [1, 2]);
});

test("`connect` and every `subscribe` leave in one flight, whatever their number", () => {
  const world = live();
  for (let count = 0; count < 300; count += 1) world.session.subscribe(`many:${count}`, null);
  world.run();
  world.sent.length = 0;
  world.session.move(world.now);
  world.settle();
  const names = world.sent.map(([, { name }]) => name);
  assert.deepEqual([names[0], names.slice(1).every((name) => name === "subscribe"), names.length], ["connect", true, 302]);
  assert.deepEqual(world.sent[1][1].body, { channel: "room:1", position: { epoch: "e1", offset: 1 } });
});

test("while it moves, what the old connection brings is delivered, and what both bring once", () => {
  const world = live();
  const { session, server } = world;
  world.answersDials = false;
  session.move(world.now);
  world.settle();
  server.publish("room:1", "two");
  world.run();
  assert.deepEqual(offsets(world), [1, 2]);
  world.accept(world.dials[0]);
  world.settle();
  // Both are subscribed; neither has delivered.
  server.publish("room:1", "three");
  world.run();
  assert.deepEqual(offsets(world), [1, 2, 3]);
  assert.equal(world.count("moved"), 1);
});

test("requests are asked again on the next connection, and the first answer counts", () => {
  const world = live();
  const { session } = world;
  const [first] = world.open;
  world.server.handleFrame = () => {}; // It takes its time.
  const id = session.request(world.now, "publish", { channel: "room:1", data: 1, key: "k" });
  session.move(world.now);
  world.settle();
  const second = world.connection;
  const [, connect] = world.sent.find(([connection, { name }]) => connection === second && name === "connect");
  const body = { session: "s1", ping_ms: 25_000, node: "", region: "", subscriptions: [] };
  world.receive("connected", body, connect.id, second);
  world.settle();
  const publishes = world.sent.filter(([, { name }]) => name === "publish");
  assert.deepEqual(publishes.map(([connection, frame]) => [connection, frame.id]), [[first, id], [second, id]]);
  world.receive("published", { channel: "room:1", position: { epoch: "e1", offset: 2 } }, id, first);
  world.receive("published", { channel: "room:1", position: { epoch: "e1", offset: 2 } }, id, second);
  world.settle();
  assert.equal(world.events.filter(({ type }) => type === "reply").length, 1);
});

test("an error by the old connection is not the answer to what was asked again", () => {
  const world = live();
  const { session } = world;
  const [first] = world.open;
  world.server.handleFrame = () => {};
  const id = session.request(world.now, "history", { channel: "room:1", limit: 0 });
  session.move(world.now);
  world.settle();
  const [, connect] = world.sent.find(([, { name }]) => name === "connect");
  world.receive("connected", { session: "s1", ping_ms: 25_000, node: "", region: "", subscriptions: [] }, connect.id);
  world.settle();
  world.receive("error", { code: 503, message: "going away", retry: false }, id, first);
  world.receive("history", { channel: "room:1", recovered: true, publications: [] }, id);
  world.settle();
  assert.equal(world.outcomes.get(id).type, "reply");
});

test("if the next connection fails, the old one goes on; a channel that dropped something is asked anew", () => {
  const world = live();
  const { session, server } = world;
  session.subscribe("room:2", null);
  world.run();
  const [first] = world.open;
  session.move(world.now);
  world.settle();
  const second = world.connection;
  const control = server.connections.get(second).lanes.get("control");
  // `connected` and one of two `subscribed` arrive, and what follows by the old connection is dropped.
  for (const frame of control.splice(0, 2)) world.receive(frame.name, frame.body, frame.id, second);
  server.publish("room:1", "two");
  const [dropped] = server.connections.get(first).lanes.get("room:1").splice(0);
  world.receive(dropped.name, dropped.body, 0, first);
  assert.deepEqual(offsets(world), [1]);
  world.sent.length = 0;
  world.lose(1006, second);
  world.run();
  assert.equal(world.last("move_failed").isConnected, true);
  assert.equal(session.state, "live");
  assert.deepEqual(offsets(world), [1, 2]);
  assert.deepEqual(world.sentFrames("subscribe").map(([, { channel }]) => channel), ["room:1"]);
  assert.equal(world.count("disconnected"), 0);
});

test("if the old connection dies first, the next one takes over without waiting", () => {
  for (const isOpen of [false, true]) {
    const world = live();
    const [first] = world.open;
    world.answersDials = false;
    world.session.move(world.now);
    world.settle();
    if (isOpen) world.accept(world.dials[0]);
    world.lose(1006, first);
    world.settle();
    assert.equal(world.last("disconnected").retryInMs, 0);
    assert.equal(world.session.state, isOpen ? "greeting" : "dialing");
    if (!isOpen) world.accept(world.dials[0]);
    world.server.publish("room:1", "two");
    world.run();
    assert.equal(world.session.state, "live");
    assert.deepEqual(offsets(world), [1, 2]);
    assert.equal(world.count("moved"), 0);
    assert.equal(world.count("dial"), 2);
  }
});

test("a next connection that is live takes over at once, and tells what is missing", () => {
  const world = live();
  const [first] = world.open;
  world.session.move(world.now);
  world.settle();
  const [frame] = world.server.connection.lanes.get("control").splice(0, 1);
  world.receive(frame.name, frame.body, frame.id);
  world.lose(1006, first);
  world.settle();
  assert.deepEqual([world.count("moved"), world.count("disconnected")], [1, 0]);
  world.server.publish("room:1", "two");
  world.run();
  assert.deepEqual(offsets(world), [1, 2]);
});

test("a channel that history does not cover moves without a word, where the old connection delivered all", () => {
  const world = live({ historyLimit: 0 });
  const { session, server } = world;
  world.answersDials = false;
  session.move(world.now);
  world.settle();
  const first = world.connection;
  server.publish("room:1", "two");
  world.accept(world.dials[0]);
  world.settle();
  // The reply says: from 2 on, nothing before. The old connection had brought 2 by then.
  const [late] = server.connections.get(first).lanes.get("room:1").splice(0);
  world.receive(late.name, late.body, 0, first);
  world.run();
  assert.equal(world.reader.rebased, 0);
  server.publish("room:1", "three");
  world.run();
  assert.deepEqual(offsets(world), [1, 2, 3]);
});

test("what the app joins and leaves meanwhile holds on whichever connection remains", () => {
  for (const survives of [0, 1]) {
    const world = live();
    const { session, server } = world;
    session.subscribe("room:2", null);
    world.run();
    session.move(world.now);
    world.settle();
    session.subscribe("room:3", null, 7);
    session.unsubscribe("room:2");
    world.settle();
    assert.deepEqual(world.sentFrames("subscribe").at(-1)[1], { channel: "room:3", rank: 7 });
    world.lose(1006, world.open[1 - survives]);
    world.run();
    for (const name of ["room:2", "room:3"]) server.publish(name, 1);
    world.run();
    assert.deepEqual(session.position("room:3"), { epoch: "e1", offset: 1 });
    assert.equal(session.position("room:2"), null);
    assert.deepEqual([...server.connection.subscriptions].sort(), ["room:1", "room:3"]);
  }
});

test("a move that is not done in time is done all the same", () => {
  const world = live();
  const { session, server } = world;
  const handleFrame = server.handleFrame.bind(server);
  server.handleFrame = (connection, frame) => {
    if (frame.name !== "subscribe") return handleFrame(connection, frame);
    const busy = { code: 503, message: "busy", retry: true };
    server.connections.get(connection).lanes.get("control").push({ id: frame.id, name: "error", body: busy });
  };
  session.move(world.now);
  world.run();
  assert.equal(session.isMoving, true);
  world.pass(10_000, { runs: true });
  assert.equal(session.isMoving, false);
  server.handleFrame = handleFrame;
  world.pass(70_000, { runs: true });
  server.publish("room:1", "two");
  world.run();
  assert.deepEqual(offsets(world), [1, 2]);
});

// --- tickets ----------------------------------------------------------------------------------------------------------

test("the newest ticket resumes, with a key that stays the same until an attempt is answered", () => {
  const world = live();
  const { session, server } = world;
  server.ping(world.connection);
  world.run();
  for (const expected of ["key 1", "key 1"]) {
    world.lose();
    world.answersDials = false;
    world.pass(2_000);
    world.sent.length = 0;
    world.accept(world.dials[0]);
    world.settle(); // The answer is lost.
    assert.deepEqual(world.sentFrames("connect")[0][1], { resume: "s1.1.2", key: expected, moves: true });
  }
  world.run();
  assert.equal(world.last("connected").body.resumed, true);
  world.lose();
  world.pass(60_000);
  world.accept(world.dials[0]);
  world.run();
  assert.deepEqual(world.sentFrames("connect").at(-1)[1], { resume: "s1.2.4", key: "key 2", moves: true });
  assert.equal(server.thefts, 0);
  assert.equal(session.state, "live");
});

test("a fresher ticket of the same connection keeps the key: the attempt before may have spent both", () => {
  const world = live();
  const { session, server } = world;
  const [first] = world.open;
  session.move(world.now);
  world.settle(); // The server resumes; its answer is lost.
  world.lose(1006, world.connection);
  world.settle();
  server.ping(first);
  world.run();
  session.move(world.now);
  world.run();
  assert.deepEqual(world.sentFrames("connect").map(([, { key }]) => key), ["key 1", "key 1"]);
  assert.deepEqual([server.thefts, world.count("moved")], [0, 1]);
});

test("a refused ticket is dropped, and the token connects at once", () => {
  for (const [code, token] of [[CloseCode.resumeExpired, "known"], [CloseCode.resumeForeign, "known"], [CloseCode.badResume, "fresh_if_any"]]) {
    const world = live();
    world.token = "token";
    world.answersDials = false;
    world.lose();
    world.pass(2_000);
    world.accept(world.dials[0]);
    world.settle();
    world.receive("close", { code, reason: "" });
    world.settle();
    assert.equal(world.last("disconnected").retryInMs, 0);
    world.wait(0);
    world.settle();
    assert.equal(world.last("dial").token, token);
    world.accept(world.dials[0]);
    world.settle();
    assert.deepEqual(world.sentFrames("connect").map(([, body]) => body), [
      { token: "token", resume: "s1.1.1", key: "key 1", moves: true },
      { token: "token", moves: true },
    ]);
  }
});

test("a ticket that is refused during a move is tried again without it, and the old connection goes on", () => {
  const world = live();
  world.answersDials = false;
  world.session.move(world.now);
  world.settle();
  world.accept(world.dials[0]);
  world.settle();
  world.receive("close", { code: CloseCode.resumeForeign, reason: "" });
  world.settle();
  assert.equal(world.count("move_failed"), 0);
  world.accept(world.dials[0]);
  world.run();
  assert.deepEqual(world.sentFrames("connect").map(([, { resume }]) => resume), ["s1.1.1", undefined]);
  assert.equal(world.count("moved"), 1);
});

test("`superseded` is final, unless it was this client itself that took the session away", () => {
  const stolen = live();
  stolen.receive("close", { code: CloseCode.superseded, reason: "" });
  assert.equal(stolen.session.state, "ended");
  const own = live();
  const [first] = own.open;
  own.session.move(own.now);
  own.settle(); // The server resumes; its answer is lost.
  own.lose(1006, own.connection);
  own.settle();
  own.server.supersede();
  own.run();
  assert.equal(own.last("disconnected").policy, "now");
  own.wait(0);
  own.run();
  assert.equal(own.session.state, "live");
  assert.ok(own.connection > first);
});

test("an attempt that came too late is given up, and the token connects at once", () => {
  for (const code of [CloseCode.superseded, CloseCode.tokenExpired]) {
    const world = live();
    world.token = "token";
    world.answersDials = false;
    world.lose();
    world.pass(2_000);
    world.accept(world.dials[0]);
    world.settle();
    world.receive("close", { code, reason: "" });
    world.settle();
    assert.notEqual(world.session.state, "ended");
    world.pass(5_000);
    world.accept(world.dials[0]);
    world.settle();
    assert.deepEqual(world.sentFrames("connect").at(-1)[1], { token: "token", moves: true });
  }
});

test("with a ticket, what the server begins by itself is taken over in the same flight", () => {
  const begun = { channel: "user:1", position: { epoch: "e", offset: 3 }, recovered: false, publications: [], conflated: false };
  const world = connected({ hasTickets: true, subscriptions: [begun] });
  world.sent.length = 0;
  world.lose();
  world.answersDials = false;
  world.pass(2_000);
  world.accept(world.dials[0]);
  world.settle();
  const position = { epoch: "e", offset: 3 };
  assert.deepEqual(world.sentFrames("subscribe").map(([, body]) => body), [{ channel: "user:1", position }]);
  const [, { id }] = world.sent.find(([, { name }]) => name === "subscribe");
  const connectedFrame = world.server.connection.lanes.get("control").shift();
  world.receive("connected", { ...connectedFrame.body, subscriptions: [{ ...begun, position: { epoch: "e", offset: 4 } }] }, connectedFrame.id);
  const publications = [{ channel: "user:1", offset: 4, data: 4, time_ms: 0 }];
  world.receive("subscribed", { ...begun, position: { epoch: "e", offset: 4 }, recovered: true, publications }, id);
  world.settle();
  assert.equal(world.sentFrames("subscribe").length, 1);
  assert.deepEqual(world.session.position("user:1"), { epoch: "e", offset: 4 });
});

test("without tickets it moves by its token, as a session of its own", () => {
  const world = live({ hasTickets: false });
  world.token = "token";
  world.session.move(world.now);
  world.run();
  assert.deepEqual(world.sentFrames("connect").map(([, body]) => body), [{ token: "token", moves: true }]);
  assert.equal(world.count("moved"), 1);
  world.server.publish("room:1", "two");
  world.run();
  assert.deepEqual(offsets(world), [1, 2]);
});

test("ranks go with `subscribe`, again after each reconnect", () => {
  const world = connected();
  world.session.subscribe("room:1", null, -3);
  world.run();
  world.lose();
  world.pass(2_000);
  world.run();
  assert.deepEqual(world.sentFrames("subscribe").map(([, { rank }]) => rank), [-3, -3]);
});
