/** The demo page: a chat over Tidegate's own client, and what is under it. */

import { Client } from "/sdk/index.js";

const NAMES = { webtransport: "WebTransport", websocket: "WebSocket", longpoll: "Long poll" };
const PEOPLE = ["Ada", "Grace", "Edsger", "Barbara", "Alan", "Radia", "Donald", "Lynn", "Leslie", "Frances"];
/** What the two others say while this page is cut off. */
const MEANWHILE = [
  ["Radia", "Did the page over there just lose its network?"],
  ["Leslie", "It did. We go on; the channel keeps numbering."],
  ["Radia", "So this line has an offset that it has never seen."],
  ["Leslie", "It will ask for everything after its last position."],
  ["Radia", "And it gets this once, in order. Welcome back!"],
];
const PATIENT = { joinMinMs: 4_000, joinMaxMs: 4_000 };
const HOLD_MS = 4_000;
const RTT_EVERY_MS = 2_000;
const TYPING_EVERY_MS = 1_500;
const TYPING_FOR_MS = 3_500;
const SAME_BREATH_MS = 120_000;
const MAX_MESSAGES = 300;
const MAX_LOG = 100;
const MAX_SAMPLES = 40;

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
/** Tells this page's own typing from others'. */
const self = crypto.randomUUID();
const tally = { missed: 0, recovered: 0, lost: 0, twice: 0 };
const samples = [];
/** @type {Map<string, ReturnType<typeof makeChannel>>} */
const channels = new Map();
let current = query.get("channel") ?? "room:lobby";
let typedAt = 0;
/** What the round trips that are shown went over. */
let measured = "";
let facts;
let client;
let others;

await start();

async function start() {
  $("name").value = readName();
  for (const name of new Set([current, "room:lobby", "room:engine", "room:harbour", "ticker:demo"])) makeChannel(name);
  listen();
  show(current);
  try {
    const response = await fetch("/dev.json");
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    facts = await response.json();
  } catch (error) {
    setState("closed", "this server gives no /dev.json");
    note(`The page cannot find its server: ${error.message}`, "bad");
    return;
  }
  client = makeClient(order(query.get("transport")));
  globalThis.tidegate = { client, facts, tally };
  for (const input of document.querySelectorAll("[name=transport]")) {
    input.disabled = input.value === "webtransport" && !("WebTransport" in globalThis);
  }
  follow(client);
  for (const channel of channels.values()) join(channel);
  showCurl();
  setInterval(measure, RTT_EVERY_MS);
  await client.connect().catch(() => {});
}

function makeClient(transports) {
  const { webtransport, websocket, longpoll, certificate_hash: hash } = facts;
  const options = { transports, certificateHashes: hash ? [hash] : [] };
  // Who asks for a transport by name waits for it: the others join late.
  if (query.has("transport")) Object.assign(options, { ladder: PATIENT, storage: null });
  return new Client({ webtransport, websocket, longpoll }, options);
}

/** The transport that was asked for first, the others behind it. */
function order(first) {
  const all = Object.keys(NAMES);
  return all.includes(first) ? [first, ...all.filter((name) => name !== first)] : all;
}

// --- the session ------------------------------------------------------------------------------------------------------

