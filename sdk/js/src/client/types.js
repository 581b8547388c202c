/**
 * What apps give the client, and what they are told.
 *
 * @import { ReconnectPolicy } from '../close-codes.js'
 * @import { Store } from '../ladder/memory.js'
 * @import { PARAMETERS } from '../ladder/parameters.js'
 * @import { Subscription } from '../subscription.js'
 * @import { TransportName } from '../transport.js'
 *
 * @typedef {'idle' | 'connecting' | 'connected' | 'waiting' | 'closing' | 'closed'} ClientState
 *   `waiting`: between two attempts
 *
 * @typedef {object} ClientOptions
 * @property {string} [token] JWT of the first connection
 * @property {(why: { fresh: boolean }) => string | Promise<string>} [getToken] where a token is needed; `fresh`: the
 *   last one was refused or ends soon
 * @property {TransportName[]} [transports] which to try, best first; it climbs back to better ones
 * @property {Partial<typeof PARAMETERS>} [ladder] times of the choice between transports
 * @property {{ baseMs?: number, capMs?: number }} [backoff] bound of the wait before another attempt to connect, which
 *   doubles from `baseMs` (1,000) to `capMs` (60,000); less is for tests and local networks
 * @property {Store | null} [storage] where it is kept which transports get through; `localStorage` unless told
 * @property {() => string} [networkKey] which network this is; `navigator.connection.type` unless told
 * @property {string[]} [certificateHashes] base64 of SHA-256 hashes of certificates that WebTransport accepts
 * @property {'json' | 'proto'} [encoding] of WebSocket; JSON unless told
 * @property {number} [pollMs] how long a long poll waits at the server
 * @property {any} [WebSocket] constructor to use instead of the global one, for Node
 * @property {any} [WebTransport] likewise
 * @property {typeof fetch} [fetch] likewise
 * @property {() => number} [random] evenly distributed in [0, 1)
 *
 * @typedef {object} ConnectedEvent
 * @property {TransportName} transport
 * @property {string} session
 * @property {string | null} user
 * @property {string} node
 * @property {string} region
 * @property {boolean} resumed it is the session of before
 *
 * @typedef {object} MovedEvent the session went on, without a gap, on another connection
 * @property {TransportName} from
 * @property {TransportName} to
 * @property {string} session
 * @property {string} node
 * @property {string} region
 * @property {boolean} resumed it is the session of before; false where the server gives no tickets
 *
 * @typedef {object} DisconnectedEvent
 * @property {number} code see `CloseCode`
 * @property {string} reason
 * @property {ReconnectPolicy} policy
 * @property {number | null} retryInMs null: the client does not come back by itself
 *
 * @typedef {object} ClientEvents
 * @property {ClientState} state
 * @property {ConnectedEvent} connected
 * @property {DisconnectedEvent} disconnected
 * @property {MovedEvent} moved
 * @property {TransportName | null} transport what it is connected by now
 * @property {{ endpoint: string | null }} leaving the server asked to be left: `moved` follows, unless it leads nowhere;
 *   null: not to a certain place
 * @property {boolean} suspect the connection carries nothing; false: it does again, or it was left
 * @property {Subscription} subscription one that the server began by itself; listen to it here and now
 * @property {number} rtt milliseconds
 * @property {Error} error what the app may want to log; the session goes on
 */

export {};
