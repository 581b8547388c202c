/**
 * The driver around the machines: it owns the clock, the timer, the connections and the token, and does what the session
 * and the ladder say.
 *
 * @import { Line } from './dialer.js'
 * @import { Event, TokenWanted } from './session/types.js'
 * @import { Handlers, TransportName, TransportOptions } from './transport.js'
 * @import { Store } from './ladder/memory.js'
 *
 * @typedef {object} DriverOptions
 * @property {Partial<Record<TransportName, string>>} urls
 * @property {TransportName[]} transports best first
 * @property {TransportOptions} transportOptions
 * @property {string | null} token
 * @property {((why: { fresh: boolean }) => string | Promise<string>) | undefined} getToken
 * @property {Partial<typeof PARAMETERS> | undefined} ladder
 * @property {{ baseMs?: number, capMs?: number } | undefined} backoff
 * @property {Store | null} store
 * @property {() => string} networkKey
 * @property {() => number} random
 *
 * @typedef {object} Plan
 * @property {TransportName[]} names
 * @property {boolean} isEscape
 * @property {boolean} [isLeaving] the server asked for it
 * @property {string | null} [endpoint] where to, then; null for the app's own address
 *
 * @typedef {Event
 *   | { type: 'moved_from', from: TransportName, to: TransportName, body: Record<string, any> }
 *   | { type: 'error', error: Error }} Told
 */

import { CloseCode } from "./close-codes.js";
import { Dialer } from "./dialer.js";
import { watchNetwork } from "./environment.js";
import { Ladder } from "./ladder.js";
import { Memory } from "./ladder/memory.js";
import { PARAMETERS } from "./ladder/parameters.js";
import { Session } from "./session.js";
import { endpointOfUrl } from "./session/goaway.js";
import { toError } from "./transport.js";

export class Driver {
  session;
  #options;
  #tell;
  #ladder;
  #dialer;
  #token;
  /** @type {Map<number, Line>} */
  #connections = new Map();
  /** What is dialled for, and with which token. @type {{ connection: number, token: string | null, isGivenUp: boolean } | null} */
  #dial = null;
  /** What to race beside the connection that there is. @type {Plan | null} */
  #plan = null;
  /** Where a server sent the session, and it went: host and port. @type {string | null} */
  #home = null;
  /** Whom its plan names while it has no connection. @type {string | null} */
  #wanted = null;
  #isFirstDial = false;
  /** Of the app's own addresses. @type {string[]} */
  #ownEndpoints;
  /** What the session is connected by. @type {TransportName | null} */
  #transport = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #isPumping = false;
  #unwatch = () => {};