function follow(session) {
  session.on("state", (state) => {
    if (state !== "connected") setState(state, { connecting: "connecting", closed: "closed" }[state] ?? "cut off");
    if (state === "connected") return;
    $("rtt").textContent = "–";
    $("transport").textContent = "nothing now";
    delete $("transport").dataset.transport;
  });
  session.on("connected", ({ transport, node, region, resumed }) => {
    showConnection(transport, node, region);
    count("resumed", resumed);
    note(`Connected over ${NAMES[transport]}${resumed ? ", session resumed" : ""}`, "good");
    measure();
  });
  session.on("moved", ({ from, to, node, region, resumed }) => {
    showConnection(to, node, region);
    count("moved", true);
    count("resumed", resumed);
    const way = from === to ? `to another connection over ${NAMES[to]}` : `from ${NAMES[from]} to ${NAMES[to]}`;
    note(`Moved ${way}, no gap${resumed ? ", session resumed" : ""}`, "good");
    measure();
  });
  session.on("suspect", (isSuspect) => {
    if (isSuspect) note(`${NAMES[session.transport]} carries nothing: looking for another way`, "warn");
  });
  session.on("disconnected", ({ code, reason, retryInMs }) => {
    const next = retryInMs === null ? " for good" : retryInMs > 0 ? ` for ${(retryInMs / 1_000).toFixed(1)} s` : "";
    note(`Disconnected${next}: ${reason || "the connection broke"} (${code})`, retryInMs === null ? "bad" : "warn");
    for (const channel of channels.values()) {
      if (channel.position) addLine(channel, "cut", `cut off after offset ${channel.position.offset}`);
    }
  });
  session.on("rtt", showRtt);
  session.on("error", ({ message }) => note(message, "warn"));
}

function showConnection(transport, node, region) {
  setState("connected", `connected to ${node}${region ? `, ${region}` : ""}`);
  document.querySelector(`[name=transport][value=${transport}]`).checked = true;
  if (measured !== transport) samples.length = 0;
  measured = transport;
  $("transport").textContent = NAMES[transport];
  $("transport").dataset.transport = transport;
}

/** One more, where it was one. */
function count(id, isOne) {
  if (isOne) $(id).textContent = String(Number($(id).textContent) + 1);
}

function join(channel) {
  const subscription = client.subscribe(channel.name);
  subscription.on("subscribed", (event) => subscribed(channel, event));
  subscription.on("publication", (publication) => received(channel, publication));
  subscription.on("ephemeral", (item) => typing(channel, item));
  subscription.on("unsubscribed", ({ error }) => {
    if (error) note(`${channel.name}: ${error.message}`, "bad");
  });
}

function subscribed(channel, { how, position, missed, conflated }) {
  const before = channel.position;
  channel.conflated = conflated;
  if (how === "recovered") {
    tally.missed += missed;
    if (missed > 0) {
      addLine(channel, "filled", `${missed} missed, filled in order`);
      note(`${channel.name}: recovered from offset ${before.offset}, ${missed} missed`, "good");
    } else {
      dropLine(channel, "cut");
    }
    channel.position = { epoch: position.epoch, offset: before.offset };
  } else {
    if (how === "rebased") {
      const isSame = before?.epoch === position.epoch;
      const gone = isSame ? position.offset - before.offset : 0;
      tally.lost += gone;
      addLine(channel, "gone", isSame ? `${gone} are no longer in history` : "numbering began anew: a new epoch");
      note(`${channel.name}: rebased to ${position.epoch.slice(0, 8)} at ${position.offset}`, "bad");
    }
    channel.position = position;
    if (how === "begun") void loadHistory(channel, position);
  }
  showPosition(channel);
  showTally();
}

/** What was said before this page came. */
async function loadHistory(channel, { offset }) {
  const { publications } = await client.history(channel.name, { limit: 30 }).catch(() => ({ publications: [] }));
  const older = publications.filter((each) => each.offset <= offset);
  channel.items.unshift(...older.map((publication) => messageOf({ ...publication, recovered: false })));
  if (channel.name === current) showMessages();
}

function received(channel, publication) {
  const { epoch, offset, recovered } = publication;
  const before = channel.position;
  if (before?.epoch === epoch) {
    if (offset <= before.offset) tally.twice += 1;
    else if (!channel.conflated) tally.lost += offset - before.offset - 1;
  }
  if (recovered) tally.recovered += 1;
  channel.position = { epoch, offset };
  const own = publication.data?.id;
  const sending = own && channel.items.find((item) => item.id === own && item.status === "sending");
  if (sending) channel.items.splice(channel.items.indexOf(sending), 1);
  if (sending?.node) sending.node.remove();
  channel.typing.delete(publication.data?.by);
  add(channel, messageOf(publication));
  if (channel.name === current) showTyping();
  showPosition(channel);
  showTally();
}

