/** The long-poll carrier against answers that the test gives one by one, in the orders that races make. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { openLongPoll } from "../src/transport/longpoll.js";

/** A carrier whose requests wait for the test, past its `connect`. */
async function opened() {
  const requests = [];
  const frames = [];
  const closed = [];
  const fetch = (_, { body, signal }) =>
    new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason));
      requests.push({
        ...JSON.parse(body),
        isAborted: () => signal.aborted,
        fail: () => reject(new TypeError("network")),
        answer: (batch, ...list) => resolve(Response.json({ session: "s", batch, frames: list })),
      });
    });
  const handlers = { onFrames: (list) => frames.push(...list), onClosed: (why) => closed.push(why), onError: assert.fail };
  const options = { certificateHashes: [], encoding: "json", fetch, random: () => 0, pollMs: 25_000 };
  const carrier = await openLongPoll("http://gateway/v1/poll", handlers, options, new AbortController().signal);
  carrier.send([{ id: 1, name: "connect", body: {} }]);
  requests[0].answer(1, { id: 1, connected: { session: "s", ping_ms: 1, node: "", region: "" } });
  await turn();
  assert.deepEqual(strip(requests[1]), { ack: 1, frames: [], session: "s", wait_ms: 25_000 });
  frames.length = 0;
  return { carrier, requests, frames, closed };
}

/** Lets everything happen that waits for nothing. */
const turn = () => new Promise((resolve) => setImmediate(() => setImmediate(() => setImmediate(resolve))));

const strip = ({ ack, frames, session, wait_ms }) => ({ ack, frames, session, wait_ms });
const history = (id) => ({ id, name: "history", body: { channel: "a", limit: 0 } });
const inJson = (id) => ({ id, history: { channel: "a" } });
const publication = { publication: { channel: "a", offset: 1, data: 1, time_ms: 0 } };
const reply = (id) => ({ id, history: { channel: "a", recovered: true, publications: [] } });

test("sending interrupts the poll that waits, with the same ack; its reply acknowledges both", async () => {
  const { carrier, requests, frames } = await opened();
  carrier.send([history(2)]);
  assert.deepEqual(strip(requests[2]), { ack: 1, frames: [inJson(2)], session: "s", wait_ms: 25_000 });
  requests[1].answer(1);
  requests[2].answer(2, reply(2));
  await turn();
  assert.deepEqual(frames.map(({ id }) => id), [2]);
  assert.deepEqual(strip(requests[3]), { ack: 2, frames: [], session: "s", wait_ms: 25_000 });
  carrier.close(false);
});

test("frames that were taken for a repeat go out again, and the batch that came twice is delivered once", async () => {
  const { carrier, requests, frames } = await opened();
  carrier.send([history(2)]);
  requests[1].answer(2, publication);
  requests[2].answer(2, publication);
  await turn();
  assert.deepEqual(frames.map(({ name }) => name), ["publication"]);
  assert.deepEqual(strip(requests[3]), { ack: 2, frames: [inJson(2)], session: "s", wait_ms: 25_000 });
  carrier.close(false);
});

test("the same where the older poll's answer is the later one to come", async () => {
  const { carrier, requests, frames } = await opened();
  carrier.send([history(2)]);
  requests[2].answer(2, publication);
  await turn();
  assert.equal(requests.length, 3, "the older one is waited for");
  requests[1].answer(2, publication);
  await turn();
  assert.deepEqual(frames.map(({ name }) => name), ["publication"]);
  assert.deepEqual(requests[3].frames, [inJson(2)]);
  carrier.close(false);
});

test("frames that were answered do not go out again, even where the older poll was the repeat", async () => {
  const { carrier, requests } = await opened();
  carrier.send([history(2)]);
  requests[2].answer(2, reply(2));
  requests[1].answer(2, reply(2));
  await turn();
  assert.deepEqual(requests[3].frames, []);
  carrier.close(false);
});

test("a request that awaits a reply is not interrupted; one that awaits none is", async () => {
  const { carrier, requests } = await opened();
  carrier.send([{ id: 0, name: "unsubscribe", body: { channel: "a" } }]);
  requests[1].answer(1);
  await turn();
  carrier.send([history(2)]);
  assert.equal(requests.length, 4, "the unsubscribe was interrupted");
  carrier.send([history(3)]);
  assert.equal(requests.length, 4, "the history was not");
  requests[2].answer(1);
  requests[3].answer(2, reply(2));
  await turn();
  assert.deepEqual(requests[4].frames, [inJson(3)]);
  carrier.close(false);
});

test("a request without an answer is repeated as it was, and gives up after four", async () => {
  const { requests, closed } = await opened();
  for (let attempt = 1; attempt <= 4; attempt += 1) {
    assert.deepEqual(strip(requests.at(-1)), strip(requests[1]));
    assert.equal(requests.length, attempt + 1);
    requests.at(-1).fail();
    await new Promise((resolve) => setTimeout(resolve, 5));
    await turn();
  }
  assert.equal(requests.length, 5);
  assert.deepEqual(closed, [{ code: 4108, reason: "polls got no answer" }]);
});

test("after a poll that was given up the next carries no frames: it would pass for its repeat", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const { carrier, requests } = await opened();
    carrier.send([history(2)]);
    requests[2].answer(2, reply(2));
    await turn();
    carrier.send([history(3)]);
    mock.timers.tick(3_000);
    await turn();
    assert.ok(requests[1].isAborted());
    assert.deepEqual(strip(requests[3]), { ack: 2, frames: [], session: "s", wait_ms: 0 });
    requests[3].answer(2);
    await turn();
    assert.deepEqual(requests[4].frames, [inJson(3)]);
    carrier.close(false);
    await turn();
  } finally {
    mock.timers.reset();
  }
});

test("where the older poll returns empty the newer was executed, also if its reply is not there yet", async () => {
  const { carrier, requests } = await opened();
  carrier.send([history(2)]);
  requests[2].answer(2, publication);
  await turn();
  requests[1].answer(1);
  await turn();
  assert.deepEqual(strip(requests[3]), { ack: 2, frames: [], session: "s", wait_ms: 25_000 });
  carrier.close(false);
});

test("an interrupted poll that fails is not repeated", async () => {
  const { carrier, requests, closed } = await opened();
  carrier.send([history(2)]);
  requests[1].fail();
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual([requests.length, closed.length], [3, 0]);
  carrier.close(false);
});
