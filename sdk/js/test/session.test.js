import assert from "node:assert/strict";
import { test } from "node:test";

import { Backoff, seededRandom } from "../src/backoff.js";
import { CloseCode } from "../src/close-codes.js";
import { UNKNOWN_OUTCOME } from "../src/session.js";
import { World, connected } from "./world.js";

const SEEDS = 400;

test("in order, none twice, none missing or told, over hundreds of seeds of loss", () => {
  const total = { delivered: 0, recovered: 0, rebased: 0, published: 0 };
  for (let seed = 0; seed < SEEDS; seed += 1) {
    try {
      simulate(seed, total);
    } catch (error) {
      error.message = `SEED=${seed}: ${error.message}`;
      throw error;
    }
  }
  // The seeds did meet what they are for.
  assert.ok(total.delivered > 20_000 && total.recovered > 2_000 && total.rebased > 200 && total.published > 2_000);
});

function simulate(seed, total) {
  const world = new World(seed, { limits: { held: { items: 12, bytes: 1 << 20 }, keyMs: Infinity }, hasCarriers: true });
  const { session, server, random } = world;
  const names = ["room:1", "room:2", "ticker:1"];
  const published = [];
  for (const name of names) session.subscribe(name, null);
  session.open(0);
  for (let step = 0; step < 300; step += 1) {
    const name = names[Math.floor(random() * names.length)];
    const dice = random();
    if (dice < 0.45) server.publish(name, { step, of: server.channel(name).epoch });
    else if (dice < 0.5) {
      const body = { channel: name, data: { by: step }, key: `k${step}` };
      published.push({ id: session.request(world.now, "publish", body), body });
    } else if (dice < 0.53 && server.connection) world.lose();
    else if (dice < 0.538) server.changeEpoch(name);
    else if (dice < 0.54) server.skip(name);
    else if (dice < 0.6) world.wait(500);
    else world.run(1 + Math.floor(random() * 6));
  }
  for (let round = 0; round < 200; round += 1) {
    world.run();
    if (session.state === "live" && session.pollTimeout() > world.now + 20_000) break;
    world.wait(10_000);
    // The server's own pings, which the model leaves out.
    if (session.state === "live") session.handleActivity(world.now, world.connection);
  }
  for (const name of names) {
    const { epoch, head } = server.channel(name);
    assert.deepEqual(session.position(name), { epoch, offset: head }, `${name} caught up`);
    assert.deepEqual(world.reader.positions.get(name), { epoch, offset: head });
  }
  for (const { id } of published) assert.equal(world.outcomes.get(id)?.type, "reply", "acknowledged");
  total.delivered += world.reader.delivered;
  total.recovered += world.reader.recovered;
  total.rebased += world.reader.rebased;
  total.published += published.length;
}

test("a publish that is repeated over reconnects is stored once and answered by its first position", () => {
  const world = connected();
  const id = world.session.request(world.now, "publish", { channel: "a", data: 1, key: "k" });
  world.settle(); // It is stored, and the answer is lost.
  world.lose();
  world.wait(5_000);
  world.run();
  assert.deepEqual(world.outcomes.get(id).body.position, { epoch: "e1", offset: 1 });
  assert.equal(world.server.channel("a").head, 1);
});

test("a publish whose key the server may have forgotten fails with an unknown outcome", () => {
  const world = connected();
  const id = world.session.request(world.now, "publish", { channel: "a", data: 1, key: "k" });
  world.settle();
  world.lose();
  world.now += 300_000;
  world.session.handleTimeout(world.now);
  world.run();
  assert.equal(world.outcomes.get(id).error.code, UNKNOWN_OUTCOME);
});

test("no more requests are in flight than the window", () => {
  const world = connected({ limits: { inFlight: 3 } });
  const ids = Array.from({ length: 10 }, (_, data) =>
    world.session.request(world.now, "publish", { channel: "a", data, key: `k${data}` }),
  );
  let sent = 0;
  while (world.session.pollTransmit(world.now)) sent += 1;
  assert.equal(sent, 3);
  world.session.handleFrame(world.now, world.connection, { id: ids[0], name: "published", body: { channel: "a" } });
  assert.equal(world.session.pollTransmit(world.now).frame.id, ids[3]);
});

test("after a reconnect it asks from where it was, and is told how many it missed", () => {
  const world = connected();
  world.session.subscribe("room:1", null);
  world.run();
  assert.equal(world.last("subscribed").how, "begun");
  world.server.publish("room:1", "one");
  world.run();
  world.lose();
  for (let count = 0; count < 3; count += 1) world.server.publish("room:1", count);
  world.wait(5_000);
  world.run();
  const { how, missed } = world.last("subscribed");
  assert.deepEqual({ how, missed }, { how: "recovered", missed: 3 });
  assert.equal(world.reader.recovered, 3);
});

test("past history it is told that it was rebased", () => {
  const world = connected({ historyLimit: 2 });
  world.session.subscribe("room:1", null);
  world.run();
  world.lose();
  for (let count = 0; count < 5; count += 1) world.server.publish("room:1", count);
  world.wait(5_000);
  world.run();
  assert.equal(world.last("subscribed").how, "rebased");
  assert.deepEqual(world.session.position("room:1"), { epoch: "e1", offset: 5 });
});

