/** The ladder with a clock of its own: what is raced, who is blamed, when it climbs. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { seededRandom } from "../src/backoff.js";
import { Ladder } from "../src/ladder.js";
import { Memory } from "../src/ladder/memory.js";
import { PARAMETERS } from "../src/ladder/parameters.js";

const ALL = ["webtransport", "websocket", "longpoll"];
const START = 1_790_000_000_000;
const HOUR = 3_600_000;

/** Storage as a browser has it. */
class Store {
  items = new Map();
  getItem = (key) => this.items.get(key) ?? null;
  setItem = (key, value) => void this.items.set(key, value);
}

/**
 * A ladder, the network under it, and a client that connects by it. `ways` says of each transport how long it takes to
 * open, milliseconds; `Infinity` for what never answers, negative for what fails after so long.
 */
class Network {
  now = START;
  ways = { webtransport: 30, websocket: 60, longpoll: 0 };
  /** What the session is connected by, and since when. */
  transport = null;
  since = 0;
  log = [];
  dials = [];

  constructor({ seed = 1, store = new Store(), network = "wifi", transports = ALL } = {}) {
    this.store = store;
    this.memory = new Memory({ store, origin: "edge.example", network, parameters: PARAMETERS });
    this.ladder = new Ladder({ transports, memory: this.memory, random: seededRandom(seed) });
  }

  /** Connects; answers how long that took, or null where nothing gets through. */
  connect({ answers = true } = {}) {
    const began = this.now;
    this.ladder.race(this.now);
    const name = this.run();
    const took = this.now - began;
    if (name && answers) this.connected(name);
    return name && { name, took };
  }

  connected(name) {
    this.transport = name;
    this.since = this.now;
    this.ladder.handleConnected(this.now, name);
    this.act();
  }

  /** Until the race is over. */
  run() {
    this.opening = new Map();
    this.dials = [];
    this.outcome = undefined;
    this.act();
    while (this.outcome === undefined) {
      const due = [...this.opening.entries()].sort(([, a], [, b]) => a - b)[0] ?? [null, Infinity];
      const at = Math.min(due[1], this.ladder.pollTimeout() ?? Infinity);
      assert.ok(at < Infinity, "the race goes on");
      this.now = Math.max(this.now, at);
      if (due[1] <= at) {
        this.opening.delete(due[0]);
        if (this.ways[due[0]] >= 0 && this.ways[due[0]] < OPEN_MS) this.ladder.handleOpened(due[0]);
        else this.ladder.handleFailed(this.now, due[0]);
      } else {
        this.ladder.handleTimeout(this.now);
      }
      this.act();
    }
    return this.outcome;
  }

  act() {
    for (let action = this.ladder.pollAction(); action; action = this.ladder.pollAction()) {
      this.log.push([Math.round(this.now - START), action.type, action.name ?? action.names ?? action.ms ?? ""]);
      if (action.type === "dial") {
        this.dials.push(action.name);
        this.opening.set(action.name, this.now + Math.min(Math.abs(this.ways[action.name]), OPEN_MS));
      }
      if (action.type === "abandon") this.opening.delete(action.name);
      if (action.type === "won") this.outcome = action.name;
      if (action.type === "exhausted") this.outcome = null;
      if (action.type === "climb" || action.type === "escape") this.pending = action;
    }
  }

  /** Lets time pass; what the ladder wants to race beside the connection is raced, and moved to. Answers what it wanted. */
  pass(ms) {
    const until = this.now + ms;
    const wanted = [];
    for (let at = this.ladder.pollTimeout(); at !== null && at <= until; at = this.ladder.pollTimeout()) {
      this.now = Math.max(this.now, at);
      this.ladder.handleTimeout(this.now);
      this.pending = null;
      this.act();
      const { pending } = this;
      if (!pending) continue;
      wanted.push({ at: this.now, type: pending.type, names: pending.names });
      this.ladder.race(this.now, { among: pending.names, isBeside: true });
      const name = this.run();
      if (name) this.moved(name, pending.type === "escape");
      else this.ladder.handleStayed(this.now, false);
    }
    this.now = Math.max(this.now, until);
    return wanted;
  }

  moved(name, isEscape) {
    this.ladder.handleLeft(this.now);
    if (isEscape) this.ladder.handleEscaped(this.now, this.transport, name);
    this.connected(name);
  }

