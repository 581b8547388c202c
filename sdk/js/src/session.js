/**
 * Sans-io: the client's half of a session. Fed with frames, reports of its driver and `now` (milliseconds of any
 * monotonic clock); answers with frames to send, events to act upon, and when it wants to be woken.
 *
 *     idle ──open──► dialing ──opened──► greeting ──connected──► live ◄─┐
 *       ▲              │ ▲ failed, lost     │                     │ │   │ moved: the next connection is live, and
 *       │              ▼ │                  │                     │ └───┘ has every subscription answered
 *       │            waiting ◄──── lost ────┴─────────────────────┤
 *     ended ◄── close code that says `never`, or closing ◄─close──┘
 *
 * While it moves it holds two connections, `current` and `next`. `current` goes on delivering; what waits for an answer is
 * asked on `next` too, and the first answer counts. If `next` fails, `current` goes on as if nothing had been; if
 * `current` dies first, `next` is all there is, without waiting.
 *
 * @import { Frame } from './codec.js'
 * @import { Connection } from './session/connection.js'
 * @import { Event, Payload, Position, RequestError } from './session/types.js'
 */

import { Channels } from "./session/channels.js";
import { Connections } from "./session/connections.js";
import { Requests } from "./session/requests.js";
import { LIMITS, closedError, unknownOutcome } from "./session/types.js";

export class Session {
  #limits;
  #lastId = 0;
  #connections;
  #channels;
  #requests;
  /** @type {Frame[]} */
  #ephemeral = [];
  /** @type {Event[]} */
  #events = [];

