/** All adapters, and the place to bring another. */

import { get } from "../api.js";
import { fill, h, keyed, say } from "../dom.js";
import * as format from "../format.js";
import { few } from "../parts/few.js";
import { badge, emptyState, skeleton, trouble } from "../parts/notices.js";
import { poll } from "../parts/polling.js";
import { uploadPlace } from "./upload.js";

const FEW = 50; // names that are shown at first
const TIERS = /** @type {Record<string, string>} */ ({ device: "in memory", loading: "loading", store: "on disk" });

/** How names may be ordered: the largest first, and by name where they are equal. */
const ORDERS = /** @type {Record<string, (one: any) => number>} */ ({
  "by name": () => 0,
  "newest first": (one) => one.created ?? 0,
  "most running first": (one) => one.running,
  "heaviest first": (one) => one.bytes ?? 0,
  "most versions first": (one) => one.versions.length,
});

/** Where a version is, in words. @param {string | null} tier */
export const place = (tier) => (tier ? (TIERS[tier] ?? tier) : "–");

/** What is particular about a name. @param {any} adapter */
export function marks(adapter) {
  const canaries = adapter.traffic?.canaries ?? [];
  return [
    adapter.version === null && badge("no live version", "warn"),
    adapter.state === "failed" && badge("failed", "bad"),
    canaries.map((/** @type {any} */ one) => badge(`canary ${one.version} at ${format.percent(one.weight)}`, "warn")),
    adapter.traffic?.shadow && badge(`shadow ${adapter.traffic.shadow.version}`, "info"),
    adapter.versions.some((/** @type {any} */ one) => one.state === "candidate") && badge("candidate", "info"),
    adapter.pinned && badge("pinned"),
    adapter.versions.some((/** @type {any} */ one) => one.state === "failed") &&
      adapter.state !== "failed" &&
      badge("a version failed", "bad"),
  ];
}

/** @returns {import("../app.js").View} */
export function adaptersView() {
  const problem = trouble("The adapters cannot be read");
  const list = h("div", {}, skeleton(5));
  const count = h("span", { class: "muted" });
  const search = h("input", {
    type: "search",
    class: "search",
    placeholder: "Find a name",
    "aria-label": "Find a name",
    oninput: () => show(),
  });
  const order = h(
    "select",
    { "aria-label": "Order", class: "order", onchange: () => show() },
    Object.keys(ORDERS).map((name) => h("option", { value: name }, name)),
  );
  const body = h("tbody", {});
  const table = h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "stacks brief" },
      h("caption", { class: "visually-hidden" }, "Adapters"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Name", "Live", "Kind"].map((name) => h("th", { scope: "col" }, name)),
          ["Weight", "Versions", "Running"].map((name) => h("th", { scope: "col", class: "num" }, name)),
          h("th", { scope: "col" }, "Where"),
          h("th", { scope: "col" }, "Since"),
        ),
      ),
      body,
    ),
  );
  const more = few(FEW, show);
  /** @type {any[] | null} */
  let adapters = null;
  let drawn = "";

  function show() {
    if (!adapters) return;
    const words = search.value.trim().toLowerCase();
    const found = adapters.filter((one) => one.name.toLowerCase().includes(words));
    const rank = ORDERS[order.value];
    found.sort((a, b) => rank(b) - rank(a) || a.name.localeCompare(b.name));
    const all = `${adapters.length} ${adapters.length === 1 ? "name" : "names"}`;
    say(count, found.length < adapters.length ? `${found.length} of ${all}` : all);
    const state = !adapters.length ? "none" : !found.length ? "unfound" : "some";
    if (state !== drawn || state === "unfound") {
      fill(
        list,
        state === "some"
          ? table
          : state === "none"
            ? emptyState(
                "No adapters yet",
                "Drop a package above, or run ",
                h("code", {}, "hotswap publish RUN --as NAME"),
                ".",
              )
            : emptyState(`No name has “${search.value.trim()}”`),
      );
    }
    drawn = state;
    keyed(body, more.of(found), (one) => one.name, row);
  }
  const polling = poll(async () => {
    try {
      adapters = (await get("v1/adapters")).data;
      problem.clear();
      show();
    } catch (error) {
      if (!adapters) fill(list);
      return problem.tell(error);
    }
    return true;
  }, 4);
  const node = h(
    "div",
    { class: "view" },
    h("div", { class: "head" }, h("h1", {}, "Adapters"), count, h("div", { class: "spring" }), order, search),
    problem,
    uploadPlace({ onDone: polling.now }),
    h("section", { class: "card flush", "aria-label": "Adapters" }, list, more),
  );
  return { title: "Adapters", node, stop: polling.stop };
}

/** @param {any} first */
function row(first) {
  const cells = ["Live", "Kind", "Weight", "Versions", "Running", "Where", "Since"].map((label, i) =>
    h("td", { data: { label }, class: i >= 2 && i <= 4 ? "num" : "" }),
  );
  const extra = h("span", { class: "badges" });
  let drawn = "";
  const node = h(
    "tr",
    {},
    h(
      "th",
      { scope: "row", class: "name-cell" },
      h("a", { href: `#/adapters/${encodeURIComponent(first.name)}` }, first.name),
      " ",
      extra,
    ),
    cells,
  );
  return Object.assign(node, {
    /** @param {any} one */
    update(one) {
      const states = one.versions.map((/** @type {any} */ version) => version.state);
      const next = JSON.stringify([one.pinned, one.state, one.traffic, states]);
      if (next !== drawn) fill(extra, marks(one));
      drawn = next;
      const values = [
        one.version === null ? "–" : `version ${one.version}`,
        one.kind ?? "–",
        format.bytes(one.bytes),
        one.versions.length,
        format.count(one.running),
        place(one.residency),
        format.ago(one.created),
      ];
      cells.forEach((cell, i) => say(cell, String(values[i]))); // what is selected to be copied stays so
    },
  });
}