test("on a conflated channel offsets skip, and only newer ones count", () => {
  const world = connected();
  const { session } = world;
  session.subscribe("ticker:1", null);
  world.settle();
  const id = world.server.connection.lanes.get("control").shift().id;
  const position = { epoch: "e", offset: 5 };
  const body = { channel: "ticker:1", position, recovered: false, publications: [], conflated: true };
  session.handleFrame(0, world.connection, { id, name: "subscribed", body });
  for (const offset of [9, 7, 9, 12]) {
    session.handleFrame(0, world.connection, { id: 0, name: "publication", body: { channel: "ticker:1", offset, data: 1, time_ms: 0 } });
  }
  const offsets = [];
  for (let event = session.pollEvent(); event; event = session.pollEvent()) {
    if (event.type === "publication") offsets.push(event.publication.offset);
  }
  assert.deepEqual(offsets, [9, 12]);
});

test("a gap that stays open is closed by subscribing again from the last position", () => {
  const world = connected();
  world.session.subscribe("room:1", null);
  world.run();
  world.server.publish("room:1", 1);
  world.server.connection.lanes.get("room:1").pop(); // Never arrives.
  world.server.publish("room:1", 2);
  world.run();
  assert.equal(world.reader.delivered, 0);
  world.wait(10_000);
  world.run();
  assert.equal(world.reader.delivered, 2);
});

test("`already subscribed` is answered by leaving and asking again, once", () => {
  const world = connected();
  const { session } = world;
  session.subscribe("room:1", null);
  const refuse = () => {
    const frames = [];
    for (let next = session.pollTransmit(0); next; next = session.pollTransmit(0)) frames.push(next.frame);
    const { id } = frames.at(-1);
    session.handleFrame(0, world.connection, { id, name: "error", body: { code: 409, message: "already subscribed", retry: false } });
    return frames.map(({ name }) => name);
  };
  assert.deepEqual(refuse(), ["subscribe"]);
  assert.deepEqual(refuse(), ["unsubscribe", "subscribe"]);
  assert.deepEqual(session.pollTransmit(0), null);
  world.settle();
  assert.equal(world.last("unsubscribed").error.code, 409);
});

test("silence for two ping intervals is a dead connection; pings are answered", () => {
  const world = connected();
  const { session } = world;
  session.handleFrame(world.now, world.connection, { id: 0, name: "ping", body: {} });
  assert.equal(session.pollTransmit(world.now).frame.name, "pong");
  assert.equal(session.pollTimeout(), world.now + 50_000);
  session.handleTimeout(world.now + 49_999);
  assert.equal(session.state, "live");
  session.handleTimeout(world.now + 50_000);
  assert.equal(session.state, "waiting");
});

test("close policies: never, now, backoff, fresh token", () => {
  const close = (code, reconnect) => {
    const world = connected();
    const body = { code, reason: "because", ...(reconnect && { reconnect }) };
    world.session.handleFrame(world.now, world.connection, { id: 0, name: "close", body });
    const events = [];
    for (let event = world.session.pollEvent(); event; event = world.session.pollEvent()) events.push(event);
    const { policy, retryInMs } = events.find(({ type }) => type === "disconnected");
    world.session.handleTimeout(world.now + (retryInMs ?? 0));
    const dial = world.session.pollEvent() && world.session.pollEvent();
    return { policy, retryInMs, state: world.session.state, token: dial?.token };
  };
  const ended = { policy: "never", retryInMs: null, state: "ended", token: undefined };
  assert.deepEqual(close(CloseCode.badFrame), ended);
  assert.deepEqual(close(CloseCode.unknownSession), { policy: "now", retryInMs: 0, state: "dialing", token: "known" });
  const fresh = { policy: "fresh_token", retryInMs: 0, state: "dialing", token: "fresh" };
  assert.deepEqual(close(CloseCode.tokenExpired), fresh);
  const later = close(CloseCode.shutdown, { policy: "backoff", after_ms: 7_000 });
  assert.ok(later.retryInMs >= 7_000 && later.retryInMs <= 8_000);
  // What the frame says outweighs the table.
  assert.equal(close(CloseCode.badFrame, { policy: "now" }).policy, "now");
});

test("a code of the transport's own close says as much as the frame", () => {
  for (const [code, state] of [
    [CloseCode.badOrigin, "ended"],
    [CloseCode.unknownSession, "waiting"],
    [1006, "waiting"],
  ]) {
    const world = connected();
    world.lose(code);
    assert.equal(world.session.state, state);
  }
});

test("a server that says `now` for ever is not dialled in a hot loop", () => {
  const world = connected();
  let waited = 0;
  for (let round = 0; round < 8; round += 1) {
    world.session.handleFrame(world.now, world.connection, { id: 0, name: "close", body: { code: 4200, reason: "" } });
    world.settle();
    const before = world.now;
    world.wait(120_000);
    world.run();
    waited += world.now - before;
  }
  assert.ok(waited > 2_000, `${waited} ms over 8 rounds`);
});

