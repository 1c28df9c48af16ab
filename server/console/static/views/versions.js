/** The versions of a name, and what may be done with each. */

import { h, fill, keyed, say } from "../dom.js";
import * as format from "../format.js";
import { few } from "../parts/few.js";
import { badge } from "../parts/notices.js";
import { place } from "./adapters.js";

const FEW = 10; // versions that are shown at first, beside those that get requests
const SERVED = ["live", "canary", "shadow"];
const KINDS = /** @type {Record<string, string>} */ ({
  live: "good",
  canary: "warn",
  shadow: "info",
  candidate: "info",
  failed: "bad",
});

/** @param {string} name @param {any} actions */
export function versionTable(name, actions) {
  const body = h("tbody", {});
  const table = h(
    "table",
    { class: "stacks brief" },
    h("caption", { class: "visually-hidden" }, `Versions of ${name}`),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "Version"),
        h("th", { scope: "col" }, "Kind"),
        h("th", { scope: "col", class: "num" }, "Weight"),
        h("th", { scope: "col" }, "Where"),
        h("th", { scope: "col", class: "num" }, "Running"),
        h("th", { scope: "col" }, "Uploaded"),
        h("th", { scope: "col" }, "Digest"),
        h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Actions")),
      ),
    ),
    body,
  );
  /** @type {any[]} */
  let versions = [];
  const more = few(FEW, show, (one) => SERVED.includes(one.state));
  const node = h(
    "section",
    { class: "card flush" },
    h("h2", {}, "Versions"),
    h("div", { class: "scroll" }, table),
    more,
  );
  function show() {
    keyed(body, more.of(versions), (one) => String(one.version), make);
  }
  /** @param {any} first */
  const make = (first) => {
    const number = first.version;
    const head = h("th", { scope: "row" });
    const cells = ["Kind", "Weight", "Where", "Running", "Uploaded", "Digest"].map((label) =>
      h("td", {
        data: { label },
        class: ["Weight", "Running"].includes(label) ? "num" : label === "Digest" ? "mono" : "",
      }),
    );
    const buttons = h("td", { class: "actions" });
    let drawn = "";
    return Object.assign(h("tr", {}, head, cells, buttons), {
      /** @param {any} one */
      update(one) {
        const values = [
          one.kind,
          format.bytes(one.bytes),
          place(one.residency),
          format.count(one.running),
          format.ago(one.created),
          format.short(one.digest),
        ];
        cells.forEach((cell, i) => say(cell, String(values[i]))); // what is selected to be copied stays so
        cells[4].title = format.time(one.created);
        cells[5].title = one.digest;
        const next = JSON.stringify([one.state, one.reason, one.warnings]);
        if (next === drawn) return;
        drawn = next;
        fill(
          head,
          h("span", { class: "row whole" }, h("b", {}, number), badge(one.state, KINDS[one.state] ?? "")),
          one.reason && h("div", { class: "hint" }, one.reason),
          one.warnings.map((/** @type {string} */ text) =>
            h("div", { class: "hint" }, badge("warning", "warn"), " ", text),
          ),
        );
        const button = (/** @type {string} */ label, /** @type {() => void} */ run, kind = "") =>
          h(
            "button",
            {
              type: "button",
              class: `small ${kind}`,
              "aria-label": `${label} version ${number}`,
              data: { key: `${label}-${number}` },
              onclick: run,
            },
            label,
          );
        fill(
          buttons,
          button("Details", () => actions.manifest(number)),
          one.state !== "live" && button("Activate", () => actions.activate(number)),
          ["candidate", "stored"].includes(one.state) && button("Canary", () => actions.canary(number, 0.1)),
          one.state !== "live" && button("Delete", () => actions.removeVersion(number), "danger"),
        );
      },
    });
  };
  return Object.assign(node, {
    /** @param {any} adapter */
    update(adapter) {
      versions = [...adapter.versions].reverse();
      show();
    },
  });
}
