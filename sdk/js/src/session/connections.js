/**
 * Sans-io: the connections of a session: the one that there is, the one that it moves to, those that it left, and the
 * waits between attempts.
 *
 * @import { Channels } from './channels.js'
 * @import { Departure } from './goaway.js'
 * @import { Cause, Dial } from '../reconnect.js'
 * @import { Requests } from './requests.js'
 * @import { Event, TokenWanted, Why } from './types.js'
 *
 * @typedef {{ name: 'idle' } | { name: 'ended' } | { name: 'open' }
 *   | { name: 'waiting', until: number, notBefore: number, token: TokenWanted, host: string | null }
 *   | { name: 'closing', deadline: number }} State
 */

import { CloseCode, policyOf } from "../close-codes.js";
import { PATIENCE_MS, Reconnect, believed, hintOf, withoutTicket } from "../reconnect.js";
import { Connection } from "./connection.js";
import { departure, escape, putOff, putOffUntil, takeTurn } from "./goaway.js";
import { Ticket, isTicketRefusal } from "./ticket.js";
import { LIMITS, closedError } from "./types.js";

export class Connections {
  /** @type {State} */
  #state = { name: "idle" };
  /** @type {Connection | null} */
  current = null;
  /** @type {Connection | null} */
  next = null;
  /** Left, and told so. @type {Connection[]} */
  #retired = [];
  /** What the last connection's server asked for, where it was lost first. @type {Departure | null} */
  #leftBehind = null;
  /** When a new token is due. @type {number | null} */
  refreshAt = null;
  /** @type {number | null} */
  #expiresAt = null;
  #lastConnection = 0;
  #ticket;
  /** What the next dial shows: the place that is kept for it. @type {string | null} */
  #slotTicket = null;
  /** When the driver last said so. */
  #networkChangedAt = -Infinity;
  #random;
  #reconnect;
  #limits;
  #emit;
  #nextId;
  #channels;
  #requests;
  #endpoints;

  /**
   * @param {object} options
   * @param {(event: Event) => void} options.emit
   * @param {() => number} options.nextId
   * @param {() => number} options.random
   * @param {() => string} options.makeKey
   * @param {typeof LIMITS} options.limits
   * @param {{ baseMs?: number, capMs?: number }} options.backoff
   * @param {Channels} options.channels
   * @param {Requests} options.requests
   * @param {string[]} options.endpoints hosts, with ports, of the app's own addresses
   */
  constructor({ emit, nextId, random, makeKey, limits, backoff, channels, requests, endpoints }) {
    this.#emit = emit;
    this.#nextId = nextId;
    this.#random = random;
    this.#reconnect = new Reconnect(random, { ...backoff, stableMs: limits.stableMs });
    this.#limits = limits;
    this.#ticket = new Ticket(makeKey);
    this.#channels = channels;
    this.#requests = requests;
    this.#endpoints = endpoints;
  }