test("a token is asked for before it expires", () => {
  const world = connected({ expiresMs: 100_000 });
  world.session.handleActivity(world.now + 60_000, world.connection);
  world.session.handleTimeout(world.now + 74_000);
  assert.equal(world.session.pollEvent(), null);
  assert.equal(world.session.pollTimeout(), world.now + 75_000);
  world.session.handleTimeout(world.now + 75_000);
  assert.equal(world.session.pollEvent().type, "token_wanted");
});

test("closing says `done` last, and ends with the server's close or without it", () => {
  for (const answers of [true, false]) {
    const world = connected();
    const id = world.session.request(world.now, "history", { channel: "a", limit: 0 });
    world.settle();
    world.session.close(world.now);
    assert.equal(world.session.pollTransmit(world.now).frame.name, "done");
    assert.equal(world.session.pollTransmit(world.now), null);
    const body = { code: CloseCode.done, reason: "" };
    if (answers) world.session.handleFrame(world.now, world.connection, { id: 0, name: "close", body });
    else world.session.handleTimeout(world.session.pollTimeout());
    world.settle();
    assert.equal(world.session.state, "ended");
    assert.equal(world.outcomes.get(id).type, "failure");
  }
});

test("subscriptions of the server's own begin with `connected`", () => {
  const begun = { channel: "user:1", position: { epoch: "e", offset: 3 }, recovered: false, publications: [], conflated: false };
  const world = connected({ subscriptions: [begun] });
  const { channel, byServer, how } = world.last("subscribed");
  assert.deepEqual({ channel, byServer, how }, { channel: "user:1", byServer: true, how: "begun" });
  const body = { channel: "user:1", error: { code: 403, message: "no more", retry: false } };
  world.session.handleFrame(world.now, world.connection, { id: 0, name: "unsubscribed", body });
  world.settle();
  assert.equal(world.last("unsubscribed").error.code, 403);
});

test("one that the server begins again is taken over from the position that the app has, after `connected`", () => {
  const begun = (offset) => ({ channel: "user:1", position: { epoch: "e", offset }, recovered: false, publications: [], conflated: false });
  const listed = [begun(3)];
  const world = connected({ subscriptions: listed });
  listed[0] = begun(5);
  world.server.handleFrame = (_, { id, name, body }) => {
    const lane = world.server.connection.lanes.get("control");
    if (name === "connect") {
      lane.push({ id, name: "connected", body: { session: "s", ping_ms: 25_000, node: "", region: "", subscriptions: listed } });
    } else {
      assert.deepEqual([name, body], ["subscribe", { channel: "user:1", position: { epoch: "e", offset: 3 } }]);
      const publications = [4, 5].map((offset) => ({ channel: "user:1", offset, data: offset, time_ms: 0 }));
      lane.push({ id, name: "subscribed", body: { ...begun(5), recovered: true, publications } });
    }
  };
  world.lose();
  world.wait(5_000);
  world.run();
  assert.equal(world.last("subscribed").how, "recovered");
  assert.equal(world.reader.recovered, 2);
  // And one that it begins no more ends.
  listed.pop();
  world.lose();
  world.wait(5_000);
  world.run();
  assert.equal(world.last("unsubscribed").channel, "user:1");
});

test("any frame at any time is no crash", () => {
  for (let seed = 0; seed < 200; seed += 1) {
    const random = seededRandom(seed);
    const world = new World(seed);
    const { session } = world;
    world.reader.handle = () => {};
    session.subscribe("a", null);
    session.open(0);
    for (let step = 0; step < 100; step += 1) {
      const position = { epoch: random() < 0.5 ? "e" : "", offset: Math.floor(random() * 20) };
      const publication = { channel: "a", offset: Math.floor(random() * 20), data: 1, time_ms: 0 };
      const bodies = {
        subscribed: { channel: "a", position, recovered: random() < 0.5, publications: [publication], conflated: false },
        unsubscribed: { channel: "a" },
        published: { channel: "a", position },
        history: { channel: "a", recovered: false, publications: [] },
        refreshed: { expires_ms: 5 },
        publication,
        ephemeral: { channel: "a", data: 1, time_ms: 0 },
        ping: {},
        error: { code: 409, message: "", retry: random() < 0.5 },
        close: { code: 4100 + Math.floor(random() * 120), reason: "" },
      };
      const names = Object.keys(bodies);
      const name = names[Math.floor(random() * names.length)];
      session.handleFrame(world.now, world.connection, { id: Math.floor(random() * 6), name, body: bodies[name] });
      if (random() < 0.2) world.wait(1_000);
      world.settle();
    }
  }
});

test("backoff: full jitter, doubled, capped, repeatable", () => {
  const backoff = new Backoff(() => 0.999_999);
  const ceilings = Array.from({ length: 8 }, () => Math.round(backoff.next()));
  assert.deepEqual(ceilings, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
  const [one, two] = [new Backoff(seededRandom(7)), new Backoff(seededRandom(7))];
  for (let count = 0; count < 20; count += 1) assert.equal(one.next(), two.next());
});
