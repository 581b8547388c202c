/**
 * A WebSocket client that is not ours: npm `ws`. One line of JSON on stdin says what to do, `{url, ca, subscribe}`; what
 * comes is printed as events, one a line. It ends with its stdin.
 */

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import WebSocket from "ws";

const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);

const lines = createInterface({ input: process.stdin });
lines.on("close", () => process.exit(0));
lines.once("line", (line) => {
  const { url, ca, subscribe } = JSON.parse(line);
  const socket = new WebSocket(url, ["tidegate.v1.json"], { ca: readFileSync(ca) });
  const send = (frame) => socket.send(JSON.stringify(frame));

  socket.on("open", () => {
    send({ id: 1, connect: {} });
    subscribe.forEach(({ channel, position }, index) => {
      send({ id: index + 2, subscribe: { channel, ...(position && { position }) } });
    });
  });
  socket.on("message", (data) => {
    const frames = JSON.parse(data.toString());
    for (const frame of Array.isArray(frames) ? frames : [frames]) tell(frame, send);
  });
  socket.on("close", (code, reason) => say({ event: "closed", code, reason: reason.toString() }));
  socket.on("error", (error) => say({ event: "error", message: String(error) }));
});

function tell(frame, send) {
  const { subscribed, publication, ephemeral, error } = frame;
  if (frame.ping) send({ pong: {} });
  if (error) say({ event: "error", ...error });
  if (subscribed) {
    const { channel, position, recovered, publications } = subscribed;
    say({ event: "subscribed", channel, ...position, recovered });
    for (const each of publications) say({ event: "publication", ...each });
  }
  if (publication) say({ event: "publication", ...publication });
  if (ephemeral) say({ event: "ephemeral", ...ephemeral });
}
