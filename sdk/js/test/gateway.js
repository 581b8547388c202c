/** A tiny gateway for tests over real sockets: WebSocket (by `ws`) and long poll, which can lose what it answers. */

import { createServer } from "node:http";
import { WebSocketServer } from "ws";

import { decodeDelimited, decodeText, encodeDelimited, toJson } from "../src/codec.js";
import { ClientFrame, ServerFrame } from "../src/schema.js";

export class Gateway {
  #http = createServer((request, response) => void this.#poll(request, response));
  #sockets = new WebSocketServer({ server: this.#http, handleProtocols: ([first]) => first });
  #polls = new Map();
  #lastSession = 0;
  channels = new Map();
  keys = new Map();
  sessions = new Set();
  /** Ephemeral items as they came. */
  ephemeral = [];
  /** Tokens as they came. */
  tokens = [];
  /** Asked for each long-poll answer: true loses it. */
  loses = () => false;
  /** Whether it gives tickets; and the sessions that they stand for. */
  hasTickets = false;
  #tickets = new Map();
  /** All that have the same channels. @type {Gateway[]} */
  #peers = [this];
  /** While true, WebSockets carry nothing, and say nothing of it: a black hole. */
  isSilent = false;
  /** Told in `connected`. */
  alternatives = [];
  /** The same, with windows. */
  plan = null;
  /** Asked for each token; what it answers closes the connection. */
  refuses = () => null;

  constructor() {
    this.#sockets.on("connection", (socket) => this.#accept(socket));
  }

