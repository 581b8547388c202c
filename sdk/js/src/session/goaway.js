/**
 * Sans-io: leaving a connection whose server asks to, or is not heard any more: when to dial where, and what is not
 * believed.
 *
 * @typedef {object} Departure what the server of a connection asked for, or the plan has for one that is silent
 * @property {string | null} endpoint where to, as host and port; null for wherever the app's own address leads
 * @property {string | undefined} slot
 * @property {number | null} refusedUntil the server there said so
 * @property {number} tryAt when to dial, or to dial again if nothing is heard of the last one
 * @property {number} tries dials that were asked for
 * @property {boolean} isTried what became of the last of them was not told yet
 * @property {number} anywhereFrom from then on any place will do
 * @property {number} deadline the server closes then
 * @property {boolean} [isUnasked] the server is silent: over when it is heard
 */

/**
 * @param {number} now
 * @param {Record<string, any>} goaway
 * @param {(endpoint: string) => boolean} isAllowed
 * @returns {Departure | null} null where the server has no right to send the session there
 */
export function departure(now, goaway, isAllowed) {
  const endpoint = goaway.endpoint === undefined ? null : endpointOf(goaway.endpoint, "https://");
  if (goaway.endpoint !== undefined && (endpoint === null || !isAllowed(endpoint))) return null;
  const left = Math.min(goaway.deadline_ms, MAX_DEADLINE_MS);
  const tryAt = now + Math.min(goaway.after_ms, left);
  const deadline = now + left;
  const anywhereFrom = Math.max(deadline - Math.min(MARGIN_MS, left / 4), tryAt);
  const slot = (goaway.slot?.length ?? 0) <= MAX_SLOT ? goaway.slot : undefined;
  return { endpoint, slot, refusedUntil: null, tryAt, tries: 0, isTried: false, anywhereFrom, deadline };
}

/**
 * Nothing is heard of the server. Whoever is asked at its address may answer, so that comes first.
 *
 * @param {number} now
 * @param {{ endpoint: string, at: number, deadline: number }} where and from when, and when it is dead
 * @returns {Departure}
 */
export function escape(now, { endpoint, at, deadline }) {
  const tryAt = Math.max(at, now + OWN_SERVER_FIRST_MS);
  return { endpoint, slot: undefined, refusedUntil: null, tryAt, tries: 0, isTried: false, anywhereFrom: deadline, deadline, isUnasked: true };
}

/** What was asked for led nowhere; nothing where that was told before. @param {Departure} departure @param {number} now @param {number} random in [0, 1) */
export function putOff(departure, now, random) {
  if (!departure.isTried) return;
  departure.isTried = false;
  const at = now + Math.min(RETRY_MS * 2 ** (departure.tries - 1), RETRY_CAP_MS) * (0.5 + random);
  // The first try anywhere is not put off.
  departure.tryAt = now < departure.anywhereFrom ? Math.min(at, departure.anywhereFrom) : at;
  const until = departure.refusedUntil;
  departure.refusedUntil = null;
  if (until !== null && until < departure.deadline) departure.tryAt = until;
}

/**
 * The server there refused, and said when to come. While nothing is tried, a refusal is of something else, such as a climb.
 *
 * @param {Departure} departure
 * @param {number} until
 * @param {string | null} ticket
 */
export function putOffUntil(departure, until, ticket) {
  if (!departure.isTried) return;
  departure.refusedUntil = until;
  departure.slot = ticket ?? undefined;
}

/** It is time. @param {Departure} departure @param {number} now @returns {string | null} where to */
export function takeTurn(departure, now) {
  const isAnywhere = departure.tries > 0 && now >= departure.anywhereFrom;
  departure.tries += 1;
  departure.isTried = true;
  departure.tryAt = now + PATIENCE_MS;
  return isAnywhere ? null : departure.endpoint;
}

/**
 * Host and port in one spelling. Nothing may stand behind them, lest somebody read another host there.
 *
 * @param {string} text
 * @param {string} [prefix]
 * @returns {string | null}
 */
export function endpointOf(text, prefix = "") {
  if (typeof text !== "string" || !text.startsWith(prefix)) return null;
  const match = /^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?\/?$/i.exec(text.slice(prefix.length));
  const [, host = "", digits = "4433"] = match ?? [];
  const port = Number(digits);
  if (!match || port === 0 || port > 65_535 || host.length > MAX_HOST) return null;
  return `${host.toLowerCase()}:${port}`;
}

/** Of the app's own addresses. @param {string} url @returns {string | null} */
export function endpointOfUrl(url) {
  if (!URL.canParse(url)) return null;
  const { hostname, port, protocol } = new URL(url);
  return endpointOf(`${hostname}:${port || (protocol === "https:" || protocol === "wss:" ? "443" : "80")}`);
}

/** The same address at another place. @param {string} url @param {string} endpoint */
export function urlAt(url, endpoint) {
  const at = new URL(url);
  at.host = endpoint;
  return at.href;
}

/** For another connection to a server that is silent on this one: it may be the path alone. */
const OWN_SERVER_FIRST_MS = 1_000;
/** From a dial to the next, where nothing is heard of it. */
const PATIENCE_MS = 12_000;
/** Before the deadline: long enough to connect elsewhere. */
const MARGIN_MS = 5_000;
/** Bound of the first wait after a failure, ± 50 %; doubles up to the cap. */
const RETRY_MS = 500;
const RETRY_CAP_MS = 8_000;
const MAX_DEADLINE_MS = 24 * 3_600_000;
const MAX_SLOT = 512;
/** Of a name in DNS. */
const MAX_HOST = 253;
