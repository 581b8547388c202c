/**
 * Sans-io: the client's half of a session. Fed with frames, reports of its driver and `now` (milliseconds of any
 * monotonic clock); answers with frames to send, events to act upon, and when it wants to be woken.
 *
 *     idle ──open──► dialing ──opened──► greeting ──connected──► live
 *       ▲              │ ▲ failed, lost     │                      │
 *       │              ▼ │                  │                      │
 *       │            waiting ◄──── lost ────┴──────────────────────┤
 *     ended ◄── close code that says `never`, or closing ◄──close──┘
 *
 * @import { Frame } from './codec.js'
 * @import { ReconnectPolicy } from './close-codes.js'
 *
 * @typedef {{ epoch: string, offset: number }} Position the last publication seen; an empty epoch is the current one
 *
 * @typedef {{ name: 'idle' } | { name: 'ended' } | { name: 'dialing' }
 *   | { name: 'waiting', until: number, freshToken: boolean }
 *   | { name: 'greeting', id: number, deadline: number }
 *   | { name: 'live', since: number, pingMs: number }
 *   | { name: 'closing', deadline: number }} State
 *
 * @typedef {{ data: any } | { data_base64: Uint8Array }} Payload
 *
 * @typedef {object} RequestError
 * @property {number} code
 * @property {string} message
 * @property {boolean} retry
 *
 * @typedef {{ type: 'dial', freshToken: boolean }
 *   | { type: 'hangup', orderly: boolean }
 *   | { type: 'state' }
 *   | { type: 'connected', body: Record<string, any> }
 *   | { type: 'disconnected', code: number, reason: string, policy: ReconnectPolicy, retryInMs: number | null }
 *   | { type: 'subscribed', channel: string, position: Position, how: Begun['how'], missed: number, conflated: boolean,
 *       byServer: boolean }
 *   | { type: 'unsubscribed', channel: string, error: RequestError | null }
 *   | { type: 'publication', publication: Record<string, any>, epoch: string, recovered: boolean }
 *   | { type: 'ephemeral', ephemeral: Record<string, any> }
 *   | { type: 'reply', id: number, body: Record<string, any> }
 *   | { type: 'failure', id: number, error: RequestError }
 *   | { type: 'token_wanted' }
 *   | { type: 'rtt', ms: number }} Event
 * @import { Begun } from './ordering.js'
 *
 * @typedef {object} Subscription
 * @property {Ordering} ordering
 * @property {number} requestId of the `subscribe` in flight; 0 for none
 * @property {number | null} retryAt
 * @property {number | null} gapSince
 * @property {boolean} byServer the app never asked for it
 * @property {boolean} listed the last `connected` began it
 * @property {boolean} conflicted
 * @property {Record<string, any> | null} overtook a `subscribed` of the server's own that came before the reply
 * @property {Backoff} backoff
 */

import { Backoff } from "./backoff.js";
import { CloseCode, policyOf } from "./close-codes.js";
import { Ordering } from "./ordering.js";
import { Requests } from "./requests.js";

export class Session {
  /** @type {State} */
  #state = { name: "idle" };
  #random;
  #backoff;
  #limits;
  #lastId = 0;
  #heartbeat = true;
  #lastHeard = 0;
  /** @type {number | null} */
  #expiresAt = null;
  /** @type {number | null} */
  #refreshAt = null;
  /** @type {string | null} */
  #ticket = null;
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  /** Channels by the id of their `subscribe`. @type {Map<number, { channel: string, sentAt: number | null }>} */
  #subscribing = new Map();
  #requests;
  /** Frames that no reply is kept for, of this connection. @type {Frame[]} */
  #control = [];
  /** @type {Frame[]} */
  #ephemeral = [];
  /** @type {Event[]} */
  #events = [];

