/**
 * A client of a crowd in a page: says what happens to it, in the lines of `src/bench/crowd/line.rs`. The body of an async
 * function; `order` stands before it: `{url, transport, hash, token, client, channels}`.
 */

const { Client } = await import("/sdk/index.js");

const said = [];
const say = (kind, ...fields) => {
  const now = Math.round((performance.timeOrigin + performance.now()) * 1000);
  said.push([kind, order.client, now, ...fields].join("\t"));
};
/** @param {unknown} text */
const line = (text) => String(text).replaceAll(/[\t\r\n]/g, " ");

const client = new Client(order.url, {
  transports: [order.transport],
  certificateHashes: [order.hash],
  token: order.token,
  storage: null,
});
client.on("connected", () => say("C"));
client.on("moved", () => say("M"));
client.on("disconnected", ({ code, reason }) => say("D", code, line(reason)));
client.on("error", ({ message }) => say("F", line(message)));
client.on("state", (state) => {
  if (state === "closed") say("F", "its session ended");
});
for (const [place, channel] of order.channels.entries()) {
  const subscription = client.subscribe(channel, {
    onSubscribed: ({ how, position: { epoch, offset } }) => {
      if (how === "rebased") say("R", place, epoch, offset);
      else say("S", place, epoch, offset, how === "recovered" ? 1 : 0);
    },
    onPublication: ({ epoch, offset, data }) => say("P", place, epoch, offset, data?.id ?? ""),
  });
  subscription.on("unsubscribed", ({ error }) => say("F", line(`a subscription ended: ${error}`)));
}
globalThis.crowd = { take: () => said.splice(0).join("\n") };
await client.connect();
return client.transport;
