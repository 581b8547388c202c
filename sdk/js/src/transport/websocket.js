/**
 * WebSocket: JSON in text messages, or delimited Protobuf in binary ones.
 *
 * @import { Frame } from '../codec.js'
 * @import { Open, Transport } from '../transport.js'
 */

import { MAX_FRAMES_PER_MESSAGE, decodeDelimited, decodeText, encodeDelimited, toJson } from "../codec.js";
import { CloseCode } from "../close-codes.js";
import { ClientFrame, ServerFrame } from "../schema.js";
import { UnavailableError, toError } from "../transport.js";

/** @type {Open} */
export function openWebSocket(url, handlers, options, signal) {
  const Constructor = options.WebSocket ?? globalThis.WebSocket;
  if (!Constructor) return Promise.reject(new UnavailableError("there is no WebSocket here"));
  return new Promise((resolve, reject) => {
    const isText = options.encoding === "json";
    /** @type {WebSocket} */
    const socket = new Constructor(httpToWebSocket(url), [isText ? "tidegate.v1.json" : "tidegate.v1.proto"]);
    socket.binaryType = "arraybuffer";
    let isOver = false;
    /** @param {number} code @param {string} reason */
    const over = (code, reason) => {
      if (isOver) return;
      isOver = true;
      signal.removeEventListener("abort", giveUp);
      reject(new Error(reason || `the WebSocket closed with ${code}`));
      handlers.onClosed({ code, reason });
    };
    const giveUp = () => {
      isOver = true;
      socket.close();
      reject(toError(signal.reason));
    };
    signal.addEventListener("abort", giveUp, { once: true });

    socket.onopen = () => {
      signal.removeEventListener("abort", giveUp);
      resolve(transport(socket, isText, () => (isOver = true)));
    };
    socket.onmessage = ({ data }) => {
      if (isOver) return;
      try {
        if ((typeof data === "string") !== isText) throw new TypeError("a message of the wrong kind");
        handlers.onFrames(isText ? decodeText(ServerFrame, data) : decodeDelimited(ServerFrame, new Uint8Array(data)));
      } catch (error) {
        handlers.onError(toError(error));
        socket.close(CloseCode.badFrame);
        over(CloseCode.connectionLost, "the server sent what is no frame");
      }
    };
    // Node throws where nobody listens; `close` follows and says all that is known.
    socket.onerror = () => {};
    socket.onclose = ({ code, reason }) => over(code, reason);
    if (signal.aborted) giveUp();
  });
}

/**
 * @param {WebSocket} socket
 * @param {boolean} isText
 * @param {() => void} silence
 * @returns {Transport}
 */
function transport(socket, isText, silence) {
  /** @param {Frame[]} frames */
  const send = (frames) => {
    if (socket.readyState !== OPEN) return;
    for (const message of isText ? textMessages(frames) : frames.map((each) => encodeDelimited(ClientFrame, each))) {
      socket.send(/** @type {any} */ (message));
    }
  };
  return {
    heartbeat: true,
    send,
    sendEphemeral: (frame) => {
      if (socket.bufferedAmount < EPHEMERAL_BUFFER_BYTES) send([frame]);
    },
    close: (orderly) => {
      silence();
      // `ws` in Node can drop the connection without a farewell; browsers cannot.
      if (!orderly && "terminate" in socket && typeof socket.terminate === "function") socket.terminate();
      else socket.close();
    },
  };
}

/**
 * Packs frames in messages: one alone as an object, more as arrays, none of them near the server's limit.
 *
 * @param {Frame[]} frames
 * @returns {string[]}
 */
export function textMessages(frames) {
  const messages = [];
  /** @type {string[]} */
  let batch = [];
  let length = 0;
  for (const frame of frames) {
    const json = JSON.stringify(toJson(ClientFrame, frame));
    if (batch.length > 0 && (length + json.length > BATCH_LENGTH || batch.length === MAX_FRAMES_PER_MESSAGE)) {
      messages.push(join(batch));
      batch = [];
      length = 0;
    }
    batch.push(json);
    length += json.length;
  }
  if (batch.length > 0) messages.push(join(batch));
  return messages;
}

/** @param {string[]} batch */
const join = (batch) => (batch.length === 1 ? /** @type {string} */ (batch[0]) : `[${batch.join(",")}]`);

/** `new WebSocket` takes `http` URLs only in new browsers. @param {string} url */
const httpToWebSocket = (url) => url.replace(/^http/, "ws");

const OPEN = 1;
/** Characters; three bytes each at most, and the server takes 128 KiB. */
const BATCH_LENGTH = 16_384;
const EPHEMERAL_BUFFER_BYTES = 65_536;
