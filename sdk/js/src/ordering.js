/**
 * Sans-io: one subscription's order. Publications come in, however they overtook one another; out they go by offset,
 * none twice, none missing.
 *
 * Streams and datagrams say of which epoch their publications are. What is of an epoch that `subscribed` has yet to name is
 * held apart; what is of one that was left is dropped.
 *
 * @import { Numbering } from './codec.js'
 * @import { Position } from './session/types.js'
 *
 * @typedef {object} Begun what the app is told when a subscription begins, again or for the first time
 * @property {'begun' | 'recovered' | 'rebased'} how `begun`: at the head; `recovered`: everything after the position
 *   comes; `rebased`: something is missing, or may be
 * @property {number} missed how many publications come that were missed; 0 unless `recovered`
 * @property {Record<string, any>[]} publications to deliver now
 */

export class Ordering {
  /** @type {Position | null} */
  position;
  conflated = false;
  /** Publications up to this offset are catch-up. */
  recoveredTo = 0;
  /** Epochs that the subscription was at, on this connection; the last few. @type {string[]} */
  left;
  // While pending, no epoch is named yet.
  #pending = true;
  /** Of the present epoch. @type {Map<number, Record<string, any>>} */
  #held = new Map();
  #heldBytes = 0;
  #overflowed = false;
  /** Of epochs to come. @type {{ numbering: Numbering, publication: Record<string, any> }[]} */
  #ahead = [];
  #aheadBytes = 0;
  #aheadIsLossy = false;
  #limits;

  /**
   * @param {Position | null} position the last publication that the app has
   * @param {{ items: number, bytes: number }} [limits] of what is held, and of what is held apart
   * @param {string[]} [left]
   */
  constructor(position, limits = { items: 1_024, bytes: 1 << 20 }, left = []) {
    this.position = position;
    this.left = left;
    this.#limits = limits;
  }

  get isPending() {
    return this.#pending;
  }

  /** True where an offset is missing before what is held. */
  get hasGap() {
    return !this.#pending && this.#held.size > 0;
  }

  /** True where more had to be held than the limits allow: only a new subscription helps. */
  get overflowed() {
    return this.#overflowed && !this.#pending;
  }

  /** True where `position` is behind what was delivered already. @param {Position | undefined} position */
  isBefore(position) {
    return !!position && position.epoch === this.position?.epoch && position.offset < this.position.offset;
  }