  /** The connection carries nothing any more. */
  suspect() {
    this.ladder.handleSuspect(this.now, true);
    return this.pass(0);
  }

  lose(isServersWill = false) {
    this.transport = null;
    this.ladder.handleLost(this.now, isServersWill);
  }
}

const OPEN_MS = 5_000;

test("the best transport wins where it gets through, and nothing else is tried", () => {
  const network = new Network();
  assert.deepEqual(network.connect(), { name: "webtransport", took: 30 });
  assert.deepEqual(network.dials, ["webtransport"]);
});

test("with UDP blocked it costs at most 550 ms the first time, and nothing once that is known", () => {
  for (const blocked of [Infinity, -20]) {
    const network = new Network();
    network.ways.webtransport = blocked;
    const first = network.connect();
    assert.equal(first.name, "websocket");
    assert.ok(first.took <= network.ways.websocket + 550, `${first.took} ms`);
    network.lose();
    const second = network.connect();
    assert.ok(second.took <= network.ways.websocket + 20, `${second.took} ms`);
    // The next page knows, too; another network, or another server, does not.
    const next = new Network({ store: network.store });
    next.now = network.now;
    next.ways.webtransport = blocked;
    assert.equal(next.connect().took, network.ways.websocket);
    const elsewhere = new Network({ store: network.store, network: "cellular" });
    elsewhere.now = network.now;
    assert.equal(elsewhere.connect().name, "webtransport");
  }
});

test("WebSocket joins by the round trip that is known, within bounds, and at once after a failure", () => {
  for (const [rttMs, joinsAt] of [[null, 500], [10, 250], [200, 400], [900, 500]]) {
    const network = new Network();
    if (rttMs !== null) network.ladder.handleRtt(network.now, rttMs);
    network.ways.webtransport = Infinity;
    network.connect();
    assert.deepEqual(network.log[1], [joinsAt, "dial", "websocket"]);
  }
  const network = new Network();
  network.ways.webtransport = -7;
  network.connect();
  assert.deepEqual(network.log[1], [7, "dial", "websocket"]);
});

test("the loser is given up before the winner says anything", () => {
  const network = new Network();
  network.ways.webtransport = 520;
  network.connect();
  assert.deepEqual(network.log.map(([, type]) => type).slice(0, 4), ["dial", "dial", "abandon", "won"]);
  assert.equal(network.transport, "webtransport");
});

test("long poll joins where WebSocket failed, or hangs for three seconds", () => {
  const network = new Network();
  Object.assign(network.ways, { webtransport: Infinity, websocket: -40 });
  assert.deepEqual(network.connect(), { name: "longpoll", took: 540 });
  const hanging = new Network();
  Object.assign(hanging.ways, { webtransport: Infinity, websocket: Infinity });
  assert.deepEqual(hanging.connect(), { name: "longpoll", took: 3_500 });
  // And the next time it is first.
  hanging.lose();
  assert.deepEqual(hanging.connect(), { name: "longpoll", took: 0 });
});

test("what does not exist here costs nothing, and is not asked for again", () => {
  const network = new Network();
  network.ladder.race(network.now);
  network.opening = new Map();
  network.act();
  network.ladder.handleFailed(network.now, "webtransport", true);
  network.act();
  assert.deepEqual(network.log.map(([at, , name]) => [at, name]), [[0, "webtransport"], [0, "websocket"]]);
  network.ladder.handleOpened("websocket");
  network.connected("websocket");
  assert.deepEqual(network.pass(24 * HOUR), [], "there is nothing to climb to");
});

test("a server that restarts is not mistaken for a blocked transport", () => {
  const network = new Network();
  network.connect();
  network.lose(true); // By 4100.
  for (const attempt of [1, 2, 3]) {
    Object.assign(network.ways, { webtransport: attempt === 2 ? Infinity : -5, websocket: -5, longpoll: -5 });
    assert.equal(network.connect(), null);
  }
  // It comes up one port at a time: this once TCP is there first.
  Object.assign(network.ways, { webtransport: -5, websocket: 60, longpoll: 0 });
  assert.equal(network.connect().name, "websocket");
  network.ways.webtransport = 30;
  network.lose();
  assert.equal(network.connect().name, "webtransport");
});

