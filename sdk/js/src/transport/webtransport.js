/**
 * WebTransport: one bidirectional control stream, a stream from the server for each subscription, datagrams for what
 * is ephemeral.
 *
 * @import { Frame } from '../codec.js'
 * @import { Handlers, Open, Transport } from '../transport.js'
 */

import { Decoder, decodeDelimited, encodeDelimited } from "../codec.js";
import { CloseCode } from "../close-codes.js";
import { ClientFrame, ServerFrame, StreamHeader } from "../schema.js";
import { UnavailableError, toError } from "../transport.js";

/** @type {Open} */
export async function openWebTransport(url, handlers, options, signal) {
  const Constructor = options.WebTransport ?? globalThis.WebTransport;
  if (!Constructor) throw new UnavailableError("there is no WebTransport here");
  signal.throwIfAborted();
  /** @type {any} */
  const session = new Constructor(url, {
    allowPooling: false,
    ...(options.certificateHashes.length > 0 && {
      serverCertificateHashes: options.certificateHashes.map((value) => ({ algorithm: "sha-256", value })),
    }),
  });
  // Every promise of the session rejects when it fails; those that nobody awaits must not be "unhandled".
  session.closed.catch(() => {});
  session.ready.catch(() => {});
  const giveUp = () => close(session, 0, "");
  signal.addEventListener("abort", giveUp, { once: true });
  try {
    await Promise.race([session.ready, aborted(signal)]);
    const control = await Promise.race([session.createBidirectionalStream(), aborted(signal)]);
    return new Connection(session, control, handlers).transport();
  } catch (error) {
    giveUp();
    throw error;
  } finally {
    signal.removeEventListener("abort", giveUp);
  }
}

class Connection {
  #session;
  #handlers;
  #control;
  #datagrams;
  #isOver = false;

  /**
   * @param {any} session
   * @param {any} control
   * @param {Handlers} handlers
   */
  constructor(session, control, handlers) {
    this.#session = session;
    this.#handlers = handlers;
    this.#control = control.writable.getWriter();
    const { datagrams } = session;
    // `writable` is what browsers have; the specification moved on to `createWritable`.
    // The default of 1 would drop the second of two in one turn of the loop.
    datagrams.outgoingHighWaterMark = DATAGRAMS_QUEUED;
    this.#datagrams = (datagrams.writable ?? datagrams.createWritable?.())?.getWriter();
    this.#control.closed.catch(() => {});
    this.#datagrams?.closed.catch(() => {});
    session.closed.then(
      (/** @type {any} */ info) => this.#over(info?.closeCode ?? 0, info?.reason ?? ""),
      (/** @type {unknown} */ error) => this.#over(0, toError(error).message),
    );
    void this.#readControl(control.readable);
    void this.#acceptStreams(session.incomingUnidirectionalStreams);
    void this.#readDatagrams(datagrams.readable);
  }

  /** @returns {Transport} */
  transport() {
    return {
      heartbeat: true,
      send: (frames) => {
        // In one write: `connect` and all that follows it leave in one flight.
        this.#write(joined(frames.map((frame) => encodeDelimited(ClientFrame, withRepeats(frame)))));
      },
      sendEphemeral: (frame) => this.#sendEphemeral(frame),
      close: () => {
        this.#isOver = true;
        close(this.#session, 0, "");
      },
    };
  }

  /** @param {Uint8Array} bytes */
  #write(bytes) {
    // A failed write means that the session failed, which `closed` tells.
    this.#control.write(bytes).catch(() => {});
  }

  /** @param {Frame} frame */
  #sendEphemeral(frame) {
    const bytes = encodeDelimited(ClientFrame, frame);
    if (this.#datagrams && bytes.length <= this.#session.datagrams.maxDatagramSize) {
      if (this.#datagrams.desiredSize > 0) this.#datagrams.write(bytes).catch(() => {});
    } else if (this.#control.desiredSize > 0) {
      this.#write(bytes);
    }
  }

