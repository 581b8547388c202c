/** Close codes and what a client does after each (PROTOCOL §9). Mirrors `protocol/src/frame/close.rs`. */

/** @typedef {'backoff' | 'never' | 'now' | 'fresh_token'} ReconnectPolicy */

/** Names of the policies, in the order of their numbers in Protobuf. */
export const POLICIES = /** @type {const} */ (["backoff", "never", "now", "fresh_token"]);

/** Close codes by name. */
export const CloseCode = Object.freeze({
  done: 4000,
  badFrame: 4001,
  frameTooLarge: 4002,
  outOfOrder: 4003,
  unauthorized: 4004,
  tokenExpired: 4005,
  badOrigin: 4006,
  unsupported: 4007,
  badResume: 4008,
  superseded: 4009,
  shutdown: 4100,
  overloaded: 4101,
  connectTimeout: 4102,
  heartbeatTimeout: 4103,
  slowConsumer: 4104,
  tooManyRequests: 4105,
  internal: 4106,
  coreUnavailable: 4107,
  connectionLost: 4108,
  unknownSession: 4200,
  resumeExpired: 4201,
  resumeForeign: 4202,
});

/**
 * What to do after a close with `code`, also one that this version does not know: its range decides.
 *
 * @param {number} code
 * @returns {ReconnectPolicy}
 */
export function policyOf(code) {
  if (code === CloseCode.unauthorized || code === CloseCode.tokenExpired || code === CloseCode.badResume) {
    return "fresh_token";
  }
  if (code >= 4000 && code < 4100) return "never";
  if (code >= 4200 && code < 4300) return "now";
  return "backoff";
}
