/**
 * Sans-io: the session's subscriptions, over one connection or two.
 *
 * Each is delivered by one connection, its *source*. While a second connection is being opened it is asked for the same
 * channels, and holds back what it brings. From its `subscribed` on it is the source: it goes on behind the last
 * publication that the app has, and what the older connection still brings is dropped. If the newer one fails, the older
 * is the source again; where it dropped something it is asked anew.
 *
 * @import { Numbering } from '../codec.js'
 * @import { Connection, Joined } from './connection.js'
 * @import { Event, LIMITS, Position, RequestError } from './types.js'
 *
 * @typedef {object} Subscription
 * @property {string} channel
 * @property {Position | null} position of the last publication that the app has
 * @property {number} rank
 * @property {boolean} presence whether the app wants to be told who joins and leaves
 * @property {boolean} byServer the app never asked for it
 * @property {boolean} listed the last `connected` began it
 * @property {Connection | null} source
 * @property {Backoff} backoff
 */

import { Backoff } from "../backoff.js";
import { Ordering } from "../ordering.js";

export class Channels {
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  #emit;
  #nextId;
  #random;
  #limits;

  /**
   * @param {object} options
   * @param {(event: Event) => void} options.emit
   * @param {() => number} options.nextId
   * @param {() => number} options.random
   * @param {typeof LIMITS} options.limits
   */
  constructor({ emit, nextId, random, limits }) {
    this.#emit = emit;
    this.#nextId = nextId;
    this.#random = random;
    this.#limits = limits;
  }

  /** @param {string} channel @returns {Position | null} */
  position(channel) {
    return this.#subscriptions.get(channel)?.position ?? null;
  }

  /** @param {string} channel */
  has(channel) {
    return this.#subscriptions.has(channel);
  }

