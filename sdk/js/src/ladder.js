/**
 * Sans-io: which transport to try, when the next one joins, when to leave one that carries nothing, and when to climb back.
 *
 * A *race* opens a connection. The best transport begins; the next joins a little later, or at once where the one before
 * failed. The first that opens wins, the others are closed: only the winner ever says `connect`. Those that were ahead and
 * lost, or failed, are blamed, but not before a session is connected by the winner: a server that restarts fails them all,
 * and that says nothing about the network.
 *
 * From a fallback it *climbs*: it races the better ones beside the connection that there is. Before the move a handshake is
 * all the trial there can be, since a server closes what says no `connect` for five seconds. The rest comes behind it: for
 * ten seconds the new connection is probed often, and left at once if it fails; then the next climb is twice as far.
 *
 * @import { Memory } from './ladder/memory.js'
 * @import { TransportName } from './transport.js'
 *
 * @typedef {object} Race
 * @property {TransportName[]} waiting in the order in which they join
 * @property {TransportName[]} dialing
 * @property {TransportName[]} failed
 * @property {number} joinAt when the next one joins; infinity: not before another failed
 * @property {TransportName | null} winner
 * @property {boolean} isBeside a connection that there is
 * @property {boolean} isElsewhere at another server: what fails there says nothing of transports here
 *
 * @typedef {{ type: 'dial', name: TransportName }
 *   | { type: 'abandon', name: TransportName }
 *   | { type: 'won', name: TransportName }
 *   | { type: 'exhausted' }
 *   | { type: 'climb', names: TransportName[] }
 *   | { type: 'escape', names: TransportName[] }
 *   | { type: 'watch', ms: number }} Action
 *   `exhausted`: none of the race gets through. `climb`, `escape`: time to race these beside the connection that there is,
 *   since there are better ones, or since it carries nothing. `watch`: probe the connection often for so long
 */

import { PARAMETERS } from "./ladder/parameters.js";

export class Ladder {
  /** Best first. @type {TransportName[]} */
  #transports;
  #memory;
  #random;
  #parameters;
  /** @type {Race | null} */
  #race = null;
  /** Opened in the race before, and led nowhere. @type {TransportName | null} */
  #deadEnd = null;
  /** Not one got through in the race before, or the server said that it goes: it may be coming up one port at a time. */
  #wasAway = false;
  /** What the session is connected by. @type {{ name: TransportName, since: number } | null} */
  #current = null;
  #climbs = 0;
  /** @type {number | null} */
  #climbAt = null;
  #isSuspect = false;
  #escapes = 0;
  /** @type {number | null} */
  #escapeAt = null;
  /** @type {number | null} */
  #watchUntil = null;
  /** @type {Action[]} */
  #actions = [];

  /**
   * @param {object} options
   * @param {TransportName[]} options.transports best first
   * @param {Memory} options.memory
   * @param {() => number} options.random evenly distributed in [0, 1)
   * @param {Partial<typeof PARAMETERS>} [options.parameters]
   */
  constructor({ transports, memory, random, parameters = {} }) {
    this.#transports = [...transports];
    this.#memory = memory;
    this.#random = random;
    this.#parameters = { ...PARAMETERS, ...parameters };
  }

  get isRacing() {
    return this.#race !== null;
  }

  /** @param {TransportName} name */
  isBest(name) {
    return this.#transports[0] === name;
  }

  // --- what is wanted -----------------------------------------------------------------------------------------------

  /** Chosen by hand: the best from now on. @param {number} now @param {TransportName} name */
  prefer(now, name) {
    this.#transports = [name, ...this.#transports.filter((each) => each !== name)];
    this.#climbs = 0;
    this.#scheduleClimb(now);
  }

