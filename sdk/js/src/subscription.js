/**
 * @import { Position, RequestError } from './session/types.js'
 *
 * @typedef {object} Publication
 * @property {string} channel
 * @property {number} offset
 * @property {string} epoch
 * @property {any} data a JSON value, or a `Uint8Array`
 * @property {string | null} user who published; null for the backend and for anonymous sessions
 * @property {number} timeMs when it was numbered, milliseconds of Unix time
 * @property {boolean} recovered it was missed, and caught up with
 *
 * @typedef {object} EphemeralItem
 * @property {string} channel
 * @property {any} data a JSON value, or a `Uint8Array`
 * @property {string | null} user
 * @property {number} timeMs
 *
 * @typedef {object} SubscribedEvent
 * @property {'begun' | 'recovered' | 'rebased'} how `begun`: at the head. `recovered`: everything after the last
 *   position comes. `rebased`: continuity is lost; read again what the channel is about
 * @property {Position} position the head of the channel
 * @property {number} missed publications that are caught up with now
 * @property {boolean} conflated only the latest counts: offsets may skip
 *
 * @typedef {object} PresenceChange a user's first session came, or the last one went
 * @property {string} channel
 * @property {string} user
 * @property {number} timeMs when the server heard of it, milliseconds of Unix time
 *
 * @typedef {object} Presence
 * @property {{ user: string, sessions: number }[]} users by name; a part of them where not `exact`
 * @property {number} usersTotal all users, also those that are not listed
 * @property {number} sessions all of them, anonymous ones too
 * @property {boolean} exact `users` is everybody who has a name
 *
 * @typedef {object} SubscriptionEvents
 * @property {Publication} publication
 * @property {EphemeralItem} ephemeral
 * @property {SubscribedEvent} subscribed
 * @property {PresenceChange} join at most once, and only where `presence` was asked for; perhaps this client's own user
 * @property {PresenceChange} leave likewise
 * @property {{ channel: string }} presencegap some joins and leaves were not told: ask for the list again
 * @property {{ error: TidegateError | null }} unsubscribed the end; null where the app asked for it
 */

import { TidegateError } from "./error.js";
import { Emitter } from "./events.js";

/**
 * One channel's publications, in order, none twice. Iterate it, or listen to `publication`.
 *
 * @extends {Emitter<SubscriptionEvents>}
 */
export class Subscription extends Emitter {
  /** @type {'pending' | 'live' | 'ended'} */
  #state = "pending";
  #channel;
  #leave;
  #presence;
  /** @type {Position | null} */
  #position;
  /** @type {Set<Queue>} */
  #queues = new Set();
  /** @type {TidegateError | null} */
  #error = null;

  /**
   * @param {string} channel
   * @param {Position | null} position
   * @param {() => void} leave
   * @param {() => Promise<Presence>} presence
   */
  constructor(channel, position, leave, presence) {
    super();
    this.#channel = channel;
    this.#position = position;
    this.#leave = leave;
    this.#presence = presence;
  }

  get channel() {
    return this.#channel;
  }

  /** The last publication that was delivered: keep it to recover from there later. Null before the first `subscribed`. */
  get position() {
    return this.#position && { ...this.#position };
  }

  /** `pending` until the server's answer, and again while the client reconnects. */
  get state() {
    return this.#state;
  }

  /** Resolves once it is live; rejects where the server refuses. @returns {Promise<void>} */
  ready() {
    if (this.#state === "live") return Promise.resolve();
    if (this.#state === "ended") return Promise.reject(this.#error ?? new TidegateError(0, "unsubscribed", false));
    return new Promise((resolve, reject) => {
      const off = [
        this.on("subscribed", () => (off.forEach((each) => each()), resolve())),
        this.on("unsubscribed", ({ error }) => {
          off.forEach((each) => each());
          reject(error ?? new TidegateError(0, "unsubscribed", false));
        }),
      ];
    });
  }

  unsubscribe() {
    this.#leave();
  }

  /** Who is on the channel now, by user. @returns {Promise<Presence>} */
  presence() {
    return this.#presence();
  }

  /**
   * Publications from now on. Ends with the subscription; throws where the server ended it, or where the loop is so slow
   * that more than 10,000 wait.
   *
   * @returns {AsyncGenerator<Publication, void, void>}
   */
  async *[Symbol.asyncIterator]() {
    if (this.#state === "ended") return;
    const queue = new Queue();
    this.#queues.add(queue);
    try {
      while (true) {
        const publication = await queue.next();
        if (publication === null) return;
        yield publication;
      }
    } finally {
      this.#queues.delete(queue);
    }
  }

  // --- for the client -----------------------------------------------------------------------------------------------

  /** @internal @param {SubscribedEvent} event */
  begin(event) {
    this.#state = "live";
    // While it recovers, the position is that of the last one delivered; only the epoch may be news.
    if (event.how !== "recovered" || !this.#position) this.#position = event.position;
    else this.#position = { epoch: event.position.epoch, offset: this.#position.offset };
    this.emit("subscribed", event);
  }

  /** @internal */
  suspend() {
    if (this.#state === "live") this.#state = "pending";
  }

  /** @internal @param {Publication} publication */
  deliver(publication) {
    this.#position = { epoch: publication.epoch, offset: publication.offset };
    for (const queue of this.#queues) queue.push(publication);
    this.emit("publication", publication);
  }

  /** @internal @param {RequestError | null} error */
  end(error) {
    if (this.#state === "ended") return;
    this.#state = "ended";
    this.#error = error && TidegateError.from(error);
    for (const queue of this.#queues) queue.end(this.#error);
    this.emit("unsubscribed", { error: this.#error });
  }
}

class Queue {
  /** @type {Publication[]} */
  #waiting = [];
  /** @type {{ error: Error | null } | null} */
  #ended = null;
  #wake = () => {};

  /** @param {Publication} publication */
  push(publication) {
    if (this.#ended) return;
    this.#waiting.push(publication);
    if (this.#waiting.length > MAX_WAITING) this.end(new Error(`over ${MAX_WAITING} publications wait for the loop`));
    this.#wake();
  }

  /** @param {Error | null} error */
  end(error) {
    this.#ended ??= { error };
    this.#wake();
  }

  /** @returns {Promise<Publication | null>} */
  async next() {
    while (this.#waiting.length === 0 && !this.#ended) {
      await new Promise((/** @type {(value: void) => void} */ resolve) => (this.#wake = resolve));
    }
    const publication = this.#waiting.shift();
    if (publication) return publication;
    if (this.#ended?.error) throw this.#ended.error;
    return null;
  }
}

const MAX_WAITING = 10_000;
