/**
 * The client on the move, in a page inside the laboratory: follows a stream of publications and keeps account of it. The
 * body of an async function; `settings` stands before it: `{urls, hashes, channel}`.
 */

const { Client } = await import("/sdk/index.js");

const kept = new Map();
/** Where clients keep which transports get through: nowhere, in this page, or for all pages of this origin. */
const stores = {
  nowhere: null,
  page: { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => void kept.set(key, value) },
  browser: localStorage,
};

/** How often each was tried. */
const dialed = { webtransport: 0, websocket: 0, longpoll: 0 };
const counted = (name, Constructor) =>
  class extends Constructor {
    constructor(...given) {
      dialed[name] += 1;
      super(...given);
    }
  };

function makeClient({ transports, store = "nowhere", ladder }) {
  return new Client(settings.urls, {
    transports,
    ladder,
    certificateHashes: settings.hashes,
    storage: stores[store],
    WebTransport: counted("webtransport", WebTransport),
    WebSocket: counted("websocket", WebSocket),
    fetch: (...given) => {
      dialed.longpoll += 1;
      return fetch(...given);
    },
  });
}

const nowUs = () => Math.round((performance.timeOrigin + performance.now()) * 1000);

/** A client that takes the stream, and what it saw. */
class Follower {
  client;
  transport = null;
  /** In order; microseconds of Unix time. @type {{ sent: number, arrived: number }[]} */
  deliveries = [];
  moves = [];
  sessions = new Set();
  disconnected = [];
  rebased = 0;
  notes = [];
  problems = [];
  #last = null;
  /** @type {Set<() => void>} */
  #waiting = new Set();

  constructor(options) {
    this.client = makeClient(options);
    const { client } = this;
    client.on("transport", (transport) => this.#look((this.transport = transport)));
    client.on("connected", ({ session }) => this.sessions.add(session));
    client.on("moved", ({ from, to, session, resumed }) => {
      this.sessions.add(session);
      this.moves.push({ from, to, resumed });
    });
    client.on("suspect", (isSuspect) => this.#note(isSuspect ? "suspect" : "no longer suspect"));
    client.on("transport", (transport) => this.#note(`by ${transport}`));
    client.on("error", ({ message }) => this.#note(message));
    client.on("disconnected", ({ code, reason }) => {
      this.disconnected.push({ code, reason });
      this.#note(`disconnected: ${code} ${reason}`);
    });
    client.on("state", (state) => {
      if (state === "closed") this.#problem("the session ended");
    });
    const subscription = client.subscribe(settings.channel, {
      onSubscribed: ({ how, position }) => {
        if (how !== "rebased") return;
        this.rebased += 1;
        this.#last = position.offset;
      },
      onPublication: ({ offset, data }) => this.#take(offset, data),
    });
    subscription.on("unsubscribed", ({ error }) => this.#problem(`unsubscribed: ${error}`));
  }

  /** Publications that were sent at this time or later. @param {number} us */
  since(us) {
    return this.deliveries.filter(({ sent }) => sent >= us).length;
  }

  /** The longest time between two deliveries that ended after `us`, microseconds. @param {number} us */
  longestGap(us) {
    const gaps = this.deliveries.slice(1).map(({ arrived }, index) => ({ arrived, gap: arrived - this.deliveries[index].arrived }));
    return Math.max(0, ...gaps.filter(({ arrived }) => arrived >= us).map(({ gap }) => gap));
  }

  /** When the first of those sent at this time or later was here. @param {number} us */
  firstSince(us) {
    return this.deliveries.find(({ sent }) => sent >= us)?.arrived ?? null;
  }

  /** Until something holds, or half a minute: whoever asks looks again. @param {(follower: Follower) => boolean} holds */
  until(holds) {
    return new Promise((resolve) => {
      const isOver = () => this.problems.length > 0 || holds(this);
      const done = () => {
        clearTimeout(timer);
        this.#waiting.delete(look);
        resolve({ isThere: isOver(), ...this.state() });
      };
      const look = () => isOver() && done();
      const timer = setTimeout(done, 20_000);
      this.#waiting.add(look);
      look();
    });
  }

  state() {
    const { transport, moves, disconnected, rebased, notes, problems } = this;
    const count = this.deliveries.length;
    return { transport, moves, disconnected, rebased, notes, problems, count, sessions: this.sessions.size };
  }

  #take(offset, { sent_us: sent }) {
    if (this.#last !== null && offset !== this.#last + 1) this.#problem(`offset ${offset} came after ${this.#last}`);
    this.#last = offset;
    this.deliveries.push({ sent, arrived: nowUs() });
    this.#look();
  }

  #note(text) {
    if (this.notes.length < 200) this.notes.push(`${Math.round(performance.now())} ${text}`);
  }

  #problem(text) {
    this.problems.push(text);
    this.#look();
  }

  #look() {
    for (const look of [...this.#waiting]) look();
  }
}

globalThis.mobile = {
  dialed,
  /** @type {Follower | null} */
  follower: null,

  /** Connects once, and closes: milliseconds until it was connected, and what was tried until then. */
  async connect(options) {
    for (const name of Object.keys(dialed)) dialed[name] = 0;
    const client = makeClient(options);
    const begun = performance.now();
    await client.connect();
    const ms = performance.now() - begun;
    const { transport } = client;
    const tried = { ...dialed };
    await client.close();
    return { ms, transport, tried };
  },

  /** Connects and subscribes; returns with the first publication. */
  async follow(options) {
    this.follower = new Follower(options);
    await this.follower.client.connect();
    return this.follower.until(({ deliveries }) => deliveries.length > 0);
  },

  /** Whether a transport is remembered as one that does not get through. */
  isBroken(store, name) {
    const memory = JSON.parse(stores[store].getItem(`tidegate-ladder:${new URL(settings.urls.webtransport).host}`) ?? "{}");
    return Object.values(memory).some(({ transports }) => (transports[name]?.brokenUntil ?? 0) > Date.now());
  },

  async stop() {
    // Its end makes events of its own.
    const state = structuredClone(this.follower.state());
    await this.follower.client.close();
    return state;
  },
};