  /**
   * @param {object} options
   * @param {() => number} options.random evenly distributed in [0, 1)
   * @param {Partial<typeof LIMITS>} [options.limits]
   */
  constructor({ random, limits = {} }) {
    this.#random = random;
    this.#backoff = new Backoff(random);
    this.#limits = { ...LIMITS, ...limits };
    this.#requests = new Requests(random, this.#limits);
  }

  get state() {
    return this.#state.name;
  }

  /** @param {string} channel @returns {Position | null} */
  position(channel) {
    return this.#subscriptions.get(channel)?.ordering.position ?? null;
  }

  // --- what the app wants -------------------------------------------------------------------------------------------

  /** Connects, and stays connected. @param {number} now */
  open(now) {
    if (this.#state.name !== "idle" && this.#state.name !== "ended") return;
    this.#backoff.reset();
    this.#dial(false, now);
  }

  /** Ends the session in order. @param {number} now */
  close(now) {
    const { name } = this.#state;
    if (name === "ended" || name === "closing") return;
    if (name !== "live") {
      if (name === "greeting") this.#events.push({ type: "hangup", orderly: true });
      this.#end("closed by the app");
      return;
    }
    this.#ephemeral = []; // Nothing follows `done`.
    this.#control.push({ id: 0, name: "done", body: {} });
    this.#become({ name: "closing", deadline: now + this.#limits.closeMs });
  }

  /**
   * Drops the connection as if the network had, and comes back after `holdMs`.
   *
   * @param {number} now
   * @param {number} holdMs
   * @param {string} reason
   */
  drop(now, holdMs, reason) {
    const { name } = this.#state;
    if (name !== "live" && name !== "greeting" && name !== "dialing" && name !== "waiting") return;
    this.#events.push({ type: "hangup", orderly: false });
    this.#lost(now, { code: CloseCode.connectionLost, reason, policy: "now" }, () => holdMs);
  }

  /**
   * @param {string} channel
   * @param {Position | null} position where to begin; null for the head
   */
  subscribe(channel, position) {
    if (this.#state.name === "ended" || this.#state.name === "closing") {
      this.#events.push({ type: "unsubscribed", channel, error: closedError("the session has ended") });
      return;
    }
    const known = this.#subscriptions.get(channel);
    if (known) known.byServer = false;
    if (known && !position) return;
    const subscription = this.#addSubscription(channel, position);
    subscription.listed = known?.listed ?? false;
    if (this.#isOpen) this.#sendSubscribe(channel, subscription);
  }

  /** @param {string} channel */
  unsubscribe(channel) {
    const subscription = this.#subscriptions.get(channel);
    if (!subscription) return;
    this.#forget(channel, subscription, null);
    if (this.#isOpen) this.#control.push({ id: 0, name: "unsubscribe", body: { channel } });
  }

  /**
   * Sends a request, again after each reconnect, until it is answered. One that must not be executed twice carries a
   * key (`publish`).
   *
   * @param {number} now
   * @param {string} name
   * @param {Record<string, any>} body
   * @returns {number} the id that `reply` or `failure` carry
   */
  request(now, name, body) {
    const id = this.#nextId();
    if (this.#state.name === "ended" || this.#state.name === "closing") {
      this.#events.push({ type: "failure", id, error: closedError("the session has ended") });
    } else if (!this.#requests.add(now, id, name, body)) {
      this.#events.push({ type: "failure", id, error: { code: 429, message: "too many requests wait", retry: true } });
    }
    return id;
  }

  /**
   * At most once: dropped where there is no connection. Newest wins.
   *
   * @param {string} channel
   * @param {Payload} payload
   * @returns {boolean} whether it goes out
   */
  publishEphemeral(channel, payload) {
    if (this.#state.name !== "live") return false;
    if (this.#ephemeral.length >= this.#limits.ephemeral) this.#ephemeral.shift();
    this.#ephemeral.push({ id: 0, name: "publish", body: { channel, ...payload, ephemeral: true } });
    return true;
  }

  // --- what the driver reports --------------------------------------------------------------------------------------

  /**
   * The dialled connection is there.
   *
   * @param {number} now
   * @param {object} opened
   * @param {string | null} opened.token
   * @param {boolean} opened.heartbeat whether the server pings on this transport
   */
  handleOpened(now, { token, heartbeat }) {
    if (this.#state.name !== "dialing") return;
    const id = this.#nextId();
    this.#heartbeat = heartbeat;
    this.#lastHeard = now;
    /** @type {Record<string, any>} */
    const body = {};
    if (token !== null) body.token = token;
    if (this.#ticket !== null) body.resume = this.#ticket;
    this.#ticket = null; // Good for one use.
    this.#become({ name: "greeting", id, deadline: now + this.#limits.greetingMs });
    this.#control.push({ id, name: "connect", body });
    for (const [channel, subscription] of this.#subscriptions) {
      // What the server begins by itself can be taken over once it has, not before.
      if (!subscription.listed) this.#sendSubscribe(channel, subscription);
    }
  }

  /**
   * No transport got through, or there is no token.
   *
   * @param {number} now
   * @param {string} reason
   * @param {boolean} [isFinal] trying again would not help
   */
  handleDialFailed(now, reason, isFinal = false) {
    if (this.#state.name !== "dialing") return;
    const policy = isFinal ? "never" : "backoff";
    this.#lost(now, { code: CloseCode.connectionLost, reason, policy });
  }

  /**
   * The connection ended. A number from the server's own range says what to do, unless a `close` frame did.
   *
   * @param {number} now
   * @param {{ code: number, reason: string }} closed
   */
  handleClosed(now, { code, reason }) {
    if (this.#state.name === "closing") return this.#end("closed by the app");
    if (this.#state.name !== "greeting" && this.#state.name !== "live") return;
    const isOurs = code >= 4000 && code < 4300;
    this.#lost(now, { code: isOurs ? code : CloseCode.connectionLost, reason, policy: policyOf(code) });
  }

  /** Anything came: the connection lives. @param {number} now */
  handleActivity(now) {
    this.#lastHeard = now;
  }

  // --- the five verbs -----------------------------------------------------------------------------------------------

  /**
   * @param {number} now
   * @param {Frame} frame from any stream, datagram or message of the connection
   */
  handleFrame(now, frame) {
    const { name } = this.#state;
    if (name !== "greeting" && name !== "live" && name !== "closing") return;
    this.#lastHeard = now;
    const { id, body } = frame;
    switch (frame.name) {
      case "connected":
        return this.#connected(now, id, body);
      case "subscribed":
        return this.#subscribed(now, id, body);
      case "unsubscribed":
        return this.#unsubscribed(id, body);
      case "publication":
        return this.#publication(now, body);
      case "ephemeral":
        if (this.#subscriptions.has(body.channel)) this.#events.push({ type: "ephemeral", ephemeral: body });
        return;
      case "published":
      case "history":
      case "refreshed":
        return this.#reply(now, id, body, frame.name);
      case "error":
        return this.#failed(now, id, /** @type {any} */ (body));
      case "ping":
        this.#control.push({ id: 0, name: "pong", body: {} });
        return;
      case "close":
        return this.#closed(now, body);
    }
  }

  /** @param {number} now */
  handleTimeout(now) {
    const state = this.#state;
    if (state.name === "waiting" && now >= state.until) return this.#dial(state.freshToken, now);
    if (state.name === "closing" && now >= state.deadline) {
      this.#events.push({ type: "hangup", orderly: true });
      return this.#end("closed by the app");
    }
    const isDead =
      (state.name === "greeting" && now >= state.deadline) ||
      (state.name === "live" && this.#heartbeat && now >= this.#lastHeard + 2 * state.pingMs);
    if (isDead) {
      this.#events.push({ type: "hangup", orderly: false });
      const reason = state.name === "greeting" ? "the server did not answer `connect`" : "the server fell silent";
      return this.#lost(now, { code: CloseCode.connectionLost, reason, policy: "backoff" });
    }
    if (state.name !== "live") return;
    if (this.#refreshAt !== null && now >= this.#refreshAt) {
      this.#refreshAt = null;
      this.#events.push({ type: "token_wanted" });
    }
    for (const [channel, subscription] of this.#subscriptions) {
      if (subscription.retryAt !== null && now >= subscription.retryAt) this.#sendSubscribe(channel, subscription);
      else if (subscription.gapSince !== null && now >= subscription.gapSince + this.#limits.gapMs) {
        this.#resubscribe(channel, subscription);
      }
    }
  }

  /** @returns {number | null} when to call `handleTimeout` */
  pollTimeout() {
    const state = this.#state;
    if (state.name === "waiting") return state.until;
    if (state.name === "greeting" || state.name === "closing") return state.deadline;
    if (state.name !== "live") return null;
    let next = this.#heartbeat ? this.#lastHeard + 2 * state.pingMs : Infinity;
    if (this.#refreshAt !== null) next = Math.min(next, this.#refreshAt);
    for (const { retryAt, gapSince } of this.#subscriptions.values()) {
      if (retryAt !== null) next = Math.min(next, retryAt);
      if (gapSince !== null) next = Math.min(next, gapSince + this.#limits.gapMs);
    }
    next = Math.min(next, this.#requests.nextAt());
    return next === Infinity ? null : next;
  }

  /**
   * The next frame to send.
   *
   * @param {number} now
   * @returns {{ lane: 'control' | 'ephemeral', frame: Frame } | null}
   */
  pollTransmit(now) {
    if (!this.#isOpen && this.#state.name !== "closing") return null;
    const control = this.#control.shift();
    if (control) {
      const subscribing = this.#subscribing.get(control.id);
      if (subscribing) subscribing.sentAt = now;
      return { lane: "control", frame: control };
    }
    if (this.#isOpen) {
      const { request, forgotten } = this.#requests.next(now);
      for (const id of forgotten) this.#events.push({ type: "failure", id, error: unknownOutcome() });
      if (request) return { lane: "control", frame: { id: request.id, name: request.name, body: request.body } };
    }
    const ephemeral = this.#ephemeral.shift();
    return ephemeral ? { lane: "ephemeral", frame: ephemeral } : null;
  }

  /** @returns {Event | null} */
  pollEvent() {
    return this.#events.shift() ?? null;
  }

  // --- frames -------------------------------------------------------------------------------------------------------

  /** @param {number} now @param {number} id @param {Record<string, any>} body */
  #connected(now, id, body) {
    if (this.#state.name !== "greeting" || id !== this.#state.id) return;
    this.#rtt(now, this.#state.deadline - this.#limits.greetingMs);
    this.#ticket = body.resume ?? null;
    this.#setExpiry(now, body.expires_ms);
    this.#become({ name: "live", since: now, pingMs: Math.max(body.ping_ms, 1_000) });
    this.#events.push({ type: "connected", body });
    const listed = new Set(body.subscriptions.map((/** @type {any} */ begun) => begun.channel));
    for (const [channel, subscription] of this.#subscriptions) {
      if (!subscription.listed || listed.has(channel)) continue;
      subscription.listed = false;
      if (!subscription.byServer) this.#sendSubscribe(channel, subscription);
      else this.#forget(channel, subscription, { code: 404, message: "no longer begun by the server", retry: false });
    }
    for (const begun of body.subscriptions) this.#takeOver(now, begun);
  }

  /**
   * A subscription that the server began by itself, at the head: it goes on from the position that the app has.
   *
   * @param {number} now
   * @param {Record<string, any>} begun
   */
  #takeOver(now, begun) {
    const { channel } = begun;
    const known = this.#subscriptions.get(channel);
    const subscription = known ?? this.#addSubscription(channel, null);
    subscription.byServer ||= !known;
    subscription.listed = true;
    // What was asked before it was known to be listed is answered by "already subscribed".
    this.#subscribing.delete(subscription.requestId);
    if (subscription.ordering.position) this.#sendSubscribe(channel, subscription);
    else this.#begin(now, channel, subscription, begun, true);
  }

  /** @param {number} now @param {number} id @param {Record<string, any>} body */
  #subscribed(now, id, body) {
    const subscription = this.#subscriptions.get(body.channel);
    const asked = this.#subscribing.get(id);
    this.#subscribing.delete(id);
    if (asked) this.#rtt(now, asked.sentAt);
    // An answer to a subscription that was left meanwhile, or asked for again, says nothing.
    if (!subscription || (id !== 0 && id !== subscription.requestId)) return;
    if (id === 0 && subscription.ordering.isPending) {
      // It came by the subscription's own stream and overtook the reply.
      if (subscription.requestId !== 0) subscription.overtook = body;
      return;
    }
    if (id === 0 && subscription.ordering.isBefore(body.position)) return; // Of a subscription that was left.
    this.#begin(now, body.channel, subscription, body, id !== 0);
    const { overtook } = subscription;
    subscription.overtook = null;
    if (overtook && id !== 0) this.#subscribed(now, 0, overtook);
  }

  /**
   * @param {number} now
   * @param {string} channel
   * @param {Subscription} subscription
   * @param {Record<string, any>} subscribed
   * @param {boolean} isReply
   */
  #begin(now, channel, subscription, subscribed, isReply) {
    subscription.requestId = 0;
    subscription.retryAt = null;
    subscription.conflicted = false;
    subscription.backoff.reset();
    const { ordering } = subscription;
    const { how, missed, publications } = ordering.begin(subscribed, isReply);
    const position = subscribed.position ?? { epoch: "", offset: 0 };
    const { conflated } = ordering;
    this.#events.push({ type: "subscribed", channel, position, how, missed, conflated, byServer: subscription.byServer });
    this.#deliver(now, channel, subscription, publications);
  }

  /** @param {number} id @param {Record<string, any>} body */
  #unsubscribed(id, body) {
    const subscription = this.#subscriptions.get(body.channel);
    // Ours were forgotten when they were sent, without an id.
    if (id === 0 && subscription && subscription.requestId === 0) {
      this.#forget(body.channel, subscription, body.error ?? null);
    }
  }

  /** @param {number} now @param {Record<string, any>} body */
  #publication(now, body) {
    const subscription = this.#subscriptions.get(body.channel);
    if (subscription) this.#deliver(now, body.channel, subscription, subscription.ordering.take(body));
  }

  /**
   * @param {number} now
   * @param {string} channel
   * @param {Subscription} subscription
   * @param {Record<string, any>[]} publications
   */
  #deliver(now, channel, subscription, publications) {
    const { ordering } = subscription;
    const epoch = ordering.position?.epoch ?? "";
    for (const publication of publications) {
      const recovered = publication.offset <= ordering.recoveredTo;
      this.#events.push({ type: "publication", publication, epoch, recovered });
    }
    if (ordering.overflowed) return this.#resubscribe(channel, subscription);
    if (!ordering.hasGap) subscription.gapSince = null;
    else if (publications.length > 0 || subscription.gapSince === null) subscription.gapSince = now;
  }

  /** @param {number} now @param {number} id @param {Record<string, any>} body @param {string} name */
  #reply(now, id, body, name) {
    const request = this.#requests.take(id);
    if (!request) return;
    this.#rtt(now, request.sentAt);
    if (name === "refreshed") this.#setExpiry(now, body.expires_ms);
    this.#events.push({ type: "reply", id, body });
  }

  /** @param {number} now @param {number} id @param {RequestError} error */
  #failed(now, id, error) {
    const asked = this.#subscribing.get(id);
    if (asked) {
      this.#rtt(now, asked.sentAt);
      return this.#subscribeFailed(now, id, asked.channel, error);
    }
    const sentAt = this.#requests.sentAt(id);
    if (sentAt === null) return;
    this.#rtt(now, sentAt);
    if (error.retry && this.#requests.retry(now, id)) return;
    this.#requests.take(id);
    this.#events.push({ type: "failure", id, error });
  }

  /** @param {number} now @param {number} id @param {string} channel @param {RequestError} error */
  #subscribeFailed(now, id, channel, error) {
    this.#subscribing.delete(id);
    const subscription = this.#subscriptions.get(channel);
    if (!subscription || subscription.requestId !== id) return;
    subscription.requestId = 0;
    if (error.code === 409 && !subscription.conflicted) {
      // A repeated long-poll request asked twice. Only a new subscription says where it stands.
      this.#resubscribe(channel, subscription);
      subscription.conflicted = true;
    } else if (error.retry) {
      subscription.retryAt = now + subscription.backoff.next();
    } else {
      this.#forget(channel, subscription, error);
    }
  }

  /** @param {number} now @param {Record<string, any>} body */
  #closed(now, body) {
    this.#events.push({ type: "hangup", orderly: true });
    if (this.#state.name === "closing") return this.#end("closed by the app");
    const policy = body.reconnect?.policy ?? policyOf(body.code);
    const afterMs = body.reconnect?.after_ms ?? 0;
    // A server that names a time names it to many: they come back spread over as long again, at most a second.
    const spreadMs = this.#random() * Math.min(afterMs, 1_000);
    const why = { code: body.code, reason: body.reason, policy };
    this.#lost(now, why, () => Math.max(this.#delay(policy), afterMs + spreadMs));
  }

  // --- the rest -----------------------------------------------------------------------------------------------------

  get #isOpen() {
    return this.#state.name === "greeting" || this.#state.name === "live";
  }

  #nextId() {
    this.#lastId += 1;
    return this.#lastId;
  }

  /** @param {State} state */
  #become(state) {
    this.#state = state;
    this.#events.push({ type: "state" });
  }

  /** @param {boolean} freshToken @param {number} now */
  #dial(freshToken, now) {
    const isExpired = this.#expiresAt !== null && now >= this.#expiresAt - this.#limits.greetingMs;
    this.#become({ name: "dialing" });
    this.#events.push({ type: "dial", freshToken: freshToken || isExpired });
  }

  /**
   * @param {number} now
   * @param {{ code: number, reason: string, policy: ReconnectPolicy }} why
   * @param {() => number} [delay] until the next attempt, milliseconds
   */
  #lost(now, { code, reason, policy }, delay = () => this.#delay(policy)) {
    const state = this.#state;
    if (state.name === "live" && now - state.since >= this.#limits.stableMs) this.#backoff.reset();
    this.#control = [];
    this.#ephemeral = [];
    this.#subscribing.clear();
    this.#refreshAt = null;
    if (code === CloseCode.badResume) this.#ticket = null;
    for (const subscription of this.#subscriptions.values()) {
      subscription.ordering.restart();
      subscription.overtook = null;
      subscription.requestId = 0;
      subscription.retryAt = subscription.gapSince = null;
    }
    this.#requests.restart();
    if (policy === "never") {
      this.#events.push({ type: "disconnected", code, reason, policy, retryInMs: null });
      return this.#end(reason);
    }
    const retryInMs = delay();
    this.#events.push({ type: "disconnected", code, reason, policy, retryInMs });
    this.#become({ name: "waiting", until: now + retryInMs, freshToken: policy === "fresh_token" });
  }

  /** @param {ReconnectPolicy} policy */
  #delay(policy) {
    return policy === "backoff" ? this.#backoff.next() : this.#backoff.nextAtOnce();
  }

  /** @param {string} reason */
  #end(reason) {
    this.#control = [];
    this.#ephemeral = [];
    for (const id of this.#requests.drain()) this.#events.push({ type: "failure", id, error: closedError(reason) });
    for (const [channel, subscription] of [...this.#subscriptions]) {
      this.#forget(channel, subscription, closedError(reason));
    }
    this.#ticket = null;
    this.#expiresAt = null;
    this.#become({ name: "ended" });
  }

  /** @param {string} channel @param {Position | null} position @returns {Subscription} */
  #addSubscription(channel, position) {
    /** @type {Subscription} */
    const subscription = {
      ordering: new Ordering(position, this.#limits.held),
      requestId: 0,
      retryAt: null,
      gapSince: null,
      byServer: false,
      listed: false,
      conflicted: false,
      overtook: null,
      backoff: new Backoff(this.#random),
    };
    this.#subscriptions.set(channel, subscription);
    return subscription;
  }

  /** @param {string} channel @param {Subscription} subscription */
  #sendSubscribe(channel, subscription) {
    const id = this.#nextId();
    const { position } = subscription.ordering;
    subscription.ordering.restart();
    subscription.overtook = null;
    subscription.retryAt = subscription.gapSince = null;
    subscription.requestId = id;
    this.#subscribing.set(id, { channel, sentAt: null });
    this.#control.push({ id, name: "subscribe", body: position ? { channel, position } : { channel } });
  }

  /** Begins anew from the last position. @param {string} channel @param {Subscription} subscription */
  #resubscribe(channel, subscription) {
    this.#control.push({ id: 0, name: "unsubscribe", body: { channel } });
    this.#sendSubscribe(channel, subscription);
  }

  /** @param {string} channel @param {Subscription} subscription @param {RequestError | null} error */
  #forget(channel, subscription, error) {
    this.#subscriptions.delete(channel);
    this.#subscribing.delete(subscription.requestId);
    this.#events.push({ type: "unsubscribed", channel, error });
  }

  /** @param {number} now @param {number | undefined} expiresMs */
  #setExpiry(now, expiresMs) {
    this.#expiresAt = expiresMs === undefined ? null : now + expiresMs;
    this.#refreshAt = expiresMs === undefined ? null : now + expiresMs - Math.min(60_000, expiresMs / 4);
  }

  /** @param {number} now @param {number | null} sentAt */
  #rtt(now, sentAt) {
    if (sentAt !== null) this.#events.push({ type: "rtt", ms: now - sentAt });
  }
}