function messageOf({ data, offset, timeMs, user, recovered }) {
  const isChat = typeof data?.text === "string";
  const who = isChat && typeof data.name === "string" ? data.name : (user ?? "backend");
  const raw = data instanceof Uint8Array ? `${data.length} bytes: ${hex(data)}` : JSON.stringify(data);
  return { kind: "message", who, text: isChat ? data.text : raw, isRaw: !isChat, offset, timeMs, recovered };
}

async function send(event) {
  event.preventDefault();
  const text = $("text").value.trim();
  const name = $("name").value.trim();
  if (!text || !name || !client) return;
  const channel = channels.get(current);
  const id = crypto.randomUUID();
  const item = { kind: "message", who: name, text, id, status: "sending", timeMs: Date.now() };
  add(channel, item);
  $("text").value = "";
  typedAt = 0;
  try {
    await client.publish(channel.name, { text, name, id, by: self });
  } catch (error) {
    item.status = "failed";
    item.node?.classList.replace("sending", "failed");
    note(`${channel.name}: not published: ${error.message}`, "bad");
  }
}

/** Cuts this page off, while two others, on a connection of their own, go on in the same channel. */
async function drop() {
  const channel = current;
  const button = $("drop");
  button.disabled = true;
  button.classList.add("counting");
  others ??= makeClient(["websocket", "longpoll"]);
  try {
    // They must be there before this page is gone.
    await others.connect();
    client.disconnect({ holdMs: HOLD_MS });
    const until = Date.now() + HOLD_MS;
    for (const [index, [name, text]] of MEANWHILE.entries()) {
      await sleep((HOLD_MS * 0.86) / MEANWHILE.length);
      $("drop-text").textContent = `Cut off for ${Math.max(1, Math.ceil((until - Date.now()) / 1_000))} s, ${index + 1} said`;
      await others.publish(channel, { name, text });
    }
    await sleep(until - Date.now());
  } catch (error) {
    note(`The two others cannot talk here: ${error.message}`, "warn");
  }
  button.disabled = false;
  button.classList.remove("counting");
  $("drop-text").textContent = "Drop it again";
}

async function measure() {
  if (client?.state !== "connected" || document.visibilityState !== "visible") return;
  await Promise.all([client.measureRtt(), countHere()]);
}

/** How many are on the channel that is shown. Nobody on this page has a name, so that nobody is told of: it is asked. */
async function countHere() {
  const channel = current;
  const { sessions } = await client.presence(channel).catch(() => ({ sessions: null }));
  if (channel === current) $("here").textContent = sessions === null ? "–" : String(sessions);
}

// --- typing -----------------------------------------------------------------------------------------------------------

function sayTyping() {
  const now = Date.now();
  if (!client || !$("text").value || now - typedAt < TYPING_EVERY_MS) return;
  typedAt = now;
  client.publishEphemeral(current, { typing: $("name").value.trim(), by: self });
}

function typing(channel, { data }) {
  if (typeof data?.typing !== "string" || data.by === self) return;
  channel.typing.set(data.by, { name: data.typing.slice(0, 24), until: Date.now() + TYPING_FOR_MS });
  setTimeout(showTyping, TYPING_FOR_MS + 20);
  showTyping();
}

function showTyping() {
  const { typing: writers } = channels.get(current);
  for (const [by, { until }] of writers) if (until <= Date.now()) writers.delete(by);
  const names = [...writers.values()].map(({ name }) => name);
  const text = names.length === 0 ? "" : `${list(names)} ${names.length === 1 ? "is" : "are"} typing `;
  if ($("typing").dataset.text === text) return;
  $("typing").dataset.text = text;
  const dots = names.length > 0 ? [make("i"), make("i"), make("i")] : [];
  const carrier = client?.transport === "webtransport" ? "by datagram" : "ephemeral";
  $("typing").replaceChildren(...dots, text, ...(text ? [make("small", "", carrier)] : []));
}

// --- what is shown ----------------------------------------------------------------------------------------------------

