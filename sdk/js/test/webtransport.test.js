/** WebTransport against a stand-in for the browser's class: streams, datagrams, refusals, ends. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { seededRandom } from "../src/backoff.js";
import { Decoder, decodeDelimited, delimit, encodeDelimited } from "../src/codec.js";
import { Client } from "../src/index.js";
import { markOf } from "../src/ordering.js";
import { encodeMessage } from "../src/protobuf.js";
import { ClientFrame, ServerFrame, StreamHeader } from "../src/schema.js";

const HASH = Buffer.alloc(32, 7).toString("base64");
const URLS = { webtransport: "https://localhost:4433/v1/connect" };

/** Both ends of one WebTransport session. The test plays the server. */
class FakeWebTransport {
  static sessions = [];
  static refuses = false;

  constructor(url, options) {
    this.url = url;
    this.options = options;
    this.closed = new Promise((resolve, reject) => Object.assign(this, { end: resolve, fail: reject }));
    this.ready = FakeWebTransport.refuses ? Promise.reject(new Error("refused")) : Promise.resolve();
    const [toClient, toServer] = [new TransformStream(), new TransformStream()];
    this.control = { readable: toClient.readable, writable: toServer.writable };
    this.controlWriter = toClient.writable.getWriter();
    const streams = new TransformStream();
    this.incomingUnidirectionalStreams = streams.readable;
    this.streamWriter = streams.writable.getWriter();
    const [datagramsIn, datagramsOut] = [new TransformStream(), new TransformStream(undefined, { highWaterMark: 4 })];
    this.datagrams = { readable: datagramsIn.readable, writable: datagramsOut.writable, maxDatagramSize: 100 };
    this.datagramWriter = datagramsIn.writable.getWriter();
    this.datagramsSent = [];
    this.framesSent = [];
    this.waiting = [];
    void this.#readControl(toServer.readable);
    void this.#readDatagrams(datagramsOut.readable);
    FakeWebTransport.sessions.push(this);
  }

  async createBidirectionalStream() {
    return this.control;
  }

  close(info) {
    this.end(info);
  }

  send(...frames) {
    for (const frame of frames) void this.controlWriter.write(encodeDelimited(ServerFrame, frame));
  }

  sendDatagram(...frames) {
    const parts = frames.map((frame) => encodeDelimited(ServerFrame, frame));
    void this.datagramWriter.write(new Uint8Array(Buffer.concat(parts)));
  }

  /** Opens a stream and writes to it in pieces of `size` bytes. */
  openStream(header, frames, size) {
    const parts = [delimit(encodeMessage(StreamHeader, header)), ...frames.map((each) => encodeDelimited(ServerFrame, each))];
    const bytes = new Uint8Array(Buffer.concat(parts));
    const stream = new TransformStream();
    void this.streamWriter.write(stream.readable);
    const writer = stream.writable.getWriter();
    for (let at = 0; at < bytes.length; at += size) void writer.write(bytes.subarray(at, at + size));
    void writer.close();
  }

  /** The next frame of that name from the client. */
  async received(name) {
    for (;;) {
      const index = this.framesSent.findIndex((frame) => frame.name === name);
      if (index >= 0) return this.framesSent.splice(index, 1)[0];
      await new Promise((resolve) => this.waiting.push(resolve));
    }
  }

  async #readControl(readable) {
    const decoder = new Decoder();
    for await (const chunk of readable) {
      decoder.push(chunk);
      this.framesSent.push(...decoder.frames(ClientFrame));
      for (const wake of this.waiting.splice(0)) wake();
    }
  }

  async #readDatagrams(readable) {
    for await (const chunk of readable) {
      this.datagramsSent.push(...decodeDelimited(ClientFrame, chunk));
      for (const wake of this.waiting.splice(0)) wake();
    }
  }
}

/** A client that is connected, its server side, and its subscription to room:1 at offset 0. */
async function connected(options = {}) {
  FakeWebTransport.sessions = [];
  FakeWebTransport.refuses = false;
  const client = new Client(URLS, {
    WebTransport: FakeWebTransport,
    certificateHashes: [HASH],
    random: seededRandom(5),
    ...options,
  });
  const subscription = client.subscribe("room:1");
  const connecting = client.connect();
  const server = await greet();
  await connecting;
  const { id } = await server.received("subscribe");
  return { client, subscription, server, subscribeId: id };
}

/** Answers `connect` on the newest session. */
async function greet() {
  while (FakeWebTransport.sessions.length === 0) await new Promise((resolve) => setImmediate(resolve));
  const server = FakeWebTransport.sessions.at(-1);
  const { id, body: greeting } = await server.received("connect");
  assert.equal(greeting.repeats, true, "datagrams may hold publications");
  const body = { session: "s", ping_ms: 25_000, node: "fake", region: "test", subscriptions: [] };
  server.send({ id, name: "connected", body });
  return server;
}

const subscribed = (id, offset, recovered = false) => ({
  id,
  name: "subscribed",
  body: { channel: "room:1", position: { epoch: "e", offset }, recovered, publications: [], conflated: false },
});