  /**
   * @param {DriverOptions} options
   * @param {(told: Told) => void} tell what the app is to know
   */
  constructor(options, tell) {
    const { urls, transports, random, store, networkKey, ladder, backoff } = options;
    this.#options = options;
    this.#tell = tell;
    this.#token = options.token;
    const endpoints = Object.values(urls).flatMap((url) => endpointOfUrl(url) ?? []);
    this.#ownEndpoints = endpoints;
    this.session = new Session({ random, makeKey: randomHex, backoff, endpoints });
    const parameters = { ...PARAMETERS, ...ladder };
    const memory = new Memory({ store, origin: originOf(urls), network: networkKey(), parameters });
    this.#ladder = new Ladder({ transports, memory, random, parameters });
    this.#dialer = new Dialer({
      urls,
      options: options.transportOptions,
      ladder: this.#ladder,
      report: {
        now,
        makeHandlers: (line) => this.#makeHandlers(line),
        onError: (error) => tell({ type: "error", error }),
        onChange: () => this.pump(),
      },
    });
  }

  /** What the session is connected by; null while it is not. */
  get transport() {
    return this.#transport;
  }

  open() {
    this.#unwatch();
    this.#unwatch = watchNetwork(() => this.networkChanged());
    this.session.open(now());
    this.pump();
  }

  close() {
    this.session.close(now());
    this.pump();
  }

  /** @param {number} holdMs @param {string} reason */
  drop(holdMs, reason) {
    // The app's own doing is no transport's fault.
    this.#ladder.handleEnded(now());
    this.session.drop(now(), holdMs, reason);
    this.pump();
  }

  networkChanged() {
    this.#ladder.handleNetworkChanged(now(), this.#options.networkKey());
    this.session.networkChanged(now());
    this.pump();
  }

  /**
   * Moves there, and stays where it is until it has.
   *
   * @param {TransportName} name
   * @returns {boolean} whether there is anything to wait for
   */
  use(name) {
    this.#ladder.prefer(now(), name);
    const { state } = this.session;
    if (state === "live" && this.#transport !== name) {
      this.session.abandonMove(now(), `moving to ${name}`);
      this.pump();
      this.#move([name], false);
    } else if (state === "dialing" || state === "greeting" || state === "waiting") {
      this.session.drop(now(), 0, `moving to ${name}`);
    } else {
      return false;
    }
    this.pump();
    return true;
  }

  /** @param {string} token */
  setToken(token) {
    this.#token = token;
  }

  /** Acts upon what the machines say until they say nothing more. Handlers may call the client: that comes here again. */
  pump() {
    if (this.#isPumping) return;
    this.#isPumping = true;
    try {
      let isBusy = true;
      while (isBusy) {
        isBusy = false;
        for (let event = this.session.pollEvent(); event; event = this.session.pollEvent()) {
          isBusy = true;
          this.#handleEvent(event);
        }
        for (let action = this.#ladder.pollAction(); action; action = this.#ladder.pollAction()) {
          isBusy = true;
          this.#handleAction(action);
        }
        isBusy = this.#transmit() || isBusy;
      }
    } finally {
      this.#isPumping = false;
    }
    clearTimeout(this.#timer);
    const at = Math.min(this.session.pollTimeout() ?? Infinity, this.#ladder.pollTimeout() ?? Infinity);
    if (at === Infinity) return;
    const delay = Math.min(Math.max(0, Math.ceil(at - now())), MAX_DELAY_MS);
    this.#timer = setTimeout(() => {
      this.session.handleTimeout(now());
      this.#ladder.handleTimeout(now());
      this.pump();
    }, delay);
  }

  #transmit() {
    /** @type {Map<number, { control: any[], ephemeral: any[] }>} */
    const batches = new Map();
    for (let next = this.session.pollTransmit(now()); next; next = this.session.pollTransmit(now())) {
      const batch = batches.get(next.connection) ?? { control: [], ephemeral: [] };
      batches.set(next.connection, batch);
      batch[next.lane].push(next.frame);
    }
    for (const [connection, { control, ephemeral }] of batches) {
      const transport = this.#connections.get(connection)?.transport;
      if (transport && control.length > 0) transport.send(control);
      for (const frame of ephemeral) transport?.sendEphemeral(frame);
    }
    return batches.size > 0;
  }

  // --- what the session says ----------------------------------------------------------------------------------------

  /** @param {Event} event */
  #handleEvent(event) {
    switch (event.type) {
      case "dial":
        if (event.host !== null) this.#wanted = event.host;
        this.#isFirstDial = event.isFirst;
        void this.#prepare(event.connection, event.token, event.isBeside);
        return;
      case "hangup":
        return this.#hangUp(event.connection, event.orderly);
      case "connected":
        this.#transport = this.#connections.get(event.connection)?.name ?? null;
        this.#home = this.#wanted ?? this.#home;
        this.#wanted = null;
        if (this.#transport) this.#ladder.handleConnected(now(), this.#transport);
        break;
      case "moved":
        return this.#moved(event.connection, event.body);
      case "move_failed":
        // That another server is out of reach says nothing of transports.
        if (this.#plan?.isLeaving) this.#ladder.stop();
        else this.#ladder.handleStayed(now(), isServersWill(event.why.code));
        this.#plan = null;
        break;
      case "goaway":
        this.#leave(event.endpoint);
        break;
      case "suspect":
        this.#suspect(event.isSuspect);
        break;
      case "disconnected":
        this.#disconnected(event.code);
        break;
      case "state":
        if (this.session.state === "ended") this.#ended();
        break;
      case "rtt":
        this.#ladder.handleRtt(now(), event.ms);
    }
    this.#tell(event);
  }

  /** @param {number} connection @param {Record<string, any>} body */
  #moved(connection, body) {
    const from = this.#transport;
    const to = this.#connections.get(connection)?.name;
    if (!from || !to) return;
    this.#transport = to;
    this.#ladder.handleLeft(now());
    if (this.#plan?.isLeaving) this.#home = this.#plan.endpoint ?? null;
    else if (this.#plan?.isEscape) this.#ladder.handleEscaped(now(), from, to);
    this.#plan = null;
    this.#ladder.handleConnected(now(), to);
    this.#tell({ type: "moved_from", from, to, body });
  }

  #ended() {
    this.#unwatch();
    this.#transport = null;
    this.#ladder.stop();
    this.#ladder.handleEnded(now());
  }

  /** @param {boolean} isSuspect */
  #suspect(isSuspect) {
    this.#ladder.handleSuspect(now(), isSuspect);
    if (isSuspect) this.#ladder.handleTimeout(now());
    // It is heard again before there was another.
    else if (this.#plan?.isEscape && this.session.isMoving) this.session.abandonMove(now(), "the connection lives");
  }

  /** @param {number} code */
  #disconnected(code) {
    const wasConnected = this.#transport !== null;
    this.#transport = null;
    this.#plan = null;
    if (wasConnected) this.#ladder.handleLost(now(), isServersWill(code));
    else if (this.session.state !== "dialing") this.#ladder.handleDeadEnd(now(), isServersWill(code));
    // What was dialled beside the connection is all there is now.
    if (this.session.state === "dialing") this.#ladder.widen(now());
  }

  // --- what the ladder says -----------------------------------------------------------------------------------------

  /** @param {import('./ladder.js').Action} action */
  #handleAction(action) {
    switch (action.type) {
      case "dial":
        return this.#dialer.dial(action.name);
      case "abandon":
        return this.#dialer.abandon(action.name);
      case "won":
        return this.#won(action.name);
      case "exhausted": {
        if (this.#fallBack()) return;
        const { connection } = this.#dial ?? { connection: 0 };
        const reason = `no transport gets through (${this.#dialer.failures})`;
        this.#dial = null;
        return this.session.handleDialFailed(now(), connection, reason);
      }
      case "climb":
        return this.#move(action.names, false);
      case "escape":
        return this.#move(action.names, true);
      case "watch":
        return this.session.watch(now(), action.ms);
    }
  }

  /** Where no transport leads there, the app's own addresses come next. @returns {boolean} whether they are dialled now */
  #fallBack() {
    if (this.session.state !== "dialing" || !this.#dial) return false;
    const place = this.#wanted ?? this.#home;
    this.#home = this.#wanted = null;
    // The first dial of an outage is one of many: whoever the plan names next is waited for.
    if (place === null || this.#isFirstDial || this.#ownEndpoints.includes(place)) return false;
    this.#dialer.endpoint = null;
    this.#ladder.race(now());
    return true;
  }

  /** @param {TransportName[]} names @param {boolean} isEscape */
  #move(names, isEscape) {
    if (this.session.move(now())) this.#plan = { names, isEscape };
    // It moves already, for whatever reason: that counts.
    else if (this.session.isMoving && this.#plan && isEscape) this.#plan.isEscape = true;
  }

  /** The server wants to be left. @param {string | null} endpoint */
  #leave(endpoint) {
    const names = this.#options.transports;
    if (this.session.move(now())) this.#plan = { names, isEscape: false, isLeaving: true, endpoint };
    else this.session.notLeft(now());
  }

  /** @param {TransportName} name */
  #won(name) {
    const line = this.#dialer.take(name);
    const dial = this.#dial;
    this.#dial = null;
    if (!dial || !line?.transport) return line?.transport?.close(false);
    line.connection = dial.connection;
    this.#connections.set(dial.connection, line);
    this.session.handleOpened(now(), dial.connection, { token: dial.token, heartbeat: line.transport.heartbeat });
  }

  // --- connections --------------------------------------------------------------------------------------------------

  /** Gets the token, then races. @param {number} connection @param {TokenWanted} wanted @param {boolean} isBeside */
  async #prepare(connection, wanted, isBeside) {
    this.#dialer.stop();
    const dial = { connection, token: /** @type {string | null} */ (null), isGivenUp: false };
    this.#dial = dial;
    try {
      const token = this.#tokenFor(wanted);
      dial.token = token instanceof Promise ? await token : token;
      if (dial.isGivenUp) return;
      // Where the other connection died meanwhile, whatever gets through will do.
      const plan = isBeside && this.session.state === "live" ? this.#plan : null;
      this.#dialer.endpoint = plan?.isLeaving ? (plan.endpoint ?? null) : (this.#wanted ?? this.#home);
      this.#ladder.race(now(), plan ? { among: plan.names, isBeside: true, isElsewhere: plan.isLeaving === true } : {});
    } catch (error) {
      if (dial.isGivenUp) return;
      this.#dial = null;
      this.session.handleDialFailed(now(), connection, toError(error).message, error instanceof NoTokenError);
    }
    this.pump();
  }

  /** @param {TokenWanted} wanted @returns {string | null | Promise<string>} */
  #tokenFor(wanted) {
    const { getToken } = this.#options;
    if (wanted === "fresh" && !getToken) {
      throw new NoTokenError("the server wants a new token, and there is no getToken");
    }
    if (!getToken || (wanted === "known" && this.#token !== null)) return this.#token;
    return Promise.resolve(getToken({ fresh: wanted !== "known" })).then((token) => (this.#token = token));
  }

  /** @param {number} connection @param {boolean} orderly */
  #hangUp(connection, orderly) {
    if (this.#dial?.connection === connection) {
      this.#dial.isGivenUp = true;
      this.#dial = null;
      this.#ladder.stop();
      this.#dialer.stop();
    }
    this.#connections.get(connection)?.transport?.close(orderly);
    this.#connections.delete(connection);
  }

  /** It says nothing before it has won, and nothing once it was hung up. @param {Line} line @returns {Handlers} */
  #makeHandlers(line) {
    const isOurs = () => line.connection !== 0 && this.#connections.get(line.connection) === line;
    return {
      onFrames: (frames) => {
        if (!isOurs()) return;
        this.session.handleActivity(now(), line.connection);
        for (const frame of frames) this.session.handleFrame(now(), line.connection, frame);
        this.pump();
      },
      onClosed: (why) => {
        line.isClosed = true;
        if (!isOurs()) return;
        this.#connections.delete(line.connection);
        this.session.handleClosed(now(), line.connection, why);
        this.pump();
      },
      onError: (error) => this.#tell({ type: "error", error }),
    };
  }
}

class NoTokenError extends Error {}

/** Random text that nobody can guess. */
export function randomHex() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Milliseconds of Unix time, which run evenly while the page lives. */
export function now() {
  return performance.timeOrigin + performance.now();
}

/** The server itself ended it: it was reached. @param {number} code */
function isServersWill(code) {
  return code >= 4000 && code < 4300 && code !== CloseCode.connectionLost;
}

/** Which server it is, as far as the memory of transports goes. @param {Partial<Record<TransportName, string>>} urls */
function originOf(urls) {
  const [first = ""] = Object.values(urls);
  return URL.canParse(first) ? new URL(first).host : first;
}

/** Longer timers than this fire at once. */
const MAX_DELAY_MS = 2 ** 31 - 1;
