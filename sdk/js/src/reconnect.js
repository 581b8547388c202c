/**
 * Sans-io: when a client dials again after its connection ended, and whom. Mirrors `protocol/src/reconnect.rs`.
 *
 * The first that knows better decides: a slot from the server that refused, the server's advice, the reconnect plan, and
 * only then full jitter. What is the client's own trouble (its network changed) never waits for others.
 *
 * @import { ReconnectPolicy } from './close-codes.js'
 *
 * @typedef {object} Alternative
 * @property {string} host with its port
 * @property {number} weight
 * @property {boolean} elsewhere
 *
 * @typedef {object} ReconnectPlan
 * @property {number} epoch
 * @property {number} nodeMs
 * @property {number} regionMs
 * @property {number} rank
 * @property {Alternative[]} alternatives
 *
 * @typedef {{ cause: 'network_changed' } | { cause: 'lost' } | { cause: 'unreachable' } | { cause: 'elsewhere' }
 *   | { cause: 'closed', policy: ReconnectPolicy, afterMs: number }
 *   | { cause: 'deferred', afterMs: number, ticket: string | null }} Cause why there is no connection
 *
 * @typedef {object} Dial what to do
 * @property {number} delayMs from now
 * @property {string | null} host whom; null for the one that was dialled last
 * @property {string | null} ticket to be shown there
 */

import { Backoff } from "./backoff.js";
import { endpointOf } from "./session/goaway.js";

/** Decides for one client. A connection that held for a while ends an outage; until then the next loss is part of it. */
export class Reconnect {
  #random;
  #backoff;
  #stableMs;
  /** @type {ReconnectPlan | null} */
  #plan = null;
  /** Where the outage has got to. @type {'none' | 'node' | 'region' | 'slot' | 'local' | 'jitter'} */
  #stage = "none";
  /** When it began, as far as the region's window counts. */
  #since = 0;
  /** Dials of this outage that led nowhere or to a refusal. */
  #turn = 0;
  /** Refusals with a slot, one after the other. */
  #deferred = 0;
  /** A close that asked to come back at once was followed. */
  #isHasty = false;
  /** The own region is given up. */
  #elsewhere = false;
  /** @type {number | null} */
  #connectedAt = null;

  /**
   * @param {() => number} random evenly distributed in [0, 1)
   * @param {{ baseMs?: number, capMs?: number, stableMs?: number }} [options] `stableMs`: what ends an outage
   */
  constructor(random, { stableMs = 30_000, ...backoff } = {}) {
    this.#random = random;
    this.#backoff = new Backoff(random, backoff);
    this.#stableMs = stableMs;
  }

  /** Whether the next dial is the first of an outage: it has `PATIENCE_MS`. */
  get isFirstDial() {
    return this.#stage === "node";
  }

  /** The plan of the newest connection; null where its server made none. @param {ReconnectPlan | null} plan */
  handlePlan(plan) {
    // Without windows it only names places: nothing to go by.
    this.#plan = plan && (plan.nodeMs > 0 || plan.regionMs > 0) ? plan : null;
  }

  /** The session lives on a connection. @param {number} now */
  handleConnected(now) {
    this.#connectedAt = now;
    this.#deferred = 0;
  }

  /** The session lives on another connection than before, without a break. @param {number} now @param {boolean} isConnected */
  handleMoved(now, isConnected) {
    this.endOutage(now);
    if (isConnected) this.handleConnected(now);
  }

  /** The outage is over where the connection had been stable. @param {number} now */
  endOutage(now) {
    const isStable = this.#connectedAt !== null && now - this.#connectedAt >= this.#stableMs;
    this.#connectedAt = null;
    if (isStable) this.reset();
  }

  /** What comes next is no part of what was. */
  reset() {
    this.#backoff.reset();
    this.#stage = "none";
    this.#turn = 0;
    this.#deferred = 0;
    this.#isHasty = false;
    this.#elsewhere = false;
  }

