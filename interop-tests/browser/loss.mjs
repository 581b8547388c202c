/**
 * A subscriber in real Chromium for `bench loss`: `node loss.mjs '{webtransport, certificateHash, channels, silent, sdk}'`.
 * Serves a page on loopback (browsers grant WebTransport to secure contexts, and `localhost` is one), subscribes to every
 * channel over WebTransport, and writes a JSON line per event to stdout. Ends with its stdin.
 */

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join, normalize } from "node:path";

import { chromium } from "playwright-core";

const settings = JSON.parse(process.argv[2]);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

const server = createServer(async (request, response) => {
  const path = new URL(request.url, "http://localhost").pathname;
  if (!path.startsWith("/sdk/")) {
    response.setHeader("content-type", "text/html");
    response.end("<!doctype html><title>loss</title>");
    return;
  }
  try {
    const file = await readFile(join(settings.sdk, normalize(path.slice("/sdk".length))));
    response.setHeader("content-type", "text/javascript");
    response.end(file);
  } catch {
    response.statusCode = 404;
    response.end();
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

const browser = await chromium.launch({
  executablePath: process.env.TIDEGATE_CHROMIUM,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    // Requests of the browser's own would travel over the link.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
  ],
});
process.stdin.resume();
process.stdin.on("end", () => browser.close().then(() => process.exit(0)));

try {
  const page = await browser.newPage();
  await page.exposeFunction("tell", say);
  page.on("pageerror", (error) => say({ event: "error", message: String(error) }));
  await page.goto(`http://localhost:${server.address().port}/`);
  await page.evaluate(subscribe, settings);
  say({ event: "ready" });
} catch (error) {
  say({ event: "error", message: String(error?.stack ?? error) });
}

/** Runs in the page. */
async function subscribe({ webtransport, certificateHash, channels, silent }) {
  const { Client } = await import("/sdk/index.js");
  const client = new Client(
    { webtransport },
    { transports: ["webtransport"], certificateHashes: [certificateHash] },
  );
  client.on("disconnected", ({ code, reason }) => tell({ event: "disconnected", code, reason }));
  const begun = channels.map(
    (channel) =>
      new Promise((resolve) => {
        client.subscribe(channel, {
          onSubscribed: ({ how }) => {
            resolve();
            if (how === "rebased" && channel !== silent) tell({ event: "rebased", channel });
          },
          onPublication: ({ offset, data }) => {
            if (channel === silent) return;
            const arrived_us = Math.round((performance.timeOrigin + performance.now()) * 1000);
            tell({ event: "publication", channel, offset, data: { n: data.n, sent_us: data.sent_us }, arrived_us });
          },
        });
      }),
  );
  await client.connect();
  await Promise.all(begun);
}
