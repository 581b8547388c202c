/**
 * Sans-io: requests that are repeated over reconnects until they are answered, no more in flight than a window.
 *
 * @typedef {object} Request
 * @property {number} id
 * @property {string} name
 * @property {Record<string, any>} body
 * @property {number | null} sentAt on this connection
 * @property {number | null} firstSentAt on any
 * @property {number} notBefore
 * @property {Backoff} backoff
 */

import { Backoff } from "./backoff.js";

export class Requests {
  /** In the order they were made. @type {Map<number, Request>} */
  #requests = new Map();
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
    this.#requests.set(id, { id, name, body, sentAt: null, firstSentAt: null, notBefore: now, backoff });
    return true;
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
      if (request.sentAt !== null || request.notBefore > now) continue;
      const isForgotten = request.firstSentAt !== null && now - request.firstSentAt > this.#limits.keyMs;
      if (request.name === "publish" && isForgotten) {
        this.#requests.delete(request.id);
        forgotten.push(request.id);
        continue;
      }
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
    for (const { sentAt, notBefore } of this.#requests.values()) if (sentAt === null) next = Math.min(next, notBefore);
    return next;
  }

  /** When it was sent on this connection. @param {number} id */
  sentAt(id) {
    return this.#requests.get(id)?.sentAt ?? null;
  }

  /** Has one sent again, later; false where it was tried often enough. @param {number} now @param {number} id */
  retry(now, id) {
    const request = this.#requests.get(id);
    if (!request || request.backoff.attempts >= this.#limits.attempts) return false;
    request.sentAt = null;
    request.notBefore = now + request.backoff.next();
    this.#inFlight -= 1;
    return true;
  }

  /** Removes one, as it was answered. @param {number} id */
  take(id) {
    const request = this.#requests.get(id);
    if (!request) return null;
    this.#requests.delete(id);
    if (request.sentAt !== null) this.#inFlight -= 1;
    return request;
  }

  /** The connection is gone: none is in flight. */
  restart() {
    for (const request of this.#requests.values()) request.sentAt = null;
    this.#inFlight = 0;
  }

  /** Removes all. @returns {number[]} their ids */
  drain() {
    const ids = [...this.#requests.keys()];
    this.#requests.clear();
    this.#inFlight = 0;
    return ids;
  }
}
