import assert from "node:assert/strict";
import { test } from "node:test";

import { Ordering, markOf } from "../src/ordering.js";

const at = (epoch, offset, rest = {}) => ({
  channel: "a",
  position: { epoch, offset },
  recovered: false,
  publications: [],
  conflated: false,
  ...rest,
});
const publication = (offset) => ({ channel: "a", offset, data: offset, time_ms: 0 });
const offsets = (publications) => publications.map(({ offset }) => offset);

test("what is of an epoch to come waits for it, and what is of one that was left is dropped", () => {
  const ordering = new Ordering(null);
  assert.deepEqual(ordering.take(publication(6), "one"), []);
  assert.deepEqual(ordering.take(publication(6)), [], "what comes in order before the reply comes again");
  assert.deepEqual(offsets(ordering.begin(at("one", 5), true).publications), [6]);
  // A gap in the epoch that ends; what overtakes the news of the next ones, by streams and by datagram.
  assert.deepEqual(ordering.take(publication(9), "one"), []);
  assert.deepEqual(ordering.take(publication(3), "two"), []);
  assert.deepEqual(ordering.take(publication(1), "three"), []);
  assert.deepEqual(ordering.take(publication(2), markOf("two")), []);
  const begun = ordering.begin(at("two", 1), false);
  assert.deepEqual([begun.how, offsets(begun.publications)], ["rebased", [2, 3]]);
  assert.deepEqual(ordering.take(publication(4), "one"), []);
  assert.deepEqual(ordering.take(publication(4), markOf("one")), []);
  assert.deepEqual(offsets(ordering.take(publication(4), markOf("two"))), [4]);
  assert.deepEqual(offsets(ordering.begin(at("three", 0), false).publications), [1]);
  assert.deepEqual(ordering.take(publication(2), "two"), []);
  assert.equal(ordering.hasGap, false);
});

test("what does not fit before the news of its epoch is asked for once it is there", () => {
  const ordering = new Ordering(null, { items: 2, bytes: 1 << 20 });
  ordering.begin(at("one", 5), true);
  for (const offset of [1, 2, 3]) ordering.take(publication(offset), "two");
  assert.equal(ordering.overflowed, false);
  assert.deepEqual(offsets(ordering.begin(at("two", 0), false).publications), [1, 2]);
  assert.equal(ordering.overflowed, true);
});

test("what was held in an epoch that ended is not delivered in the next", () => {
  const ordering = new Ordering(null);
  ordering.begin(at("one", 5), true);
  assert.deepEqual(ordering.take(publication(8)), []);
  assert.equal(ordering.begin(at("two", 7), false).how, "rebased");
  assert.deepEqual(ordering.position, { epoch: "two", offset: 7 });
  assert.deepEqual(offsets(ordering.take(publication(8))), [8]);
});

test("re-based within its epoch, what is held beyond the new position is kept", () => {
  const ordering = new Ordering(null);
  ordering.begin(at("one", 5), true);
  assert.deepEqual([...ordering.take(publication(8)), ...ordering.take(publication(9))], []);
  assert.deepEqual(offsets(ordering.begin(at("one", 7), false).publications), [8, 9]);
});

test("an empty epoch asks for whichever is current, and takes its name", () => {
  const ordering = new Ordering({ epoch: "", offset: 0 });
  const begun = ordering.begin(at("one", 3, { recovered: true, publications: [1, 2].map(publication) }), true);
  assert.deepEqual([begun.how, begun.missed, offsets(begun.publications)], ["recovered", 3, [1, 2]]);
  assert.deepEqual(ordering.position, { epoch: "one", offset: 2 });
});

test("holding is bounded in items and in bytes", () => {
  for (const limits of [{ items: 3, bytes: 1 << 20 }, { items: 1_000, bytes: 200 }]) {
    const ordering = new Ordering(null, limits);
    ordering.begin(at("one", 0), true);
    for (const offset of [2, 3, 4]) ordering.take(publication(offset));
    ordering.take(publication(5));
    assert.ok(ordering.overflowed);
    assert.equal(ordering.hasGap, false, "nothing is held any more");
  }
});