  /** The connection, or the attempt at one, ended. @param {number} now @param {Cause} ended @returns {Dial} */
  handleEnded(now, ended) {
    this.endOutage(now);
    switch (ended.cause) {
      case "network_changed":
        // Whatever it waited for was a matter of the network it had.
        this.#stage = "local";
        return { delayMs: this.#spread(LOCAL_SPREAD_MS), host: null, ticket: null };
      case "closed": {
        if ((ended.policy === "now" || ended.policy === "fresh_token") && !this.#isHasty) {
          this.#isHasty = true;
          return { delayMs: this.#behind(ended.afterMs), host: null, ticket: null };
        }
        const dial = this.#nextStage(now);
        return { ...dial, delayMs: Math.max(dial.delayMs, this.#behind(ended.afterMs)) };
      }
      case "deferred": {
        this.#stage = "slot";
        this.#turn += 1;
        this.#deferred += 1;
        let delayMs = Math.min(ended.afterMs, MAX_SLOT_MS);
        if (this.#deferred > TRUSTED_SLOTS) delayMs = Math.max(delayMs, this.#backoff.next());
        return { delayMs, host: null, ticket: ended.ticket };
      }
      case "elsewhere":
        this.#stage = "region";
        this.#elsewhere = true;
        this.#turn += 1;
        return { delayMs: this.#spread(SPREAD_MS), host: this.#whom(), ticket: null };
      default:
        return this.#nextStage(now);
    }
  }

  /**
   * When and whom to dial if the server that told this plan is lost, counted from when it was heard last. Nothing has
   * ended yet, and nothing changes.
   *
   * @param {ReconnectPlan | null} plan
   * @returns {Dial | null} null where the plan does not say
   */
  foresee(plan) {
    this.handlePlan(plan);
    const host = this.#whom();
    if (!this.#plan || host === null) return null;
    return { delayMs: this.#plan.nodeMs * placeOf(this.#plan) + this.#spread(SPREAD_MS), host, ticket: null };
  }

  /** @param {number} now @returns {Dial} */
  #nextStage(now) {
    const plan = this.#plan;
    let delayMs;
    let host = null;
    if (plan && this.#stage === "none") {
      this.#stage = "node";
      this.#since = now;
      delayMs = plan.nodeMs * placeOf(plan) + this.#spread(SPREAD_MS);
      host = this.#whom();
    } else if (plan && this.#stage === "node") {
      this.#stage = "region";
      this.#elsewhere = true;
      // The others began when we did: what is left of the window is to be shared, not the whole of it.
      delayMs = Math.max(0, plan.regionMs - (now - this.#since)) * placeOf(plan) + this.#spread(SPREAD_MS);
      host = this.#whom();
    } else {
      delayMs = this.#backoff.next();
      if (this.#stage !== "local") host = this.#whom();
      this.#stage = "jitter";
    }
    this.#turn += 1;
    return { delayMs, host, ticket: null };
  }

  /** An alternative, in the other class where there is none in this one. */
  #whom() {
    const plan = this.#plan;
    if (!plan) return null;
    return alternativeOf(plan, this.#elsewhere, this.#turn) ?? alternativeOf(plan, !this.#elsewhere, this.#turn);
  }

  /** Whoever names a time names it to many: they come spread over as long again, within a second. @param {number} afterMs */
  #behind(afterMs) {
    return afterMs + this.#spread(Math.min(afterMs, AFTER_SPREAD_MS));
  }

  /** @param {number} boundMs */
  #spread(boundMs) {
    return this.#random() * boundMs;
  }
}

/**
 * A plan as far as it is believed.
 *
 * @param {Record<string, any> | undefined} plan as it came
 * @returns {ReconnectPlan | null}
 */
export function believed(plan) {
  if (!plan) return null;
  const { epoch = 0, node_ms: nodeMs = 0, region_ms: regionMs = 0, rank = 0 } = plan;
  const named = (plan.alternatives ?? []).slice(0, MAX_ALTERNATIVES);
  const alternatives = named.flatMap((/** @type {Record<string, any>} */ one) => {
    const host = endpointOf(one.host);
    return host === null ? [] : { host, weight: one.weight ?? 0, elsewhere: one.elsewhere ?? false };
  });
  return { epoch, nodeMs: Math.min(nodeMs, MAX_WINDOW_MS), regionMs: Math.min(regionMs, MAX_WINDOW_MS), rank, alternatives };
}

/**
 * What a refusal says in the short text of a transport's own close (PROTOCOL §9.3). Mirrors `protocol/src/hint.rs`.
 *
 * @param {string} reason
 * @returns {Cause | null} null where it says nothing of the kind
 */
export function hintOf(reason) {
  if (reason === "elsewhere") return { cause: "elsewhere" };
  /** @type {number | null} */
  let afterMs = null;
  /** @type {string | null} */
  let ticket = null;
  for (const part of reason.split(";")) {
    const [name, value = ""] = part.split(/=(.*)/s);
    if (name === "ra" && part.includes("=")) {
      if (!/^[0-9]+$/.test(value)) return null;
      afterMs = Math.min(Number(value), MAX_SLOT_MS);
    } else if (name === "t" && part.includes("=")) {
      ticket = /^[A-Za-z0-9_-]{1,64}$/.test(value) ? value : null;
    }
  }
  if (afterMs === null && ticket === null) return null;
  return { cause: "deferred", afterMs: afterMs ?? 0, ticket };
}

/** A reason as the app may see it: whoever has the ticket can use it. @param {string} reason */
export const withoutTicket = (reason) => reason.replace(/(^|;)(\s*)t=[^;]*/g, "$1$2t=(hidden)");

/** The client's place in a window, from 0 to 1. @param {ReconnectPlan} plan */
const placeOf = ({ rank }) => (rank * GOLDEN_RATIO) % 1;

/** @param {ReconnectPlan} plan @param {boolean} elsewhere @param {number} turn @returns {string | null} */
function alternativeOf({ rank, alternatives }, elsewhere, turn) {
  const matching = alternatives.filter((one) => one.elsewhere === elsewhere);
  const total = matching.reduce((sum, { weight }) => sum + weight, 0);
  let left = ((((rank + turn) % 2 ** 32) * Math.SQRT2) % 1) * total;
  for (const { host, weight } of matching) {
    left -= weight;
    if (left < 0) return host;
  }
  return matching.at(-1)?.host ?? null;
}

/** For the first dial of an outage: while it leads nowhere, others wait to be tried. */
export const PATIENCE_MS = 3_000;
const GOLDEN_RATIO = 0.6180339887498949;
/** Ranks whose places coincide come apart by this. */
const SPREAD_MS = 300;
const AFTER_SPREAD_MS = 1_000;
/** Users behind one access point change networks together. */
const LOCAL_SPREAD_MS = 500;
/** A server that defers more often than this, one time after the other, is not believed on its word alone. */
const TRUSTED_SLOTS = 4;
/** The longest wait for a slot that is believed. */
const MAX_SLOT_MS = 120_000;
const MAX_WINDOW_MS = 300_000;
const MAX_ALTERNATIVES = 16;
