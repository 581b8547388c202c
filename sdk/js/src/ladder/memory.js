/**
 * Sans-io: what is known of the transports on a network: which does not get through there, until when that is believed,
 * when it last did, and how far away the server is. Outlives the page where there is a storage.
 *
 * @import { TransportName } from '../transport.js'
 *
 * @typedef {object} Known of one transport on one network; times in milliseconds of Unix time
 * @property {number} level how often in a row it was found broken
 * @property {number} brokenUntil
 * @property {number} workedAt
 * @property {number} slips failures since it worked that were let pass
 *
 * @typedef {{ usedAt: number, rttMs: number | null, transports: Partial<Record<TransportName, Known>> }} Network
 *
 * @typedef {{ getItem: (key: string) => string | null, setItem: (key: string, value: string) => void }} Store
 *   `localStorage`, or what looks like it
 */

export class Memory {
  #store;
  #key;
  #parameters;
  /** @type {Record<string, Network>} */
  #networks = {};
  #network;

  /**
   * @param {object} options
   * @param {Store | null} options.store
   * @param {string} options.origin of the server
   * @param {string} options.network which network this is
   * @param {typeof import('./parameters.js').PARAMETERS} options.parameters
   */
  constructor({ store, origin, network, parameters }) {
    this.#store = store;
    this.#key = `tidegate-ladder:${origin}`;
    this.#parameters = parameters;
    this.#network = network;
    this.#load();
  }

  /** The last round trip on this network; null where none is known. */
  get rttMs() {
    return this.#networks[this.#network]?.rttMs ?? null;
  }

  /** @param {TransportName} name @param {number} now */
  isBroken(name, now) {
    return (this.#known(name)?.brokenUntil ?? 0) > now;
  }

  /** How often in a row it was found broken. @param {TransportName} name */
  level(name) {
    return this.#known(name)?.level ?? 0;
  }

  /** It failed where another got through. @param {TransportName} name @param {number} now */
  failed(name, now) {
    const known = this.#at(name, now);
    const { rememberMs, tolerated } = this.#parameters;
    const workedLately = known.workedAt > 0 && now - known.workedAt < rememberMs;
    if (workedLately && known.slips < tolerated) known.slips += 1;
    else this.#break(known, now);
    this.#save();
  }

  /** It carried nothing any more while another did. @param {TransportName} name @param {number} now */
  died(name, now) {
    this.#break(this.#at(name, now), now);
    this.#save();
  }

  /** A session is connected by it. @param {TransportName} name @param {number} now */
  worked(name, now) {
    const known = this.#at(name, now);
    Object.assign(known, { brokenUntil: 0, workedAt: now, slips: 0 });
    this.#save();
  }

  /** It held for long: what was is forgotten. @param {TransportName} name @param {number} now */
  settled(name, now) {
    this.#at(name, now).level = 0;
    this.#save();
  }

  /** @param {number} ms @param {number} now */
  measured(ms, now) {
    const network = this.#here(now);
    const before = network.rttMs;
    network.rttMs = before === null ? ms : before + (ms - before) / 8;
    // Written with whatever else changes: it is not worth a write of its own.
    if (before === null) this.#save();
  }

  /** Another network, or the same one again: what did not get through before may do so now. @param {string} network */
  changeNetwork(network) {
    this.#network = network;
    for (const { transports } of Object.values(this.#networks)) {
      for (const known of Object.values(transports)) Object.assign(known, { brokenUntil: 0, level: 0, slips: 0 });
    }
    this.#save();
  }

  /** @param {Known} known @param {number} now */
  #break(known, now) {
    const { brokenMs, brokenCapMs } = this.#parameters;
    known.brokenUntil = now + Math.min(brokenMs * 2 ** Math.min(known.level, 30), brokenCapMs);
    known.level += 1;
    known.slips = 0;
  }

  /** @param {TransportName} name @returns {Known | undefined} */
  #known(name) {
    return this.#networks[this.#network]?.transports[name];
  }

  /** @param {TransportName} name @param {number} now @returns {Known} */
  #at(name, now) {
    const { transports } = this.#here(now);
    return (transports[name] ??= { level: 0, brokenUntil: 0, workedAt: 0, slips: 0 });
  }

  /** @param {number} now @returns {Network} */
  #here(now) {
    const network = (this.#networks[this.#network] ??= { usedAt: now, rttMs: null, transports: {} });
    network.usedAt = now;
    return network;
  }

  #load() {
    try {
      const text = this.#store?.getItem(this.#key);
      if (text) this.#networks = readNetworks(JSON.parse(text));
    } catch {
      // Somebody else's writing, or no leave to read: it begins knowing nothing.
    }
  }

  #save() {
    const names = Object.keys(this.#networks);
    if (names.length > MAX_NETWORKS) {
      names.sort((a, b) => (this.#networks[a]?.usedAt ?? 0) - (this.#networks[b]?.usedAt ?? 0));
      for (const name of names.slice(0, names.length - MAX_NETWORKS)) delete this.#networks[name];
    }
    try {
      this.#store?.setItem(this.#key, JSON.stringify(this.#networks));
    } catch {
      // The storage is full or closed to us: it is remembered as long as the page lives.
    }
  }
}

/** What was kept, whoever wrote it. @param {unknown} json @returns {Record<string, Network>} */
function readNetworks(json) {
  /** @type {Record<string, Network>} */
  const networks = {};
  for (const [name, network] of Object.entries(/** @type {any} */ (json)).slice(0, MAX_NETWORKS)) {
    /** @type {Network} */
    const read = { usedAt: number(network.usedAt), rttMs: number(network.rttMs) || null, transports: {} };
    for (const transport of TRANSPORTS) {
      const known = network.transports?.[transport];
      if (!known) continue;
      read.transports[transport] = {
        level: Math.min(number(known.level), 30),
        brokenUntil: number(known.brokenUntil),
        workedAt: number(known.workedAt),
        slips: number(known.slips),
      };
    }
    networks[name] = read;
  }
  return networks;
}

/** @param {unknown} value @returns {number} */
function number(value) {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : 0;
}

/** @type {TransportName[]} */
const TRANSPORTS = ["webtransport", "websocket", "longpoll"];

const MAX_NETWORKS = 16;
