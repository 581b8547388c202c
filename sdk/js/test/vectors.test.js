/** The protocol's vectors bind this SDK as they bind every other: `protocol/vectors/*.json`. */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import { CloseCode, policyOf } from "../src/close-codes.js";
import {
  Decoder,
  DecodeError,
  decodeText,
  delimit,
  fromJson,
  messageFromJson,
  messageToJson,
  toJson,
} from "../src/codec.js";
import { markOf } from "../src/ordering.js";
import { seededRandom } from "../src/backoff.js";
import { Reconnect, believed } from "../src/reconnect.js";
import { decodeMessage, encodeFrame, encodeMessage } from "../src/protobuf.js";
import { ClientFrame, ServerFrame, StreamHeader } from "../src/schema.js";

const FOLDER = new URL("../../../protocol/vectors/", import.meta.url);
const SCHEMAS = { client: ClientFrame, server: ServerFrame };
// `JSON.parse` keeps the last of two members of one name. That a server must refuse such frames is of no concern here.
const BEYOND_JSON_PARSE = new Set(["the_same_body_twice", "id_twice", "field_twice"]);

const hex = (bytes) => Buffer.from(bytes).toString("hex");
const unhex = (text) => new Uint8Array(Buffer.from(text, "hex"));
const read = (name) => JSON.parse(readFileSync(new URL(name, FOLDER), "utf8"));

/** Decodes one message of a vector to JSON. */
function decodeToJson({ frame, protobuf_hex: protobuf, text, limit }) {
  if (text !== undefined) {
    if (frame === "stream_header") return messageToJson(StreamHeader, messageFromJson(StreamHeader, JSON.parse(text)));
    return decodeText(SCHEMAS[frame], text, limit).map((each) => toJson(SCHEMAS[frame], each));
  }
  if (frame === "stream_header") return messageToJson(StreamHeader, decodeMessage(StreamHeader, unhex(protobuf)));
  const decoder = new Decoder(limit);
  decoder.push(delimit(unhex(protobuf)));
  return decoder.frames(SCHEMAS[frame]).map((each) => toJson(SCHEMAS[frame], each));
}

for (const file of ["client.json", "server.json", "stream.json"]) {
  for (const { name, frame, json, protobuf_hex: protobuf } of read(file)) {
    test(`${file}: ${name} is the same in both encodings`, () => {
      const schema = SCHEMAS[frame];
      const decoded = decodeToJson({ frame, protobuf_hex: protobuf });
      assert.deepEqual(frame === "stream_header" ? decoded : decoded[0], json);
      const encoded = schema
        ? encodeFrame(schema, fromJson(schema, json))
        : encodeMessage(StreamHeader, messageFromJson(StreamHeader, json));
      assert.equal(hex(encoded), protobuf);
    });
  }
}

for (const vector of read("invalid.json")) {
  if (BEYOND_JSON_PARSE.has(vector.name)) continue;
  test(`invalid.json: ${vector.name} is refused`, () => {
    assert.throws(() => decodeToJson(vector), DecodeError);
  });
}

for (const vector of read("tolerated.json")) {
  test(`tolerated.json: ${vector.name} is understood`, () => {
    const decoded = decodeToJson(vector);
    const one = vector.frame === "stream_header" ? decoded : (decoded[0] ?? null);
    assert.deepEqual(one, vector.json);
  });
}

for (const { name, frame, delimited_hex: delimited, frames, limit, error } of read("delimited.json")) {
  test(`delimited.json: ${name} is the same at every cut`, () => {
    const bytes = unhex(delimited);
    for (let cut = 0; cut <= bytes.length; cut += 1) {
      const decoder = new Decoder(limit);
      const decoded = [];
      const decode = () => {
        for (const chunk of [bytes.subarray(0, cut), bytes.subarray(cut)]) {
          decoder.push(chunk);
          decoded.push(...decoder.frames(SCHEMAS[frame]));
        }
      };
      if (error) assert.throws(decode, DecodeError);
      else decode();
      assert.deepEqual(decoded.map((each) => toJson(SCHEMAS[frame], each)), frames);
    }
  });
}

test("close_codes.json: every code has the policy that the table says", () => {
  const { close_codes: codes, ...rest } = read("close_codes.json");
  const names = codes.map(({ name, number }) => [name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()), number]);
  assert.deepEqual(Object.fromEntries(names), { ...CloseCode });
  const others = Object.values(rest).flat().filter((each) => "policy" in each);
  assert.ok(others.length > 0);
  for (const { number, policy } of [...codes, ...others]) assert.equal(policyOf(number), policy, String(number));
});

test("epoch_marks.json: every epoch has its mark", () => {
  for (const { epoch, mark } of read("epoch_marks.json")) assert.equal(markOf(epoch), mark, epoch);
});

for (const { name, plan, steps } of read("reconnect.json")) {
  test(`reconnect.json: ${name}`, () => {
    for (let seed = 0; seed < 100; seed += 1) {
      const reconnect = new Reconnect(seededRandom(seed));
      reconnect.handlePlan(plan && believed(plan));
      for (const { at_ms: now, ended, from_ms: from, below_ms: below, host, ticket = null, first } of steps) {
        if (!ended) {
          reconnect.handleConnected(now);
          continue;
        }
        const { after_ms: afterMs = 0, ...rest } = ended;
        const dial = reconnect.handleEnded(now, { ticket: null, ...rest, afterMs });
        const context = `at ${now} ms: ${JSON.stringify(dial)}`;
        assert.ok(dial.delayMs >= from && dial.delayMs < below, context);
        assert.deepEqual([dial.host, dial.ticket, reconnect.isFirstDial], [host, ticket, first], context);
      }
    }
  });
}

test("no file of vectors is passed over", () => {
  const known = ["client", "close_codes", "delimited", "epoch_marks", "invalid", "reconnect", "server", "stream", "tolerated"];
  assert.deepEqual(readdirSync(FOLDER).filter((name) => name.endsWith(".json")).sort(), known.map((name) => `${name}.json`));
});
