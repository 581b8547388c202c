/**
 * Bytes and text to frames and back. *Delimited*: a varint length, then that many bytes of Protobuf. *Text*: one JSON
 * frame, or an array of them.
 *
 * @import { Field, Message, FrameSchema } from './schema.js'
 *
 * @typedef {object} Frame one frame of either direction, the same from both encodings
 * @property {number} id 0 where no reply is awaited
 * @property {string} name of the body
 * @property {Record<string, any>} body fields as in the schema; bytes are `Uint8Array`, `data` is a JSON value
 * @property {Numbering} [numbering] of a publication, where what it came by names its epoch
 *
 * @typedef {string | number} Numbering an epoch, or its mark; none stands for that of the last `subscribed`
 */

import { POLICIES } from "./close-codes.js";
import { DecodeError, decodeFrame, decodeMessage, defaults, encodeFrame, isDefault, messageOf } from "./protobuf.js";

export { DecodeError } from "./protobuf.js";

/** Longest frame or message that is accepted from a server, bytes. */
export const MAX_FRAME_BYTES = 1 << 20;

/** Most frames in one JSON array. */
export const MAX_FRAMES_PER_MESSAGE = 256;

/**
 * @param {FrameSchema} schema
 * @param {Frame} frame
 * @returns {Uint8Array}
 */
export function encodeDelimited(schema, frame) {
  return delimit(encodeFrame(schema, frame));
}

/**
 * Puts a length before `content`.
 *
 * @param {Uint8Array} content
 * @returns {Uint8Array}
 */
export function delimit(content) {
  const prefix = [];
  let rest = content.length;
  for (; rest >= 0x80; rest >>>= 7) prefix.push((rest & 0x7f) | 0x80);
  prefix.push(rest);
  const bytes = new Uint8Array(prefix.length + content.length);
  bytes.set(prefix);
  bytes.set(content, prefix.length);
  return bytes;
}

/**
 * Decodes a binary message: delimited frames, back to back, none cut off.
 *
 * @param {FrameSchema} schema
 * @param {Uint8Array} bytes
 * @param {number} [limit]
 * @returns {Frame[]}
 */
export function decodeDelimited(schema, bytes, limit = MAX_FRAME_BYTES) {
  const decoder = new Decoder(limit);
  decoder.push(bytes);
  const frames = decoder.frames(schema);
  if (!decoder.isEmpty()) throw new DecodeError("the message ends inside a frame");
  return frames;
}

/** Decodes a stream of delimited messages, however it is cut. Holds no more than one frame beyond what was pushed. */
export class Decoder {
  #buffer = new Uint8Array(0);
  #limit;

  /** @param {number} [limit] bytes of one frame */
  constructor(limit = MAX_FRAME_BYTES) {
    this.#limit = limit;
  }

