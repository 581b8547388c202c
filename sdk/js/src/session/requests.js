/**
 * Sans-io: requests that are repeated, over reconnects and on the connection that the session moves to, until they are
 * answered; no more in flight than a window. The first answer counts.
 *
 * @typedef {object} Request
 * @property {number} id
 * @property {string} name
 * @property {Record<string, any>} body
 * @property {number} sentOn the connection that it was sent on last; 0: it is to be sent
 * @property {number} sentAt there
 * @property {number | null} firstSentAt on any
 * @property {number} notBefore
 * @property {Backoff} backoff
 */

import { Backoff } from "../backoff.js";

export class Requests {
  /** In the order they were made. @type {Map<number, Request>} */
  #requests = new Map();
  /** The connection that they go out on. */
  #sender = 0;
  #inFlight = 0;
  #random;
  #limits;

  /**
   * @param {() => number} random
   * @param {{ requests: number, inFlight: number, attempts: number, keyMs: number }} limits
   */
  constructor(random, limits) {
    this.#random = random;
    this.#limits = limits;
  }

  /**
   * @param {number} now
   * @param {number} id
   * @param {string} name
   * @param {Record<string, any>} body
   * @returns {boolean} false where too many wait
   */
  add(now, id, name, body) {
    if (this.#requests.size >= this.#limits.requests) return false;
    const backoff = new Backoff(this.#random);
    this.#requests.set(id, { id, name, body, sentOn: 0, sentAt: 0, firstSentAt: null, notBefore: now, backoff });
    return true;
  }

  /** From now on they go out on this connection; what waits for an answer elsewhere goes out again. @param {number} connection */
  sendOn(connection) {
    if (connection === this.#sender) return;
    this.#sender = connection;
    this.#inFlight = 0;
    for (const { sentOn } of this.#requests.values()) if (sentOn === connection) this.#inFlight += 1;
  }

  /**
   * The next one to send, which counts as sent; and publishes that may not be repeated: so long after the first time the
   * server may have forgotten their key, and would store them twice. Only the app can decide that.
   *
   * @param {number} now
   * @returns {{ request: Request | null, forgotten: number[] }}
   */
  next(now) {
    /** @type {number[]} */
    const forgotten = [];
    if (this.#inFlight >= this.#limits.inFlight) return { request: null, forgotten };
    for (const request of this.#requests.values()) {
      if (request.sentOn === this.#sender || request.notBefore > now) continue;
      const isForgotten = request.firstSentAt !== null && now - request.firstSentAt > this.#limits.keyMs;
      if (request.name === "publish" && isForgotten) {
        this.#requests.delete(request.id);
        forgotten.push(request.id);
        continue;
      }
      request.sentOn = this.#sender;
      request.sentAt = now;
      request.firstSentAt ??= now;
      this.#inFlight += 1;
      return { request, forgotten };
    }
    return { request: null, forgotten };
  }

  /** When the next one may be sent; infinity where none waits for a time. */
  nextAt() {
    let next = Infinity;
    if (this.#inFlight >= this.#limits.inFlight) return next;
    for (const { sentOn, notBefore } of this.#requests.values()) {
      if (sentOn !== this.#sender) next = Math.min(next, notBefore);
    }
    return next;
  }

  /** When it was sent on this connection, if that is where its answer is awaited. @param {number} id @param {number} connection */
  sentAt(id, connection) {
    const request = this.#requests.get(id);
    return request?.sentOn === connection ? request.sentAt : null;
  }

  /** When the oldest was sent that waits for its answer on this connection. @param {number} connection */
  waitingSince(connection) {
    let oldest = Infinity;
    for (const { sentOn, sentAt } of this.#requests.values()) if (sentOn === connection) oldest = Math.min(oldest, sentAt);
    return oldest;
  }

  /** Has one sent again, later; false where it was tried often enough. @param {number} now @param {number} id */
  retry(now, id) {
    const request = this.#requests.get(id);
    if (!request || request.backoff.attempts >= this.#limits.attempts) return false;
    if (request.sentOn === this.#sender) this.#inFlight -= 1;
    request.sentOn = 0;
    request.notBefore = now + request.backoff.next();
    return true;
  }

  /** Removes one, as it was answered. @param {number} id */
  take(id) {
    const request = this.#requests.get(id);
    if (!request) return null;
    this.#requests.delete(id);
    if (request.sentOn === this.#sender) this.#inFlight -= 1;
    return request;
  }

  /** A connection is gone: what was sent on it is to be sent again. @param {number} connection */
  lost(connection) {
    for (const request of this.#requests.values()) if (request.sentOn === connection) request.sentOn = 0;
    if (connection === this.#sender) this.#inFlight = 0;
  }

  /** Removes all. @returns {number[]} their ids */
  drain() {
    const ids = [...this.#requests.keys()];
    this.#requests.clear();
    this.#inFlight = 0;
    return ids;
  }
}
