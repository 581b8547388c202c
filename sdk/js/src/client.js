/**
 * The public client: what apps call, and what they are told.
 *
 * @import { Told } from './driver.js'
 * @import { Position } from './session/types.js'
 * @import { EphemeralItem, Presence, PresenceChange, Publication, SubscribedEvent } from './subscription.js'
 * @import { TransportName } from './transport.js'
 * @import { ClientEvents, ClientOptions, ClientState, ConnectedEvent, DisconnectedEvent } from './client/types.js'
 */

import { addresses, checkedPosition, checkedRank, dataOf, payloadOf, publicationOf, text } from "./arguments.js";
import { fromBase64 } from "./codec.js";
import { Driver, now, randomHex } from "./driver.js";
import { networkKey, pageStore } from "./environment.js";
import { TidegateError } from "./error.js";
import { Emitter } from "./events.js";
import { SESSION_ENDED } from "./session/types.js";
import { Subscription } from "./subscription.js";
import { toError } from "./transport.js";

/**
 * A session with Tidegate that outlives its connections.
 *
 * @extends {Emitter<ClientEvents>}
 */
export class Client extends Emitter {
  #driver;
  #session;
  #options;
  #transports;
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  /** @type {Map<number, { resolve: (body: Record<string, any>) => void, reject: (error: Error) => void }>} */
  #replies = new Map();
  /** @type {Map<number, (ms: number | null) => void>} */
  #pings = new Map();
  /** Whom to tell when a move is over, one way or the other. @type {(() => void)[]} */
  #arrivals = [];
  #keyPrefix = randomHex();
  #keys = 0;
  /** @type {ConnectedEvent | null} */
  #connected = null;
  /** @type {number | null} */
  #rtt = null;
  /** @type {ClientState} */
  #state = "idle";

  /**
   * @param {string | URL | Partial<Record<TransportName, string>>} url `https://host:4433`, or the address for each
   *   transport
   * @param {ClientOptions} [options]
   */
  constructor(url, options = {}) {
    super();
    const { transports = ["webtransport", "websocket", "longpoll"], random = Math.random } = options;
    const urls = addresses(url);
    this.#options = options;
    this.#transports = transports.filter((name) => urls[name] !== undefined);
    if (this.#transports.length === 0) throw new TypeError("no transport has an address");
    const transportOptions = {
      certificateHashes: (options.certificateHashes ?? []).map(fromBase64),
      encoding: options.encoding ?? "json",
      WebSocket: options.WebSocket,
      WebTransport: options.WebTransport,
      ...(options.fetch && { fetch: options.fetch }),
      random,
      pollMs: options.pollMs ?? 25_000,
    };
    this.#driver = new Driver(
      {
        urls,
        transports: this.#transports,
        transportOptions,
        token: options.token ?? null,
        getToken: options.getToken,
        ladder: options.ladder,
        backoff: options.backoff,
        store: options.storage === undefined ? pageStore() : options.storage,
        networkKey: options.networkKey ?? networkKey,
        random,
      },
      (told) => this.#handle(told),
    );
    this.#session = this.#driver.session;
  }