  /**
   * Opens a connection by the first that gets through.
   *
   * @param {number} now
   * @param {{ among?: TransportName[], isBeside?: boolean, isElsewhere?: boolean }} [options] of these only; there is a
   *   connection already; to another server, the transport of that connection first
   */
  race(now, { among = this.#transports, isBeside = false, isElsewhere = false } = {}) {
    this.stop();
    const isFirst = (/** @type {TransportName} */ name) => isElsewhere && name === this.#current?.name;
    const known = this.#transports.filter((name) => among.includes(name));
    known.sort((a, b) => Number(isFirst(b)) - Number(isFirst(a)));
    const waiting = [...known.filter((name) => !this.#isLast(name, now)), ...known.filter((name) => this.#isLast(name, now))];
    this.#race = { waiting, dialing: [], failed: [], joinAt: Infinity, winner: null, isBeside, isElsewhere };
    if (waiting.length === 0) this.#exhausted(this.#race);
    else this.#join(now);
  }

  /** The connection that the race was beside is gone: now whatever gets through will do. @param {number} now */
  widen(now) {
    const race = this.#race;
    if (!race || race.winner) return;
    const isIn = (/** @type {TransportName} */ name) => [race.waiting, race.dialing, race.failed].some((each) => each.includes(name));
    race.waiting.push(...this.#transports.filter((name) => !isIn(name)));
    race.isBeside = false;
    if (race.dialing.length === 0) this.#join(now);
    else this.#scheduleJoin(now);
  }

  /** Gives up the race. */
  stop() {
    for (const name of this.#race?.dialing ?? []) this.#actions.push({ type: "abandon", name });
    this.#race = null;
  }

  // --- what happened ------------------------------------------------------------------------------------------------

  /** @param {TransportName} name */
  handleOpened(name) {
    const race = this.#race;
    if (!race || race.winner || !race.dialing.includes(name)) return;
    race.winner = name;
    for (const each of race.dialing) {
      if (each === name) continue;
      this.#actions.push({ type: "abandon", name: each });
      // It had a start, and lost.
      if (race.dialing.indexOf(each) < race.dialing.indexOf(name)) race.failed.push(each);
    }
    race.dialing = [];
    race.joinAt = Infinity;
    this.#actions.push({ type: "won", name });
  }

  /** @param {number} now @param {TransportName} name @param {boolean} [isMissing] it does not exist here */
  handleFailed(now, name, isMissing = false) {
    const race = this.#race;
    if (isMissing) this.#transports = this.#transports.filter((each) => each !== name);
    if (!race || race.winner || !race.dialing.includes(name)) return;
    race.dialing = race.dialing.filter((each) => each !== name);
    if (!isMissing) race.failed.push(name);
    const [next] = race.waiting;
    if (next !== undefined && (race.dialing.length === 0 || !this.#isLast(next, now))) this.#join(now);
    else if (race.dialing.length === 0) this.#exhausted(race);
  }

  /** A session is connected by the winner, at first or because it moved there. @param {number} now @param {TransportName} name */
  handleConnected(now, name) {
    const { failed } = this.#race && !this.#race.isElsewhere ? this.#race : { failed: [] };
    const blamed = [...failed, ...(this.#deadEnd ? [this.#deadEnd] : [])];
    if (!this.#wasAway) this.#blame(now, blamed.filter((each) => each !== name));
    const before = this.#current;
    this.#race = null;
    this.#deadEnd = null;
    this.#wasAway = false;
    this.#watchUntil = null;
    this.#isSuspect = false;
    this.#escapes = 0;
    this.#escapeAt = null;
    this.#current = { name, since: now };
    this.#memory.worked(name, now);
    if (before && this.#rank(name) < this.#rank(before.name)) {
      this.#watchUntil = now + this.#parameters.watchMs;
      this.#actions.push({ type: "watch", ms: this.#parameters.watchMs });
    }
    this.#scheduleClimb(now);
  }

  /**
   * The winner opened, and ended before a session was connected by it.
   *
   * @param {number} now
   * @param {boolean} isServersWill it ended with the server's own close code
   */
  handleDeadEnd(now, isServersWill) {
    // A server that says so much was reached.
    this.#deadEnd = isServersWill ? null : (this.#race?.winner ?? null);
    if (isServersWill) this.#wasAway = true;
    this.#race = null;
    this.#scheduleClimb(now);
  }

  /**
   * What was raced beside the connection came to nothing.
   *
   * @param {number} now
   * @param {boolean} isServersWill
   */
  handleStayed(now, isServersWill) {
    const { failed, winner } = this.#race ?? { failed: [], winner: null };
    // The connection that there is shows that the server is reached, unless it is what is in doubt.
    if (!isServersWill && !this.#isSuspect) this.#blame(now, winner ? [...failed, winner] : failed);
    this.stop();
    this.#deadEnd = isServersWill ? null : winner;
    this.#climbs += 1;
    this.#scheduleClimb(now);
    if (!this.#isSuspect) return;
    const { escapeMs, escapeCapMs } = this.#parameters;
    this.#escapeAt = now + Math.min(escapeMs * 2 ** this.#escapes, escapeCapMs) * (0.5 + this.#random());
    this.#escapes += 1;
  }

  /**
   * The connection carries nothing, or something again. The same transport is raced too: where it gets through anew, it
   * was the server or an address that changed, and the transport is not to blame. Unless it is on trial.
   *
   * @param {number} now
   * @param {boolean} isSuspect
   */
  handleSuspect(now, isSuspect) {
    this.#isSuspect = isSuspect;
    this.#escapes = 0;
    this.#escapeAt = isSuspect ? now : null;
  }

  /** The session left `from`, which was suspect. @param {number} now @param {TransportName} from @param {TransportName} to */
  handleEscaped(now, from, to) {
    if (this.#rank(from) < this.#rank(to)) this.#memory.died(from, now);
  }

  /**
   * The session's connection is gone.
   *
   * @param {number} now
   * @param {boolean} isServersWill it ended with the server's own close code
   */
  handleLost(now, isServersWill) {
    if (this.#current && this.#isWatched(now) && !isServersWill) {
      this.#memory.died(this.#current.name, now);
      this.#climbs += 1;
    }
    if (isServersWill) this.#wasAway = true;
    this.handleEnded(now);
  }

  /** The app wants no connection any more. @param {number} now */
  handleEnded(now) {
    if (this.#current) this.#leave(now, this.#current);
    this.#current = null;
    this.#climbAt = this.#escapeAt = this.#watchUntil = null;
    this.#isSuspect = false;
  }

  /** @param {number} now @param {string} network */
  handleNetworkChanged(now, network) {
    this.#memory.changeNetwork(network);
    this.#deadEnd = null;
    this.#climbs = 0;
    this.#scheduleClimb(now);
  }

  /** @param {number} now @param {number} ms */
  handleRtt(now, ms) {
    this.#memory.measured(ms, now);
  }

  /** The session moves: whatever it leaves had held for so long. @param {number} now */
  handleLeft(now) {
    if (!this.#current) return;
    if (this.#isWatched(now)) this.#climbs += 1;
    this.#leave(now, this.#current);
  }

  // --- time ---------------------------------------------------------------------------------------------------------

  /** @param {number} now */
  handleTimeout(now) {
    if (this.#race && now >= this.#race.joinAt) this.#join(now);
    if (this.#watchUntil !== null && now >= this.#watchUntil) {
      this.#watchUntil = null;
      this.#climbs = 0;
    }
    if (this.#race || !this.#current) return;
    if (this.#escapeAt !== null && now >= this.#escapeAt) {
      const { name } = this.#current;
      this.#escapeAt = null;
      const names = this.#transports.filter((each) => each !== name || !this.#isWatched(now));
      if (names.length > 0) this.#actions.push({ type: "escape", names });
    } else if (this.#climbAt !== null && now >= this.#climbAt) {
      this.#climbAt = null;
      const names = this.#better;
      if (names.length > 0) this.#actions.push({ type: "climb", names });
    }
  }

  /** @returns {number | null} when to call `handleTimeout` */
  pollTimeout() {
    let next = this.#race?.joinAt ?? Infinity;
    if (!this.#race) next = Math.min(next, this.#climbAt ?? Infinity, this.#escapeAt ?? Infinity);
    next = Math.min(next, this.#watchUntil ?? Infinity);
    return next === Infinity ? null : next;
  }

  /** @returns {Action | null} */
  pollAction() {
    return this.#actions.shift() ?? null;
  }

  // --- the rest -----------------------------------------------------------------------------------------------------

  /** Transports that are better than what there is. @returns {TransportName[]} */
  get #better() {
    const current = this.#current;
    return current ? this.#transports.slice(0, Math.max(0, this.#rank(current.name))) : [];
  }

  /** @param {number} now */
  #join(now) {
    const race = this.#race;
    const name = race?.waiting.shift();
    if (!race || name === undefined) return;
    race.dialing.push(name);
    this.#actions.push({ type: "dial", name });
    this.#scheduleJoin(now);
  }

  /** @param {number} now */
  #scheduleJoin(now) {
    const race = this.#race;
    if (!race) return;
    const { joinRtts, joinMs, joinMinMs, joinMaxMs, longPollJoinMs } = this.#parameters;
    const [next] = race.waiting;
    if (next === undefined || this.#isLast(next, now)) {
      race.joinAt = Infinity;
    } else if (next === "longpoll") {
      race.joinAt = now + longPollJoinMs;
    } else {
      const { rttMs } = this.#memory;
      const ms = rttMs === null ? joinMaxMs : joinRtts * rttMs + joinMs;
      race.joinAt = now + Math.min(Math.max(ms, joinMinMs), joinMaxMs);
    }
  }

  /** Waits until all others failed. @param {TransportName} name @param {number} now */
  #isLast(name, now) {
    return name === this.#deadEnd || this.#memory.isBroken(name, now);
  }

  /** @param {Race} race */
  #exhausted(race) {
    race.joinAt = Infinity;
    this.#actions.push({ type: "exhausted" });
    // Beside a connection it is not the server that is away; what to think of it is said by `handleStayed`.
    if (race.isBeside) return;
    this.#race = null;
    this.#deadEnd = null;
    this.#wasAway = true;
  }

  /** @param {number} now @param {TransportName[]} names */
  #blame(now, names) {
    for (const name of new Set(names)) {
      const isKnown = name === this.#current?.name || this.#memory.isBroken(name, now);
      if (!isKnown) this.#memory.failed(name, now);
    }
  }

  /** @param {number} now */
  #scheduleClimb(now) {
    this.#climbAt = null;
    const better = this.#better;
    if (better.length === 0) return;
    const { climbMs, climbCapMs } = this.#parameters;
    // One that breaks again soon after each climb is tried ever less, too.
    const level = Math.max(this.#climbs, ...better.map((name) => this.#memory.level(name) - 1));
    this.#climbAt = now + Math.min(climbMs * 2 ** Math.min(level, 30), climbCapMs) * (0.5 + this.#random());
  }

  /** It held longer than it was shunned for: it begins from the base again. @param {number} now @param {{ name: TransportName, since: number }} left */
  #leave(now, { name, since }) {
    const { climbMs, climbCapMs } = this.#parameters;
    const earned = Math.min(climbMs * 2 ** this.#memory.level(name), climbCapMs);
    if (now - since >= earned) this.#memory.settled(name, now);
  }

  /** @param {number} now */
  #isWatched(now) {
    return this.#watchUntil !== null && now < this.#watchUntil;
  }

  /** @param {TransportName} name */
  #rank(name) {
    return this.#transports.indexOf(name);
  }
}
