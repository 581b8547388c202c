/**
 * What the session machine takes and says.
 *
 * @import { ReconnectPolicy } from '../close-codes.js'
 * @import { Begun } from '../ordering.js'
 *
 * @typedef {{ epoch: string, offset: number }} Position the last publication seen; an empty epoch is the current one
 *
 * @typedef {{ data: any } | { data_base64: Uint8Array }} Payload
 *
 * @typedef {object} RequestError
 * @property {number} code
 * @property {string} message
 * @property {boolean} retry
 *
 * @typedef {'known' | 'fresh' | 'fresh_if_any'} TokenWanted `fresh`: without a new one there is no use in connecting;
 *   `fresh_if_any`: it was a ticket that was refused, and who has no way to a new token connects as at first
 *
 * @typedef {object} Why a connection ended
 * @property {number} code
 * @property {string} reason
 * @property {ReconnectPolicy} policy
 *
 * @typedef {{ type: 'dial', connection: number, token: TokenWanted, isBeside: boolean, host: string | null, isFirst: boolean }
 *   | { type: 'hangup', connection: number, orderly: boolean }
 *   | { type: 'state' }
 *   | { type: 'connected', connection: number, body: Record<string, any> }
 *   | { type: 'moved', connection: number, body: Record<string, any> }
 *   | { type: 'move_failed', connection: number, why: Why, isConnected: boolean }
 *   | { type: 'suspect', isSuspect: boolean }
 *   | { type: 'goaway', endpoint: string | null }
 *   | { type: 'goaway_ignored', endpoint: string }
 *   | { type: 'disconnected', code: number, reason: string, policy: ReconnectPolicy, retryInMs: number | null }
 *   | { type: 'subscribed', channel: string, position: Position, how: Begun['how'], missed: number, conflated: boolean,
 *       byServer: boolean }
 *   | { type: 'unsubscribed', channel: string, error: RequestError | null }
 *   | { type: 'publication', publication: Record<string, any>, epoch: string, recovered: boolean }
 *   | { type: 'ephemeral', ephemeral: Record<string, any> }
 *   | { type: 'join' | 'leave' | 'presence_gap', body: Record<string, any> }
 *   | { type: 'reply', id: number, body: Record<string, any> }
 *   | { type: 'failure', id: number, error: RequestError }
 *   | { type: 'pong', id: number, ms: number }
 *   | { type: 'token_wanted' }
 *   | { type: 'rtt', ms: number }} Event
 *   `dial` beside: the connection that there is goes on meanwhile; `host` and port of another server, or null for whomever was
 *   dialled last; first: of an outage, where it leads nowhere others wait to be tried. `moved`: the one that was dialled beside it has taken
 *   over. `goaway`: dial there beside the one that there is, or tell that it is `notLeft`; null for wherever the app's own
 *   address leads. `disconnected` with `retryInMs` 0 while one is dialled beside: that one is all there is now
 */

/** Error code of a request that ended with its session. */
export const SESSION_ENDED = 0;

/** Error code of a publish that may or may not have been kept. */
export const UNKNOWN_OUTCOME = 1;

/** @param {string} reason @returns {RequestError} */
export function closedError(reason) {
  return { code: SESSION_ENDED, message: reason, retry: false };
}

/** @returns {RequestError} */
export function unknownOutcome() {
  const message = "no answer for so long that a repeat could be stored twice: it may or may not have been kept";
  return { code: UNKNOWN_OUTCOME, message, retry: false };
}

export const LIMITS = {
  /** From opening a connection to `connected`. */
  greetingMs: 10_000,
  /** From `done` to the server's `close`. */
  closeMs: 1_000,
  /** A connection that held for so long ends the series of attempts. */
  stableMs: 30_000,
  /** A gap that is still open after so long is closed by subscribing again. */
  gapMs: 5_000,
  /** How long a server surely remembers a publish's key (it does for 5 minutes). */
  keyMs: 270_000,
  /** Requests that wait or are in flight. */
  requests: 4_096,
  /** Requests in flight: half of what a server reads ahead. */
  inFlight: 32,
  /** Tries of a request that the server answers with `retry`. */
  attempts: 8,
  /** Ephemeral items that wait for the driver. */
  ephemeral: 64,
  /** What a subscription holds until a gap is filled. */
  held: { items: 1_024, bytes: 1 << 20 },
  /** How long the next connection may take, once it is connected, to have every subscription answered. */
  moveMs: 10_000,
  /** Connections that said `done` and wait for the server's `close`. */
  retired: 2,
  /** Client pings that wait for their `pong`. */
  pings: 8,
  /** Silence where traffic had been flowing, and a request's wait, before the path is probed. */
  silenceMs: 2_000,
  /** Of the usual gap between arrivals: so many of them are silence. */
  silenceGaps: 4,
  /** From a probe to suspicion, at least; and in probe timeouts. */
  suspectMs: 3_000,
  suspectTimeouts: 3,
  /** Between the probes of a connection that is watched. */
  watchEveryMs: 2_000,
  /** A timer that fires later than this was held back by the browser: what it missed is not the network's silence. */
  lateMs: 1_000,
};
