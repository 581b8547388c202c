/** Client of Tidegate: ordered, recovered, none twice, over the best transport that gets through. */

export { Client } from "./client.js";
export { CloseCode, policyOf } from "./close-codes.js";
export { TidegateError } from "./error.js";
export { SESSION_ENDED, UNKNOWN_OUTCOME } from "./session.js";
export { Subscription } from "./subscription.js";

/**
 * @typedef {import('./client/types.js').ClientOptions} ClientOptions
 * @typedef {import('./client/types.js').ClientState} ClientState
 * @typedef {import('./client/types.js').ClientEvents} ClientEvents
 * @typedef {import('./client/types.js').ConnectedEvent} ConnectedEvent
 * @typedef {import('./client/types.js').MovedEvent} MovedEvent
 * @typedef {import('./client/types.js').DisconnectedEvent} DisconnectedEvent
 * @typedef {import('./session/types.js').Position} Position
 * @typedef {import('./subscription.js').Publication} Publication
 * @typedef {import('./subscription.js').EphemeralItem} EphemeralItem
 * @typedef {import('./subscription.js').SubscribedEvent} SubscribedEvent
 * @typedef {import('./subscription.js').Presence} Presence
 * @typedef {import('./subscription.js').PresenceChange} PresenceChange
 * @typedef {import('./transport.js').TransportName} TransportName
 */
