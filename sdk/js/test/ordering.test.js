import assert from "node:assert/strict";
import { test } from "node:test";

import { Ordering } from "../src/ordering.js";

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