function makeChannel(name) {
  const button = make("button", "channel");
  const title = make("span", "title", name);
  const unread = make("span", "unread");
  const at = make("span", "at", "–");
  button.type = "button";
  button.dataset.testid = `channel-${name}`;
  at.dataset.testid = `at-${name}`;
  button.append(title, unread, at);
  button.addEventListener("click", () => show(name));
  const item = make("li");
  item.append(button);
  $("channels").append(item);
  /** @type {any[]} */
  const items = [];
  const channel = { name, button, unread, at, items, position: null, conflated: false, unseen: 0, typing: new Map() };
  channels.set(name, channel);
  return channel;
}

function show(name) {
  current = name;
  for (const { name: each, button } of channels.values()) button.setAttribute("aria-current", String(each === name));
  const channel = channels.get(name);
  channel.unseen = 0;
  $("channel-name").textContent = name;
  showPosition(channel);
  showMessages();
  showTyping();
  showCurl();
  $("here").textContent = "–";
  if (client?.state === "connected") void countHere();
}

function showMessages() {
  const { items } = channels.get(current);
  $("messages").replaceChildren();
  for (const [index, item] of items.entries()) {
    item.node = draw(item, items[index - 1]);
    $("messages").append(item.node);
  }
  $("empty").hidden = items.length > 0;
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function add(channel, item) {
  const { items } = channel;
  const before = items.at(-1);
  items.push(item);
  if (items.length > MAX_MESSAGES) items.shift().node?.remove();
  if (channel.name !== current) {
    if (item.kind === "message") channel.unseen += 1;
    return;
  }
  const scroll = $("scroll");
  const isAtEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80 || item.status === "sending";
  item.node = draw(item, before);
  item.node.classList.add("new");
  // Those that come at once slide in one after the other.
  if (item.recovered) item.node.style.animationDelay = `${Math.min(countRecovered(items), 12) * 70}ms`;
  $("messages").append(item.node);
  $("empty").hidden = true;
  if (isAtEnd) scroll.scrollTop = scroll.scrollHeight;
}

function draw(item, before) {
  if (item.kind === "line") return make("li", `mark-line ${item.look}`, item.text);
  const node = make("li", "message");
  node.dataset.testid = "message";
  if (item.offset !== undefined) node.dataset.offset = String(item.offset);
  node.classList.toggle("recovered", item.recovered === true);
  node.classList.toggle("same", follows(item, before));
  if (item.status) node.classList.add(item.status);
  const face = make("span", `face hue-${hue(item.who)}`, [...item.who][0]?.toUpperCase() ?? "?");
  face.setAttribute("aria-hidden", "true");
  const who = make("span", "who", item.who);
  const time = make("time", "", clock(item.timeMs));
  time.dateTime = new Date(item.timeMs).toISOString();
  who.append(time);
  const tag = item.offset === undefined ? "…" : item.recovered ? `recovered  #${item.offset}` : `#${item.offset}`;
  node.append(face, who, make("span", "number", tag), make("span", item.isRaw ? "said raw" : "said", item.text));
  return node;
}

/** The same person goes on talking: the name need not stand there again. */
function follows(item, before) {
  if (before?.kind !== "message" || before.who !== item.who) return false;
  return item.timeMs - before.timeMs < SAME_BREATH_MS && before.recovered === item.recovered;
}

/** How many at the end of the list were caught up with. */
function countRecovered(items) {
  const index = items.findLastIndex((item) => !item.recovered);
  return items.length - 2 - index;
}

function addLine(channel, look, text) {
  if (channel.items.at(-1)?.look === "cut" && look === "cut") return;
  add(channel, { kind: "line", look, text });
}

/** A cut that nothing was missed in is not worth a line. */
function dropLine(channel, look) {
  if (channel.items.at(-1)?.look === look) channel.items.pop().node?.remove();
}

function showPosition(channel) {
  const { epoch, offset } = channel.position ?? { epoch: "–", offset: "–" };
  channel.at.textContent = channel.position ? `${epoch.slice(0, 8)} · ${offset}` : "–";
  channel.unread.textContent = channel.unseen > 0 ? String(Math.min(channel.unseen, 99)) : "";
  if (channel.name !== current) return;
  $("epoch").textContent = epoch.slice(0, 12) || "–";
  $("offset").textContent = String(offset);
}

function showTally() {
  for (const [name, count] of Object.entries(tally)) {
    $(name).textContent = String(count);
    $(name).classList.toggle("bad", count > 0 && (name === "lost" || name === "twice"));
    $(name).classList.toggle("good", count > 0 && name === "recovered");
  }
}

function showRtt(ms) {
  samples.push(ms);
  if (samples.length > MAX_SAMPLES) samples.shift();
  $("rtt").textContent = millis(ms);
  const low = Math.min(...samples);
  const high = Math.max(...samples);
  const x = (index) => 240 - ((samples.length - 1 - index) * 240) / (MAX_SAMPLES - 1);
  const y = (sample) => 44 - (sample / Math.max(high, 1)) * 38;
  const points = samples.map((sample, index) => `${x(index).toFixed(1)} ${y(sample).toFixed(1)}`);
  $("spark-trace").setAttribute("d", `M${points.join("L")}`);
  $("spark-area").setAttribute("d", `M${x(0).toFixed(1)} 48L${points.join("L")}L240 48Z`);
  $("spark").setAttribute("aria-label", `The last ${samples.length} round trips, ${millis(low)} to ${millis(high)} ms`);
  $("spark-low").textContent = `min ${millis(low)}`;
  $("spark-high").textContent = `max ${millis(high)}`;
}

function setState(state, text) {
  $("state").dataset.state = state;
  $("state-text").textContent = text;
}

function note(text, look = "") {
  const item = make("li");
  item.append(make("time", "", clock(Date.now(), true)), make("span", look, text));
  $("log").prepend(item);
  while ($("log").children.length > MAX_LOG) $("log").lastChild.remove();
}

function showCurl() {
  if (!facts) return;
  const isTicker = current.startsWith("ticker:");
  const data = isTicker ? { symbol: "TIDE", price: 142.5 } : { name: "curl", text: "Hello from a terminal" };
  const body = JSON.stringify({ channel: current, data });
  $("curl").textContent = `curl ${facts.publish} \\\n  -d '${body}'`;
}

async function copyCurl() {
  await navigator.clipboard.writeText($("curl").textContent);
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 1_500);
}