/** Error code of a request that ended with its session. */
export const SESSION_ENDED = 0;

/** Error code of a publish that may or may not have been kept. */
export const UNKNOWN_OUTCOME = 1;

/** @param {string} reason @returns {RequestError} */
function closedError(reason) {
  return { code: SESSION_ENDED, message: reason, retry: false };
}

/** @returns {RequestError} */
function unknownOutcome() {
  const message = "no answer for so long that a repeat could be stored twice: it may or may not have been kept";
  return { code: UNKNOWN_OUTCOME, message, retry: false };
}

const LIMITS = {
  /** From opening a connection to `connected`. */
  greetingMs: 10_000,
  /** From `done` to the server's `close`. */
  closeMs: 1_000,
  /** A connection that held for so long ends the series of attempts. */
  stableMs: 5_000,
  /** A gap that is still open after so long is closed by subscribing again. */
  gapMs: 5_000,
  /** How long a server surely remembers a publish's key (it does for 5 minutes). */
  keyMs: 270_000,
  /** Requests that wait or are in flight. */
  requests: 4_096,
  /** Requests in flight: half of what a server reads ahead. */
  inFlight: 32,
  /** Tries of a request that the server answers with `retry`. */
  attempts: 8,
  /** Ephemeral items that wait for the driver. */
  ephemeral: 64,
  /** What a subscription holds until a gap is filled. */
  held: { items: 1_024, bytes: 1 << 20 },
};