const publication = (offset) => ({
  id: 0,
  name: "publication",
  body: { channel: "room:1", offset, data: offset, time_ms: 0 },
});

/** By datagram, with the mark of its epoch. */
const repeat = (offset, epoch = "e") => ({ ...publication(offset), id: markOf(epoch) });

test("the certificate's hash and no pooling are asked for", async () => {
  const { client, server } = await connected();
  assert.equal(client.transport, "webtransport");
  assert.equal(server.options.allowPooling, false);
  const [{ algorithm, value }] = server.options.serverCertificateHashes;
  assert.deepEqual([algorithm, value], ["sha-256", new Uint8Array(32).fill(7)]);
  client.disconnect({ holdMs: 60_000 });
  await client.close();
});

test("publications of several streams that overtake the reply and each other come in order, once", async () => {
  const { client, subscription, server, subscribeId } = await connected();
  const offsets = [];
  const done = new Promise((resolve) => {
    subscription.on("publication", ({ offset }) => offsets.push(offset) === 8 && resolve());
  });
  server.openStream({ channel: "room:1", catch_up: false, epoch: "e" }, [5, 6, 7].map(publication), 3);
  await new Promise((resolve) => setImmediate(resolve));
  server.openStream({ channel: "room:1", catch_up: true, epoch: "e" }, [2, 3, 4, 5].map(publication), 1_000);
  server.send(subscribed(subscribeId, 0), publication(1), publication(8));
  await done;
  assert.deepEqual(offsets, [1, 2, 3, 4, 5, 6, 7, 8]);
  client.disconnect({ holdMs: 60_000 });
  await client.close();
});

test("a publication that datagrams repeat is delivered once, by whichever is first", async () => {
  const { client, subscription, server, subscribeId } = await connected();
  const offsets = [];
  const done = new Promise((resolve) => {
    subscription.on("publication", ({ offset }) => offsets.push(offset) === 4 && resolve());
  });
  server.send(subscribed(subscribeId, 0));
  await subscription.ready();
  server.sendDatagram(repeat(1), repeat(2));
  while (offsets.length < 2) await new Promise((resolve) => setImmediate(resolve));
  server.openStream({ channel: "room:1", catch_up: false, epoch: "e" }, [1, 2, 3].map(publication), 3);
  await new Promise((resolve) => setImmediate(resolve));
  server.sendDatagram(publication(9), repeat(3), repeat(4), repeat(5, "other"));
  await done;
  assert.deepEqual(offsets, [1, 2, 3, 4]);
  client.disconnect({ holdMs: 60_000 });
  await client.close();
});

test("ephemeral items travel as datagrams where they fit, else on the control stream", async () => {
  const { client, subscription, server, subscribeId } = await connected();
  server.send(subscribed(subscribeId, 0));
  await subscription.ready();
  const seen = new Promise((resolve) => subscription.on("ephemeral", resolve));
  server.sendDatagram({ id: 0, name: "ephemeral", body: { channel: "room:1", data: { typing: true }, time_ms: 0 } });
  assert.deepEqual((await seen).data, { typing: true });
  client.publishEphemeral("room:1", "short");
  client.publishEphemeral("room:1", "long".repeat(50));
  const { body } = await server.received("publish");
  assert.equal(body.data, "long".repeat(50));
  while (server.datagramsSent.length === 0) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(server.datagramsSent[0].body, { channel: "room:1", data: "short", ephemeral: true });
  client.disconnect({ holdMs: 60_000 });
  await client.close();
});

test("the code that the session ends with says what comes next", async () => {
  const { client, server } = await connected();
  const gone = new Promise((resolve) => client.on("disconnected", resolve));
  server.end({ closeCode: 4006, reason: "bad origin" });
  assert.deepEqual(await gone, { code: 4006, reason: "bad origin", policy: "never", retryInMs: null });
  assert.equal(client.state, "closed");
});

test("a stream that is no frame ends the connection, and the client comes back", async () => {
  const { client, server } = await connected();
  const failed = new Promise((resolve) => client.on("error", resolve));
  const again = new Promise((resolve) => client.on("connected", resolve));
  void server.controlWriter.write(Uint8Array.of(3, 0xff, 0xff, 0xff));
  assert.equal((await failed).name, "DecodeError");
  while (FakeWebTransport.sessions.length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  await greet();
  await again;
  client.disconnect({ holdMs: 60_000 });
  await client.close();
});

test("where it is refused or missing, the next transport is tried", async () => {
  for (const WebTransport of [FakeWebTransport, undefined]) {
    FakeWebTransport.refuses = true;
    const longpoll = "http://127.0.0.1:9/v1/poll";
    const fetch = async (_, { body }) => {
      const [{ id }] = JSON.parse(body).frames;
      const connectedFrame = { session: "s", ping_ms: 25_000, node: "n", region: "r" };
      return Response.json({ session: "s", batch: 1, frames: [{ id, connected: connectedFrame }] });
    };
    const client = new Client({ ...URLS, longpoll }, { WebTransport, fetch, random: () => 0 });
    await client.connect();
    assert.equal(client.transport, "longpoll");
    client.disconnect({ holdMs: 60_000 });
    await client.close();
  }
});
