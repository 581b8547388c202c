/**
 * Sans-io: one connection of a session, and what is under way on it.
 *
 *     dialing ──opened──► greeting ──connected──► live ──moved away, closing──► retired
 *
 * @import { Frame } from '../codec.js'
 *
 * @typedef {object} Joined a subscription on one connection
 * @property {Ordering} ordering what came by this connection
 * @property {number} requestId of the `subscribe` in flight; 0 for none
 * @property {number | null} retryAt
 * @property {number | null} gapSince
 * @property {boolean} conflicted
 * @property {boolean} dropped something came here and was dropped, since another connection delivers
 * @import { Ordering } from '../ordering.js'
 */

import { LIMITS } from "./types.js";
import { Liveness } from "./liveness.js";

export class Connection {
  /** @type {'dialing' | 'greeting' | 'live' | 'retired'} */
  phase = "dialing";
  id;
  liveness;
  /** Of the `connect` that waits for its answer. */
  greetingId = 0;
  openedAt = 0;
  liveSince = 0;
  /** When a connection that is retired is hung up. */
  hangupAt = Infinity;
  /** Whether the server pings here. */
  heartbeat = true;
  pingMs = 0;
  /** `connect` carried a ticket. */
  isResuming = false;
  /** @type {Record<string, any>} */
  connected = {};
  /** Where its server may send the session: hosts with ports. @type {string[]} */
  alternatives = [];
  /** When and where its server says to come back. @type {import('../reconnect.js').ReconnectPlan | null} */
  plan = null;
  /** What nothing has come back of by then has failed: others wait to be tried. */
  giveUpAt = Infinity;
  /** Its server asked to leave. @type {import('./goaway.js').Departure | null} */
  departure = null;
  /** Frames to send that nobody keeps. @type {Frame[]} */
  control = [];
  /** Channels by the id of their `subscribe`. @type {Map<number, { channel: string, sentAt: number | null }>} */
  subscribing = new Map();
  /** @type {Map<string, Joined>} */
  joined = new Map();
  /** Our own pings. @type {Map<number, number | null>} */
  pings = new Map();
  #limits;

  /** @param {number} id later ones have higher numbers @param {number} now @param {typeof LIMITS} limits */
  constructor(id, now, limits) {
    this.id = id;
    this.#limits = limits;
    this.liveness = new Liveness(now, limits);
  }

  get isOpen() {
    return this.phase === "greeting" || this.phase === "live";
  }

  /** When it counts as dead; infinity where only the transport can say so. */
  get deadAt() {
    if (this.phase === "dialing") return this.giveUpAt;
    if (this.phase === "greeting") return this.openedAt + this.#limits.greetingMs;
    if (this.phase === "retired") return this.hangupAt;
    return this.phase === "live" && this.heartbeat ? this.liveness.deadAt(this.pingMs) : Infinity;
  }

  /** Of two, the one with the higher epoch holds. @param {import('../reconnect.js').ReconnectPlan | null} plan */
  setPlan(plan) {
    if (!plan || (this.plan && this.plan.epoch > plan.epoch)) return;
    this.plan = plan;
    this.alternatives = plan.alternatives.map(({ host }) => host);
  }

  /** @param {number} id @param {number} now */
  ping(id, now) {
    if (this.pings.size >= this.#limits.pings) {
      // The oldest is lost, or as good as.
      for (const oldest of this.pings.keys()) {
        this.pings.delete(oldest);
        break;
      }
    }
    this.pings.set(id, null);
    this.control.push({ id, name: "ping", body: {} });
    this.liveness.probed(now);
  }

  /** `done`, and nothing after it. @param {number} now */
  retire(now) {
    this.phase = "retired";
    this.hangupAt = now + this.#limits.closeMs;
    this.control = [{ id: 0, name: "done", body: {} }];
  }

  /** The next frame of its own. @param {number} now @returns {Frame | null} */
  nextFrame(now) {
    const frame = this.control.shift();
    if (!frame) return null;
    const subscribing = this.subscribing.get(frame.id);
    if (subscribing) subscribing.sentAt = now;
    if (this.pings.has(frame.id)) this.pings.set(frame.id, now);
    return frame;
  }

  /** Since when the oldest `subscribe` waits. @returns {number} */
  get waitingSince() {
    let oldest = Infinity;
    for (const { sentAt } of this.subscribing.values()) if (sentAt !== null) oldest = Math.min(oldest, sentAt);
    return oldest;
  }
}
