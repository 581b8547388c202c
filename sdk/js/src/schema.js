/**
 * The schema as tables, field by field the same as `protocol/src/frame.rs`; the test vectors prove it.
 *
 * @typedef {'string' | 'bytes' | 'json' | 'bool' | 'uint32' | 'sint32' | 'uint64' | 'policy' | 'message'} FieldKind
 *
 * @typedef {object} Field
 * @property {number} tag
 * @property {string} name as in JSON
 * @property {FieldKind} kind `json` is a JSON value; its text, as bytes, in Protobuf
 * @property {Message} [message] of `kind: 'message'`
 * @property {boolean} [optional] absent is not the same as the default
 * @property {boolean} [repeated]
 * @property {boolean} [sparse] left out of JSON where it holds its default
 *
 * @typedef {object} Message
 * @property {string} name
 * @property {Field[]} fields
 * @property {Map<number, Field>} byTag
 *
 * @typedef {object} FrameSchema a frame is an id and one of several bodies
 * @property {boolean} strict true: a frame without a known body is an error; false: it is passed over
 * @property {Map<string, Field>} byName
 * @property {Map<number, Field>} byTag
 */

/**
 * @param {number} tag
 * @param {string} name
 * @param {FieldKind} kind
 * @param {Partial<Field>} [rest]
 * @returns {Field}
 */
const field = (tag, name, kind, rest = {}) => ({ tag, name, kind, ...rest });

/**
 * @param {string} name
 * @param {Field[]} fields
 * @returns {Message}
 */
const message = (name, fields) => ({ name, fields, byTag: new Map(fields.map((each) => [each.tag, each])) });

const OPTIONAL = { optional: true };
const SPARSE = { sparse: true };

const Empty = message("Empty", []);

export const Position = message("Position", [field(1, "epoch", "string"), field(2, "offset", "uint64")]);

/** @param {number} tag @param {string} name */
const position = (tag, name) => field(tag, name, "message", { message: Position, optional: true });

const ErrorReply = message("ErrorReply", [
  field(1, "code", "uint32"),
  field(2, "message", "string"),
  field(3, "retry", "bool"),
]);

const Publication = message("Publication", [
  field(1, "channel", "string"),
  field(2, "offset", "uint64"),
  field(3, "data", "json", OPTIONAL),
  field(4, "data_base64", "bytes", OPTIONAL),
  field(5, "user", "string", OPTIONAL),
  field(6, "time_ms", "uint64"),
]);

const Ephemeral = message("Ephemeral", [
  field(1, "channel", "string"),
  field(2, "data", "json", OPTIONAL),
  field(3, "data_base64", "bytes", OPTIONAL),
  field(4, "user", "string", OPTIONAL),
  field(5, "time_ms", "uint64"),
]);

const Subscribed = message("Subscribed", [
  field(1, "channel", "string"),
  position(2, "position"),
  field(3, "recovered", "bool"),
  field(4, "publications", "message", { message: Publication, repeated: true }),
  field(5, "conflated", "bool", SPARSE),
]);

const PresentUser = message("PresentUser", [field(1, "user", "string"), field(2, "sessions", "uint32")]);

/** @param {string} name */
const change = (name) =>
  message(name, [field(1, "channel", "string"), field(2, "user", "string"), field(3, "time_ms", "uint64")]);

const Reconnect = message("Reconnect", [
  field(1, "policy", "policy"),
  field(2, "after_ms", "uint64", OPTIONAL),
  field(3, "slot", "string", OPTIONAL),
]);

const Alternative = message("Alternative", [
  field(1, "host", "string"),
  field(2, "weight", "uint32"),
  field(3, "elsewhere", "bool", SPARSE),
]);

const ReconnectPlan = message("ReconnectPlan", [
  field(1, "epoch", "uint64"),
  field(2, "node_ms", "uint32"),
  field(3, "region_ms", "uint32"),
  field(4, "rank", "uint32"),
  field(5, "alternatives", "message", { message: Alternative, repeated: true }),
]);

/** @param {number} tag */
const plan = (tag) => field(tag, "plan", "message", { message: ReconnectPlan, optional: true });

/** First message on each stream that the server opens. */
export const StreamHeader = message("StreamHeader", [
  field(1, "channel", "string"),
  field(2, "catch_up", "bool", SPARSE),
  field(3, "epoch", "string"),
]);

/**
 * @param {boolean} strict
 * @param {[number, string, Message][]} bodies
 * @returns {FrameSchema}
 */