  /**
   * @param {object} options
   * @param {() => number} options.random evenly distributed in [0, 1)
   * @param {() => string} options.makeKey random text that nobody can guess, at most 128 bytes
   * @param {Partial<typeof LIMITS>} [options.limits]
   * @param {{ baseMs?: number, capMs?: number }} [options.backoff] between attempts to connect
   * @param {string[]} [options.endpoints] hosts, with ports, of the app's own addresses: servers may send it there
   */
  constructor({ random, makeKey, limits = {}, backoff = {}, endpoints = [] }) {
    this.#limits = { ...LIMITS, ...limits };
    this.#requests = new Requests(random, this.#limits);
    const emit = (/** @type {Event} */ event) => void this.#events.push(event);
    const shared = { emit, nextId: () => this.#nextId(), random, limits: this.#limits };
    this.#channels = new Channels(shared);
    const parts = { channels: this.#channels, requests: this.#requests };
    this.#connections = new Connections({ ...shared, ...parts, backoff, makeKey, endpoints });
  }

  get state() {
    return this.#connections.state;
  }

  /** Whether a connection is being opened beside the one that there is. */
  get isMoving() {
    return this.#connections.next !== null;
  }

  /** @param {string} channel @returns {Position | null} */
  position(channel) {
    return this.#channels.position(channel);
  }

  // --- what the app wants -------------------------------------------------------------------------------------------

  /** Connects, and stays connected. @param {number} now */
  open(now) {
    this.#connections.start(now);
  }

  /** Ends the session in order. @param {number} now */
  close(now) {
    this.#connections.close(now);
  }

  /**
   * Drops the connection as if the network had, and comes back after `holdMs`.
   *
   * @param {number} now
   * @param {number} holdMs
   * @param {string} reason
   */
  drop(now, holdMs, reason) {
    this.#connections.drop(now, holdMs, reason);
  }

  /**
   * Opens another connection beside the one that there is, to move there: `moved` or `move_failed` tells how that went.
   *
   * @param {number} now
   * @returns {boolean} false where there is none to move from, or it is moving already
   */
  move(now) {
    return this.#connections.move(now);
  }

  /** Stays where it is. @param {number} now @param {string} reason */
  abandonMove(now, reason) {
    this.#connections.abandonMove(now, reason);
  }

  /** What a `goaway` event asked for could not be done now. @param {number} now */
  notLeft(now) {
    this.#connections.notLeft(now);
  }

  /** The device has another network, or says that it has none: nobody knows what still works. @param {number} now */
  networkChanged(now) {
    this.#connections.networkChanged(now);
  }

  /** Probes the connection often for a while. @param {number} now @param {number} ms */
  watch(now, ms) {
    if (this.state === "live") this.#connections.current?.liveness.watch(now, ms);
  }

  /** Makes a round trip. @param {number} now @returns {number | null} the id that `pong` carries; null: not connected */
  ping(now) {
    if (this.state !== "live" || !this.#connections.current) return null;
    const id = this.#nextId();
    this.#connections.current.ping(id, now);
    return id;
  }

  /**
   * @param {string} channel
   * @param {Position | null} position where to begin; null for the head
   * @param {number} [rank] -128 to 127; higher ones go first
   * @param {boolean} [presence] whether to be told who joins and leaves
   */
  subscribe(channel, position, rank = 0, presence = false) {
    if (this.state === "ended" || this.state === "closing") {
      this.#events.push({ type: "unsubscribed", channel, error: closedError("the session has ended") });
      return;
    }
    this.#channels.subscribe(channel, position, rank, presence, this.#connections.open);
  }

  /** @param {string} channel */
  unsubscribe(channel) {
    this.#channels.unsubscribe(channel, this.#connections.open);
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
    if (this.state === "ended" || this.state === "closing") {
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
    if (this.state !== "live") return false;
    if (this.#ephemeral.length >= this.#limits.ephemeral) this.#ephemeral.shift();
    this.#ephemeral.push({ id: 0, name: "publish", body: { channel, ...payload, ephemeral: true } });
    return true;
  }

  // --- what the driver reports --------------------------------------------------------------------------------------

  /**
   * The dialled connection is there.
   *
   * @param {number} now
   * @param {number} connection
   * @param {{ token: string | null, heartbeat: boolean }} opened `heartbeat`: whether the server pings on this transport
   */
  handleOpened(now, connection, opened) {
    this.#connections.handleOpened(now, connection, opened);
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
    this.#connections.handleDialFailed(now, connection, reason, isFinal);
  }

  /**
   * The connection ended. A number from the server's own range says what to do, unless a `close` frame did.
   *
   * @param {number} now
   * @param {number} connection
   * @param {{ code: number, reason: string }} closed
   */
  handleClosed(now, connection, closed) {
    this.#connections.handleClosed(now, connection, closed);
  }

  /** Anything came: the connection lives. @param {number} now @param {number} connection */
  handleActivity(now, connection) {
    const heard = this.#connections.find(connection);
    if (!heard?.liveness.heard(now)) return;
    this.#connections.stay(heard);
    if (heard === this.#connections.current) this.#events.push({ type: "suspect", isSuspect: false });
  }

  // --- the five verbs -----------------------------------------------------------------------------------------------

  /**
   * @param {number} now
   * @param {number} from the connection
   * @param {Frame} frame from any of its streams, datagrams or messages
   */
  handleFrame(now, from, frame) {
    const connection = this.#connections.find(from);
    if (!connection || connection.phase === "dialing") return;
    const { id, name, body } = frame;
    this.handleActivity(now, from);
    if (name !== "ping" && name !== "pong") connection.liveness.flowed(now);
    if (connection.phase === "retired") {
      // It was asked before it was left: its answer is as good as any.
      if (name === "published" || name === "history" || name === "presence" || name === "refreshed") this.#reply(now, connection, frame);
      else if (name === "close") this.#connections.handleClose(now, connection, body);
      return;
    }
    switch (name) {
      case "connected":
        return this.#connected(now, connection, id, body);
      case "subscribed":
        this.#measured(now, connection, connection.subscribing.get(id)?.sentAt ?? null);
        this.#channels.subscribed(now, connection, id, body);
        return this.#connections.settle(now);
      case "unsubscribed":
        this.#channels.unsubscribed(connection, id, body, this.#connections.open);
        return this.#connections.settle(now);
      case "publication":
        return this.#channels.publication(now, connection, body, frame.numbering ?? null);
      case "ephemeral":
        // Both connections bring it while the session moves.
        if (connection === this.#connections.current && this.#channels.has(body.channel)) {
          this.#events.push({ type: "ephemeral", ephemeral: body });
        }
        return;
      case "join":
      case "leave":
      case "presence_gap":
        if (connection === this.#connections.current && this.#channels.has(body.channel)) {
          this.#events.push({ type: name, body });
        }
        return;
      case "published":
      case "history":
      case "presence":
      case "refreshed":
        return this.#reply(now, connection, frame);
      case "error":
        return this.#failed(now, connection, id, /** @type {any} */ (body));
      case "ping":
        this.#connections.handlePing(connection, body);
        // Long poll has no heartbeat: there it only brings a ticket.
        if (connection.heartbeat) connection.control.push({ id: 0, name: "pong", body: {} });
        return;
      case "pong":
        return this.#pong(now, connection, id);
      case "goaway":
        return this.#connections.handleGoaway(now, connection, body);
      case "close":
        return this.#connections.handleClose(now, connection, body);
    }
  }

  /** @param {number} now */
  handleTimeout(now) {
    const due = this.pollTimeout();
    // The browser held the timer back, or the machine slept: what it missed is not the network's silence.
    if (due !== null && now - due > this.#limits.lateMs) for (const each of this.#connections.open) each.liveness.forgive(now);
    this.#connections.handleTimeout(now);
    const { current } = this.#connections;
    if (this.state !== "live" || !current) return;
    const found = current.liveness.handleTimeout(now, this.#waitingSince(current));
    if (found === "probe") current.ping(this.#nextId(), now);
    if (found === "suspect") {
      this.#events.push({ type: "suspect", isSuspect: true });
      this.#connections.escape(now);
    }
    if (this.#connections.refreshAt !== null && now >= this.#connections.refreshAt) {
      this.#connections.refreshAt = null;
      this.#events.push({ type: "token_wanted" });
    }
    for (const each of this.#connections.open) if (each.phase === "live") this.#channels.handleTimeout(now, each);
    this.#connections.settle(now);
  }

  /** @returns {number | null} when to call `handleTimeout` */
  pollTimeout() {
    const { current } = this.#connections;
    let next = this.#connections.nextAt();
    for (const each of this.#connections.open) {
      if (each.phase === "live") next = Math.min(next, this.#channels.nextAt(each));
    }
    if (this.state === "live" && current) {
      next = Math.min(next, current.liveness.nextAt(this.#waitingSince(current)));
      next = Math.min(next, this.#connections.refreshAt ?? Infinity, this.#requests.nextAt());
    }
    return next === Infinity ? null : next;
  }

  /**
   * The next frame to send.
   *
   * @param {number} now
   * @returns {{ connection: number, lane: 'control' | 'ephemeral', frame: Frame } | null}
   */
  pollTransmit(now) {
    for (const each of this.#connections.sending) {
      const frame = each.nextFrame(now);
      if (frame) return { connection: each.id, lane: "control", frame };
    }
    // Of a connection that is gone; and nothing follows `done`.
    if (this.state !== "live") this.#ephemeral = [];
    const { sender } = this.#connections;
    if (!sender) return null;
    this.#requests.sendOn(sender.id);
    const { request, forgotten } = this.#requests.next(now);
    for (const id of forgotten) this.#events.push({ type: "failure", id, error: unknownOutcome() });
    if (request) {
      const { id, name, body } = request;
      return { connection: sender.id, lane: "control", frame: { id, name, body } };
    }
    const ephemeral = this.#ephemeral.shift();
    return ephemeral ? { connection: sender.id, lane: "ephemeral", frame: ephemeral } : null;
  }

  /** @returns {Event | null} */
  pollEvent() {
    return this.#events.shift() ?? null;
  }

  // --- frames -------------------------------------------------------------------------------------------------------

  /** @param {number} now @param {Connection} connection @param {number} id @param {Record<string, any>} body */
  #connected(now, connection, id, body) {
    if (connection.phase !== "greeting" || id !== connection.greetingId) return;
    this.#measured(now, connection, connection.openedAt);
    this.#connections.handleConnected(now, connection, body);
  }

  /** @param {number} now @param {Connection} connection @param {Frame} frame */
  #reply(now, connection, { id, name, body }) {
    this.#measured(now, connection, this.#requests.sentAt(id, connection.id));
    if (!this.#requests.take(id)) return;
    if (name === "refreshed") this.#connections.setExpiry(now, body.expires_ms);
    this.#events.push({ type: "reply", id, body });
  }

  /** @param {number} now @param {Connection} connection @param {number} id @param {RequestError} error */
  #failed(now, connection, id, error) {
    const asked = connection.subscribing.get(id);
    if (asked) {
      this.#measured(now, connection, asked.sentAt);
      this.#channels.refused(now, connection, id, error, this.#connections.open);
      return this.#connections.settle(now);
    }
    const sentAt = this.#requests.sentAt(id, connection.id);
    // Where it went out again on another connection, that one answers.
    if (sentAt === null) return;
    this.#measured(now, connection, sentAt);
    if (error.retry && this.#requests.retry(now, id)) return;
    this.#requests.take(id);
    this.#events.push({ type: "failure", id, error });
  }

  /** @param {number} now @param {Connection} connection @param {number} id */
  #pong(now, connection, id) {
    const sentAt = connection.pings.get(id) ?? null;
    connection.pings.delete(id);
    if (sentAt === null) return;
    this.#measured(now, connection, sentAt);
    this.#events.push({ type: "pong", id, ms: now - sentAt });
  }

  // --- the rest -----------------------------------------------------------------------------------------------------

  #nextId() {
    this.#lastId += 1;
    return this.#lastId;
  }

  /** Since when the oldest request waits for its answer. @param {Connection} connection @returns {number | null} */
  #waitingSince(connection) {
    const since = Math.min(connection.waitingSince, this.#requests.waitingSince(connection.id));
    return since === Infinity ? null : since;
  }

  /** @param {number} now @param {Connection} connection @param {number | null} sentAt */
  #measured(now, connection, sentAt) {
    if (sentAt === null) return;
    connection.liveness.measured(now - sentAt);
    if (connection === this.#connections.current) this.#events.push({ type: "rtt", ms: now - sentAt });
  }
}

export { SESSION_ENDED, UNKNOWN_OUTCOME } from "./session/types.js";
