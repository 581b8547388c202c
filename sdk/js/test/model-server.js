/**
 * A small server for the session machine: channels with history, connections whose frames travel in lanes that overtake
 * one another, as QUIC's streams and datagrams do, or by one pipe; sessions that tickets resume. No timers: the test
 * delivers frame by frame.
 */

import { markOf } from "../src/ordering.js";

export class ModelServer {
  #random;
  #historyLimit;
  #hasTickets;
  #hasCarriers;
  #lastStream = 0;
  #lastTicket = 0;
  #keys = new Map();
  #sessions = new Map();
  channels = new Map();
  connections = new Map();
  /** Tickets that came again with another key. */
  thefts = 0;
  resumed = 0;

  /** `hasCarriers`: some connections are one pipe, and the others have datagrams too. */
  constructor(random, { historyLimit = 40, hasTickets = false, hasCarriers = false } = {}) {
    this.#random = random;
    this.#hasCarriers = hasCarriers;
    this.#historyLimit = historyLimit;
    this.#hasTickets = hasTickets;
  }

  channel(name) {
    if (!this.channels.has(name)) this.channels.set(name, { epoch: "e1", head: 0, log: [] });
    return this.channels.get(name);
  }

  /** The newest connection. */
  get connection() {
    return [...this.connections.values()].at(-1) ?? null;
  }

