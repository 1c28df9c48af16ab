/** What happened to a name, newest first: where each version came from, and what made it live. */

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import * as format from "../format.js";
import { emptyState, errorBox, since, skeleton } from "../parts/notices.js";

const WORDS = /** @type {Record<string, string>} */ ({
  upload: "uploaded",
  restore: "restored",
  activate: "made live",
  rollback: "rolled back to",
  promote: "promoted",
  canary: "shares changed",
  abort: "canary ended",
  set: "settings changed",
  remove: "deleted",
  remove_version: "deleted",
  score: "scored",
});

/** @param {any} event */
export function eventLine(event) {
  const { replaced, digest, source, reason, code, candidate, automatic, label, ...more } = event.detail;
  const rest = Object.entries(more)
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  const said = [
    label,
    candidate === true && "as a candidate",
    source && `from ${source}`,
    replaced && `in the place of version ${replaced}`,
    automatic && "by its rules",
    reason ?? code,
    ...rest,
  ].filter(Boolean);
  return h(
    "li",
    { class: event.outcome },
    h(
      "div",
      {},
      h("b", {}, event.outcome === "refused" ? `refused: ${event.action}` : (WORDS[event.action] ?? event.action)),
      event.version ? ` version ${event.version}` : "",
      digest ? h("span", { class: "mono muted" }, ` ${format.short(digest)}`) : null,
    ),
    said.length ? h("div", { class: "hint" }, said.join(" · ")) : null,
    h("div", { class: "muted" }, since(event.time), ` by ${event.actor}`),
  );
}

/** @param {string} name */
export function lineage(name) {
  const body = h("div", {}, skeleton(4));
  const node = h(
    "section",
    { class: "card" },
    h(
      "div",
      { class: "card-head" },
      h("h2", {}, "Lineage"),
      h("div", { class: "spring" }),
      h("a", { href: `#/audit/${encodeURIComponent(name)}` }, "All events"),
    ),
    body,
  );
  return Object.assign(node, {
    async update() {
      try {
        const events = (await get("v1/events", { name, limit: 12 })).data;
        fill(
          body,
          events.length
            ? h("ol", { class: "timeline" }, events.map(eventLine))
            : emptyState("Nothing is written down of it"),
        );
      } catch (error) {
        fill(body, errorBox(error));
      }
    },
  });
}
