/**
 * What the client asks of a transport. Each module in `transport/` opens one kind.
 *
 * @import { Frame } from './codec.js'
 *
 * @typedef {'webtransport' | 'websocket' | 'longpoll'} TransportName
 *
 * @typedef {object} Transport an open connection
 * @property {boolean} heartbeat whether the server pings on it
 * @property {(frames: Frame[]) => void} send in order
 * @property {(frame: Frame) => void} sendEphemeral at most once; dropped where it would have to wait
 * @property {(orderly: boolean) => void} close says nothing more to its handlers
 *
 * @typedef {object} Handlers
 * @property {(frames: Frame[]) => void} onFrames
 * @property {(closed: { code: number, reason: string }) => void} onClosed at most once, and nothing after it
 * @property {(error: Error) => void} onError what came was no frame of the protocol; `onClosed` follows
 *
 * @typedef {object} TransportOptions
 * @property {Uint8Array[]} certificateHashes SHA-256, WebTransport only
 * @property {'json' | 'proto'} encoding WebSocket only
 * @property {any} [WebSocket] instead of the global one
 * @property {any} [WebTransport] instead of the global one
 * @property {typeof fetch} [fetch] instead of the global one
 * @property {() => number} random
 * @property {number} pollMs how long a long poll waits at the server
 *
 * @typedef {(url: string, handlers: Handlers, options: TransportOptions, signal: AbortSignal) => Promise<Transport>} Open
 *   rejects where the transport does not get through; `signal` gives up
 */

/** This transport does not exist here: a browser without WebTransport, a Node without WebSocket. */
export class UnavailableError extends Error {
  name = "UnavailableError";
}

/** @param {unknown} error @returns {Error} */
export function toError(error) {
  return error instanceof Error ? error : new Error(String(error));
}

/**
 * A signal that fires with `parent`, or after `ms`. Call `clear` when what it guards is over.
 *
 * @param {AbortSignal} parent
 * @param {number} ms
 */
export function deadline(parent, ms) {
  const controller = new AbortController();
  const follow = () => controller.abort(parent.reason);
  const timer = setTimeout(() => controller.abort(new Error(`no answer within ${ms} ms`)), ms);
  parent.addEventListener("abort", follow, { once: true });
  if (parent.aborted) follow();
  const clear = () => {
    clearTimeout(timer);
    parent.removeEventListener("abort", follow);
  };
  return { signal: controller.signal, clear };
}