test("an answer of the server's own is no fault of the transport's", () => {
  const network = new Network();
  network.ways.webtransport = -5;
  network.connect({ answers: false });
  network.ladder.handleDeadEnd(network.now, true); // Overloaded.
  network.ways.webtransport = 30;
  assert.equal(network.connect().name, "webtransport");
});

test("what worked within a day may fail twice before it counts as broken", () => {
  const network = new Network();
  network.connect();
  network.lose();
  network.ways.webtransport = Infinity;
  const took = [1, 2, 3, 4].map(() => {
    const { took: each } = network.connect();
    network.lose();
    return each;
  });
  assert.deepEqual(took, [560, 560, 560, 60]);
  // A day later nobody remembers that it worked.
  const later = new Network();
  later.connect();
  later.lose();
  later.now += 25 * HOUR;
  later.ways.webtransport = Infinity;
  assert.deepEqual([later.connect(), (later.lose(), later.connect())].map(({ took: each }) => each), [560, 60]);
});

test("broken lasts a minute, twice as long each time, six hours at most", () => {
  const { memory } = new Network();
  const lasted = [];
  for (let now = START; lasted.length < 12; ) {
    memory.died("webtransport", now);
    let until = now;
    while (memory.isBroken("webtransport", until)) until += 1_000;
    lasted.push((until - now) / 60_000);
    now = until;
  }
  assert.deepEqual(lasted, [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360]);
});

test("one that opens and leads nowhere is last the next time, and then counts as failed", () => {
  const network = new Network();
  assert.equal(network.connect({ answers: false }).name, "webtransport");
  network.ladder.handleDeadEnd(network.now, false);
  assert.deepEqual(network.connect(), { name: "websocket", took: 60 });
  network.lose();
  assert.deepEqual(network.connect(), { name: "websocket", took: 60 });
});

test("a black hole after the handshake: the next transport opens beside, and the first is left", () => {
  const network = new Network();
  network.connect();
  network.now += 100_000;
  network.ways.webtransport = Infinity;
  const [escape] = network.suspect();
  assert.deepEqual([escape.type, escape.names], ["escape", ALL]);
  assert.equal(network.transport, "websocket");
  network.lose();
  assert.equal(network.connect().took, 60, "it counts as broken although it worked within the day");
});

test("silence because the server went away: the same transport gets through anew, and is not to blame", () => {
  const network = new Network();
  network.connect();
  network.now += 100_000;
  network.suspect();
  assert.equal(network.transport, "webtransport");
  network.lose();
  assert.deepEqual(network.connect(), { name: "webtransport", took: 30 });
});

test("one that opens beside it and leads nowhere is last the next time", () => {
  const network = new Network();
  network.connect();
  network.ladder.handleSuspect(network.now, true);
  network.ladder.race(network.now, { isBeside: true });
  assert.equal(network.run(), "webtransport");
  network.ladder.handleStayed(network.now, false);
  network.ladder.race(network.now, { isBeside: true });
  assert.equal(network.run(), "websocket");
});

test("where nothing gets through beside it, it tries again and again, ever less, and blames nobody", () => {
  const network = new Network();
  network.connect();
  Object.assign(network.ways, { webtransport: -5, websocket: -5, longpoll: -5 });
  network.ladder.handleSuspect(network.now, true);
  const escapes = network.pass(120_000).map(({ at }) => at);
  assert.ok(escapes.length >= 5 && escapes.length <= 20, `${escapes.length} tries`);
  network.ladder.handleSuspect(network.now, false);
  assert.deepEqual(network.pass(120_000), []);
  network.lose();
  network.ways.webtransport = 30;
  assert.equal(network.connect().took, 30);
});

test("from a fallback it climbs after about a minute, twice as long each time, half an hour at most", () => {
  const network = new Network({ seed: 4 });
  network.ways.webtransport = Infinity;
  network.connect();
  const began = network.now;
  const climbs = network.pass(6 * HOUR);
  const gaps = climbs.map(({ at }, index) => at - (index === 0 ? began : climbs[index - 1].at + OPEN_MS));
  assert.ok(climbs.length > 10);
  for (const [index, gap] of gaps.entries()) {
    const base = Math.min(60_000 * 2 ** index, 30 * 60_000);
    assert.ok(gap >= 0.5 * base - 1 && gap <= 1.5 * base + 1, `climb ${index} after ${gap} ms`);
  }
  assert.deepEqual(climbs[0].names, ["webtransport"]);
  network.ways.webtransport = 30;
  network.pass(HOUR);
  assert.equal(network.transport, "webtransport");
  assert.deepEqual(network.log.at(-1).slice(1), ["watch", 10_000]);
  assert.deepEqual(network.pass(6 * HOUR), [], "at the top there is nowhere to climb");
});