// --- hands ------------------------------------------------------------------------------------------------------------

function listen() {
  $("composer").addEventListener("submit", send);
  $("text").addEventListener("input", sayTyping);
  $("name").addEventListener("change", () => localStorage.setItem("tidegate-name", $("name").value.trim()));
  $("drop").addEventListener("click", drop);
  $("copy").addEventListener("click", () => copyCurl().catch((error) => note(error.message, "warn")));
  $("transports").addEventListener("change", async ({ target }) => {
    const wanted = target.value;
    const used = await client.useTransport(wanted).catch(() => null);
    if (used === wanted || used === null) return;
    note(`${NAMES[wanted]} does not get through here`, "warn");
    document.querySelector(`[name=transport][value=${used}]`).checked = true;
  });
}

function readName() {
  const kept = localStorage.getItem("tidegate-name");
  if (kept) return kept;
  return PEOPLE[Math.floor(Math.random() * PEOPLE.length)];
}

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

function hue(name) {
  let sum = 5;
  for (const character of name) sum = (sum * 33 + character.codePointAt(0)) % 10_007;
  return sum % 7;
}

function clock(ms, seconds = false) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false, ...(seconds && { second: "2-digit" }) };
  return new Date(ms).toLocaleTimeString("en-GB", options);
}

function millis(ms) {
  return ms < 10 ? ms.toFixed(1) : String(Math.round(ms));
}

function list(names) {
  if (names.length > 3) return "Several people";
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

function hex(bytes) {
  const text = Array.from(bytes.subarray(0, 24), (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return bytes.length > 24 ? `${text} …` : text;
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));
}