  publish(name, data) {
    const channel = this.channel(name);
    channel.head += 1;
    const publication = { channel: name, offset: channel.head, data, time_ms: 0 };
    channel.log.push(publication);
    if (channel.log.length > this.#historyLimit) channel.log.shift();
    for (const each of this.connections.values()) {
      if (!each.subscriptions.has(name)) continue;
      this.#publish(each, name, publication);
      if (!this.#hasCarriers || each.isOnePipe || this.#random() < 0.5) continue;
      // A datagram: it may be lost, and comes whenever it comes.
      const numbering = markOf(channel.epoch);
      each.datagrams.splice(Math.floor(this.#random() * (each.datagrams.length + 1)), 0, [
        { id: 0, name: "publication", body: publication, numbering },
      ]);
      if (each.datagrams.length > 20) each.datagrams.shift();
    }
    return { epoch: channel.epoch, offset: channel.head };
  }

  /** By the channel's stream, or catch-up's, or the only pipe. */
  #publish(connection, lane, publication) {
    const { epoch } = this.channel(publication.channel);
    if (connection.isOnePipe) send(connection, "control", 0, "publication", publication);
    else send(connection, lane, 0, "publication", publication, epoch);
  }

  /** Continuity is lost: numbering begins anew, and who is subscribed is told. */
  changeEpoch(name) {
    const channel = this.channel(name);
    channel.epoch = `e${Number(channel.epoch.slice(1)) + 1}`;
    channel.head = Math.floor(this.#random() * 5);
    channel.log = [];
    for (const each of this.connections.values()) if (each.subscriptions.has(name)) this.#rebase(each, name);
  }

  /** A slow consumer loses some publications, and is told. */
  skip(name) {
    const { connection } = this;
    if (!connection?.subscriptions.has(name)) return;
    connection.subscriptions.delete(name);
    for (let count = 1 + this.#random() * 3; count > 0; count -= 1) this.publish(name, { skipped: true });
    connection.subscriptions.add(name);
    this.#rebase(connection, name);
  }

  accept(id) {
    const isOnePipe = this.#hasCarriers && this.#random() < 0.25;
    const lanes = new Map([["control", []]]);
    this.connections.set(id, { id, isOnePipe, lanes, datagrams: [], subscriptions: new Set(), session: null });
  }

  drop(id) {
    this.connections.delete(id);
  }

  /** A fresher ticket. */
  ping(id) {
    const connection = this.connections.get(id);
    if (!connection?.session) return;
    const { session, generation } = connection;
    send(connection, "control", 0, "ping", this.#hasTickets ? { resume: this.#ticket(session, generation) } : {});
  }

  /** Delivers one frame of a random lane to the client; false where there is none. */
  deliverOne(deliver) {
    const lanes = [];
    for (const { id, lanes: own, datagrams } of this.connections.values()) {
      for (const lane of [...own.values(), ...datagrams]) if (lane.length > 0) lanes.push([id, lane]);
    }
    if (lanes.length === 0) return false;
    const [id, lane] = lanes[Math.floor(this.#random() * lanes.length)];
    const frame = lane.shift();
    deliver(id, frame);
    // A frame that comes again, as after a repeated batch.
    if (frame.name === "publication" && this.#random() < 0.1) deliver(id, frame);
    return true;
  }

  handleFrame(from, { id, name, body }) {
    const connection = this.connections.get(from);
    switch (name) {
      case "connect":
        return this.#connect(connection, id, body);
      case "subscribe":
        return this.#subscribe(connection, id, body);
      case "unsubscribe":
        connection.subscriptions.delete(body.channel);
        return;
      case "ping":
        return send(connection, "control", id, "pong", {});
      case "done":
        return send(connection, "control", 0, "close", { code: 4000, reason: "done" });
      case "publish": {
        if (body.ephemeral) return;
        const known = this.#keys.get(body.key);
        const position = known ?? this.publish(body.channel, body.data);
        this.#keys.set(body.key, position);
        // Busy now and then, once it was kept or before: the client may not tell.
        const isBusy = this.#random() < 0.1;
        const busy = { code: 503, message: "busy", retry: true };
        const answer = isBusy ? ["error", busy] : ["published", { channel: body.channel, position }];
        return send(connection, "control", id, ...answer);
      }
    }
  }

  /** Sessions that nobody resumed meanwhile lose a connection that was overtaken: `superseded`. */
  supersede() {
    for (const connection of this.connections.values()) {
      const newest = this.#sessions.get(connection.session)?.generation;
      if (connection.session && connection.generation < newest) {
        send(connection, "control", 0, "close", { code: 4009, reason: "superseded" });
      }
    }
  }

  #connect(connection, id, { resume, key }) {
    const [session = "", text] = resume?.split(".") ?? [];
    const generation = Number(text);
    const known = this.#sessions.get(session);
    if (resume !== undefined && this.#hasTickets) {
      const spentBy = known?.spent.get(generation);
      if (!known || known.isRevoked || (spentBy !== undefined && spentBy !== key)) {
        if (known && !known.isRevoked) this.thefts += 1;
        if (known) known.isRevoked = true;
        return send(connection, "control", 0, "close", { code: 4008, reason: "spent" });
      }
      known.spent.set(generation, key);
      known.generation = Math.max(known.generation, generation + 1);
      Object.assign(connection, { session, generation: generation + 1 });
      this.resumed += 1;
    } else {
      Object.assign(connection, { session: `s${this.#sessions.size + 1}`, generation: 1 });
      this.#sessions.set(connection.session, { generation: 1, spent: new Map(), isRevoked: false });
    }
    send(connection, "control", id, "connected", {
      session: connection.session,
      ...(this.#hasTickets && { resume: this.#ticket(connection.session, connection.generation) }),
      resumed: resume !== undefined && this.#hasTickets,
      ping_ms: 25_000,
      node: "model",
      region: "test",
      subscriptions: [],
    });
  }

  #ticket(session, generation) {
    this.#lastTicket += 1;
    return `${session}.${generation}.${this.#lastTicket}`;
  }

  #subscribe(connection, id, { channel: name, position }) {
    if (connection.subscriptions.has(name)) {
      return send(connection, "control", id, "error", { code: 409, message: "already subscribed", retry: false });
    }
    const { epoch, head, log } = this.channel(name);
    connection.subscriptions.add(name);
    const first = log[0]?.offset ?? head + 1;
    const recovered =
      position !== undefined && position.epoch === epoch && position.offset <= head && position.offset + 1 >= first;
    const missed = recovered ? log.filter(({ offset }) => offset > position.offset) : [];
    // Some in the reply, the rest by a lane of their own, which live ones may overtake.
    const inReply = missed.splice(0, Math.floor(this.#random() * 6));
    send(connection, "control", id, "subscribed", {
      channel: name,
      position: { epoch, offset: head },
      recovered,
      publications: inReply,
      conflated: false,
    });
    for (const publication of missed) this.#publish(connection, `${name} catch-up`, publication);
  }

  #rebase(connection, name) {
    const { epoch, head } = this.channel(name);
    const position = { epoch, offset: head };
    // Other streams carry what comes now. What is on those of before is reset, or still arrives.
    for (const lane of [name, `${name} catch-up`]) {
      const frames = connection.lanes.get(lane) ?? [];
      connection.lanes.delete(lane);
      this.#lastStream += 1;
      if (this.#random() < 0.7) connection.lanes.set(`${lane} ${this.#lastStream}`, frames);
    }
    const body = { channel: name, position, recovered: false, publications: [], conflated: false };
    send(connection, "control", 0, "subscribed", body);
  }
}

function send({ lanes }, lane, id, name, body, numbering) {
  if (!lanes.has(lane)) lanes.set(lane, []);
  lanes.get(lane).push({ id, name, body, ...(numbering !== undefined && { numbering }) });
}