  /**
   * The server says where the subscription begins.
   *
   * @param {Record<string, any>} subscribed
   * @param {boolean} isReply false where the server began it anew by itself
   * @returns {Begun}
   */
  begin(subscribed, isReply) {
    const head = subscribed.position ?? { epoch: "", offset: 0 };
    const before = this.position;
    const first = subscribed.publications[0];
    this.#pending = false;
    this.conflated = subscribed.conflated;
    this.#beginEpoch(head.epoch);
    const recovered = isReply && subscribed.recovered && before !== null;
    if (recovered) {
      this.position = { epoch: head.epoch, offset: before.offset };
      this.recoveredTo = head.offset;
    } else {
      this.position = { epoch: head.epoch, offset: first ? first.offset - 1 : head.offset };
      this.recoveredTo = first ? head.offset : 0;
    }
    /** @type {Record<string, any>[]} */
    const publications = [];
    for (const each of subscribed.publications) publications.push(...this.take(each));
    publications.push(...this.#flush());
    return {
      how: recovered ? "recovered" : before === null ? "begun" : "rebased",
      missed: recovered && !this.conflated ? Math.max(0, head.offset - before.offset) : 0,
      publications,
    };
  }

  /**
   * Takes one publication; answers those that are next, in order.
   *
   * @param {Record<string, any>} publication
   * @param {Numbering | null} [numbering] null: that of the last `subscribed`
   * @returns {Record<string, any>[]}
   */
  take(publication, numbering = null) {
    const { offset } = publication;
    if (this.#pending || !this.position || !isOf(numbering, this.position.epoch)) {
      // What comes in order before the reply comes again behind it.
      if (numbering !== null && !this.left.some((epoch) => isOf(numbering, epoch))) this.#holdApart(publication, numbering);
      return [];
    }
    if (offset <= this.position.offset) return [];
    if (this.conflated || offset === this.position.offset + 1) {
      this.position = { epoch: this.position.epoch, offset };
      return this.#held.size > 0 ? [publication, ...this.#flush()] : [publication];
    }
    this.#hold(publication);
    return [];
  }

  /**
   * The app has everything up to `position` already, by another way.
   *
   * @param {Position} position of the same epoch
   * @returns {Record<string, any>[]} what follows
   */
  advance(position) {
    if (this.position && position.offset > this.position.offset) this.position = position;
    return this.#pending ? [] : this.#flush();
  }

  /** What comes next is of this epoch. @param {string} epoch */
  #beginEpoch(epoch) {
    const before = this.position?.epoch ?? "";
    if (before !== epoch) {
      this.#drop();
      this.left = this.left.filter((each) => each !== epoch);
      if (before !== "") this.left = [...this.left, before].slice(-MAX_LEFT);
    }
    const ahead = this.#ahead;
    this.#ahead = [];
    for (const each of ahead) {
      if (!isOf(each.numbering, epoch)) {
        this.#ahead.push(each);
        continue;
      }
      this.#aheadBytes -= sizeOf(each.publication);
      this.#hold(each.publication);
    }
    if (this.#aheadIsLossy) this.#overflowed = true;
    this.#aheadIsLossy = false;
  }

  /** @param {Record<string, any>} publication @param {Numbering} numbering */
  #holdApart(publication, numbering) {
    const size = sizeOf(publication);
    if (this.#ahead.length >= this.#limits.items || this.#aheadBytes + size > this.#limits.bytes) {
      this.#aheadIsLossy = true;
      return;
    }
    this.#aheadBytes += size;
    this.#ahead.push({ numbering, publication });
  }

  /** @param {Record<string, any>} publication */
  #hold(publication) {
    if (this.#overflowed || this.#held.has(publication.offset)) return;
    this.#held.set(publication.offset, publication);
    this.#heldBytes += sizeOf(publication);
    if (this.#held.size <= this.#limits.items && this.#heldBytes <= this.#limits.bytes) return;
    this.#drop();
    this.#overflowed = true;
  }

  /** What is held and next now. @returns {Record<string, any>[]} */
  #flush() {
    /** @type {Record<string, any>[]} */
    const next = [];
    if (!this.position) return next;
    let { epoch, offset } = this.position;
    for (const each of [...this.#held.values()].sort((a, b) => a.offset - b.offset)) {
      const isNext = each.offset > offset && (this.conflated || each.offset === offset + 1);
      if (!isNext && each.offset > offset) break;
      this.#held.delete(each.offset);
      this.#heldBytes -= sizeOf(each);
      if (!isNext) continue;
      offset = each.offset;
      next.push(each);
    }
    if (next.length > 0) this.position = { epoch, offset };
    return next;
  }

  #drop() {
    this.#held.clear();
    this.#heldBytes = 0;
    this.#overflowed = false;
  }
}

/** About how much a publication takes, bytes. @param {Record<string, any>} publication */
function sizeOf(publication) {
  const { data, data_base64: bytes } = publication;
  return 64 + (bytes ? bytes.length : (JSON.stringify(data)?.length ?? 0));
}

/** @param {Numbering | null} numbering @param {string} epoch */
function isOf(numbering, epoch) {
  return numbering === null || numbering === epoch || (typeof numbering === "number" && numbering === markOf(epoch));
}

/**
 * What stands for an epoch in datagrams: FNV-1a of 32 bits, and 1 where that is 0.
 *
 * @param {string} epoch
 */
export function markOf(epoch) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(epoch)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0 || 1;
}

const MAX_LEFT = 8;
