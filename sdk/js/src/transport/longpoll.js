/**
 * Long poll: `POST /v1/poll`. One request waits at the server; what it brings, the next one acknowledges.
 *
 * A request that got no answer is repeated as it was: had the server made a batch for it, that batch comes again and the
 * frames are not executed twice. To send while a poll waits, a newer one with the same `ack` goes out and the older
 * returns empty. Where the older brings a batch instead, the newer was taken for a repeat, and its frames go out again.
 *
 * @import { Frame } from '../codec.js'
 * @import { Handlers, Open, Transport, TransportOptions } from '../transport.js'
 *
 * @typedef {object} Poll
 * @property {number} ack
 * @property {Frame[]} frames
 * @property {number} waitMs
 * @property {AbortController} abort
 * @property {Poll | null} older the poll that this one interrupts
 * @property {'waits' | 'empty' | 'batch' | 'failed'} outcome
 * @property {Promise<void>} done
 */

import { MAX_FRAMES_PER_MESSAGE, decodeList, toJson } from "../codec.js";
import { CloseCode } from "../close-codes.js";
import { ClientFrame, ServerFrame } from "../schema.js";
import { deadline, toError } from "../transport.js";

/** @type {Open} */
export async function openLongPoll(url, handlers, options, signal) {
  signal.throwIfAborted();
  // Nothing to open: the first request carries `connect`.
  return new LongPoll(url, handlers, options).transport();
}

class LongPoll {
  #url;
  #handlers;
  #options;
  #fetch;
  /** @type {string | null} */
  #session = null;
  #ack = 0;
  /** @type {Frame[]} */
  #outbox = [];
  /** The newest request. @type {Poll | null} */
  #current = null;
  // A poll was given up whose batch may be made: what comes next would pass for its repeat, so it carries no frames.
  #inDoubt = false;
  #isOver = false;

  /**
   * @param {string} url
   * @param {Handlers} handlers
   * @param {TransportOptions} options
   */
  constructor(url, handlers, options) {
    this.#url = url;
    this.#handlers = handlers;
    this.#options = options;
    // `fetch` insists on its own `this`.
    const { fetch = globalThis.fetch } = options;
    this.#fetch = /** @type {typeof fetch} */ ((input, init) => fetch(input, init));
  }