  /** @param {ReadableStream<Uint8Array>} readable */
  async #readControl(readable) {
    const decoder = new Decoder();
    await this.#guard(async () => {
      for await (const chunk of chunks(readable)) {
        decoder.push(chunk);
        this.#deliver(decoder.frames(ServerFrame));
      }
      // `closed` may follow and say more: it has until the next turn of the loop.
      setTimeout(() => this.#over(0, "the server ended the control stream"), CLOSE_GRACE_MS);
    });
  }

  /** @param {ReadableStream<ReadableStream<Uint8Array>>} streams */
  async #acceptStreams(streams) {
    await this.#guard(async () => {
      for await (const stream of chunks(streams)) void this.#guard(() => this.#readChannel(stream));
    });
  }

  /** @param {ReadableStream<Uint8Array>} stream */
  async #readChannel(stream) {
    const decoder = new Decoder();
    /** @type {Record<string, any> | null} */
    let header = null;
    for await (const chunk of chunks(stream)) {
      decoder.push(chunk);
      header ??= decoder.message(StreamHeader);
      if (header) this.#deliver(numbered(decoder.frames(ServerFrame), () => header?.epoch));
    }
  }

  /** @param {ReadableStream<Uint8Array>} readable */
  async #readDatagrams(readable) {
    await this.#guard(async () => {
      for await (const datagram of chunks(readable)) {
        // One that begins with 0 only probes the path.
        if (datagram[0] === 0) continue;
        const frames = numbered(decodeDelimited(ServerFrame, datagram), ({ id }) => id);
        // Without a mark it may be of any epoch. It comes by its stream as well.
        this.#deliver(frames.filter(({ name, numbering }) => name !== "publication" || numbering));
      }
    });
  }

  /** @param {Frame[]} frames */
  #deliver(frames) {
    if (frames.length > 0 && !this.#isOver) this.#handlers.onFrames(frames);
  }

  /**
   * Streams fail when the session does, which `closed` tells; what is no frame ends the session here.
   *
   * @param {() => Promise<void>} read
   */
  async #guard(read) {
    try {
      await read();
    } catch (error) {
      if (this.#isOver || !(error instanceof Error) || error.name !== "DecodeError") return;
      this.#handlers.onError(error);
      close(this.#session, CloseCode.badFrame, "");
      this.#over(CloseCode.connectionLost, "the server sent what is no frame");
    }
  }

  /** @param {number} code @param {string} reason */
  #over(code, reason) {
    if (this.#isOver) return;
    this.#isOver = true;
    close(this.#session, 0, "");
    this.#handlers.onClosed({ code, reason });
  }
}

/**
 * Not every browser iterates streams by itself.
 *
 * @template T
 * @param {ReadableStream<T>} readable
 */
async function* chunks(readable) {
  const reader = readable.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
}

/**
 * `connect` tells that publications are taken from datagrams too: they go the same way as those of streams.
 *
 * @param {Frame} frame
 * @returns {Frame}
 */
function withRepeats(frame) {
  return frame.name === "connect" ? { ...frame, body: { ...frame.body, repeats: true } } : frame;
}

/**
 * Publications with the numbering that what they came by tells.
 *
 * @param {Frame[]} frames
 * @param {(frame: Frame) => string | number | undefined} numberingOf
 * @returns {Frame[]}
 */
function numbered(frames, numberingOf) {
  return frames.map((frame) => {
    const numbering = frame.name === "publication" && numberingOf(frame);
    return numbering ? { ...frame, id: 0, numbering } : frame;
  });
}

/** @param {Uint8Array[]} parts @returns {Uint8Array} */
function joined(parts) {
  if (parts.length === 1) return /** @type {Uint8Array} */ (parts[0]);
  const bytes = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** @param {any} session @param {number} closeCode @param {string} reason */
function close(session, closeCode, reason) {
  try {
    session.close({ closeCode, reason });
  } catch {
    // Closed already, or never opened.
  }
}

/** @param {AbortSignal} signal @returns {Promise<never>} */
function aborted(signal) {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(toError(signal.reason)), { once: true });
  });
}

const CLOSE_GRACE_MS = 100;
/** Datagrams that wait for the network; beyond it the newest is dropped here, before it can grow stale. */
const DATAGRAMS_QUEUED = 16;