test("one that fails while it is watched is left at once, without another try of itself, and shunned twice as long", () => {
  const network = new Network();
  network.ways.webtransport = Infinity;
  network.connect();
  network.ways.webtransport = 30;
  while (network.transport !== "webtransport") network.pass(1_000);
  network.now += 4_000;
  const [escape] = network.suspect();
  assert.deepEqual(escape.names, ["websocket", "longpoll"]);
  assert.equal(network.transport, "websocket");
  const [climb] = network.pass(200_000);
  assert.ok(climb.at - network.since <= 180_000);
  assert.ok(climb.at - escape.at >= 60_000, `${climb.at - escape.at} ms`);
});

test("flapping: a transport that opens and dies again and again is tried ever less", () => {
  const network = new Network({ seed: 9 });
  network.connect();
  const deaths = [];
  for (const end = network.now + 24 * HOUR; network.now < end; ) {
    if (network.transport === "webtransport") {
      network.pass(30_000);
      network.ways.webtransport = Infinity;
      network.suspect();
      deaths.push(network.now);
      network.ways.webtransport = 30;
    }
    network.pass(1_000);
  }
  assert.ok(deaths.length < 60, `${deaths.length} times in a day`);
  const first = deaths[1] - deaths[0];
  const last = deaths.at(-1) - deaths.at(-2);
  assert.ok(first < 180_000 && last > 600_000, `${first} ms, then ${last} ms`);
  // Once it holds, it is as good as new.
  network.pass(HOUR);
  network.pass(2 * HOUR);
  assert.equal(network.transport, "webtransport");
  network.ladder.handleLeft(network.now);
  assert.equal(network.memory.level("webtransport"), 0);
});

test("another network: what did not get through before is tried again", () => {
  const network = new Network();
  network.ways.webtransport = Infinity;
  network.connect();
  network.lose();
  network.ways.webtransport = 30;
  network.ladder.handleNetworkChanged(network.now, "wifi");
  assert.equal(network.connect().name, "webtransport");
});

test("if the connection dies while another is dialled beside it, the others join", () => {
  const network = new Network();
  network.ways.webtransport = Infinity;
  network.connect();
  network.ladder.race(network.now, { among: ["webtransport"], isBeside: true });
  network.opening = new Map();
  network.act();
  network.lose();
  network.ladder.widen(network.now);
  assert.equal(network.run(), "websocket");
});

test("what is chosen by hand is the best from then on", () => {
  const network = new Network();
  network.connect();
  network.ladder.prefer(network.now, "longpoll");
  network.moved("longpoll", false);
  assert.deepEqual(network.pass(24 * HOUR), []);
  network.lose();
  assert.equal(network.connect().name, "longpoll");
});

test("a storage that is full, closed, or holds what somebody else wrote is no harm", () => {
  const refusing = () => {
    throw new DOMException("no", "QuotaExceededError");
  };
  for (const text of ["", "{", "null", "7", '{"wifi":7}', '{"wifi":{"transports":{"webtransport":{"brokenUntil":"x"}}}}']) {
    const store = { getItem: () => text, setItem: refusing };
    assert.equal(new Network({ store }).connect().name, "webtransport");
  }
  assert.equal(new Network({ store: { getItem: refusing, setItem: refusing } }).connect().name, "webtransport");
  assert.equal(new Network({ store: null }).connect().name, "webtransport");
});

test("no more than sixteen networks are remembered, the latest ones", () => {
  const network = new Network();
  for (let count = 0; count < 40; count += 1) {
    network.now += 1_000;
    network.ladder.handleNetworkChanged(network.now, `wifi ${count}`);
    network.ladder.handleRtt(network.now, 10 + count);
  }
  const [text] = network.store.items.values();
  const kept = Object.keys(JSON.parse(text));
  assert.deepEqual([kept.length, kept.includes("wifi 39"), kept.includes("wifi 0")], [16, true, false]);
});
