/** A session machine, a model server and a clock of their own. */

import assert from "node:assert/strict";

import { seededRandom } from "../src/backoff.js";
import { Session } from "../src/session.js";
import { ModelServer } from "./model-server.js";

/** Checks every event against what the channel's numbering allows. */
class Reader {
  positions = new Map();
  delivered = 0;
  recovered = 0;
  rebased = 0;

  handle(event) {
    if (event.type === "subscribed") {
      const before = this.positions.get(event.channel);
      if (event.how === "rebased") this.rebased += 1;
      if (event.how === "begun") assert.equal(before, undefined, "begun once");
      if (event.how === "recovered") assert.equal(event.position.epoch, before.epoch, "recovered within its epoch");
      else this.positions.set(event.channel, event.position);
    } else if (event.type === "publication") {
      const { channel, offset } = event.publication;
      const before = this.positions.get(channel);
      assert.equal(offset, before.offset + 1, `${channel}: no gap, no duplicate`);
      assert.equal(event.epoch, before.epoch);
      const { data } = event.publication;
      if (data?.of !== undefined) assert.equal(data.of, event.epoch, `${channel}: of the epoch that it was published in`);
      this.positions.set(channel, { epoch: event.epoch, offset });
      this.delivered += 1;
      if (event.recovered) this.recovered += 1;
    }
  }
}

export class World {
  now = 0;
  reader = new Reader();
  events = [];
  outcomes = new Map();
  /** What the client sent: `[connection, frame]`. */
  sent = [];
  /** Connections that the driver has open, oldest first. */
  open = [];
  /** Dials that the test answers by itself. */
  dials = [];
  answersDials = true;
  token = null;

  constructor(seed, { limits, ...server } = {}) {
    this.random = seededRandom(seed);
    let keys = 0;
    const makeKey = () => `key ${(keys += 1)}`;
    this.session = new Session({ random: seededRandom(seed + 1), makeKey, limits });
    this.server = new ModelServer(this.random, server);
  }

  /** The newest connection. */
  get connection() {
    return this.open.at(-1);
  }

  /** Exchanges what waits on both sides, at most `frames` from the server. */
  run(frames = Infinity) {
    this.settle();
    for (let left = frames; left > 0; left -= 1) {
      if (!this.server.deliverOne((connection, frame) => this.session.handleFrame(this.now, connection, frame))) break;
      this.settle();
    }
  }

  settle() {
    for (let isBusy = true; isBusy; ) {
      isBusy = false;
      for (let event = this.session.pollEvent(); event; event = this.session.pollEvent()) {
        isBusy = true;
        this.events.push(event);
        this.reader.handle(event);
        if (event.type === "dial" && this.answersDials) this.accept(event.connection);
        else if (event.type === "dial") this.dials.push(event.connection);
        if (event.type === "hangup") this.forget(event.connection);
        if (event.type === "reply" || event.type === "failure") this.outcomes.set(event.id, event);
      }
      for (let next = this.session.pollTransmit(this.now); next; next = this.session.pollTransmit(this.now)) {
        isBusy = true;
        this.sent.push([next.connection, next.frame]);
        if (this.server.connections.has(next.connection)) this.server.handleFrame(next.connection, next.frame);
      }
    }
  }

  accept(connection, heartbeat = true) {
    this.open.push(connection);
    this.dials = this.dials.filter((each) => each !== connection);
    this.server.accept(connection);
    this.session.handleOpened(this.now, connection, { token: this.token, heartbeat });
  }

  failDial(connection = this.dials[0]) {
    this.forget(connection);
    this.session.handleDialFailed(this.now, connection, "no way");
  }

  forget(connection) {
    this.open = this.open.filter((each) => each !== connection);
    this.dials = this.dials.filter((each) => each !== connection);
    this.server.drop(connection);
  }

  lose(code = 1006, connection = this.connection) {
    this.forget(connection);
    this.session.handleClosed(this.now, connection, { code, reason: "" });
  }

  /** A frame from the server, on the newest connection. */
  receive(name, body, id = 0, connection = this.connection) {
    this.session.handleFrame(this.now, connection, { id, name, body });
  }

  /** Lets time pass until the machine wants to be woken, at most `ms`. */
  wait(ms) {
    const at = this.session.pollTimeout();
    this.now = at === null ? this.now + ms : Math.min(this.now + ms, Math.max(at, this.now));
    this.session.handleTimeout(this.now);
  }

  /** Lets so much time pass, with every waking on the way; nothing is exchanged unless `runs`. */
  pass(ms, { runs = false } = {}) {
    const until = this.now + ms;
    for (let step = 0; this.now < until; step += 1) {
      assert.ok(step < 10_000, "it wakes for ever without time passing");
      this.wait(until - this.now);
      if (runs) this.run();
      else this.settle();
    }
  }

  last(type) {
    return this.events.findLast((event) => event.type === type);
  }

  count(type) {
    return this.events.filter((event) => event.type === type).length;
  }

  /** Frames of that name that the client sent, and on which connection. */
  sentFrames(name) {
    return this.sent.filter(([, frame]) => frame.name === name).map(([connection, { body }]) => [connection, body]);
  }
}

/** A world whose session is live. */
export function connected({ expiresMs, subscriptions = [], ...options } = {}) {
  const world = new World(1, options);
  const { server } = world;
  const handleFrame = server.handleFrame.bind(server);
  server.handleFrame = (connection, frame) => {
    handleFrame(connection, frame);
    if (frame.name !== "connect") return;
    const reply = server.connection.lanes.get("control").at(-1);
    if (reply.name !== "connected") return;
    reply.body.subscriptions = subscriptions;
    if (expiresMs !== undefined) reply.body.expires_ms = expiresMs;
  };
  world.session.open(0);
  world.run();
  assert.equal(world.session.state, "live");
  return world;
}