  /** Whether a connection delivers all there is. @param {Connection} connection */
  areSettledOn(connection) {
    for (const { source } of this.#subscriptions.values()) if (source !== connection) return false;
    return true;
  }

  // --- what the app wants -------------------------------------------------------------------------------------------

  /**
   * @param {string} channel
   * @param {Position | null} position
   * @param {number} rank
   * @param {boolean} presence
   * @param {Connection[]} connections that are open, the one that delivers first
   */
  subscribe(channel, position, rank, presence, connections) {
    const known = this.#subscriptions.get(channel);
    if (known) known.byServer = false;
    if (known && !position && !presence) return;
    const subscription = this.#add(channel, position ?? known?.position ?? null, rank, presence);
    subscription.listed = known?.listed ?? false;
    for (const connection of connections) this.#ask(connection, subscription);
  }

  /** @param {string} channel @param {Connection[]} connections */
  unsubscribe(channel, connections) {
    const subscription = this.#subscriptions.get(channel);
    if (subscription) this.#forget(subscription, null, connections, null);
  }

  /** All end. @param {RequestError} error */
  end(error) {
    for (const subscription of [...this.#subscriptions.values()]) this.#forget(subscription, error, [], null);
  }

  // --- connections come and go --------------------------------------------------------------------------------------

  /** Asks for everything, right behind `connect`. @param {Connection} connection */
  open(connection) {
    for (const subscription of this.#subscriptions.values()) {
      // What the server begins by itself can be taken over once it has, not before. With a ticket it has by then.
      if (!subscription.listed || connection.isResuming) this.#ask(connection, subscription);
    }
  }

  /**
   * The server lists what it began by itself.
   *
   * @param {number} now
   * @param {Connection} connection
   * @param {Connection[]} connections
   */
  connected(now, connection, connections) {
    const { subscriptions, resumed } = connection.connected;
    const listed = new Set(subscriptions.map((/** @type {any} */ begun) => begun.channel));
    for (const subscription of [...this.#subscriptions.values()]) {
      if (!subscription.listed || listed.has(subscription.channel)) continue;
      subscription.listed = false;
      if (connection.joined.has(subscription.channel)) continue;
      if (!subscription.byServer || resumed) this.#ask(connection, subscription);
      else this.#forget(subscription, noLongerBegun(), connections, connection);
    }
    for (const begun of subscriptions) this.#takeOver(now, connection, begun);
  }

  /** A connection is gone; another takes its place, or none. @param {Connection} lost @param {Connection | null} heir */
  lost(lost, heir) {
    for (const subscription of this.#subscriptions.values()) {
      if (subscription.source === lost) subscription.source = heir?.joined.has(subscription.channel) ? heir : null;
    }
  }

  /** The newer connection failed: `current` delivers again. @param {number} now @param {Connection} current */
  handBack(now, current) {
    for (const subscription of this.#subscriptions.values()) {
      if (subscription.source === current) continue;
      subscription.source = current;
      const joined = current.joined.get(subscription.channel);
      if (!joined) {
        this.#ask(current, subscription);
        continue;
      }
      const { position } = subscription;
      const { dropped, ordering, requestId, retryAt } = joined;
      if (!dropped && ordering.isPending && (requestId !== 0 || retryAt !== null)) continue;
      const goesOn = !dropped && !ordering.isPending && ordering.position?.epoch === position?.epoch;
      if (!goesOn || !position) this.#resubscribe(current, subscription);
      else this.#deliver(now, current, subscription, joined, joined.ordering.advance(position));
    }
  }

  // --- frames -------------------------------------------------------------------------------------------------------

  /**
   * @param {number} now
   * @param {Connection} connection
   * @param {number} id
   * @param {Record<string, any>} body
   */
  subscribed(now, connection, id, body) {
    connection.subscribing.delete(id);
    const subscription = this.#subscriptions.get(body.channel);
    const joined = connection.joined.get(body.channel);
    // An answer to a subscription that was left meanwhile, or asked for again, says nothing.
    if (!subscription || !joined || (id !== 0 && id !== joined.requestId)) return;
    // Of a subscription that the reply, which comes behind it, knows nothing of.
    if (id === 0 && joined.ordering.isPending) return;
    if (isLeft(subscription, connection)) {
      joined.requestId = 0;
      joined.dropped = true;
      return;
    }
    if (id === 0 && joined.ordering.isBefore(body.position)) return; // Of a subscription that was left.
    this.#begin(now, connection, subscription, joined, body, id !== 0);
  }

  /**
   * @param {Connection} connection
   * @param {number} id
   * @param {Record<string, any>} body
   * @param {Connection[]} connections
   */
  unsubscribed(connection, id, body, connections) {
    const subscription = this.#subscriptions.get(body.channel);
    const joined = connection.joined.get(body.channel);
    // Ours were forgotten when they were sent, without an id.
    if (id !== 0 || !subscription || !joined || joined.requestId !== 0) return;
    if (isLeft(subscription, connection)) joined.dropped = true;
    else this.#forget(subscription, body.error ?? null, connections, connection);
  }

  /**
   * @param {number} now
   * @param {Connection} connection
   * @param {Record<string, any>} body
   * @param {Numbering | null} numbering
   */
  publication(now, connection, body, numbering) {
    const subscription = this.#subscriptions.get(body.channel);
    const joined = connection.joined.get(body.channel);
    if (!subscription || !joined) return;
    if (!isLeft(subscription, connection)) {
      return this.#deliver(now, connection, subscription, joined, joined.ordering.take(body, numbering));
    }
    if (body.offset > (subscription.position?.offset ?? 0)) joined.dropped = true;
  }

  /**
   * A `subscribe` was refused.
   *
   * @param {number} now
   * @param {Connection} connection
   * @param {number} id
   * @param {RequestError} error
   * @param {Connection[]} connections
   */
  refused(now, connection, id, error, connections) {
    const channel = connection.subscribing.get(id)?.channel ?? "";
    connection.subscribing.delete(id);
    const subscription = this.#subscriptions.get(channel);
    const joined = connection.joined.get(channel);
    if (!subscription || !joined || joined.requestId !== id) return;
    joined.requestId = 0;
    if (error.code === 409 && !joined.conflicted) {
      // A repeated long-poll request asked twice. Only a new subscription says where it stands.
      this.#resubscribe(connection, subscription);
      const again = connection.joined.get(channel);
      if (again) again.conflicted = true;
    } else if (error.retry) {
      joined.retryAt = now + subscription.backoff.next();
    } else if (isLeft(subscription, connection)) {
      joined.dropped = true;
    } else {
      this.#forget(subscription, error, connections, connection);
    }
  }

  /** @param {number} now @param {Connection} connection */
  handleTimeout(now, connection) {
    for (const subscription of this.#subscriptions.values()) {
      const joined = connection.joined.get(subscription.channel);
      if (!joined || isLeft(subscription, connection)) continue;
      const { retryAt, gapSince } = joined;
      if (retryAt !== null && now >= retryAt) this.#ask(connection, subscription);
      else if (gapSince !== null && now >= gapSince + this.#limits.gapMs) this.#resubscribe(connection, subscription);
    }
  }

  /** @param {Connection} connection @returns {number} */
  nextAt(connection) {
    let next = Infinity;
    for (const [channel, { retryAt, gapSince }] of connection.joined) {
      if (retryAt === null && gapSince === null) continue;
      const subscription = this.#subscriptions.get(channel);
      if (!subscription || isLeft(subscription, connection)) continue;
      if (retryAt !== null) next = Math.min(next, retryAt);
      if (gapSince !== null) next = Math.min(next, gapSince + this.#limits.gapMs);
    }
    return next;
  }

  // --- the rest -----------------------------------------------------------------------------------------------------

  /**
   * A subscription that the server began by itself, at the head: it goes on from the position that the app has.
   *
   * @param {number} now
   * @param {Connection} connection
   * @param {Record<string, any>} begun
   */
  #takeOver(now, connection, begun) {
    const { channel } = begun;
    const known = this.#subscriptions.get(channel);
    const subscription = known ?? this.#add(channel, null, 0, false);
    subscription.byServer ||= !known;
    subscription.listed = true;
    const asked = connection.joined.get(channel)?.requestId ?? 0;
    // Behind a ticket the server reads what was asked once it has begun its own: that takes it over.
    if (asked !== 0 && connection.connected.resumed) return;
    // Else what was asked before it was known to be listed is answered by "already subscribed".
    connection.subscribing.delete(asked);
    if (subscription.position) return this.#ask(connection, subscription);
    const joined = this.#join(connection, subscription);
    this.#begin(now, connection, subscription, joined, begun, true);
  }

  /**
   * From now on this connection delivers.
   *
   * @param {number} now
   * @param {Connection} connection
   * @param {Subscription} subscription
   * @param {Joined} joined
   * @param {Record<string, any>} subscribed
   * @param {boolean} isReply
   */
  #begin(now, connection, subscription, joined, subscribed, isReply) {
    const { channel, position: at, byServer } = subscription;
    const { ordering } = joined;
    const asked = ordering.position;
    joined.requestId = 0;
    joined.retryAt = null;
    joined.conflicted = false;
    subscription.backoff.reset();
    if (isReply && at && asked?.epoch !== at.epoch) {
      // Meanwhile another connection began it, or began it anew: the answer is to a question of before.
      this.#resubscribe(connection, subscription);
      return;
    }
    const older = subscription.source;
    const isHandedOver = older !== null && older !== connection && older.joined.get(channel)?.ordering.isPending === false;
    const head = subscribed.position ?? { epoch: "", offset: 0 };
    // What the older connection delivered meanwhile is not behind: the app has it.
    if (isReply && at) ordering.advance(at);
    const isCovered = isHandedOver && at !== null && at.epoch === head.epoch && head.offset <= at.offset;
    const recovered = subscribed.recovered || isCovered;
    const { how, missed, publications } = ordering.begin({ ...subscribed, recovered }, isReply);
    const { conflated } = ordering;
    subscription.source = connection;
    subscription.position = ordering.position;
    if (isHandedOver && how === "recovered") {
      // The app sees no seam, so there is nothing that it missed.
      ordering.recoveredTo = 0;
    } else {
      this.#emit({ type: "subscribed", channel, position: head, how, missed, conflated, byServer });
    }
    this.#deliver(now, connection, subscription, joined, publications);
  }

  /**
   * @param {number} now
   * @param {Connection} connection
   * @param {Subscription} subscription
   * @param {Joined} joined
   * @param {Record<string, any>[]} publications
   */
  #deliver(now, connection, subscription, joined, publications) {
    const { ordering } = joined;
    if (ordering.isPending) return;
    const epoch = ordering.position?.epoch ?? "";
    subscription.position = ordering.position;
    for (const publication of publications) {
      const recovered = publication.offset <= ordering.recoveredTo;
      this.#emit({ type: "publication", publication, epoch, recovered });
    }
    if (ordering.overflowed) return this.#resubscribe(connection, subscription);
    if (!ordering.hasGap) joined.gapSince = null;
    else if (publications.length > 0 || joined.gapSince === null) joined.gapSince = now;
  }

  /** @param {string} channel @param {Position | null} position @param {number} rank @param {boolean} presence @returns {Subscription} */
  #add(channel, position, rank, presence) {
    const backoff = new Backoff(this.#random);
    /** @type {Subscription} */
    const subscription = { channel, position, rank, presence, byServer: false, listed: false, source: null, backoff };
    this.#subscriptions.set(channel, subscription);
    return subscription;
  }

  /** @param {Connection} connection @param {Subscription} subscription @returns {Joined} */
  #join(connection, subscription) {
    const left = connection.joined.get(subscription.channel)?.ordering.left;
    /** @type {Joined} */
    const joined = {
      ordering: new Ordering(subscription.position, this.#limits.held, left),
      requestId: 0,
      retryAt: null,
      gapSince: null,
      conflicted: false,
      dropped: false,
    };
    connection.joined.set(subscription.channel, joined);
    subscription.source ??= connection;
    return joined;
  }

  /** @param {Connection} connection @param {Subscription} subscription */
  #ask(connection, subscription) {
    const { channel, position, rank, presence } = subscription;
    const id = this.#nextId();
    this.#join(connection, subscription).requestId = id;
    connection.subscribing.set(id, { channel, sentAt: null });
    const body = { channel, ...(position && { position }), ...(rank !== 0 && { rank }), ...(presence && { presence }) };
    connection.control.push({ id, name: "subscribe", body });
  }

  /** Begins anew from the last position. @param {Connection} connection @param {Subscription} subscription */
  #resubscribe(connection, subscription) {
    connection.control.push({ id: 0, name: "unsubscribe", body: { channel: subscription.channel } });
    this.#ask(connection, subscription);
  }

  /**
   * @param {Subscription} subscription
   * @param {RequestError | null} error
   * @param {Connection[]} connections
   * @param {Connection | null} endedAt where the server ended it by itself
   */
  #forget(subscription, error, connections, endedAt) {
    const { channel } = subscription;
    this.#subscriptions.delete(channel);
    for (const connection of connections) {
      const joined = connection.joined.get(channel);
      if (!joined) continue;
      connection.subscribing.delete(joined.requestId);
      connection.joined.delete(channel);
      if (connection !== endedAt) connection.control.push({ id: 0, name: "unsubscribe", body: { channel } });
    }
    this.#emit({ type: "unsubscribed", channel, error });
  }
}

/** @returns {RequestError} */
function noLongerBegun() {
  return { code: 404, message: "no longer begun by the server", retry: false };
}

/** Whether a newer connection delivers what this one did. @param {Subscription} subscription @param {Connection} connection */
function isLeft({ source }, connection) {
  return source !== null && source.id > connection.id;
}