  /** @returns {ClientState} */
  get state() {
    return STATES[this.#session.state];
  }

  /** What is connected by; null while nothing is. */
  get transport() {
    return this.#connected && this.#driver.transport;
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
    this.#driver.open();
    return connected.then(() => {});
  }

  /**
   * Joins a channel, at once or once connected; again by itself after each reconnect, from where it was.
   *
   * @param {string} channel
   * @param {object} [options]
   * @param {Position} [options.position] the last publication that the app has; absent to begin at the head
   * @param {number} [options.rank] -128 to 127: where much waits to be sent, channels of a higher one go first
   * @param {boolean} [options.presence] to be told who comes and goes (`join`, `leave`); refused where the token does not
   *   grant it
   * @param {(publication: Publication) => void} [options.onPublication]
   * @param {(item: EphemeralItem) => void} [options.onEphemeral]
   * @param {(event: SubscribedEvent) => void} [options.onSubscribed]
   * @param {(change: PresenceChange) => void} [options.onJoin]
   * @param {(change: PresenceChange) => void} [options.onLeave]
   * @returns {Subscription}
   */
  subscribe(channel, { position, rank, presence, onPublication, onEphemeral, onSubscribed, onJoin, onLeave } = {}) {
    if (this.#subscriptions.has(channel)) throw new TidegateError(409, `already subscribed to ${channel}`, false);
    const from = checkedPosition(position);
    const checked = checkedRank(rank);
    const subscription = this.#addSubscription(text(channel), from);
    if (onPublication) subscription.on("publication", onPublication);
    if (onEphemeral) subscription.on("ephemeral", onEphemeral);
    if (onSubscribed) subscription.on("subscribed", onSubscribed);
    if (onJoin) subscription.on("join", onJoin);
    if (onLeave) subscription.on("leave", onLeave);
    this.#session.subscribe(channel, from, checked, presence === true);
    this.#driver.pump();
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
    this.#driver.pump();
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
   * Who is on a channel now, by user. Rejects where the token does not grant it, or the channel's namespace keeps no
   * presence.
   *
   * @param {string} channel
   * @returns {Promise<Presence>}
   */
  async presence(channel) {
    const { users, users_total: usersTotal, sessions, exact } = await this.#request("presence", { channel: text(channel) });
    return { users, usersTotal, sessions, exact };
  }

  /**
   * Replaces the token in place. By itself before it expires, where there is `getToken`.
   *
   * @param {string} [token] from `getToken` unless given
   */
  async refresh(token) {
    const next = token ?? (await this.#options.getToken?.({ fresh: true }));
    if (next === undefined) throw new TypeError("neither a token nor getToken");
    await this.#request("refresh", { token: next });
    this.#driver.setToken(next);
  }

  /**
   * Makes a round trip to the edge now.
   *
   * @returns {Promise<number | null>} milliseconds; null where there is no connection, or it ends first
   */
  measureRtt() {
    const id = this.#session.ping(now());
    if (id === null) return Promise.resolve(null);
    const measured = new Promise((/** @type {(ms: number | null) => void} */ resolve) => this.#pings.set(id, resolve));
    this.#driver.pump();
    return measured;
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
    this.#driver.close();
    return closed;
  }

  /**
   * For tests and demonstrations: drops the connection as if the network had. The client comes back by itself.
   *
   * @param {{ holdMs?: number }} [options] for how long there is no network
   */
  disconnect({ holdMs = 0 } = {}) {
    this.#driver.drop(holdMs, "dropped by the app");
  }

  /**
   * The device has another network: what is known of transports is forgotten, and the connection is probed. Browsers that
   * tell so by themselves need not be told.
   */
  networkChanged() {
    this.#driver.networkChanged();
  }

  /**
   * Moves to another transport, which is the best one from now on; the others remain what is fallen back to. Publications
   * go on meanwhile, and where it does not get through the client stays where it is.
   *
   * @param {TransportName} name
   * @returns {Promise<TransportName>} what the client is connected by then
   */
  async useTransport(name) {
    if (!this.#transports.includes(name)) throw new TypeError(`${name} is not one of this client's transports`);
    const isUnderWay = this.#driver.use(name);
    if (isUnderWay) await new Promise((/** @type {(value: void) => void} */ resolve) => this.#arrivals.push(resolve));
    return this.transport ?? name;
  }

  // --- what the driver tells ----------------------------------------------------------------------------------------

  /** @param {Told} told */
  #handle(told) {
    switch (told.type) {
      case "state":
        return this.#handleState();
      case "connected":
        return this.#handleConnected(told.body);
      case "moved_from":
        return this.#handleMoved(told.from, told.to, told.body);
      case "disconnected": {
        const { code, reason, policy, retryInMs } = told;
        for (const subscription of this.#subscriptions.values()) subscription.suspend();
        this.emit("disconnected", { code, reason, policy, retryInMs });
        return;
      }
      case "move_failed":
        return this.#arrive();
      case "suspect":
        this.emit("suspect", told.isSuspect);
        return;
      case "goaway":
        this.emit("leaving", { endpoint: told.endpoint });
        return;
      case "goaway_ignored":
        this.emit("error", new Error(`the server has no right to send the session to ${told.endpoint}`));
        return;
      case "error":
        this.emit("error", told.error);
        return;
      case "pong":
        this.#pings.get(told.id)?.(told.ms);
        this.#pings.delete(told.id);
        return;
      case "subscribed": {
        const { channel, position, how, missed, conflated } = told;
        const known = this.#subscriptions.get(channel);
        const subscription = known ?? this.#addSubscription(channel, null);
        if (!known) this.emit("subscription", subscription);
        subscription.begin({ position, how, missed, conflated });
        return;
      }
      case "unsubscribed": {
        const subscription = this.#subscriptions.get(told.channel);
        this.#subscriptions.delete(told.channel);
        subscription?.end(told.error);
        return;
      }
      case "publication": {
        const { publication: body, epoch, recovered } = told;
        this.#subscriptions.get(body.channel)?.deliver(publicationOf(body, epoch, recovered));
        return;
      }
      case "ephemeral": {
        const { channel, user = null, time_ms: timeMs } = told.ephemeral;
        const data = dataOf(told.ephemeral);
        this.#subscriptions.get(channel)?.emit("ephemeral", { channel, data, user, timeMs });
        return;
      }
      case "join":
      case "leave": {
        const { channel, user, time_ms: timeMs } = told.body;
        this.#subscriptions.get(channel)?.emit(told.type, { channel, user, timeMs });
        return;
      }
      case "presence_gap":
        this.#subscriptions.get(told.body.channel)?.emit("presencegap", { channel: told.body.channel });
        return;
      case "reply":
        this.#takeReply(told.id)?.resolve(told.body);
        return;
      case "failure":
        this.#takeReply(told.id)?.reject(TidegateError.from(told.error));
        return;
      case "token_wanted":
        if (this.#options.getToken) this.refresh().catch((error) => this.emit("error", toError(error)));
        return;
      case "rtt":
        this.#rtt = told.ms;
        this.emit("rtt", told.ms);
    }
  }

  #handleState() {
    const { state } = this;
    if (state !== "connected") this.#forgetConnection();
    if (state === this.#state) return;
    this.#state = state;
    // `connected` is told together with what is known of it, right after this.
    if (state !== "connected") this.emit("state", state);
    if (state === "closed") this.#arrive();
  }

  #arrive() {
    for (const resolve of this.#arrivals.splice(0)) resolve();
  }

  #forgetConnection() {
    for (const resolve of this.#pings.values()) resolve(null);
    this.#pings.clear();
    if (!this.#connected) return;
    this.#connected = null;
    this.emit("transport", null);
  }

  /** @param {Record<string, any>} body */
  #handleConnected(body) {
    const transport = this.#driver.transport;
    if (!transport) return;
    this.#connected = connectedEvent(transport, body);
    this.#state = "connected";
    this.emit("state", "connected");
    this.emit("transport", transport);
    this.emit("connected", this.#connected);
    this.#arrive();
  }

  /** @param {TransportName} from @param {TransportName} to @param {Record<string, any>} body */
  #handleMoved(from, to, body) {
    // What was asked of the connection that was left is not answered any more.
    for (const resolve of this.#pings.values()) resolve(null);
    this.#pings.clear();
    this.#connected = connectedEvent(to, body);
    const { session, node, region, resumed } = this.#connected;
    if (from !== to) this.emit("transport", to);
    this.emit("moved", { from, to, session, node, region, resumed });
    this.#arrive();
  }

  /** @param {string} name @param {Record<string, any>} body @returns {Promise<Record<string, any>>} */
  #request(name, body) {
    return new Promise((resolve, reject) => {
      const id = this.#session.request(now(), name, body);
      this.#replies.set(id, { resolve, reject });
      this.#driver.pump();
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
    if (this.#connected && this.state === "connected") return Promise.resolve(this.#connected);
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
    const leave = () => {
      if (this.#subscriptions.get(channel) !== subscription) return;
      this.#session.unsubscribe(channel);
      this.#driver.pump();
    };
    const subscription = new Subscription(channel, position, leave, () => this.presence(channel));
    this.#subscriptions.set(channel, subscription);
    return subscription;
  }

  #nextKey() {
    this.#keys += 1;
    return `${this.#keyPrefix}-${this.#keys}`;
  }
}

/** @param {TransportName} transport @param {Record<string, any>} body @returns {ConnectedEvent} */
function connectedEvent(transport, { session, user = null, node, region, resumed }) {
  return { transport, session, user, node, region, resumed: resumed === true };
}

/** @type {Record<import('./session.js').Session['state'], ClientState>} */
const STATES = {
  idle: "idle",
  dialing: "connecting",
  greeting: "connecting",
  live: "connected",
  waiting: "waiting",
  closing: "closing",
  ended: "closed",
};
