/**
 * A small Protobuf codec, driven by the tables of `schema.js`: varints up to 2^53, strings (checked UTF-8), bytes,
 * booleans, messages. Unknown fields are skipped; every length is checked before it is believed.
 *
 * @import { Field, Message, FrameSchema } from './schema.js'
 * @import { Frame } from './codec.js'
 */

import { POLICIES } from "./close-codes.js";

/** Bytes or text that are no frame of the schema. */
export class DecodeError extends Error {
  name = "DecodeError";
}

/**
 * @param {FrameSchema} schema
 * @param {Frame} frame
 * @returns {Uint8Array}
 */
export function encodeFrame(schema, frame) {
  const writer = new Writer();
  if (frame.id !== 0) {
    writer.tag(1, VARINT);
    writer.varint(frame.id);
  }
  const field = schema.byName.get(frame.name);
  if (!field) throw new TypeError(`no frame is named ${frame.name}`);
  writeField(writer, field, frame.body);
  return writer.finish();
}

/**
 * @param {FrameSchema} schema
 * @param {Uint8Array} bytes
 * @returns {Frame | null} null for a frame of a later protocol, where the schema passes over it
 */
export function decodeFrame(schema, bytes) {
  const reader = new Reader(bytes);
  const frame = { id: 0, name: "", body: /** @type {Record<string, any>} */ ({}) };
  while (!reader.isEmpty()) {
    const { tag, wire } = reader.tag();
    const field = schema.byTag.get(tag);
    if (tag === 1) {
      expectWire(wire, VARINT);
      frame.id = reader.uint64();
    } else if (field) {
      expectWire(wire, LENGTH);
      const content = reader.bytes();
      // As everywhere in Protobuf: the last body wins, the same one twice is merged.
      const into = frame.name === field.name ? frame.body : defaults(messageOf(field));
      frame.name = field.name;
      frame.body = readMessage(messageOf(field), content, into);
    } else {
      reader.skip(tag, wire, 0);
    }
  }
  if (frame.name !== "") return frame;
  if (schema.strict) throw new DecodeError("a frame without a known body");
  return null;
}

/**
 * @param {Message} message
 * @param {Record<string, any>} value
 * @returns {Uint8Array}
 */
export function encodeMessage(message, value) {
  const writer = new Writer();
  for (const field of message.fields) {
    const content = value[field.name];
    if (content === undefined) continue;
    for (const each of field.repeated ? content : [content]) {
      if (field.repeated || field.optional || !isDefault(field, each)) writeField(writer, field, each);
    }
  }
  return writer.finish();
}

/**
 * @param {Message} message
 * @param {Uint8Array} bytes
 * @returns {Record<string, any>}
 */
export function decodeMessage(message, bytes) {
  return readMessage(message, bytes, defaults(message));
}

/**
 * A message whose fields hold their defaults; optional ones are absent.
 *
 * @param {Message} message
 * @returns {Record<string, any>}
 */
export function defaults(message) {
  /** @type {Record<string, any>} */
  const value = {};
  for (const field of message.fields) {
    if (field.repeated) value[field.name] = [];
    else if (!field.optional) value[field.name] = defaultOf(field);
  }
  return value;
}

/**
 * @param {Field} field
 * @param {any} value
 */
export function isDefault(field, value) {
  return field.repeated ? value.length === 0 : value === defaultOf(field);
}

/** @param {Field} field @returns {Message} */
export function messageOf(field) {
  if (!field.message) throw new TypeError(`${field.name} is no message`);
  return field.message;
}

/** @param {Field} field @returns {any} */
function defaultOf(field) {
  switch (field.kind) {
    case "string":
      return "";
    case "bool":
      return false;
    case "policy":
      return POLICIES[0];
    case "uint32":
    case "sint32":
    case "uint64":
      return 0;
    default:
      throw new TypeError(`${field.name} is optional`);
  }
}

/**
 * @param {Writer} writer
 * @param {Field} field
 * @param {any} value
 */
function writeField(writer, field, value) {
  switch (field.kind) {
    case "string":
      return writer.block(field.tag, UTF8.encode(value));
    case "bytes":
      return writer.block(field.tag, value);
    case "json":
      return writer.block(field.tag, UTF8.encode(JSON.stringify(value)));
    case "message":
      return writer.block(field.tag, encodeMessage(messageOf(field), value));
    case "bool":
      writer.tag(field.tag, VARINT);
      return writer.varint(value ? 1 : 0);
    case "policy":
      writer.tag(field.tag, VARINT);
      return writer.varint(Math.max(0, POLICIES.indexOf(value)));
    case "sint32":
      writer.tag(field.tag, VARINT);
      // Zigzag: the sign is the lowest bit.
      return writer.varint(value < 0 ? -2 * value - 1 : 2 * value);
    default:
      writer.tag(field.tag, VARINT);
      return writer.varint(value);
  }
}

/**
 * @param {Message} message
 * @param {Uint8Array} bytes
 * @param {Record<string, any>} value what was read before
 */
function readMessage(message, bytes, value) {
  const reader = new Reader(bytes);
  while (!reader.isEmpty()) {
    const { tag, wire } = reader.tag();
    const field = message.byTag.get(tag);
    if (!field) {
      reader.skip(tag, wire, 0);
    } else if (field.repeated) {
      value[field.name].push(readField(reader, field, wire, undefined));
    } else {
      value[field.name] = readField(reader, field, wire, value[field.name]);
    }
  }
  return value;
}

/**
 * @param {Reader} reader
 * @param {Field} field
 * @param {number} wire
 * @param {any} before
 * @returns {any}
 */
