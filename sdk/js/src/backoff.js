/** Sans-io: capped exponential backoff with full jitter. */

/** Delays drawn evenly from `[0, min(cap, base * 2^attempts))`, so that clients which fell together come back apart. */
export class Backoff {
  #random;
  #baseMs;
  #capMs;
  #attempts = 0;

  /**
   * @param {() => number} random evenly distributed in [0, 1)
   * @param {{ baseMs?: number, capMs?: number }} [options]
   */
  constructor(random, { baseMs = 1_000, capMs = 60_000 } = {}) {
    this.#random = random;
    this.#baseMs = baseMs;
    this.#capMs = capMs;
  }

  /** Attempts since the last reset. */
  get attempts() {
    return this.#attempts;
  }

  /**
   * Counts an attempt and says how long to wait before it, milliseconds.
   *
   * @returns {number}
   */
  next() {
    const ceiling = Math.min(this.#capMs, this.#baseMs * 2 ** Math.min(this.#attempts, 30));
    this.#attempts += 1;
    return this.#random() * ceiling;
  }

  /** A connection held: the next series begins from the base. */
  reset() {
    this.#attempts = 0;
  }
}

/**
 * A small repeatable generator (mulberry32) for tests and simulations; not for secrets.
 *
 * @param {number} seed
 * @returns {() => number} evenly distributed in [0, 1)
 */
export function seededRandom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
