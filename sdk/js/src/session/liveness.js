/**
 * Sans-io: whether a connection still carries anything. Where traffic that had been flowing stops, or a request waits, it
 * has the path probed; a probe that brings nothing back makes the path *suspect*.
 *
 *     alive ──quiet──► probing ──nothing heard──► suspect
 *       ▲                 │                          │
 *       └──── heard ──────┴──────────────────────────┘
 *
 * @import { LIMITS } from './types.js'
 */

export class Liveness {
  #limits;
  #heardAt;
  /** The usual gap between arrivals, and of how many it is known. */
  #gapMs = 0;
  #gaps = 0;
  /** @type {number | null} */
  #trafficAt = null;
  /** Something came since the last probe: its end would be news. */
  #isFlowing = false;
  /** When the probe that is under way counts as lost. @type {number | null} */
  #probeUntil = null;
  #isSuspect = false;
  /** @type {{ until: number, nextAt: number } | null} */
  #watch = null;
  /** Not before this is silence death. */
  #graceUntil = 0;
  /** @type {number | null} */
  #rttMs = null;
  #rttVarianceMs = 0;

  /** @param {number} now @param {typeof LIMITS} limits */
  constructor(now, limits) {
    this.#limits = limits;
    this.#heardAt = now;
  }

  get isSuspect() {
    return this.#isSuspect;
  }

  /** When anything came last. */
  get heardAt() {
    return this.#heardAt;
  }

  /** Anything came. @param {number} now @returns {boolean} true where that ends a suspicion */
  heard(now) {
    const wasSuspect = this.#isSuspect;
    this.#heardAt = now;
    this.#probeUntil = null;
    this.#isSuspect = false;
    return wasSuspect;
  }

  /** What came is more than a heartbeat. @param {number} now */
  flowed(now) {
    const gap = this.#trafficAt === null ? 0 : now - this.#trafficAt;
    this.#trafficAt = now;
    this.#isFlowing = true;
    if (gap <= 0) return;
    this.#gapMs = this.#gaps === 0 ? gap : this.#gapMs + (gap - this.#gapMs) / 8;
    this.#gaps += 1;
  }

  /** @param {number} ms a round trip */
  measured(ms) {
    if (this.#rttMs === null) {
      this.#rttMs = ms;
      this.#rttVarianceMs = ms / 2;
      return;
    }
    this.#rttVarianceMs += (Math.abs(this.#rttMs - ms) - this.#rttVarianceMs) / 4;
    this.#rttMs += (ms - this.#rttMs) / 8;
  }

  /** A probe goes out. @param {number} now */
  probed(now) {
    this.#probeUntil = now + this.#suspectAfterMs;
    this.#isFlowing = false;
    if (this.#watch) this.#watch.nextAt = now + this.#limits.watchEveryMs;
  }

  /** Probes often, until then. @param {number} now @param {number} ms */
  watch(now, ms) {
    this.#watch = { until: now + ms, nextAt: now + this.#limits.watchEveryMs };
  }

  /** Nobody was awake to hear: the clock of silence begins anew. @param {number} now */
  forgive(now) {
    this.#graceUntil = now + this.#suspectAfterMs;
    this.#trafficAt = null;
    if (this.#probeUntil !== null) this.#probeUntil = this.#graceUntil;
  }

  /**
   * @param {number} now
   * @param {number | null} waitingSince when the oldest request that waits was sent
   * @returns {'probe' | 'suspect' | null} `probe`: send one now; `suspect`: from now on it is
   */
  handleTimeout(now, waitingSince) {
    if (now < this.nextAt(waitingSince)) return null;
    if (this.#probeUntil === null) return "probe";
    this.#isSuspect = true;
    return "suspect";
  }

  /** @param {number | null} waitingSince @returns {number} when to call `handleTimeout` */
  nextAt(waitingSince) {
    const { silenceMs, silenceGaps } = this.#limits;
    if (this.#isSuspect) return Infinity;
    if (this.#probeUntil !== null) return this.#probeUntil;
    let next = Infinity;
    if (this.#isFlowing && this.#gaps >= GAPS_KNOWN) {
      next = this.#heardAt + Math.max(silenceMs, silenceGaps * this.#gapMs);
    }
    if (waitingSince !== null) next = Math.min(next, Math.max(waitingSince, this.#heardAt) + silenceMs);
    if (this.#watch && this.#watch.nextAt <= this.#watch.until) next = Math.min(next, this.#watch.nextAt);
    return next;
  }

  /** When silence is death. @param {number} pingMs between the server's pings */
  deadAt(pingMs) {
    return Math.max(this.#heardAt + 2 * pingMs, this.#graceUntil);
  }

  get #suspectAfterMs() {
    const { suspectMs, suspectTimeouts } = this.#limits;
    return Math.max(suspectMs, suspectTimeouts * ((this.#rttMs ?? 0) + 4 * this.#rttVarianceMs));
  }
}

/** Gaps between arrivals that make a habit. */
const GAPS_KNOWN = 3;
