/** All adapters, and the place to bring another. */

import { get } from "../api.js";
import { fill, h, keyed } from "../dom.js";
import * as format from "../format.js";
import { badge, emptyState, errorBox, skeleton } from "../parts/notices.js";
import { poll } from "../parts/polling.js";
import { uploadPlace } from "./upload.js";

const TIERS = /** @type {Record<string, string>} */ ({ device: "in memory", loading: "loading", store: "on disk" });

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
  const problem = h("div", {});
  const list = h("div", {}, skeleton(5));
  const count = h("span", { class: "muted" });
  const search = h("input", {
    type: "search",
    class: "search",
    placeholder: "Find a name",
    "aria-label": "Find a name",
    oninput: () => show(),
  });
  const body = h("tbody", {});
  const table = h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "stacks" },
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
  /** @type {any[] | null} */
  let adapters = null;
  let drawn = "";

  function show() {
    if (!adapters) return;
    const words = search.value.trim().toLowerCase();
    const found = adapters.filter((one) => one.name.toLowerCase().includes(words));
    fill(count, `${adapters.length} ${adapters.length === 1 ? "name" : "names"}`);
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
    keyed(body, found, (one) => one.name, row);
  }
  const polling = poll(async () => {
    try {
      adapters = (await get("v1/adapters")).data;
      fill(problem);
      show();
    } catch (error) {
      fill(problem, errorBox(error, { title: "The adapters cannot be read" }));
      if (!adapters) fill(list);
    }
  }, 4);
  const node = h(
    "div",
    { class: "view" },
    h("div", { class: "head" }, h("h1", {}, "Adapters"), count, h("div", { class: "spring" }), search),
    problem,
    uploadPlace({ onDone: polling.now }),
    h("section", { class: "card flush", "aria-label": "Adapters" }, list),
  );
  return { title: "Adapters", node, stop: polling.stop };
}

/** @param {any} first */
function row(first) {
  const cells = ["Live", "Kind", "Weight", "Versions", "Running", "Where", "Since"].map((label, i) =>
    h("td", { data: { label }, class: i >= 2 && i <= 4 ? "num" : "" }),
  );
  const extra = h("span", { class: "badges" });
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
      fill(extra, marks(one));
      const values = [
        one.version === null ? "–" : `version ${one.version}`,
        one.kind ?? "–",
        format.bytes(one.bytes),
        one.versions.length,
        format.count(one.running),
        place(one.residency),
        format.ago(one.created),
      ];
      cells.forEach((cell, i) => fill(cell, values[i]));
    },
  });
}
