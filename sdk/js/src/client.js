/**
 * The public client: a driver around the session machine. It owns the clock, the timer, the transport and the token.
 *
 * @import { Frame } from './codec.js'
 * @import { Event, Position } from './session.js'
 * @import { Publication, SubscribedEvent, EphemeralItem } from './subscription.js'
 * @import { Handlers, Open, Transport, TransportName } from './transport.js'
 * @import { ReconnectPolicy } from './close-codes.js'
 *
 * @typedef {'idle' | 'connecting' | 'connected' | 'waiting' | 'closing' | 'closed'} ClientState
 *   `waiting`: between two attempts
 *
 * @typedef {object} ClientOptions
 * @property {string} [token] JWT of the first connection
 * @property {(why: { fresh: boolean }) => string | Promise<string>} [getToken] where a token is needed; `fresh`: the
 *   last one was refused or ends soon
 * @property {TransportName[]} [transports] which to try, in order
 * @property {string[]} [certificateHashes] base64 of SHA-256 hashes of certificates that WebTransport accepts
 * @property {'json' | 'proto'} [encoding] of WebSocket; JSON unless told
 * @property {number} [pollMs] how long a long poll waits at the server
 * @property {any} [WebSocket] constructor to use instead of the global one, for Node
 * @property {any} [WebTransport] likewise
 * @property {typeof fetch} [fetch] likewise
 * @property {() => number} [random] evenly distributed in [0, 1)
 *
 * @typedef {object} ConnectedEvent
 * @property {TransportName} transport
 * @property {string} session
 * @property {string | null} user
 * @property {string} node
 * @property {string} region
 *
 * @typedef {object} DisconnectedEvent
 * @property {number} code see `CloseCode`
 * @property {string} reason
 * @property {ReconnectPolicy} policy
 * @property {number | null} retryInMs null: the client does not come back by itself
 *
 * @typedef {object} ClientEvents
 * @property {ClientState} state
 * @property {ConnectedEvent} connected
 * @property {DisconnectedEvent} disconnected
 * @property {Subscription} subscription one that the server began by itself; listen to it here and now
 * @property {number} rtt milliseconds
 * @property {Error} error what the app may want to log; the session goes on
 */

import { addresses, checkedPosition, dataOf, payloadOf, publicationOf, text } from "./arguments.js";
import { CloseCode } from "./close-codes.js";
import { fromBase64 } from "./codec.js";
import { TidegateError } from "./error.js";
import { Emitter } from "./events.js";
import { SESSION_ENDED, Session } from "./session.js";
import { Subscription } from "./subscription.js";
import { UnavailableError, deadline, toError } from "./transport.js";
import { openLongPoll } from "./transport/longpoll.js";
import { openWebSocket } from "./transport/websocket.js";
import { openWebTransport } from "./transport/webtransport.js";

/**
 * A session with Tidegate that outlives its connections.
 *
 * @extends {Emitter<ClientEvents>}
 */
export class Client extends Emitter {
  #session;
  #urls;
  #options;
  /** @type {TransportName[]} */
  #transports;
  #transportOptions;
  /** @type {string | null} */
  #token;
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  /** @type {Map<number, { resolve: (body: Record<string, any>) => void, reject: (error: Error) => void }>} */
  #replies = new Map();
  #keyPrefix = randomHex();
  #keys = 0;
  /** @type {{ name: TransportName, transport: Transport } | null} */
  #connection = null;
  /** @type {AbortController | null} */
  #dialing = null;
  /** Got through last, or was chosen by hand: tried first. @type {TransportName | null} */
  #preferred = null;
  /** Is open, but not yet a session. @type {TransportName | null} */
  #opened = null;
  /** Opened, but never got as far as a session: tried last, once. @type {TransportName | null} */
  #suspect = null;
  /** @type {ConnectedEvent | null} */
  #connected = null;
  /** @type {number | null} */
  #rtt = null;
  /** @type {ClientState} */
  #state = "idle";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #isPumping = false;