function readField(reader, field, wire, before) {
  switch (field.kind) {
    case "string":
      expectWire(wire, LENGTH);
      return text(reader.bytes());
    case "bytes":
      expectWire(wire, LENGTH);
      return reader.bytes().slice();
    case "json":
      expectWire(wire, LENGTH);
      return parseJson(text(reader.bytes()));
    case "message": {
      expectWire(wire, LENGTH);
      const message = messageOf(field);
      return readMessage(message, reader.bytes(), before ?? defaults(message));
    }
    case "bool":
      expectWire(wire, VARINT);
      return reader.isTrue();
    case "policy":
      expectWire(wire, VARINT);
      return POLICIES[reader.uint32()] ?? POLICIES[0];
    case "uint32":
      expectWire(wire, VARINT);
      return reader.uint32();
    case "sint32": {
      expectWire(wire, VARINT);
      const zigzag = reader.uint32();
      return zigzag % 2 === 0 ? zigzag / 2 : -(zigzag + 1) / 2;
    }
    default:
      expectWire(wire, VARINT);
      return reader.uint64();
  }
}

class Reader {
  #bytes;
  #at = 0;
  // The last varint in pieces of 28, 28 and 8 bits: numbers of JavaScript hold no 64.
  #low = 0;
  #middle = 0;
  #high = 0;

  /** @param {Uint8Array} bytes */
  constructor(bytes) {
    this.#bytes = bytes;
  }

  isEmpty() {
    return this.#at >= this.#bytes.length;
  }

  tag() {
    const key = this.uint64();
    const tag = Math.floor(key / 8);
    if (key > 0xffff_ffff || tag === 0) throw new DecodeError("malformed protobuf: tag");
    return { tag, wire: key & 7 };
  }

  uint64() {
    this.#varint();
    const value = this.#low + this.#middle * 2 ** 28;
    if (this.#high !== 0 || value > Number.MAX_SAFE_INTEGER) {
      throw new DecodeError("a number beyond 2^53");
    }
    return value;
  }

  /** The low 32 bits, as Protobuf has it. */
  uint32() {
    this.#varint();
    return (this.#low | (this.#middle << 28)) >>> 0;
  }

  isTrue() {
    this.#varint();
    return (this.#low | this.#middle | this.#high) !== 0;
  }

  bytes() {
    const length = this.uint64();
    if (length > this.#bytes.length - this.#at) throw new DecodeError("malformed protobuf: cut off");
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  /**
   * @param {number} tag
   * @param {number} wire
   * @param {number} depth of groups
   */
  skip(tag, wire, depth) {
    if (wire === VARINT) this.#varint();
    else if (wire === LENGTH) this.bytes();
    else if (wire === FIXED32) this.#advance(4);
    else if (wire === FIXED64) this.#advance(8);
    else if (wire === GROUP && depth < MAX_GROUPS) {
      let inner = this.tag();
      for (; inner.wire !== GROUP_END; inner = this.tag()) this.skip(inner.tag, inner.wire, depth + 1);
      if (inner.tag !== tag) throw new DecodeError("malformed protobuf: end of another group");
    } else throw new DecodeError(`malformed protobuf: wire type ${wire} of field ${tag}`);
  }

  /** @param {number} count */
  #advance(count) {
    if (count > this.#bytes.length - this.#at) throw new DecodeError("malformed protobuf: cut off");
    this.#at += count;
  }

  #varint() {
    this.#low = this.#middle = this.#high = 0;
    for (let index = 0; index < 10; index += 1) {
      const byte = this.#bytes[this.#at];
      if (byte === undefined) throw new DecodeError("malformed protobuf: cut off");
      this.#at += 1;
      const bits = byte & 0x7f;
      if (index < 4) this.#low |= bits << (7 * index);
      else if (index < 8) this.#middle |= bits << (7 * (index - 4));
      else this.#high |= bits << (7 * (index - 8));
      if (byte < 0x80) {
        if (index === 9 && byte > 1) break;
        return;
      }
    }
    throw new DecodeError("malformed protobuf: varint");
  }
}

class Writer {
  #bytes = new Uint8Array(64);
  #length = 0;

  /** @param {number} tag @param {number} wire */
  tag(tag, wire) {
    this.varint(tag * 8 + wire);
  }

  /** @param {number} value a safe integer */
  varint(value) {
    if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${value} is no number up to 2^53`);
    this.#reserve(8);
    let rest = value;
    while (rest >= 0x80) {
      this.#bytes[this.#length++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    this.#bytes[this.#length++] = rest;
  }

  /** @param {number} tag @param {Uint8Array} content */
  block(tag, content) {
    this.tag(tag, LENGTH);
    this.varint(content.length);
    this.#reserve(content.length);
    this.#bytes.set(content, this.#length);
    this.#length += content.length;
  }

  finish() {
    return this.#bytes.subarray(0, this.#length);
  }

  /** @param {number} count */
  #reserve(count) {
    if (this.#length + count <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(this.#bytes.length * 2, this.#length + count));
    grown.set(this.#bytes.subarray(0, this.#length));
    this.#bytes = grown;
  }
}

/** @param {number} wire @param {number} expected */
function expectWire(wire, expected) {
  if (wire !== expected) throw new DecodeError(`malformed protobuf: wire type ${wire}`);
}

/** @param {Uint8Array} bytes */
function text(bytes) {
  try {
    return FATAL_UTF8.decode(bytes);
  } catch {
    throw new DecodeError("malformed UTF-8");
  }
}

/** @param {string} json */
function parseJson(json) {
  try {
    return JSON.parse(json);
  } catch {
    throw new DecodeError("a payload that is no JSON");
  }
}

const UTF8 = new TextEncoder();
const FATAL_UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const VARINT = 0;
const FIXED64 = 1;
const LENGTH = 2;
const GROUP = 3;
const GROUP_END = 4;
const FIXED32 = 5;
const MAX_GROUPS = 100;