function frame(strict, bodies) {
  const fields = bodies.map(([tag, name, body]) => field(tag, name, "message", { message: body }));
  return {
    strict,
    byName: new Map(fields.map((each) => [each.name, each])),
    byTag: new Map(fields.map((each) => [each.tag, each])),
  };
}

export const ClientFrame = frame(true, [
  [
    2,
    "connect",
    message("Connect", [
      field(1, "token", "string", OPTIONAL),
      field(2, "resume", "string", OPTIONAL),
      field(3, "key", "string", OPTIONAL),
      field(4, "repeats", "bool", SPARSE),
      field(5, "slot", "string", OPTIONAL),
      field(6, "moves", "bool", SPARSE),
    ]),
  ],
  [
    3,
    "subscribe",
    message("Subscribe", [
      field(1, "channel", "string"),
      position(2, "position"),
      field(3, "rank", "sint32", SPARSE),
      field(4, "presence", "bool", SPARSE),
    ]),
  ],
  [4, "unsubscribe", message("Unsubscribe", [field(1, "channel", "string")])],
  [
    5,
    "publish",
    message("Publish", [
      field(1, "channel", "string"),
      field(2, "data", "json", OPTIONAL),
      field(3, "data_base64", "bytes", OPTIONAL),
      field(4, "key", "string", OPTIONAL),
      field(5, "ephemeral", "bool", SPARSE),
    ]),
  ],
  [
    6,
    "history",
    message("HistoryRequest", [field(1, "channel", "string"), position(2, "since"), field(3, "limit", "uint32", SPARSE)]),
  ],
  [7, "presence", message("PresenceRequest", [field(1, "channel", "string")])],
  [8, "refresh", message("Refresh", [field(1, "token", "string")])],
  [
    9,
    "rpc",
    message("Rpc", [
      field(1, "method", "string"),
      field(2, "data", "json", OPTIONAL),
      field(3, "data_base64", "bytes", OPTIONAL),
    ]),
  ],
  [10, "pong", Empty],
  [11, "done", Empty],
  [12, "ping", Empty],
]);

export const ServerFrame = frame(false, [
  [
    2,
    "connected",
    message("Connected", [
      field(1, "session", "string"),
      field(2, "resume", "string", OPTIONAL),
      field(3, "user", "string", OPTIONAL),
      field(4, "ping_ms", "uint64"),
      field(5, "node", "string"),
      field(6, "region", "string"),
      field(7, "expires_ms", "uint64", OPTIONAL),
      field(8, "subscriptions", "message", { message: Subscribed, repeated: true, sparse: true }),
      field(9, "resumed", "bool", SPARSE),
      plan(10),
    ]),
  ],
  [3, "subscribed", Subscribed],
  [
    4,
    "unsubscribed",
    message("Unsubscribed", [
      field(1, "channel", "string"),
      field(2, "error", "message", { message: ErrorReply, optional: true }),
    ]),
  ],
  [5, "published", message("Published", [field(1, "channel", "string"), position(2, "position")])],
  [
    6,
    "history",
    message("History", [
      field(1, "channel", "string"),
      position(2, "position"),
      field(3, "recovered", "bool"),
      field(4, "publications", "message", { message: Publication, repeated: true }),
    ]),
  ],
  [7, "refreshed", message("Refreshed", [field(1, "expires_ms", "uint64", OPTIONAL)])],
  [8, "publication", Publication],
  [9, "ephemeral", Ephemeral],
  [10, "ping", message("Ping", [field(1, "resume", "string", OPTIONAL), plan(2)])],
  [11, "error", ErrorReply],
  [
    12,
    "close",
    message("Close", [
      field(1, "code", "uint32"),
      field(2, "reason", "string"),
      field(3, "reconnect", "message", { message: Reconnect, optional: true }),
    ]),
  ],
  [13, "pong", Empty],
  [
    14,
    "presence",
    message("Presence", [
      field(1, "channel", "string"),
      field(2, "users", "message", { message: PresentUser, repeated: true }),
      field(3, "users_total", "uint64"),
      field(4, "sessions", "uint64"),
      field(5, "exact", "bool"),
    ]),
  ],
  [15, "join", change("Join")],
  [16, "leave", change("Leave")],
  [17, "presence_gap", message("PresenceGap", [field(1, "channel", "string")])],
  [
    18,
    "goaway",
    message("Goaway", [
      field(1, "endpoint", "string", OPTIONAL),
      field(2, "slot", "string", OPTIONAL),
      field(3, "after_ms", "uint64"),
      field(4, "deadline_ms", "uint64"),
      field(5, "reason", "string"),
    ]),
  ],
]);
