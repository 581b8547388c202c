import assert from "node:assert/strict";
import { test } from "node:test";

import { seededRandom } from "../src/backoff.js";
import {
  DecodeError,
  Decoder,
  decodeDelimited,
  decodeText,
  encodeDelimited,
  fromBase64,
  fromJson,
  toBase64,
  toJson,
} from "../src/codec.js";
import { decodeFrame, defaults } from "../src/protobuf.js";
import { ClientFrame, ServerFrame } from "../src/schema.js";

const SEEDS = 300;

test("random frames survive both encodings", () => {
  for (let seed = 0; seed < SEEDS; seed += 1) {
    const random = seededRandom(seed);
    for (const schema of [ClientFrame, ServerFrame]) {
      const frame = randomFrame(schema, random);
      assert.deepEqual(decodeDelimited(schema, encodeDelimited(schema, frame)), [frame], `SEED=${seed}`);
      const json = JSON.parse(JSON.stringify(toJson(schema, frame)));
      assert.deepEqual(fromJson(schema, json), frame, `SEED=${seed}`);
    }
  }
});

test("a stream decodes the same however it is cut", () => {
  for (let seed = 0; seed < SEEDS; seed += 1) {
    const random = seededRandom(seed);
    const frames = Array.from({ length: 5 }, () => randomFrame(ServerFrame, random));
    const bytes = Buffer.concat(frames.map((frame) => encodeDelimited(ServerFrame, frame)));
    const decoder = new Decoder();
    const decoded = [];
    for (let at = 0; at < bytes.length; ) {
      const length = 1 + Math.floor(random() * 40);
      decoder.push(bytes.subarray(at, at + length));
      decoded.push(...decoder.frames(ServerFrame));
      at += length;
    }
    assert.deepEqual(decoded, frames, `SEED=${seed}`);
    assert.ok(decoder.isEmpty());
  }
});

test("hostile bytes are an error, and nothing else", () => {
  let refused = 0;
  for (let seed = 0; seed < 5_000; seed += 1) {
    const random = seededRandom(seed);
    const isMutated = random() < 0.5;
    const bytes = isMutated
      ? encodeDelimited(ServerFrame, randomFrame(ServerFrame, random)).slice()
      : Uint8Array.from({ length: random() * 60 }, () => random() * 256);
    for (let count = random() * 4; isMutated && count > 0; count -= 1) {
      bytes[Math.floor(random() * bytes.length)] = random() * 256;
    }
    for (const decode of [
      () => decodeDelimited(ServerFrame, bytes),
      () => decodeFrame(ClientFrame, bytes),
      () => decodeText(ServerFrame, Buffer.from(bytes).toString("latin1")),
    ]) {
      try {
        decode();
      } catch (error) {
        assert.ok(error instanceof DecodeError, `SEED=${seed}: ${error}`);
        refused += 1;
      }
    }
  }
  assert.ok(refused > 1_000, "the bytes were hostile");
});

test("numbers beyond 2^53 are refused in both encodings", () => {
  const frame = { id: 2, name: "published", body: { channel: "a", position: { epoch: "e", offset: 2 ** 53 - 1 } } };
  const bytes = encodeDelimited(ServerFrame, frame);
  assert.deepEqual(decodeDelimited(ServerFrame, bytes), [frame]);
  // The offset is the last varint: seven bytes of 0xff and 0x0f. One bit more is 2^54 - 1.
  const beyond = bytes.slice();
  beyond[beyond.length - 1] = 0x1f;
  assert.throws(() => decodeDelimited(ServerFrame, beyond), DecodeError);
  const text = JSON.stringify(toJson(ServerFrame, frame)).replace("9007199254740991", "9007199254740993");
  assert.throws(() => decodeText(ServerFrame, text), DecodeError);
});

test("a length over the limit is refused before its bytes are there", () => {
  const decoder = new Decoder(100);
  decoder.push(Uint8Array.of(101));
  assert.throws(() => decoder.frames(ServerFrame), DecodeError);
});

test("base64 is strict", () => {
  const bytes = Uint8Array.from({ length: 20_000 }, (_, index) => index % 251);
  assert.deepEqual(fromBase64(toBase64(bytes)), bytes);
  assert.deepEqual(fromBase64(""), new Uint8Array(0));
  for (const text of ["a", "ab", "abc", "ab=c", "====", "ab c", "YR==", "YQ==YQ==", "YQ-_", 7, null]) {
    assert.throws(() => fromBase64(text), DecodeError, String(text));
  }
});

function randomFrame(schema, random) {
  const names = [...schema.byName.keys()];
  const name = names[Math.floor(random() * names.length)];
  const id = random() < 0.3 ? 0 : Math.floor(random() * 2 ** 53);
  return { id, name, body: randomMessage(schema.byName.get(name).message, random) };
}

function randomMessage(message, random) {
  const value = defaults(message);
  for (const field of message.fields) {
    if (random() < 0.3) continue;
    if (!field.repeated) value[field.name] = randomValue(field, random);
    else value[field.name] = Array.from({ length: random() * 4 }, () => randomValue(field, random));
  }
  return value;
}

function randomValue(field, random) {
  switch (field.kind) {
    case "message":
      return randomMessage(field.message, random);
    case "bool":
      return random() < 0.5;
    case "policy":
      return ["backoff", "never", "now", "fresh_token"][Math.floor(random() * 4)];
    case "uint32":
      return Math.floor(random() * 2 ** 32);
    case "sint32":
      return Math.floor((random() - 0.5) * 2 ** 32);
    case "uint64":
      return Math.floor(random() * 2 ** Math.floor(random() * 54));
    case "bytes":
      return Uint8Array.from({ length: random() * 300 }, () => random() * 256);
    case "json":
      return [null, false, 0, -1.5, "", "комната 🎏", [], {}, { a: [1, { b: null }] }][Math.floor(random() * 9)];
    default:
      return ["", "a", "room:1", "日本語\u0000\ufeff", "x".repeat(200)][Math.floor(random() * 5)];
  }
}
