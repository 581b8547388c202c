/**
 * The client of `tests/real/kills`, in a page or in Node: joins channels, publishes on them, and keeps account of all that
 * comes. The body of an async function; `settings` stands before it: `{urls, transports, hashes, channels, publishers}`.
 */

const { Client } = globalThis.sdk ?? (await import("/sdk/index.js"));

const client = new Client(settings.urls, {
  transports: settings.transports,
  certificateHashes: settings.hashes,
  storage: null,
  networkKey: () => "here",
  // Connections that never live for long are what this is about: nobody is to be blamed, and nobody to be spared.
  backoff: { baseMs: 20, capMs: 60 },
  ladder: { brokenMs: 20, brokenCapMs: 50, climbMs: 2_000, climbCapMs: 4_000, escapeMs: 300, longPollJoinMs: 1_000 },
});
const counts = { delivered: 0, connected: 0, resumed: 0, disconnected: 0, moved: 0 };
const problems = [];
const errors = [];
const received = {};
const acknowledged = [];
const waiting = new Set();
let isPublishing = true;
let isClosing = false;

client.on("connected", ({ resumed }) => {
  counts.connected += 1;
  counts.resumed += Number(resumed);
});
client.on("disconnected", ({ code, reason }) => {
  counts.disconnected += 1;
  if (code < 4100 || code > 4199) problems.push(`disconnected: ${code} ${reason}`);
});
client.on("moved", () => (counts.moved += 1));
// Not each is a problem: that a dial fails is what this is for. The last few explain most of what is.
client.on("error", ({ message }) => errors.push(message) > 8 && errors.shift());

/** Until `isThere`, or half a minute; whoever asks looks again. */
function until(isThere) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      waiting.delete(wait);
      resolve();
    };
    const wait = { look: () => isThere() && done() };
    const timer = setTimeout(done, 30_000);
    waiting.add(wait);
    wait.look();
  });
}

function look() {
  for (const wait of [...waiting]) wait.look();
}

for (const channel of settings.channels) {
  received[channel] = [];
  const subscription = client.subscribe(channel, {
    position: { epoch: "", offset: 0 },
    onSubscribed: ({ how }) => {
      if (how === "rebased") problems.push(`${channel}: rebased at ${received[channel].length}`);
    },
    onPublication: ({ offset, data }) => {
      received[channel].push([offset, data.n]);
      counts.delivered += 1;
      if (waiting.size > 0) look();
    },
  });
  subscription.on("unsubscribed", ({ error }) => {
    if (!isClosing) problems.push(`${channel}: unsubscribed: ${error}`);
  });
}
client.connect().catch((error) => problems.push(`connecting: ${error}`));

async function publish(publisher) {
  for (let count = 0; isPublishing; count += 1) {
    const n = settings.first + count * settings.publishers + publisher;
    const channel = settings.channels[n % settings.channels.length];
    try {
      const { offset } = await client.publish(channel, { n, filling: "x".repeat((n * 7) % 400) });
      acknowledged.push([channel, n, offset]);
    } catch (error) {
      problems.push(`publish ${n} on ${channel}: ${error}`);
    }
    // So much load, and no more.
    await new Promise((resolve) => setTimeout(resolve, settings.pauseMs));
  }
}
const publishing = Array.from({ length: settings.publishers }, (_, publisher) => publish(publisher));

const state = () => ({ ...counts, transport: client.transport, state: client.state, problems, errors });
globalThis.kills = {
  state,
  async more(count) {
    const wanted = counts.delivered + count;
    await until(() => counts.delivered >= wanted);
    return { ...state(), isThere: counts.delivered >= wanted };
  },
  move(name) {
    client.useTransport(name).catch((error) => problems.push(`moving: ${error}`));
  },
  async stop() {
    isPublishing = false;
    await Promise.all(publishing);
  },
  async finish(heads) {
    const isComplete = () => Object.entries(heads).every(([channel, head]) => received[channel].length >= head);
    await until(isComplete);
    const seen = { ...state(), received, acknowledged };
    // What comes of the end is not looked at any more.
    isClosing = true;
    await client.close();
    return seen;
  },
};