  /** @param {Uint8Array} chunk */
  push(chunk) {
    if (this.#buffer.length === 0) {
      this.#buffer = chunk.slice();
      return;
    }
    const joined = new Uint8Array(this.#buffer.length + chunk.length);
    joined.set(this.#buffer);
    joined.set(chunk, this.#buffer.length);
    this.#buffer = joined;
  }

  /** True where no frame has begun. */
  isEmpty() {
    return this.#buffer.length === 0;
  }

  /**
   * Every frame that is whole.
   *
   * @param {FrameSchema} schema
   * @returns {Frame[]}
   */
  frames(schema) {
    const frames = [];
    for (let content = this.#next(); content; content = this.#next()) {
      const frame = decodeFrame(schema, content);
      if (frame) frames.push(frame);
    }
    return frames;
  }

  /**
   * The next whole message, such as a stream's header.
   *
   * @param {Message} message
   * @returns {Record<string, any> | null}
   */
  message(message) {
    const content = this.#next();
    return content && decodeMessage(message, content);
  }

  /** @returns {Uint8Array | null} */
  #next() {
    let length = 0;
    for (let index = 0; index < MAX_LENGTH_BYTES; index += 1) {
      const byte = this.#buffer[index];
      if (byte === undefined) return null;
      length += (byte & 0x7f) * 2 ** (7 * index);
      if (byte >= 0x80) continue;
      if (length > this.#limit) throw new DecodeError(`a frame of ${length} bytes is over the limit of ${this.#limit}`);
      const end = index + 1 + length;
      if (this.#buffer.length < end) return null;
      const content = this.#buffer.subarray(index + 1, end);
      this.#buffer = this.#buffer.subarray(end);
      return content;
    }
    throw new DecodeError("the length before a frame is malformed");
  }
}

/**
 * A frame as one JSON object.
 *
 * @param {FrameSchema} schema
 * @param {Frame} frame
 * @returns {Record<string, any>}
 */
export function toJson(schema, frame) {
  const field = schema.byName.get(frame.name);
  if (!field) throw new TypeError(`no frame is named ${frame.name}`);
  const body = messageToJson(messageOf(field), frame.body);
  return frame.id === 0 ? { [frame.name]: body } : { id: frame.id, [frame.name]: body };
}

/**
 * A frame from one JSON object; null for a frame of a later protocol, where the schema passes over it.
 *
 * @param {FrameSchema} schema
 * @param {unknown} json
 * @returns {Frame | null}
 */
export function fromJson(schema, json) {
  if (!isObject(json)) throw new DecodeError("a frame is an object");
  /** @type {Frame | null} */
  let frame = null;
  let id = 0;
  for (const [name, value] of Object.entries(json)) {
    const field = schema.byName.get(name);
    if (name === "id") {
      id = integer(value, Number.MAX_SAFE_INTEGER);
    } else if (field) {
      if (frame) throw new DecodeError("a frame has one body");
      frame = { id: 0, name, body: messageFromJson(messageOf(field), value) };
    } else if (schema.strict) {
      throw new DecodeError(`no frame is named ${name}`);
    }
  }
  if (frame) frame.id = id;
  else if (schema.strict) throw new DecodeError("a frame without a known body");
  return frame;
}

/**
 * Decodes a text message: a JSON frame or an array of them.
 *
 * @param {FrameSchema} schema
 * @param {string} text
 * @param {number} [limit] characters
 * @returns {Frame[]}
 */
export function decodeText(schema, text, limit = MAX_FRAME_BYTES) {
  if (text.length > limit) throw new DecodeError(`${text.length} characters are over the limit of ${limit}`);
  let json;
  try {
    json = JSON.parse(text);
  } catch {
    throw new DecodeError("malformed JSON");
  }
  const list = Array.isArray(json) ? json : [json];
  if (list.length > MAX_FRAMES_PER_MESSAGE) throw new DecodeError(`an array of over ${MAX_FRAMES_PER_MESSAGE} frames`);
  return decodeList(schema, list);
}

/**
 * Decodes frames that are parsed JSON already.
 *
 * @param {FrameSchema} schema
 * @param {unknown[]} list
 * @returns {Frame[]}
 */
export function decodeList(schema, list) {
  const frames = [];
  for (const each of list) {
    const frame = fromJson(schema, each);
    if (frame) frames.push(frame);
  }
  return frames;
}

/**
 * @param {Message} message
 * @param {Record<string, any>} value
 */
export function messageToJson(message, value) {
  /** @type {Record<string, any>} */
  const json = {};
  for (const field of message.fields) {
    const content = value[field.name];
    if (content === undefined || (field.sparse && isDefault(field, content))) continue;
    json[field.name] = field.repeated
      ? content.map((/** @type {any} */ each) => fieldToJson(field, each))
      : fieldToJson(field, content);
  }
  return json;
}

/**
 * @param {Message} message
 * @param {unknown} json
 */
export function messageFromJson(message, json) {
  if (!isObject(json)) throw new DecodeError(`${message.name} is an object`);
  const value = defaults(message);
  for (const field of message.fields) {
    if (!Object.hasOwn(json, field.name)) continue;
    const content = json[field.name];
    if (field.repeated) {
      if (!Array.isArray(content)) throw new DecodeError(`${field.name} is an array`);
      value[field.name] = content.map((each) => fieldFromJson(field, each));
    } else if (content !== null || !field.optional || field.kind === "json" || field.kind === "bytes") {
      value[field.name] = fieldFromJson(field, content);
    }
  }
  return value;
}

/** @param {Uint8Array} bytes */
export function toBase64(bytes) {
  let binary = "";
  for (let at = 0; at < bytes.length; at += 0x2000) {
    binary += String.fromCharCode(...bytes.subarray(at, at + 0x2000));
  }
  return btoa(binary);
}

/**
 * Standard base64 with padding (RFC 4648 §4); `atob` alone forgives too much.
 *
 * @param {unknown} text
 */
export function fromBase64(text) {
  if (typeof text !== "string" || text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) {
    throw new DecodeError("malformed base64");
  }
  const last = text.slice(-4);
  if (btoa(atob(last)) !== last) throw new DecodeError("malformed base64");
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/**
 * @param {Field} field
 * @param {any} value
 */
function fieldToJson(field, value) {
  if (field.kind === "message") return messageToJson(messageOf(field), value);
  return field.kind === "bytes" ? toBase64(value) : value;
}

/**
 * @param {Field} field
 * @param {unknown} json
 * @returns {any}
 */
function fieldFromJson(field, json) {
  switch (field.kind) {
    case "json":
      return json;
    case "bytes":
      return fromBase64(json);
    case "message":
      return messageFromJson(messageOf(field), json);
    case "uint32":
      return integer(json, 0xffff_ffff);
    case "uint64":
      return integer(json, Number.MAX_SAFE_INTEGER);
    case "sint32":
      return integer(json, 0x7fff_ffff, -0x8000_0000);
    case "bool":
      if (typeof json !== "boolean") throw new DecodeError(`${field.name} is true or false`);
      return json;
    case "policy":
      if (typeof json !== "string") throw new DecodeError(`${field.name} is a string`);
      return POLICIES.find((policy) => policy === json) ?? POLICIES[0];
    default:
      if (typeof json !== "string" || LONE_SURROGATE.test(json)) throw new DecodeError(`${field.name} is a string`);
      return json;
  }
}

/**
 * @param {unknown} json
 * @param {number} max
 * @param {number} [min]
 */
function integer(json, max, min = 0) {
  if (typeof json !== "number" || !Number.isInteger(json) || json < min || json > max) {
    throw new DecodeError(`${json} is no whole number from ${min} to ${max}`);
  }
  return json;
}

/**
 * @param {unknown} json
 * @returns {json is Record<string, unknown>}
 */
function isObject(json) {
  return typeof json === "object" && json !== null && !Array.isArray(json);
}

/** What no UTF-8 can hold; in a pattern with `u` it matches only those without their other half. */
export const LONE_SURROGATE = /\p{Surrogate}/u;

const MAX_LENGTH_BYTES = 5;
