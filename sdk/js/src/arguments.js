/**
 * What the app gives and gets, to what the session machine takes and says. What no frame can carry is refused here.
 *
 * @import { Payload, Position } from './session/types.js'
 * @import { Publication } from './subscription.js'
 * @import { TransportName } from './transport.js'
 */

import { LONE_SURROGATE } from "./codec.js";
import { TidegateError } from "./error.js";

/**
 * The address for each transport.
 *
 * @param {string | URL | Partial<Record<TransportName, string>>} url
 * @returns {Partial<Record<TransportName, string>>}
 */
export function addresses(url) {
  if (typeof url !== "string" && !(url instanceof URL)) return url;
  const base = new URL(url);
  if (base.protocol !== "https:" && base.protocol !== "http:") {
    throw new TypeError(`${url} is no https URL: give the address for each transport instead`);
  }
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  const connect = new URL("v1/connect", base).href;
  return {
    ...(base.protocol === "https:" && { webtransport: connect }),
    websocket: connect.replace(/^http/, "ws"),
    longpoll: new URL("v1/poll", base).href,
  };
}

/**
 * The two fields of a frame. JSON is copied: the app may change its object before it is sent.
 *
 * @param {any} data
 * @returns {Payload}
 */
export function payloadOf(data) {
  if (data instanceof Uint8Array) {
    fits(data.length);
    return { data_base64: data.slice() };
  }
  const json = JSON.stringify(data);
  if (json === undefined) throw new TypeError("the payload is neither a JSON value nor a Uint8Array");
  fits(new TextEncoder().encode(json).length);
  return { data: JSON.parse(json) };
}

/** @param {number} bytes */
function fits(bytes) {
  // Over the server's limit for a frame the connection would end; below it only this publish fails.
  if (bytes > MAX_PAYLOAD_BYTES) throw new TidegateError(413, `a payload of ${bytes} bytes is too large`, false);
}

/** The payload of a frame. @param {Record<string, any>} body */
export function dataOf(body) {
  return Object.hasOwn(body, "data_base64") ? body.data_base64 : body.data;
}

/**
 * A publication as the app sees it.
 *
 * @param {Record<string, any>} body
 * @param {string} epoch
 * @param {boolean} recovered
 * @returns {Publication}
 */
export function publicationOf(body, epoch, recovered) {
  const { channel, offset, user = null, time_ms: timeMs } = body;
  return { channel, offset, epoch, data: dataOf(body), user, timeMs, recovered };
}

/** @param {Position | undefined} position @returns {Position | null} */
export function checkedPosition(position) {
  if (position === undefined) return null;
  const { epoch, offset } = position;
  if (!Number.isSafeInteger(offset) || offset < 0) throw new RangeError(`${offset} is no offset`);
  return { epoch: text(epoch), offset };
}

/** @param {number | undefined} rank @returns {number} */
export function checkedRank(rank = 0) {
  if (!Number.isInteger(rank) || rank < -128 || rank > 127) throw new RangeError(`${rank} is no rank: -128 to 127`);
  return rank;
}

/** Text that UTF-8 can hold. @param {unknown} value @returns {string} */
export function text(value) {
  if (typeof value !== "string" || LONE_SURROGATE.test(value)) throw new TypeError(`${value} is no string`);
  return value;
}

/** A server's default frame is 128 KiB, and base64 makes four bytes of three. */
const MAX_PAYLOAD_BYTES = 90 * 1024;
