/**
 * Opens transports as the ladder says. One dial at a time, of one or several transports that race.
 *
 * @import { Ladder } from './ladder.js'
 * @import { Handlers, Open, Transport, TransportName, TransportOptions } from './transport.js'
 *
 * @typedef {object} Line an end that was opened, or is being opened
 * @property {TransportName} name
 * @property {number} connection of the session, once it has won; 0 before
 * @property {boolean} isClosed
 * @property {Transport | null} transport
 */

import { urlAt } from "./session/goaway.js";
import { UnavailableError, deadline, toError } from "./transport.js";
import { openLongPoll } from "./transport/longpoll.js";
import { openWebSocket } from "./transport/websocket.js";
import { openWebTransport } from "./transport/webtransport.js";

export class Dialer {
  #urls;
  #options;
  #ladder;
  #report;
  /** @type {Map<TransportName, AbortController>} */
  #opening = new Map();
  /** @type {Map<TransportName, Line>} */
  #opened = new Map();
  /** @type {string[]} */
  #failures = [];
  /** Where to, instead of the app's own addresses: host and port. @type {string | null} */
  endpoint = null;

  /**
   * @param {object} options
   * @param {Partial<Record<TransportName, string>>} options.urls
   * @param {TransportOptions} options.options
   * @param {Ladder} options.ladder
   * @param {object} options.report
   * @param {() => number} options.report.now
   * @param {(line: Line) => Handlers} options.report.makeHandlers
   * @param {(error: Error) => void} options.report.onError
   * @param {() => void} options.report.onChange the ladder was told something
   */
  constructor({ urls, options, ladder, report }) {
    this.#urls = urls;
    this.#options = options;
    this.#ladder = ladder;
    this.#report = report;
  }

  /** Why nothing got through since the last `stop`. */
  get failures() {
    return this.#failures.join("; ");
  }

  /** @param {TransportName} name */
  dial(name) {
    const abort = new AbortController();
    this.#opening.set(name, abort);
    void this.#open(name, abort);
  }

  /** @param {TransportName} name */
  abandon(name) {
    this.#opening.get(name)?.abort(new Error("another was first"));
    this.#opening.delete(name);
    this.#opened.get(name)?.transport?.close(false);
    this.#opened.delete(name);
  }

  /** The one that won is the caller's from now on. @param {TransportName} name @returns {Line | null} */
  take(name) {
    const line = this.#opened.get(name) ?? null;
    this.#opened.delete(name);
    return line;
  }

  /** Gives up whatever is being opened. */
  stop() {
    for (const name of [...this.#opening.keys(), ...this.#opened.keys()]) this.abandon(name);
    this.#failures = [];
  }

  /** @param {TransportName} name @param {AbortController} abort */
  async #open(name, abort) {
    const opening = deadline(abort.signal, OPEN_MS[name]);
    /** @type {Line} */
    const line = { name, connection: 0, isClosed: false, transport: null };
    const own = /** @type {string} */ (this.#urls[name]);
    const url = this.endpoint === null ? own : urlAt(own, this.endpoint);
    try {
      const transport = await OPENERS[name](url, this.#report.makeHandlers(line), this.#options, opening.signal);
      if (this.#opening.get(name) !== abort) return transport.close(false);
      if (line.isClosed) throw new Error("closed as soon as it was open");
      line.transport = transport;
      this.#opening.delete(name);
      this.#opened.set(name, line);
      this.#ladder.handleOpened(name);
    } catch (error) {
      if (this.#opening.get(name) !== abort) return;
      this.#opening.delete(name);
      const message = `${name}: ${toError(error).message}`;
      const isMissing = error instanceof UnavailableError;
      this.#failures.push(message);
      if (!isMissing) this.#report.onError(new Error(message));
      this.#ladder.handleFailed(this.#report.now(), name, isMissing);
    } finally {
      opening.clear();
    }
    this.#report.onChange();
  }
}

/** @type {Record<TransportName, Open>} */
const OPENERS = { webtransport: openWebTransport, websocket: openWebSocket, longpoll: openLongPoll };

/** How long each may take to open. */
const OPEN_MS = { webtransport: 5_000, websocket: 5_000, longpoll: 10_000 };
