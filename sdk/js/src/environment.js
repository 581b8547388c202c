/**
 * What a browser tells of its network, where it tells anything.
 *
 * @import { Store } from './ladder/memory.js'
 */

/** Which network this is, as far as a page can know. @returns {string} */
export function networkKey() {
  const { connection } = /** @type {any} */ (globalThis.navigator ?? {});
  return typeof connection?.type === "string" ? connection.type : "unknown";
}

/** The page's own storage; null where there is none, or no leave to use it. @returns {Store | null} */
export function pageStore() {
  try {
    // Node has a `localStorage` that warns; what is kept there is no page's.
    return typeof window === "undefined" ? null : window.localStorage;
  } catch {
    return null;
  }
}

/**
 * Calls `changed` when the network does.
 *
 * @param {() => void} changed
 * @returns {() => void} stops it
 */
export function watchNetwork(changed) {
  const { connection } = /** @type {any} */ (globalThis.navigator ?? {});
  /** @type {[any, string][]} */
  const sources = [
    [globalThis, "online"],
    [globalThis, "offline"],
    [connection, "change"],
  ];
  const watched = sources.filter(([target]) => typeof target?.addEventListener === "function");
  for (const [target, name] of watched) target.addEventListener(name, changed);
  const unwatchPage = watchPage(changed);
  return () => {
    unwatchPage();
    for (const [target, name] of watched) target.removeEventListener(name, changed);
  };
}

/**
 * Calls `woken` when the page is looked at again after so long that the device may have slept, and come to another network.
 *
 * @param {() => void} woken
 * @returns {() => void} stops it
 */
function watchPage(woken) {
  const page = globalThis.document;
  if (typeof page?.addEventListener !== "function") return () => {};
  let hiddenAt = Infinity;
  const changed = () => {
    // The clock on the wall: others may stand still while the device sleeps.
    if (page.visibilityState === "hidden") hiddenAt = Date.now();
    else if (Date.now() - hiddenAt >= SLEPT_MS) woken();
  };
  page.addEventListener("visibilitychange", changed);
  return () => page.removeEventListener("visibilitychange", changed);
}

/** Shorter absences are a glance at another tab. */
const SLEPT_MS = 30_000;