  async listen() {
    await new Promise((resolve) => this.#http.listen(0, "127.0.0.1", resolve));
    const { port } = this.#http.address();
    return { websocket: `ws://127.0.0.1:${port}/v1/connect`, longpoll: `http://127.0.0.1:${port}/v1/poll` };
  }

  async close() {
    for (const socket of this.#sockets.clients) socket.terminate();
    for (const { wake } of this.#polls.values()) wake?.();
    this.#http.closeAllConnections();
    await new Promise((resolve) => this.#http.close(resolve));
  }

  /** Cuts all connections, as if the process had died and were there again. */
  cut() {
    for (const socket of this.#sockets.clients) socket.terminate();
  }

  /** Has the channels of `other` too, and opens its tickets. */
  share(other) {
    this.channels = other.channels;
    this.keys = other.keys;
    this.#tickets = other.#tickets;
    this.#peers = other.#peers;
    this.#peers.push(this);
  }

  /** To all sessions. */
  goaway(body) {
    for (const session of this.sessions) session.send({ id: 0, name: "goaway", body });
  }

  publish(name, payload) {
    const log = this.#channel(name);
    const publication = { channel: name, offset: log.length + 1, ...payload, time_ms: 1 };
    log.push(publication);
    this.#fanOut(name, { id: 0, name: "publication", body: publication });
    return { epoch: "e", offset: publication.offset };
  }

  #ticket({ identity }) {
    const ticket = `ticket-${this.#tickets.size}-${Math.random()}`;
    this.#tickets.set(ticket, identity);
    return ticket;
  }

  #channel(name) {
    if (!this.channels.has(name)) this.channels.set(name, []);
    return this.channels.get(name);
  }

  #fanOut(name, frame) {
    for (const { sessions } of this.#peers) {
      for (const session of sessions) if (session.subscriptions.has(name)) session.send(frame);
    }
  }

  #open(send) {
    this.#lastSession += 1;
    const id = `session-${this.#lastSession}`;
    const session = { id, identity: id, send, subscriptions: new Set() };
    this.sessions.add(session);
    return session;
  }

  #handle(session, { id, name, body }) {
    const reply = (answer, content) => session.send({ id, name: answer, body: content });
    const { channel } = body;
    if (name === "connect") {
      this.tokens.push(body.token ?? null);
      const close = this.refuses(body.token);
      if (close) return reply("close", close);
      const resumed = this.#tickets.has(body.resume);
      session.identity = this.#tickets.get(body.resume) ?? session.id;
      this.#tickets.delete(body.resume);
      const plan = this.plan ?? { alternatives: this.alternatives.map((host) => ({ host, weight: 1 })) };
      const connected = { plan, session: session.identity, ping_ms: 25_000, node: "gateway", region: "test", subscriptions: [] };
      return reply("connected", { ...connected, resumed, ...(this.hasTickets && { resume: this.#ticket(session) }) });
    }
    if (name === "subscribe") {
      if (session.subscriptions.has(channel)) return reply("error", { code: 409, message: "already", retry: false });
      session.subscriptions.add(channel);
      const log = this.#channel(channel);
      const publications = body.position ? log.slice(body.position.offset) : [];
      const position = { epoch: "e", offset: log.length };
      return reply("subscribed", { channel, position, recovered: !!body.position, publications, conflated: false });
    }
    if (name === "unsubscribe") session.subscriptions.delete(channel);
    if (name === "history") {
      const log = this.#channel(channel);
      const position = { epoch: "e", offset: log.length };
      return reply("history", { channel, position, recovered: true, publications: log.slice(body.since?.offset ?? 0) });
    }
    if (name === "ping") return reply("pong", {});
    if (name === "done") this.sessions.delete(session);
    if (name === "done") return session.send({ id: 0, name: "close", body: { code: 4000, reason: "done" } });
    if (name !== "publish") return undefined;
    const { data, data_base64: bytes, key, ephemeral } = body;
    const payload = bytes === undefined ? { data } : { data_base64: bytes };
    if (ephemeral) {
      this.ephemeral.push(data);
      return this.#fanOut(channel, { id: 0, name: "ephemeral", body: { channel, ...payload, time_ms: 1 } });
    }
    if (!this.keys.has(key)) this.keys.set(key, this.publish(channel, payload));
    return reply("published", { channel, position: this.keys.get(key) });
  }

  #accept(socket) {
    const isText = socket.protocol === "tidegate.v1.json";
    const session = this.#open((frame) => {
      if (this.isSilent) return;
      socket.send(isText ? JSON.stringify(toJson(ServerFrame, frame)) : encodeDelimited(ServerFrame, frame));
    });
    socket.on("message", (message) => {
      if (this.isSilent) return;
      const frames = isText ? decodeText(ClientFrame, String(message)) : decodeDelimited(ClientFrame, message);
      for (const frame of frames) this.#handle(session, frame);
    });
    socket.on("close", () => this.sessions.delete(session));
  }

  /** PROTOCOL on long poll, in small: batches, acknowledgement, repeats, one waiting poll. */
  async #poll(request, response) {
    let body = "";
    for await (const chunk of request) body += chunk;
    const { session: id, ack = 0, frames, wait_ms: waitMs } = JSON.parse(body);
    let box = this.#polls.get(id);
    if (!box && id !== undefined) {
      const close = { code: 4200, reason: "unknown session", reconnect: { policy: "now" } };
      response.writeHead(404).end(JSON.stringify({ batch: 0, frames: [{ close }] }));
      return;
    }
    if (!box) {
      box = { queue: [], batch: 0, last: null, wake: null };
      box.session = this.#open((frame) => {
        box.queue.push(toJson(ServerFrame, frame));
        box.wake?.();
      });
      this.#polls.set(box.session.id, box);
    }
    box.wake?.(true);
    if (box.batch === ack) {
      box.last = null;
      for (const frame of frames) this.#handle(box.session, decodeText(ClientFrame, JSON.stringify(frame))[0]);
      let isSuperseded = false;
      if (box.queue.length === 0) {
        isSuperseded = await new Promise((resolve) => {
          const timer = setTimeout(() => resolve(false), waitMs).unref();
          box.wake = (superseded = false) => (clearTimeout(timer), resolve(superseded));
        });
        box.wake = null;
      }
      if (!isSuperseded && box.queue.length > 0 && box.batch === ack) {
        box.batch += 1;
        box.last = box.queue.splice(0, 100);
      }
      if (isSuperseded) return this.#answer(response, box, []);
    }
    this.#answer(response, box, box.last ?? []);
  }

  #answer(response, box, frames) {
    if (this.loses()) return void response.destroy();
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify({ session: box.session.id, batch: box.batch, frames }));
  }

  /** Forgets every long-poll session, as an edge does that was restarted. */
  forget() {
    this.#polls.clear();
    this.sessions.clear();
  }
}