  /** @returns {Transport} */
  transport() {
    /** @param {Frame[]} frames */
    const send = (frames) => {
      this.#outbox.push(...frames);
      this.#next();
    };
    return {
      heartbeat: false,
      send,
      sendEphemeral: (frame) => {
        if (this.#outbox.length < MAX_OUTBOX_EPHEMERAL) send([frame]);
      },
      close: (orderly) => {
        // `done` is on its way where the end is orderly; let it arrive.
        if (!orderly) this.#abort();
        this.#isOver = true;
        this.#abortIdle();
      },
    };
  }

  /** Issues the next request, if it is time for one. */
  #next() {
    if (this.#isOver) return;
    const older = this.#current;
    if (older) {
      // Only a poll that awaits nothing of its own may be interrupted, and only one at a time.
      const awaitsNothing = older.waitMs > 0 && older.older === null && !older.frames.some(({ id }) => id !== 0);
      const mayInterrupt = this.#session !== null && awaitsNothing;
      if (this.#outbox.length === 0 || !mayInterrupt) return;
    }
    /** @type {Poll} */
    const poll = {
      ack: this.#ack,
      frames: this.#inDoubt ? [] : this.#takeBatch(),
      waitMs: this.#inDoubt ? 0 : this.#options.pollMs,
      abort: new AbortController(),
      older,
      outcome: "waits",
      done: Promise.resolve(),
    };
    this.#inDoubt = false;
    this.#current = poll;
    poll.done = this.#run(poll);
  }

  /** @param {Poll} poll */
  async #run(poll) {
    const answer = await this.#exchange(poll);
    if (this.#isOver) return;
    if (answer === null) {
      poll.outcome = "failed";
      // An interrupted one matters no more: its batch, if it made one, comes with the newer request.
      if (this.#current === poll) this.#over(CloseCode.connectionLost, "polls got no answer");
      return;
    }
    poll.outcome = answer.frames.length > 0 ? "batch" : "empty";
    this.#session ??= answer.session;
    this.#take(answer);
    if (this.#isOver) return;
    const newer = this.#current;
    if (newer !== poll) {
      if (newer?.older !== poll || poll.outcome !== "empty") return;
      // It returned as it should: the newer was no repeat, and may be interrupted in its turn.
      newer.older = null;
      return this.#next();
    }
    if (poll.older) {
      const { older } = poll;
      poll.older = null;
      if (older.outcome === "waits") await within(older.done, OLDER_GRACE_MS);
      if (this.#isOver) return;
      this.#inDoubt = older.outcome === "waits";
      older.abort.abort();
      if (wasTakenForRepeat(poll, older, answer)) this.#outbox.unshift(...poll.frames);
    }
    this.#current = null;
    this.#next();
  }

  /**
   * Delivers a batch, once, however often it came.
   *
   * @param {{ batch: number, frames: Frame[] }} answer
   */
  #take({ batch, frames }) {
    if (batch <= this.#ack) return;
    this.#ack = batch;
    this.#handlers.onFrames(frames);
  }

  /**
   * One request and its repeats; null where none was answered.
   *
   * @param {Poll} poll
   * @returns {Promise<{ session: string, batch: number, frames: Frame[] } | null>}
   */
  async #exchange(poll) {
    /** @type {Record<string, any>} */
    const request = { ack: poll.ack, frames: poll.frames.map((frame) => toJson(ClientFrame, frame)) };
    if (this.#session !== null) request.session = this.#session;
    request.wait_ms = poll.waitMs;
    const body = JSON.stringify(request);
    // Without a session a repeat would open a second one: the client dials again instead.
    const attempts = this.#session === null ? 1 : MAX_ATTEMPTS;
    for (let attempt = 1; attempt <= attempts; attempt += 1) {
      if (attempt > 1) await sleep(this.#options.random() * RETRY_MS * 2 ** (attempt - 1), poll.abort.signal);
      // One that was interrupted is not repeated: it would interrupt the newer.
      if (this.#isOver || poll.abort.signal.aborted || this.#current !== poll) return null;
      try {
        const response = await this.#post(poll, body);
        if (this.#isOver) return null;
        if (response) return response;
      } catch (error) {
        if (this.#isOver || poll.abort.signal.aborted) return null;
        if (error instanceof Error && error.name === "DecodeError") {
          this.#handlers.onError(error);
          this.#over(CloseCode.connectionLost, "the server sent what is no frame");
          return null;
        }
      }
    }
    return null;
  }

  /**
   * @param {Poll} poll
   * @param {string} body
   * @returns {Promise<{ session: string, batch: number, frames: Frame[] } | null>} null where another try may help
   */
  async #post(poll, body) {
    const { response, json } = await this.#fetchJson(body, poll.abort.signal);
    const frames = Array.isArray(json?.frames) ? decodeList(ServerFrame, json.frames) : [];
    if (response.ok) {
      if (!Number.isSafeInteger(json?.batch) || typeof json?.session !== "string") throw new Error("no answer to a poll");
      return { session: json.session, batch: json.batch, frames };
    }
    // One that came so late that a newer one overtook it is refused for its `ack`, and matters no more.
    if (this.#current !== poll) return null;
    if (frames.length > 0) this.#handlers.onFrames(frames);
    else if (response.status >= 500) return null;
    this.#over(CloseCode.connectionLost, `HTTP ${response.status}`);
    return null;
  }

  /** @param {string} body @param {AbortSignal} parent @returns {Promise<{ response: Response, json: any }>} */
  async #fetchJson(body, parent) {
    const { signal, clear } = deadline(parent, this.#options.pollMs + ANSWER_GRACE_MS);
    try {
      const response = await this.#fetch(this.#url, {
        method: "POST",
        body,
        // No preflight for this type; the server does not insist on another.
        headers: { "content-type": "text/plain" },
        cache: "no-store",
        credentials: "omit",
        signal,
      });
      const json = await response.json().catch((/** @type {unknown} */ error) => {
        // Cut off on the way; or not the gateway's own answer.
        if (response.ok) throw toError(error);
        return null;
      });
      return { response, json };
    } finally {
      clear();
    }
  }

  /** Frames for one request: bounded, so that its body is. @returns {Frame[]} */
  #takeBatch() {
    let bytes = 0;
    let count = 0;
    for (const frame of this.#outbox) {
      bytes += JSON.stringify(toJson(ClientFrame, frame)).length;
      if (count > 0 && (bytes > BODY_LENGTH || count === MAX_FRAMES)) break;
      count += 1;
    }
    return this.#outbox.splice(0, count);
  }

  /** @param {number} code @param {string} reason */
  #over(code, reason) {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#abort();
    this.#handlers.onClosed({ code, reason });
  }

  #abort() {
    this.#current?.older?.abort.abort();
    this.#current?.abort.abort();
  }

  /** Ends polls that only wait. */
  #abortIdle() {
    this.#current?.older?.abort.abort();
    if (this.#current?.frames.length === 0) this.#current.abort.abort();
  }
}

/**
 * True where the server saw `poll` after it had made a batch for `older`, and so executed none of its frames.
 *
 * @param {Poll} poll
 * @param {Poll} older
 * @param {{ batch: number, frames: Frame[] }} answer to `poll`
 */
function wasTakenForRepeat(poll, older, answer) {
  if (older.outcome === "empty" || answer.batch === poll.ack) return false;
  // Unless it was the older one that came late: then the batch holds what `poll` was answered.
  return !poll.frames.some(({ id }) => id !== 0 && answer.frames.some((frame) => frame.id === id));
}

/** @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** @param {Promise<void>} promise @param {number} ms @returns {Promise<void>} */
function within(promise, ms) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    void promise.finally(() => (clearTimeout(timer), resolve()));
  });
}

const MAX_ATTEMPTS = 4;
const RETRY_MS = 250;
/** Beyond what a poll waits at the server. */
const ANSWER_GRACE_MS = 10_000;
/** How long an interrupted poll may take to return once the newer one has. */
const OLDER_GRACE_MS = 3_000;
/** As many as a poll may hold: what follows `connect` leaves with it. */
const MAX_FRAMES = MAX_FRAMES_PER_MESSAGE;
const BODY_LENGTH = 65_536;
const MAX_OUTBOX_EPHEMERAL = 64;
