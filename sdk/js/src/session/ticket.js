/**
 * Sans-io: the ticket that resumes the session (PROTOCOL §3.5).
 *
 * The key is made once and kept until the attempt is decided, by `connected` or by a refusal: without an answer nobody
 * knows whether the server spent the ticket, and only the same key makes the next try the same attempt. A fresher ticket
 * of the same connection keeps the key too, since the tickets that one connection was given are spent together.
 */

import { CloseCode } from "../close-codes.js";

export class Ticket {
  /** @type {string | null} */
  #ticket = null;
  /** @type {string | null} */
  #key = null;
  /** The connection that it came by. */
  #owner = 0;
  #makeKey;

  /** @param {() => string} makeKey random text that nobody can guess */
  constructor(makeKey) {
    this.#makeKey = makeKey;
  }

  /** A connection is connected, with or without a ticket. @param {number} connection @param {string | undefined} ticket */
  begin(connection, ticket) {
    this.#ticket = ticket ?? null;
    this.#key = null;
    this.#owner = connection;
  }

  /** A `ping` brought a fresher one. @param {number} connection @param {string | undefined} ticket */
  renew(connection, ticket) {
    // One by a connection that was left is of what is spent.
    if (ticket !== undefined && connection === this.#owner) this.#ticket = ticket;
  }

  /** What `connect` carries; nothing where there is no ticket. @returns {{ resume?: string, key?: string }} */
  use() {
    if (this.#ticket === null) return {};
    this.#key ??= this.#makeKey();
    return { resume: this.#ticket, key: this.#key };
  }

  /** It was refused, or its session is over. @param {number} [owner] the connection whose next `ping` may bring one */
  drop(owner = 0) {
    this.#ticket = null;
    this.#key = null;
    this.#owner = owner;
  }

  /**
   * True where the session was taken from `connection` by this client itself: by a later connection, or by an attempt
   * whose answer was lost.
   *
   * @param {number} connection
   */
  wasTakenFrom(connection) {
    return this.#ticket !== null && (this.#key !== null || this.#owner !== connection);
  }
}

/** @param {number} code */
export function isTicketRefusal(code) {
  return code === CloseCode.badResume || code === CloseCode.resumeExpired || code === CloseCode.resumeForeign;
}
