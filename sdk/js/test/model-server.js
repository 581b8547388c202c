/**
 * A small server for the session machine: channels with history, sessions whose frames travel in lanes that overtake
 * one another, as QUIC's streams do. No timers: the test delivers frame by frame.
 */

export class ModelServer {
  #random;
  #historyLimit;
  channels = new Map();
  #keys = new Map();
  connection = null;

  constructor(random, { historyLimit = 40 } = {}) {
    this.#random = random;
    this.#historyLimit = historyLimit;
  }

  channel(name) {
    if (!this.channels.has(name)) this.channels.set(name, { epoch: "e1", head: 0, log: [] });
    return this.channels.get(name);
  }

  publish(name, data) {
    const channel = this.channel(name);
    channel.head += 1;
    const publication = { channel: name, offset: channel.head, data, time_ms: 0 };
    channel.log.push(publication);
    if (channel.log.length > this.#historyLimit) channel.log.shift();
    if (this.connection?.subscriptions.has(name)) this.#send(name, 0, "publication", publication);
    return { epoch: channel.epoch, offset: channel.head };
  }

  /** Continuity is lost: numbering begins anew, and who is subscribed is told in order with what follows. */
  changeEpoch(name) {
    const channel = this.channel(name);
    channel.epoch = `e${Number(channel.epoch.slice(1)) + 1}`;
    channel.head = Math.floor(this.#random() * 5);
    channel.log = [];
    if (this.connection?.subscriptions.has(name)) this.#rebase(name);
  }

  /** A slow consumer loses some publications, and is told. */
  skip(name) {
    if (!this.connection?.subscriptions.has(name)) return;
    this.connection.subscriptions.delete(name);
    for (let count = 1 + this.#random() * 3; count > 0; count -= 1) this.publish(name, { skipped: true });
    this.connection.subscriptions.add(name);
    this.#rebase(name);
  }

  accept() {
    this.connection = { lanes: new Map([["control", []]]), subscriptions: new Set() };
  }

  drop() {
    this.connection = null;
  }

  /** Delivers one frame of a random lane to the client; false where there is none. */
  deliverOne(deliver) {
    const lanes = [...(this.connection?.lanes.values() ?? [])].filter((lane) => lane.length > 0);
    if (lanes.length === 0) return false;
    const lane = lanes[Math.floor(this.#random() * lanes.length)];
    const frame = lane.shift();
    deliver(frame);
    // A frame that comes again, as after a repeated batch.
    if (frame.name === "publication" && this.#random() < 0.1) deliver(frame);
    return true;
  }

  handleFrame({ id, name, body }) {
    const { connection } = this;
    switch (name) {
      case "connect":
        return this.#send("control", id, "connected", {
          session: "s",
          ping_ms: 25_000,
          node: "model",
          region: "test",
          subscriptions: [],
        });
      case "subscribe":
        return this.#subscribe(id, body);
      case "unsubscribe":
        connection.subscriptions.delete(body.channel);
        return;
      case "publish": {
        if (body.ephemeral) return;
        const known = this.#keys.get(body.key);
        const position = known ?? this.publish(body.channel, body.data);
        this.#keys.set(body.key, position);
        // Busy now and then, once it was kept or before: the client may not tell.
        const isBusy = this.#random() < 0.1;
        const busy = { code: 503, message: "busy", retry: true };
        return this.#send("control", id, ...(isBusy ? ["error", busy] : ["published", { channel: body.channel, position }]));
      }
    }
  }

  #subscribe(id, { channel: name, position }) {
    const { connection } = this;
    if (connection.subscriptions.has(name)) {
      return this.#send("control", id, "error", { code: 409, message: "already subscribed", retry: false });
    }
    const { epoch, head, log } = this.channel(name);
    connection.subscriptions.add(name);
    const first = log[0]?.offset ?? head + 1;
    const recovered =
      position !== undefined && position.epoch === epoch && position.offset <= head && position.offset + 1 >= first;
    const missed = recovered ? log.filter(({ offset }) => offset > position.offset) : [];
    // Some in the reply, the rest by a lane of their own, which live ones may overtake.
    const inReply = missed.splice(0, Math.floor(this.#random() * 6));
    this.#send("control", id, "subscribed", {
      channel: name,
      position: { epoch, offset: head },
      recovered,
      publications: inReply,
      conflated: false,
    });
    for (const publication of missed) this.#send(`${name} catch-up`, 0, "publication", publication);
  }

  #rebase(name) {
    const { epoch, head } = this.channel(name);
    const position = { epoch, offset: head };
    this.#send(name, 0, "subscribed", { channel: name, position, recovered: false, publications: [], conflated: false });
  }

  #send(lane, id, name, body) {
    const { lanes } = this.connection;
    if (!lanes.has(lane)) lanes.set(lane, []);
    lanes.get(lane).push({ id, name, body });
  }
}