  /**
   * @param {string | URL | Partial<Record<TransportName, string>>} url `https://host:4433`, or the address for each
   *   transport
   * @param {ClientOptions} [options]
   */
  constructor(url, options = {}) {
    super();
    const { transports = ["webtransport", "websocket", "longpoll"], random = Math.random } = options;
    this.#urls = addresses(url);
    this.#options = options;
    this.#transports = transports.filter((name) => this.#urls[name] !== undefined);
    if (this.#transports.length === 0) throw new TypeError("no transport has an address");
    this.#token = options.token ?? null;
    this.#transportOptions = {
      certificateHashes: (options.certificateHashes ?? []).map(fromBase64),
      encoding: options.encoding ?? "json",
      WebSocket: options.WebSocket,
      WebTransport: options.WebTransport,
      ...(options.fetch && { fetch: options.fetch }),
      random,
      pollMs: options.pollMs ?? 25_000,
    };
    this.#session = new Session({ random });
  }

  /** @returns {ClientState} */
  get state() {
    return STATES[this.#session.state];
  }

  /** What is connected by; null while nothing is. */
  get transport() {
    return this.#connected && (this.#connection?.name ?? null);
  }

  /** The last round trip, milliseconds; null before the first. */
  get rtt() {
    return this.#rtt;
  }

  /** Id of the session; null while not connected. */
  get session() {
    return this.#connected?.session ?? null;
  }

  /** Name of the edge; null while not connected. */
  get node() {
    return this.#connected?.node ?? null;
  }

  /** Subscriptions by channel. @returns {ReadonlyMap<string, Subscription>} */
  get subscriptions() {
    return this.#subscriptions;
  }

  /**
   * Connects, and stays connected until `close` or until the server says not to come back.
   *
   * @returns {Promise<void>} resolves once connected
   */
  connect() {
    const connected = this.#nextConnected();
    this.#session.open(now());
    this.#pump();
    return connected.then(() => {});
  }

  /**
   * Joins a channel, at once or once connected; again by itself after each reconnect, from where it was.
   *
   * @param {string} channel
   * @param {object} [options]
   * @param {Position} [options.position] the last publication that the app has; absent to begin at the head
   * @param {(publication: Publication) => void} [options.onPublication]
   * @param {(item: EphemeralItem) => void} [options.onEphemeral]
   * @param {(event: SubscribedEvent) => void} [options.onSubscribed]
   * @returns {Subscription}
   */
  subscribe(channel, { position, onPublication, onEphemeral, onSubscribed } = {}) {
    if (this.#subscriptions.has(channel)) throw new TidegateError(409, `already subscribed to ${channel}`, false);
    const subscription = this.#addSubscription(text(channel), checkedPosition(position));
    if (onPublication) subscription.on("publication", onPublication);
    if (onEphemeral) subscription.on("ephemeral", onEphemeral);
    if (onSubscribed) subscription.on("subscribed", onSubscribed);
    this.#session.subscribe(channel, checkedPosition(position));
    this.#pump();
    return subscription;
  }

  /**
   * Publishes; sent again, with the same key, until the server acknowledges it. Rejects where the server refuses, where
   * the session ends, or where no answer came for so long that a repeat could be stored twice.
   *
   * @param {string} channel
   * @param {any} data a JSON value, or a `Uint8Array`
   * @param {{ key?: string }} [options]
   * @returns {Promise<Position>}
   */
  async publish(channel, data, { key = this.#nextKey() } = {}) {
    const body = { channel: text(channel), ...payloadOf(data), key: text(key) };
    const published = await this.#request("publish", body);
    return published.position ?? { epoch: "", offset: 0 };
  }

  /**
   * At most once, never stored; dropped where there is no connection.
   *
   * @param {string} channel
   * @param {any} data a JSON value, or a `Uint8Array`
   * @returns {boolean} false where there is no connection; true is no promise that it arrives
   */
  publishEphemeral(channel, data) {
    const isSent = this.#session.publishEphemeral(text(channel), payloadOf(data));
    this.#pump();
    return isSent;
  }

  /**
   * @param {string} channel
   * @param {{ since?: Position, limit?: number }} [options] only what comes after `since`; the newest `limit`
   * @returns {Promise<{ position: Position, recovered: boolean, publications: Publication[] }>} `recovered`: nothing is
   *   missing between `since` and `position`
   */
  async history(channel, { since, limit = 0 } = {}) {
    const from = checkedPosition(since);
    const body = await this.#request("history", { channel: text(channel), ...(from && { since: from }), limit });
    const position = body.position ?? { epoch: "", offset: 0 };
    const publications = body.publications.map((/** @type {any} */ each) => publicationOf(each, position.epoch, true));
    return { position, recovered: body.recovered, publications };
  }

  /**
   * Replaces the token in place. By itself before it expires, where there is `getToken`.
   *
   * @param {string} [token] from `getToken` unless given
   */
  async refresh(token) {
    const next = token ?? (await this.#freshToken());
    if (next === null) throw new TypeError("neither a token nor getToken");
    await this.#request("refresh", { token: next });
    this.#token = next;
  }

  /**
   * Makes a round trip now, through to where a subscribed channel lives. Without a subscription: the last one's figure.
   *
   * @returns {Promise<number | null>} milliseconds
   */
  async measureRtt() {
    const live = [...this.#subscriptions.values()].find(({ state }) => state === "live");
    // A refusal takes as long as an answer.
    if (live?.position) await this.history(live.channel, { since: live.position, limit: 1 }).catch(() => {});
    return this.#rtt;
  }

  /** Ends the session in order. What was not acknowledged is rejected. @returns {Promise<void>} */
  close() {
    const closed = new Promise((/** @type {(value: void) => void} */ resolve) => {
      if (this.state === "closed" || this.state === "idle") return resolve();
      const off = this.on("state", (state) => {
        if (state !== "closed") return;
        off();
        resolve();
      });
    });
    this.#session.close(now());
    this.#pump();
    return closed;
  }

  /**
   * For tests and demonstrations: drops the connection as if the network had. The client comes back by itself.
   *
   * @param {{ holdMs?: number }} [options] for how long there is no network
   */
  disconnect({ holdMs = 0 } = {}) {
    this.#session.drop(now(), holdMs, "dropped by the app");
    this.#pump();
  }

  /**
   * Moves to another transport; the others remain what is fallen back to.
   *
   * @param {TransportName} name
   * @returns {Promise<TransportName>} what the client is connected by then
   */
  async useTransport(name) {
    if (!this.#transports.includes(name)) throw new TypeError(`${name} is not one of this client's transports`);
    this.#preferred = name;
    this.#suspect = null;
    if (this.transport === name || this.state === "idle" || this.state === "closed") return name;
    const connected = this.#nextConnected();
    this.#session.drop(now(), 0, `moving to ${name}`);
    this.#pump();
    return (await connected).transport;
  }

  // --- driver -------------------------------------------------------------------------------------------------------

  /** Acts upon what the machine says until it says nothing more. Handlers may call the client: that comes here again. */
  #pump() {
    if (this.#isPumping) return;
    this.#isPumping = true;
    try {
      let isBusy = true;
      while (isBusy) {
        isBusy = false;
        for (let event = this.#session.pollEvent(); event; event = this.#session.pollEvent()) {
          isBusy = true;
          this.#handleEvent(event);
        }
        isBusy = this.#transmit() || isBusy;
      }
    } finally {
      this.#isPumping = false;
    }
    clearTimeout(this.#timer);
    const at = this.#session.pollTimeout();
    if (at === null) return;
    const delay = Math.min(Math.max(0, Math.ceil(at - now())), MAX_DELAY_MS);
    this.#timer = setTimeout(() => {
      this.#session.handleTimeout(now());
      this.#pump();
    }, delay);
  }

  #transmit() {
    /** @type {Frame[]} */
    const control = [];
    /** @type {Frame[]} */
    const ephemeral = [];
    for (let next = this.#session.pollTransmit(now()); next; next = this.#session.pollTransmit(now())) {
      (next.lane === "control" ? control : ephemeral).push(next.frame);
    }
    const transport = this.#connection?.transport;
    if (transport && control.length > 0) transport.send(control);
    for (const frame of ephemeral) transport?.sendEphemeral(frame);
    return control.length + ephemeral.length > 0;
  }

  /** @param {Event} event */
  #handleEvent(event) {
    switch (event.type) {
      case "dial":
        void this.#dial(event.freshToken);
        return;
      case "hangup":
        return this.#hangUp(event.orderly);
      case "state":
        return this.#handleState();
      case "connected":
        return this.#handleConnected(event.body);
      case "disconnected": {
        const { code, reason, policy, retryInMs } = event;
        // It opened, and then led nowhere.
        if (this.#opened && code === CloseCode.connectionLost) this.#suspect = this.#opened;
        this.#opened = null;
        this.#hangUp(true);
        for (const subscription of this.#subscriptions.values()) subscription.suspend();
        this.emit("disconnected", { code, reason, policy, retryInMs });
        return;
      }
      case "subscribed": {
        const { channel, position, how, missed, conflated } = event;
        const known = this.#subscriptions.get(channel);
        const subscription = known ?? this.#addSubscription(channel, null);
        if (!known) this.emit("subscription", subscription);
        subscription.begin({ position, how, missed, conflated });
        return;
      }
      case "unsubscribed": {
        const subscription = this.#subscriptions.get(event.channel);
        this.#subscriptions.delete(event.channel);
        subscription?.end(event.error);
        return;
      }
      case "publication": {
        const { publication: body, epoch, recovered } = event;
        this.#subscriptions.get(body.channel)?.deliver(publicationOf(body, epoch, recovered));
        return;
      }
      case "ephemeral": {
        const { channel, user = null, time_ms: timeMs } = event.ephemeral;
        const data = dataOf(event.ephemeral);
        this.#subscriptions.get(channel)?.emit("ephemeral", { channel, data, user, timeMs });
        return;
      }
      case "reply":
        this.#takeReply(event.id)?.resolve(event.body);
        return;
      case "failure":
        this.#takeReply(event.id)?.reject(TidegateError.from(event.error));
        return;
      case "token_wanted":
        if (this.#options.getToken) this.refresh().catch((error) => this.emit("error", toError(error)));
        return;
      case "rtt":
        this.#rtt = event.ms;
        this.emit("rtt", event.ms);
    }
  }

  #handleState() {
    const { state } = this;
    if (state !== "connecting" && state !== "connected") this.#dialing?.abort(new Error("given up"));
    if (state !== "connected") this.#connected = null;
    if (state === "closed") this.#hangUp(true);
    if (state === this.#state) return;
    this.#state = state;
    // `connected` is told together with what is known of it, right after this.
    if (state !== "connected") this.emit("state", state);
  }

  /** @param {Record<string, any>} body */
  #handleConnected(body) {
    const { session, user = null, node, region } = body;
    if (!this.#connection) return;
    const { name } = this.#connection;
    this.#opened = null;
    this.#preferred = name;
    this.#connected = { transport: name, session, user, node, region };
    this.emit("state", "connected");
    this.emit("connected", this.#connected);
  }

  /** @param {boolean} freshToken */
  async #dial(freshToken) {
    this.#dialing?.abort(new Error("given up"));
    const dialing = new AbortController();
    this.#dialing = dialing;
    const { signal } = dialing;
    try {
      const token = await this.#tokenToDialWith(freshToken);
      if (signal.aborted) return;
      const connection = await this.#openFirst(signal);
      if (signal.aborted) return connection.transport.close(false);
      this.#connection = connection;
      this.#opened = connection.name;
      this.#session.handleOpened(now(), { token, heartbeat: connection.transport.heartbeat });
    } catch (error) {
      if (signal.aborted) return;
      this.#session.handleDialFailed(now(), toError(error).message, error instanceof NoTokenError);
    }
    if (this.#dialing === dialing) this.#dialing = null;
    this.#pump();
  }

  /** @param {boolean} fresh @returns {Promise<string | null>} */
  async #tokenToDialWith(fresh) {
    if (this.#token !== null && !fresh) return this.#token;
    const token = this.#options.getToken ? await this.#options.getToken({ fresh }) : null;
    if (token === null && fresh) throw new NoTokenError("the server wants a new token, and there is no getToken");
    this.#token = token;
    return token;
  }

  async #freshToken() {
    return this.#options.getToken ? await this.#options.getToken({ fresh: true }) : null;
  }

  /**
   * Opens the first transport that gets through.
   *
   * @param {AbortSignal} signal
   * @returns {Promise<{ name: TransportName, transport: Transport }>}
   */
  async #openFirst(signal) {
    const failures = [];
    for (const name of this.#order()) {
      signal.throwIfAborted();
      try {
        return { name, transport: await this.#open(name, signal) };
      } catch (error) {
        const { message } = toError(error);
        failures.push(`${name}: ${message}`);
        if (!(error instanceof UnavailableError)) this.emit("error", new Error(`${name}: ${message}`));
      }
    }
    throw new Error(`no transport gets through (${failures.join("; ")})`);
  }

  /** The transports, beginning with the one that is preferred. @returns {TransportName[]} */
  #order() {
    const first = this.#transports.filter((name) => name === this.#preferred && name !== this.#suspect);
    const last = this.#transports.filter((name) => name === this.#suspect);
    const others = this.#transports.filter((name) => name !== this.#preferred && name !== this.#suspect);
    this.#suspect = null;
    return [...first, ...others, ...last];
  }

  /** @param {TransportName} name @param {AbortSignal} signal @returns {Promise<Transport>} */
  async #open(name, signal) {
    /** @type {{ code: number, reason: string } | null} */
    let closed = null;
    /** @type {Transport | null} */
    let transport = null;
    const isCurrent = () => transport !== null && this.#connection?.transport === transport;
    /** @type {Handlers} */
    const handlers = {
      onFrames: (frames) => {
        if (!isCurrent()) return;
        this.#session.handleActivity(now());
        for (const frame of frames) this.#session.handleFrame(now(), frame);
        this.#pump();
      },
      onClosed: (why) => {
        closed = why;
        if (!isCurrent()) return;
        this.#session.handleClosed(now(), why);
        this.#pump();
      },
      onError: (error) => this.emit("error", error),
    };
    const url = /** @type {string} */ (this.#urls[name]);
    const opening = deadline(signal, OPEN_MS[name]);
    try {
      transport = await OPENERS[name](url, handlers, this.#transportOptions, opening.signal);
    } finally {
      opening.clear();
    }
    if (closed) throw new Error("closed as soon as it was open");
    return transport;
  }

  /** @param {boolean} orderly */
  #hangUp(orderly) {
    this.#dialing?.abort(new Error("given up"));
    this.#connection?.transport.close(orderly);
    this.#connection = null;
  }

  /** @param {string} name @param {Record<string, any>} body @returns {Promise<Record<string, any>>} */
  #request(name, body) {
    return new Promise((resolve, reject) => {
      const id = this.#session.request(now(), name, body);
      this.#replies.set(id, { resolve, reject });
      this.#pump();
    });
  }

  /** @param {number} id */
  #takeReply(id) {
    const reply = this.#replies.get(id);
    this.#replies.delete(id);
    return reply;
  }

  /** @returns {Promise<ConnectedEvent>} */
  #nextConnected() {
    if (this.#connected && this.state === "connected" && this.#preferred === this.transport) {
      return Promise.resolve(this.#connected);
    }
    return new Promise((resolve, reject) => {
      /** @type {DisconnectedEvent | null} */
      let last = null;
      const offs = [
        this.on("connected", (event) => (off(), resolve(event))),
        this.on("disconnected", (event) => (last = event)),
        this.on("state", (state) => {
          if (state !== "closed") return;
          off();
          reject(new TidegateError(last?.code ?? SESSION_ENDED, last?.reason ?? "closed by the app", false));
        }),
      ];
      const off = () => offs.forEach((each) => each());
    });
  }

  /** @param {string} channel @param {Position | null} position */
  #addSubscription(channel, position) {
    const subscription = new Subscription(channel, position, () => {
      if (this.#subscriptions.get(channel) !== subscription) return;
      this.#session.unsubscribe(channel);
      this.#pump();
    });
    this.#subscriptions.set(channel, subscription);
    return subscription;
  }

  #nextKey() {
    this.#keys += 1;
    return `${this.#keyPrefix}-${this.#keys}`;
  }
}

class NoTokenError extends Error {}

function randomHex() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function now() {
  return performance.now();
}

/** @type {Record<Session['state'], ClientState>} */
const STATES = {
  idle: "idle",
  dialing: "connecting",
  greeting: "connecting",
  live: "connected",
  waiting: "waiting",
  closing: "closing",
  ended: "closed",
};

/** @type {Record<TransportName, Open>} */
const OPENERS = { webtransport: openWebTransport, websocket: openWebSocket, longpoll: openLongPoll };

/** How long each may take to open before the next is tried. */
const OPEN_MS = { webtransport: 3_000, websocket: 5_000, longpoll: 10_000 };

/** Longer timers than this fire at once. */
const MAX_DELAY_MS = 2 ** 31 - 1;
