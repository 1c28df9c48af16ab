/** Who gets a name's requests: the live version and its canaries, how they fare beside it, and the slider. */

import { fill, h, say } from "../dom.js";
import * as format from "../format.js";
import { badge } from "../parts/notices.js";

const FIGURES = /** @type {const} */ ([
  ["requests", "Requests", format.count],
  ["error_rate", "Errors", format.percent],
  ["ttft_p50", "First token p50", format.seconds],
  ["ttft_p95", "First token p95", format.seconds],
  ["itl_p50", "Between tokens p50", format.seconds],
  ["itl_p95", "Between tokens p95", format.seconds],
]);

const SETTLE_MS = 400;

/** @param {any} actions */
export function canaryPanel(actions) {
  const split = h("div", { class: "split", "aria-hidden": "true" });
  const words = h("p", { class: "muted" });
  const sliders = h("div", { class: "stack" });
  const figures = h("div", { class: "scroll" });
  const ended = h("div", {});
  const node = h(
    "section",
    { class: "card stack", hidden: true },
    h("h2", {}, "Who gets the requests"),
    split,
    words,
    sliders,
    figures,
    ended,
  );
  let drawn = "";
  /** @type {Map<number, ReturnType<typeof slider>>} */
  let known = new Map();
  return Object.assign(node, {
    /** @param {any} adapter */
    update(adapter) {
      const traffic = adapter.traffic;
      const canaries = traffic?.canaries ?? [];
      node.hidden = !canaries.length && !traffic?.shadow && !traffic?.ended;
      if (node.hidden) return;
      fill(ended, traffic.ended && endedNote(traffic.ended));
      split.hidden = words.hidden = figures.hidden = !traffic.live;
      if (!traffic.live) {
        drawn = "";
        return [split, sliders, figures].forEach((part) => fill(part));
      }
      drawSplit(split, traffic);
      say(
        words,
        [
          `version ${traffic.live.version} (live) ${format.percent(traffic.live.weight)}`,
          ...canaries.map((/** @type {any} */ one) => `version ${one.version} (canary) ${format.percent(one.weight)}`),
          traffic.shadow &&
            `version ${traffic.shadow.version} (shadow) gets copies of ${format.percent(traffic.shadow.weight)}`,
        ]
          .filter(Boolean)
          .join(", "),
      );
      const next = JSON.stringify(canaries.map((/** @type {any} */ one) => one.version));
      if (next !== drawn) {
        known = new Map(canaries.map((/** @type {any} */ one) => [one.version, slider(one, actions)]));
        fill(sliders, [...known.values()]);
        drawn = next;
      }
      for (const one of canaries) known.get(one.version)?.update(one);
      fill(figures, comparison(traffic));
    },
  });
}

/** @param {HTMLElement} split @param {any} traffic */
function drawSplit(split, traffic) {
  const bars = [
    ["live", traffic.live.weight],
    ...traffic.canaries.map((/** @type {any} */ one) => ["canary", one.weight]),
  ];
  fill(
    split,
    bars.map(([role, weight]) => {
      const bar = h("span", { class: role });
      bar.style.flex = String(weight);
      return bar;
    }),
  );
}

/** @param {any} first @param {any} actions */
function slider(first, actions) {
  const number = first.version;
  const output = h("output", {});
  const range = h("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": `Share of version ${number}` });
  const facts = h("p", { class: "hint" });
  const rules = h("div", { class: "badges" });
  let touched = false;
  let settling = 0;
  const shown = () => {
    say(output, `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} percent`);
  };
  range.addEventListener("input", () => {
    touched = true;
    shown();
  });
  range.addEventListener("change", () => {
    clearTimeout(settling); // keys move it step by step
    settling = setTimeout(async () => {
      await actions.canary(number, Number(range.value) / 100);
      touched = false;
    }, SETTLE_MS);
  });
  const node = h(
    "div",
    { class: "stack tight" },
    h(
      "div",
      { class: "share" },
      range,
      output,
      h(
        "div",
        { class: "row" },
        h(
          "button",
          { type: "button", class: "primary small", onclick: () => actions.promote(number) },
          `Promote ${number}`,
        ),
        h("button", { type: "button", class: "danger small", onclick: () => actions.abort(number) }, "Abort"),
      ),
    ),
    facts,
    rules,
  );
  return Object.assign(node, {
    /** @param {any} one */
    update(one) {
      if (!touched) range.value = String(Math.round(one.weight * 100));
      shown();
      const words = [
        `Canary since ${format.ago(one.began)}`,
        one.steps.length && `grows to ${one.steps.map(format.percent).join(", ")}`,
        one.fallbacks && `${one.fallbacks} requests fell back to the live version`,
        one.failure && `it cannot be served: ${one.failure}`,
      ];
      say(facts, words.filter(Boolean).join(" · "));
      fill(
        rules,
        one.verdicts.map((/** @type {any} */ verdict) =>
          badge(
            `${verdict.rule} ${format.figure(verdict.value)} / ${format.figure(verdict.bound)}`,
            verdict.breached ? "bad" : verdict.value === null ? "" : "good",
          ),
        ),
      );
    },
  });
}

/** @param {any} traffic */
function comparison(traffic) {
  const columns = [
    { name: `version ${traffic.live.version}`, role: "live", ...traffic.live },
    ...traffic.canaries.map((/** @type {any} */ one) => ({ name: `version ${one.version}`, role: "canary", ...one })),
  ];
  return h(
    "table",
    {},
    h("caption", { class: "visually-hidden" }, "Live version and canaries side by side"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, `Last ${format.duration(traffic.live.window.seconds)}`),
        columns.map((one) => h("th", { scope: "col", class: "num" }, `${one.name} ${one.role}`)),
      ),
    ),
    h(
      "tbody",
      {},
      FIGURES.map(([field, label, write]) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, label),
          columns.map((one) => h("td", { class: "num" }, write(one.window[field]))),
        ),
      ),
    ),
  );
}

/** @param {any} end */
function endedNote(end) {
  const how = end.automatic ? "by its rules" : "by hand";
  const why = end.reason ? `: ${end.reason}` : "";
  const words = `The last canary, version ${end.version}, was ${end.outcome} ${how} ${format.ago(end.at)}${why}`;
  return h("p", { class: "hint" }, words);
}