  /** @returns {'idle' | 'dialing' | 'greeting' | 'live' | 'waiting' | 'closing' | 'ended'} */
  get state() {
    if (this.#state.name !== "open") return this.#state.name;
    const phase = this.current?.phase ?? "dialing";
    return phase === "retired" ? "closing" : phase;
  }

  /** Connections that frames may travel on, the one that delivers first. @returns {Connection[]} */
  get open() {
    /** @type {Connection[]} */
    const open = [];
    for (const each of [this.current, this.next]) if (each?.isOpen) open.push(each);
    return open;
  }

  /** Those that frames go out on, what was left first. @returns {Connection[]} */
  get sending() {
    return [...this.#retired, ...this.open];
  }

  /** What requests go out on. @returns {Connection | null} */
  get sender() {
    if (this.#state.name !== "open") return null;
    return this.next?.phase === "live" ? this.next : this.current?.isOpen ? this.current : null;
  }

  /** @param {number} id @returns {Connection | null} */
  find(id) {
    for (const each of [this.current, this.next, ...this.#retired]) if (each?.id === id) return each;
    return null;
  }

  // --- what the app wants -------------------------------------------------------------------------------------------

  /** Connects, and stays connected. @param {number} now */
  start(now) {
    if (this.#state.name !== "idle" && this.#state.name !== "ended") return;
    this.#reconnect.reset();
    this.#dial("known", now, null);
  }

  /** Ends the session in order. @param {number} now */
  close(now) {
    const { state } = this;
    if (state === "ended" || state === "closing") return;
    this.#dropNext();
    for (const { id } of this.#retired.splice(0)) this.#hangUp(id, true);
    if (state !== "live" || !this.current) {
      if (state === "greeting" && this.current) this.#hangUp(this.current.id, true);
      return this.#end("closed by the app");
    }
    this.current.control.push({ id: 0, name: "done", body: {} });
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
    if (this.#state.name !== "open" && this.#state.name !== "waiting") return;
    this.#dropNext();
    if (this.current) this.#hangUp(this.current.id, false);
    this.#reconnect.endOutage(now);
    this.#lost(now, { code: CloseCode.connectionLost, reason, policy: "now" }, () => ({ delayMs: holdMs, host: null, ticket: null }));
  }

  /**
   * Opens another connection beside the one that there is, to move there. No event tells more until `moved` or
   * `move_failed`.
   *
   * @param {number} now
   * @returns {boolean} false where there is none to move from, or it is moving already
   */
  move(now) {
    if (this.state !== "live" || this.next) return false;
    this.#dialNext("known", now);
    return true;
  }

  /** Stays where it is. @param {number} now @param {string} reason */
  abandonMove(now, reason) {
    if (this.next) this.#loseNext(now, { code: CloseCode.connectionLost, reason, policy: "backoff" });
  }

  /** The device has another network, or says that it has none: nobody knows what still works. @param {number} now */
  networkChanged(now) {
    this.#networkChangedAt = now;
    const state = this.#state;
    if (state.name === "waiting") {
      const { delayMs, host } = this.#reconnect.handleEnded(now, { cause: "network_changed" });
      state.until = Math.min(state.until, Math.max(now + delayMs, state.notBefore));
      state.host = host;
      // It was for the address that the device had.
      this.#slotTicket = null;
    }
    if (this.state === "live") this.current?.ping(this.#nextId(), now);
  }

  // --- what the driver reports --------------------------------------------------------------------------------------

  /**
   * The dialled connection is there.
   *
   * @param {number} now
   * @param {number} connection
   * @param {object} opened
   * @param {string | null} opened.token
   * @param {boolean} opened.heartbeat whether the server pings on this transport
   */
  handleOpened(now, connection, { token, heartbeat }) {
    const opened = this.find(connection);
    if (opened?.phase !== "dialing") return;
    const ticket = this.#ticket.use();
    opened.phase = "greeting";
    opened.openedAt = now;
    opened.heartbeat = heartbeat;
    opened.isResuming = ticket.resume !== undefined;
    opened.greetingId = this.#nextId();
    opened.liveness.heard(now);
    const slot = this.#slot(now);
    const body = { ...(token !== null && { token }), ...ticket, ...(slot !== undefined && { slot }), moves: true };
    opened.control.push({ id: opened.greetingId, name: "connect", body });
    this.#channels.open(opened);
    if (opened === this.current) this.#emit({ type: "state" });
  }

  /**
   * No transport got through, or there is no token.
   *
   * @param {number} now
   * @param {number} connection
   * @param {string} reason
   * @param {boolean} [isFinal] trying again would not help
   */
  handleDialFailed(now, connection, reason, isFinal = false) {
    const failed = this.find(connection);
    if (failed?.phase !== "dialing") return;
    const why = /** @type {Why} */ ({ code: CloseCode.connectionLost, reason, policy: isFinal ? "never" : "backoff" });
    this.#lose(now, failed, why, { cause: "unreachable" });
  }

  /**
   * The connection ended. A number from the server's own range says what to do, unless a `close` frame did.
   *
   * @param {number} now
   * @param {number} connection
   * @param {{ code: number, reason: string }} closed
   */
  handleClosed(now, connection, { code, reason }) {
    const closed = this.find(connection);
    if (!closed || closed.phase === "dialing") return;
    const isOurs = code >= 4000 && code < 4300;
    const policy = policyOf(code);
    const hint = policy === "backoff" ? hintOf(reason) : null;
    const cause = hint ?? (isOurs ? /** @type {Cause} */ ({ cause: "closed", policy, afterMs: 0 }) : lossOf(closed));
    this.#lose(now, closed, { code: isOurs ? code : CloseCode.connectionLost, reason, policy }, cause);
  }

  // --- frames -------------------------------------------------------------------------------------------------------

  /** The server took the connection. @param {number} now @param {Connection} connection @param {Record<string, any>} body */
  handleConnected(now, connection, body) {
    connection.phase = "live";
    connection.liveSince = now;
    connection.pingMs = Math.max(body.ping_ms, 1_000);
    connection.connected = body;
    connection.setPlan(believed(body.plan));
    this.#leftBehind = null;
    this.#ticket.begin(connection.id, body.resume);
    this.setExpiry(now, body.expires_ms);
    if (connection === this.current) {
      this.#reconnect.handleConnected(now);
      this.#emit({ type: "state" });
      this.#emit({ type: "connected", connection: connection.id, body });
    }
    this.#channels.connected(now, connection, this.open);
    this.settle(now);
  }

  /** A `ping` may bring a fresher ticket, and a newer plan. @param {Connection} connection @param {Record<string, any>} ping */
  handlePing(connection, { resume, plan }) {
    this.#ticket.renew(connection.id, resume);
    if (plan) connection.setPlan(believed(plan));
  }

  /** The server wants to be left. @param {number} now @param {Connection} connection @param {Record<string, any>} body */
  handleGoaway(now, connection, body) {
    if (connection.phase !== "live") return;
    const isAllowed = (/** @type {string} */ endpoint) =>
      this.#endpoints.includes(endpoint) || connection.alternatives.includes(endpoint);
    const asked = departure(now, body, isAllowed);
    if (!asked) return this.#emit({ type: "goaway_ignored", endpoint: String(body.endpoint).slice(0, 255) });
    const before = connection.departure;
    connection.departure = asked;
    if (connection !== this.current || !before || before.tries === 0) return;
    // Where it was to go before does not count any more; also where it seems to be there: who sent it there knows better.
    const isElsewhere = asked.endpoint !== before.endpoint || this.next?.phase === "dialing";
    if (isElsewhere) this.abandonMove(now, "the server names another place");
  }

  /** Nothing is heard of the server: the session leaves in its turn, as if it had been lost. @param {number} now */
  escape(now) {
    const { current } = this;
    // One that is over, as of a server that stayed after all, stands in the way of nothing.
    const isAsked = current?.departure && now < current.departure.deadline;
    if (!current || isAsked || current.deadAt === Infinity) return;
    const dial = this.#reconnect.foresee(current.plan);
    if (!dial || dial.host === null) return;
    const at = current.liveness.heardAt + dial.delayMs;
    current.departure = escape(now, { endpoint: dial.host, at, deadline: current.deadAt });
  }

  /** The server is heard again. @param {Connection} connection */
  stay(connection) {
    if (connection.departure?.isUnasked) connection.departure = null;
  }

  /** What `goaway` asked for could not be done now. @param {number} now */
  notLeft(now) {
    if (this.current?.departure) putOff(this.current.departure, now, this.#random());
  }

  /** A `close` frame. @param {number} now @param {Connection} connection @param {Record<string, any>} body */
  handleClose(now, connection, body) {
    const { code, reason } = body;
    const policy = body.reconnect?.policy ?? policyOf(code);
    const { after_ms: named, slot } = body.reconnect ?? {};
    const afterMs = Math.min(named ?? 0, MAX_AFTER_MS);
    const ticket = slot !== undefined && slot.length <= MAX_SLOT ? slot : null;
    // The text says the same, for those who see nothing else.
    let hint = named === undefined && ticket === null ? hintOf(reason) : null;
    if (ticket !== null || (named !== undefined && code === CloseCode.overloaded)) hint = { cause: "deferred", afterMs, ticket };
    this.#hangUp(connection.id, true);
    const closed = /** @type {Cause} */ ({ cause: "closed", policy, afterMs });
    this.#lose(now, connection, { code, reason, policy }, policy === "backoff" && hint ? hint : closed);
  }

  /** Moves, once the next connection has all there is, or has had its time. @param {number} now */
  settle(now) {
    const [current, next] = [this.current, this.next];
    if (!current || next?.phase !== "live") return;
    if (!this.#channels.areSettledOn(next) && now < next.liveSince + this.#limits.moveMs) return;
    this.#channels.lost(current, next);
    this.#takeOver(now);
    current.retire(now);
    this.#retired.push(current);
    if (this.#retired.length > this.#limits.retired) this.#hangUp(this.#retired.shift()?.id ?? 0, true);
  }

  /** @param {number} now @param {number | undefined} expiresMs */
  setExpiry(now, expiresMs) {
    this.#expiresAt = expiresMs === undefined ? null : now + expiresMs;
    this.refreshAt = expiresMs === undefined ? null : now + expiresMs - Math.min(60_000, expiresMs / 4);
  }

  // --- time ---------------------------------------------------------------------------------------------------------

  /** @param {number} now */
  handleTimeout(now) {
    const state = this.#state;
    if (state.name === "waiting" && now >= state.until) return this.#dial(state.token, now, state.host);
    if (state.name === "closing" && now >= state.deadline) {
      if (this.current) this.#hangUp(this.current.id, true);
      return this.#end("closed by the app");
    }
    for (const each of [...this.#retired, this.next, this.current]) {
      if (each && now >= each.deadAt) this.#dead(now, each);
    }
    const asked = now >= this.#departureAt ? this.current?.departure : null;
    if (asked) this.#emit({ type: "goaway", endpoint: takeTurn(asked, now) });
  }

  /** @returns {number} when to call `handleTimeout`; infinity for never */
  nextAt() {
    const state = this.#state;
    let next = this.#departureAt;
    for (const { hangupAt } of this.#retired) next = Math.min(next, hangupAt);
    if (state.name === "waiting") next = Math.min(next, state.until);
    if (state.name === "closing") next = Math.min(next, state.deadline);
    for (const each of [this.current, this.next]) if (each) next = Math.min(next, each.deadAt);
    if (this.next?.phase === "live") next = Math.min(next, this.next.liveSince + this.#limits.moveMs);
    return next;
  }

  // --- the rest -----------------------------------------------------------------------------------------------------

  /** When to leave; infinity while it is on its way already. */
  get #departureAt() {
    const asked = this.state === "live" && !this.next ? this.current?.departure : null;
    return asked && asked.tryAt < asked.deadline ? asked.tryAt : Infinity;
  }

  /** What to show in `connect`: the place that is kept for the session elsewhere. @param {number} now */
  #slot(now) {
    const asked = this.current?.departure ?? this.#leftBehind;
    const ofAsked = asked && now < asked.deadline ? asked.slot : undefined;
    return this.current?.phase === "live" ? ofAsked : (this.#slotTicket ?? ofAsked);
  }

  /** @param {TokenWanted} token @param {number} now @param {string | null} host whom; null for whomever was dialled last */
  #dial(token, now, host) {
    this.current = this.#makeConnection(now);
    const isFirst = this.#reconnect.isFirstDial;
    if (isFirst) this.current.giveUpAt = now + PATIENCE_MS;
    this.#become({ name: "open" });
    const wanted = this.#freshIfExpired(token, now);
    this.#emit({ type: "dial", connection: this.current.id, token: wanted, isBeside: false, host, isFirst });
  }

  /** @param {TokenWanted} token @param {number} now */
  #dialNext(token, now) {
    this.next = this.#makeConnection(now);
    this.#emit({ type: "dial", connection: this.next.id, token: this.#freshIfExpired(token, now), isBeside: true, host: null, isFirst: false });
  }

  /** @param {TokenWanted} token @param {number} now @returns {TokenWanted} */
  #freshIfExpired(token, now) {
    const isExpired = this.#expiresAt !== null && now >= this.#expiresAt - this.#limits.greetingMs;
    return isExpired && token === "known" ? "fresh" : token;
  }

  /** @param {number} now */
  #makeConnection(now) {
    this.#lastConnection += 1;
    return new Connection(this.#lastConnection, now, this.#limits);
  }

  /** The next connection, which is live, is the one. */
  /** @param {number} now */
  #takeOver(now) {
    const next = this.next;
    if (!next) return;
    this.#reconnect.handleMoved(now, true);
    if (this.current?.liveness.isSuspect) this.#emit({ type: "suspect", isSuspect: false });
    this.current = next;
    this.next = null;
    this.#emit({ type: "moved", connection: next.id, body: next.connected });
  }

  /** Neither the transport nor the server says anything. @param {number} now @param {Connection} connection */
  #dead(now, connection) {
    this.#hangUp(connection.id, connection.phase === "retired");
    const reason = SILENCE[connection.phase];
    this.#lose(now, connection, { code: CloseCode.connectionLost, reason, policy: "backoff" }, lossOf(connection));
  }

  /**
   * @param {number} now
   * @param {Connection} connection
   * @param {Why} why
   * @param {Cause} cause
   */
  #lose(now, connection, { code, reason, policy: advised }, cause) {
    const why = { code, reason: withoutTicket(reason), policy: advised };
    if (connection.phase === "retired") {
      this.#retired = this.#retired.filter((each) => each !== connection);
      this.#requests.lost(connection.id);
      return;
    }
    if (this.#state.name === "closing") return this.#end("closed by the app");
    const isAttempt = connection.phase === "greeting" && connection.isResuming;
    // An attempt that came too late is of no more use than one that is refused.
    const wasRefused = isAttempt && (isTicketRefusal(why.code) || why.code === CloseCode.superseded);
    const wasOurs = why.code === CloseCode.superseded && (isAttempt || this.#ticket.wasTakenFrom(connection.id));
    if (isTicketRefusal(why.code) || wasRefused || why.code === CloseCode.tokenExpired) this.#ticket.drop();
    const policy = wasOurs ? "now" : why.policy;
    if (connection === this.next) {
      if (cause.cause === "deferred" && this.current?.departure) putOffUntil(this.current.departure, now + cause.afterMs, cause.ticket);
      return this.#loseNext(now, { ...why, policy }, wasRefused);
    }
    const afterMs = cause.cause === "closed" ? cause.afterMs : 0;
    if (this.next && policy !== "never") return this.#inherit(now, connection, { ...why, policy });
    const decide = () => {
      if (connection.phase === "live") this.#reconnect.handlePlan(connection.plan);
      // A ticket is refused once: that is no loop.
      if (wasRefused && policy !== "backoff") return { delayMs: afterMs, host: null, ticket: null };
      const isLocal = cause.cause === "lost" && now - this.#networkChangedAt < LOCAL_MS;
      this.#networkChangedAt = -Infinity;
      if (isLocal) return this.#reconnect.handleEnded(now, { cause: "network_changed" });
      return this.#reconnect.handleEnded(now, policy === why.policy ? cause : { cause: "closed", policy, afterMs });
    };
    this.#lost(now, { ...why, policy }, decide, now + afterMs);
  }

  /** The current connection died; the next one is all there is. @param {number} now @param {Connection} died @param {Why} why */
  #inherit(now, died, why) {
    const next = this.next;
    if (!next) return;
    this.#hangUp(died.id, false);
    this.#requests.lost(died.id);
    this.#channels.lost(died, next);
    if (next.phase === "live") {
      this.#takeOver(now);
      return this.settle(now);
    }
    this.#reconnect.handleMoved(now, false);
    this.current = next;
    this.next = null;
    this.#emit({ type: "disconnected", ...why, policy: "now", retryInMs: 0 });
    this.#emit({ type: "state" });
  }

  /**
   * @param {number} now
   * @param {Why} why
   * @param {boolean} [wasRefused] its ticket was
   */
  #loseNext(now, why, wasRefused = false) {
    const [current, lost] = [this.current, this.next];
    if (!current || !lost) return;
    const isConnected = lost.phase === "live";
    this.#hangUp(lost.id, false);
    this.next = null;
    // Where it began a session of its own, the current one's is not spent, and its `ping` brings a ticket again.
    if (isConnected && !lost.connected.resumed) this.#ticket.drop(current.id);
    this.#requests.lost(lost.id);
    this.#channels.handBack(now, current);
    if (wasRefused) return this.#dialNext(why.code === CloseCode.badResume ? "fresh_if_any" : "known", now);
    this.notLeft(now);
    this.#emit({ type: "move_failed", connection: lost.id, why, isConnected });
  }

  /** Without a word to anybody. */
  #dropNext() {
    if (!this.next) return;
    this.#hangUp(this.next.id, false);
    this.#requests.lost(this.next.id);
    this.next = null;
  }

  /**
   * @param {number} now
   * @param {Why} why
   * @param {() => Dial} decide when to dial again, and whom
   * @param {number} [notBefore]
   */
  #lost(now, { code, reason, policy }, decide, notBefore = now) {
    const died = this.current;
    this.#dropNext();
    this.current = null;
    this.refreshAt = null;
    if (died) {
      this.#leftBehind = died.departure ?? this.#leftBehind;
      this.#requests.lost(died.id);
      this.#channels.lost(died, null);
      if (died.liveness.isSuspect) this.#emit({ type: "suspect", isSuspect: false });
    }
    if (policy === "never") {
      this.#emit({ type: "disconnected", code, reason, policy, retryInMs: null });
      return this.#end(reason);
    }
    const wasRefused = isTicketRefusal(code);
    const token = policy !== "fresh_token" ? "known" : wasRefused ? "fresh_if_any" : "fresh";
    const { delayMs: retryInMs, host, ticket } = decide();
    this.#slotTicket = ticket;
    this.#emit({ type: "disconnected", code, reason, policy, retryInMs });
    this.#become({ name: "waiting", until: now + retryInMs, notBefore, token, host });
  }

  /** @param {State} state */
  #become(state) {
    this.#state = state;
    this.#emit({ type: "state" });
  }

  /** @param {number} connection @param {boolean} orderly */
  #hangUp(connection, orderly) {
    this.#emit({ type: "hangup", connection, orderly });
  }

  /** @param {string} reason */
  #end(reason) {
    this.current = null;
    for (const { id } of this.#retired.splice(0)) this.#hangUp(id, true);
    for (const id of this.#requests.drain()) this.#emit({ type: "failure", id, error: closedError(reason) });
    this.#channels.end(closedError(reason));
    this.#ticket.drop();
    this.#expiresAt = null;
    this.refreshAt = null;
    this.#become({ name: "ended" });
  }
}

/** What it means that a connection ended without a word. @param {Connection} connection @returns {Cause} */
const lossOf = ({ phase }) => ({ cause: phase === "live" ? "lost" : "unreachable" });

/** @type {Record<Connection['phase'], string>} */
const SILENCE = {
  dialing: "nothing came back in time",
  greeting: "the server did not answer `connect`",
  live: "the server fell silent",
  retired: "the server fell silent",
};

/** A connection that ends so soon after a change of network ends because of it. */
const LOCAL_MS = 10_000;
const MAX_AFTER_MS = 600_000;
const MAX_SLOT = 512;
