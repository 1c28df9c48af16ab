/** How fast, how many, how wrong and how full: per adapter and version, as it changes. */

import { fill, h, keyed, say } from "../dom.js";
import * as format from "../format.js";
import { between } from "../monitor.js";
import { chart, meter } from "../parts/chart.js";
import { few } from "../parts/few.js";
import { emptyState, skeleton, trouble } from "../parts/notices.js";
import { segments } from "../parts/segments.js";
import { figureSeries, Tones, waiting } from "../parts/series.js";

/** @typedef {import("../monitor.js").Traffic} Traffic */

const WINDOWS = [
  { name: "1 min", value: 60 },
  { name: "5 min", value: 300 },
  { name: "Since start", value: 0 },
];
const QUANTILES = [0.5, 0.95, 0.99];
const TIMES = /** @type {const} */ ([
  ["ttft", "First token"],
  ["itl", "Between tokens"],
  ["e2e", "Whole request"],
]);
const LINES = 6;
const FEW = 20; // rows of the table that are shown at first

/** @param {import("../app.js").Context} context @returns {import("../app.js").View} */
export function liveView({ monitor }) {
  let seconds = 60;
  const tones = new Tones();
  const span = h("span", { class: "muted" });
  const problem = trouble("The figures cannot be read");
  const board = h("div", { class: "stack" }, skeleton(8));
  const parts = { tiles: tiles(), engine: engine(), charts: charts(monitor), table: table(tones) };
  const choice = segments("Window", WINDOWS, seconds, (value) => {
    seconds = value;
    update();
  });
  let drawn = false;

  function update() {
    if (monitor.error) problem.tell(monitor.error);
    else if (monitor.last) problem.clear();
    const last = monitor.last;
    if (!last) {
      if (monitor.error) fill(board);
      drawn = false;
      return;
    }
    if (!drawn) fill(board, parts.tiles, parts.charts, parts.table, parts.engine);
    drawn = true;
    const then = seconds ? monitor.back(seconds) : undefined;
    const whole = between(last, then);
    say(
      span,
      !seconds
        ? ""
        : then && whole.span >= seconds * 0.95
          ? ""
          : then
            ? `so far ${format.duration(whole.span)}`
            : "since the server's start, until there are two looks",
    );
    parts.tiles.update(whole, last.server);
    parts.engine.update(last.server);
    const rows = [...last.rows].map(([key, row]) => ({
      key,
      row,
      model: last.model,
      grown: between(last, then, (one) => one === row),
    }));
    rows.sort(
      (a, b) => b.grown.requests - a.grown.requests || b.row.requests - a.row.requests || a.key.localeCompare(b.key),
    );
    parts.table.update(rows);
    const busy = rows
      .filter(({ row }) => row.requests)
      .slice(0, LINES)
      .map(({ key }) => key);
    parts.charts.update(busy, tones);
  }
  monitor.addEventListener("look", update);
  const node = h(
    "div",
    { class: "view" },
    h("div", { class: "head" }, h("h1", {}, "Live"), span, h("div", { class: "spring" }), choice),
    problem,
    board,
  );
  update();
  return { title: "Live", node, stop: () => monitor.removeEventListener("look", update) };
}

function tiles() {
  const make = (/** @type {string} */ label) => {
    const value = h("dd", { class: "value" }, "–"),
      note = h("dd", { class: "note" });
    return { value, note, node: h("div", { class: "tile" }, h("dt", {}, label), value, note) };
  };
  const all = {
    requests: make("Requests a second"),
    tokens: make("Tokens a second"),
    ttft: make("First token, p95"),
    itl: make("Between tokens, p95"),
    errors: make("Errors"),
    queue: make("Running"),
  };
  const node = h(
    "dl",
    { class: "tiles" },
    Object.values(all).map((one) => one.node),
  );
  const put = (/** @type {keyof typeof all} */ name, /** @type {string} */ value, /** @type {string} */ note) => {
    say(all[name].value, value);
    say(all[name].note, note);
  };
  return Object.assign(node, {
    /** @param {ReturnType<typeof between>} whole @param {Record<string, number>} server */
    update(whole, server) {
      const each = (/** @type {number} */ n) => (whole.span ? format.rate(n / whole.span) : format.count(n));
      const asked = whole.requests + whole.errors;
      put("requests", each(whole.requests), whole.span ? `${format.count(whole.requests)} in all` : "since the start");
      put(
        "tokens",
        each(whole.tokens),
        whole.span ? `${each(whole.prompts)} of prompts` : `${format.count(whole.prompts)} of prompts`,
      );
      put("ttft", format.seconds(whole.ttft.quantile(0.95)), `p50 ${format.seconds(whole.ttft.quantile(0.5))}`);
      put("itl", format.seconds(whole.itl.quantile(0.95)), `p50 ${format.seconds(whole.itl.quantile(0.5))}`);
      put(
        "errors",
        format.count(whole.errors),
        asked ? `${format.percent(whole.errors / asked)} of requests` : "no requests",
      );
      put("queue", format.count(server.running), `${format.count(server.waiting)} waiting`);
      all.errors.node.classList.toggle("bad", whole.errors > 0);
      all.queue.node.classList.toggle("warn", server.waiting > 0);
    },
  });
}

/** @param {import("../monitor.js").Monitor} monitor */
function charts(monitor) {
  const x = (/** @type {number} */ at) => new Date(at * 1000).toTimeString().slice(0, 8);
  const of = (/** @type {string} */ label, /** @type {(v: number) => string} */ y) =>
    chart({ label, x, y, zero: true, height: 168, empty: () => waiting(monitor) });
  const drawn = {
    requests: of("Requests a second", format.rate),
    tokens: of("Output tokens a second", format.rate),
    ttft: of("Time to first token, p95", format.seconds),
    itl: of("Between tokens, p95", format.seconds),
  };
  const titles = {
    requests: "Requests a second",
    tokens: "Output tokens a second",
    ttft: "First token, p95",
    itl: "Between tokens, p95",
  };
  const node = h(
    "div",
    { class: "charts" },
    Object.entries(drawn).map(([name, one]) =>
      h("section", { class: "card" }, h("h2", {}, titles[/** @type {keyof typeof titles} */ (name)]), one),
    ),
  );
  return Object.assign(node, {
    /** @param {string[]} keys @param {Tones} tones */
    update(keys, tones) {
      for (const [name, one] of Object.entries(drawn))
        one.update(figureSeries(monitor, keys, /** @type {any} */ (name), tones));
    },
  });
}

/** @param {Tones} tones */
function table(tones) {
  const body = h("tbody", {});
  const none = emptyState(
    "No requests yet",
    "Send one from the ",
    h("a", { href: "#/playground" }, "playground"),
    ", and its figures appear here.",
  );
  const head = [
    h(
      "tr",
      {},
      h("th", { rowspan: 2, scope: "col" }, "Model"),
      h("th", { rowspan: 2, scope: "col", class: "num" }, "Requests/s"),
      h("th", { rowspan: 2, scope: "col", class: "num" }, "Tokens/s"),
      h("th", { rowspan: 2, scope: "col", class: "num" }, "Errors"),
      TIMES.map(([, name]) => h("th", { colspan: 3, scope: "colgroup", class: "group" }, name)),
    ),
    h(
      "tr",
      {},
      TIMES.map(() =>
        QUANTILES.map((q, i) => h("th", { scope: "col", class: i ? "num" : "num first" }, `p${q * 100}`)),
      ),
    ),
  ];
  const grid = h(
    "table",
    { class: "figures" },
    h("caption", { class: "visually-hidden" }, "Traffic by model and version"),
    h("thead", {}, head),
    body,
  );
  /** @type {any[]} */
  let rows = [];
  const more = few(FEW, show);
  const node = h(
    "section",
    { class: "card flush" },
    h("h2", {}, "By model and version"),
    h("div", { class: "scroll" }, grid),
    none,
    more,
  );
  function show() {
    keyed(body, more.of(rows), (row) => `row ${row.key}`, make);
  }

  /** @param {any} item */
  const make = ({ key, model }) => {
    const link =
      key === "" || key === "other"
        ? h("span", { title: key || model }, key || model)
        : h("a", { href: `#/adapters/${encodeURIComponent(key.slice(0, key.lastIndexOf("@")))}`, title: key }, key);
    const cell = (/** @type {string} */ label, more = "") => h("td", { class: `num ${more}`, data: { label } });
    const cells = [
      cell("Requests/s"),
      cell("Tokens/s"),
      cell("Errors"),
      ...TIMES.flatMap(([, name]) => QUANTILES.map((q, i) => cell(`${name} p${q * 100}`, i ? "" : "first"))),
    ];
    const row = h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        h("i", { class: `dot tone-${tones.of(key)}` }),
        " ",
        link,
        key === "" && h("span", { class: "muted" }, " base"),
      ),
      cells,
    );
    return Object.assign(row, {
      /** @param {any} item */
      update({ grown }) {
        const each = (/** @type {number} */ n) => (grown.span ? format.rate(n / grown.span) : format.count(n));
        const values = [
          each(grown.requests),
          each(grown.tokens),
          format.count(grown.errors),
          ...TIMES.flatMap(([field]) => QUANTILES.map((q) => format.seconds(grown[field].quantile(q)))),
        ];
        cells.forEach((one, i) => say(one, values[i]));
        cells[2].classList.toggle("bad", grown.errors > 0);
        row.classList.toggle("idle", !grown.requests && !grown.errors);
      },
    });
  };
  return Object.assign(node, {
    /** @param {any[]} rows */
    update(next) {
      rows = next;
      show();
      none.hidden = rows.length > 0;
      grid.hidden = !rows.length;
    },
  });
}

function engine() {
  const kv = meter(0, "KV cache in use");
  const facts = {
    kv: h("b", {}),
    hits: h("b", {}),
    swaps: h("b", {}),
    preemptions: h("b", {}),
    restarts: h("b", {}),
    steps: h("b", {}),
  };
  const memory = h("div", { class: "memory" });
  const line = (
    /** @type {string} */ name,
    /** @type {HTMLElement} */ value,
    more = /** @type {import("../dom.js").Child} */ (null),
  ) => h("div", {}, h("dt", {}, name), h("dd", {}, value, more));
  const node = h(
    "div",
    { class: "two" },
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Engine"),
      h(
        "dl",
        { class: "facts-list" },
        line("KV cache in use", facts.kv, kv),
        line("Prompt tokens found in the cache", facts.hits),
        line("Changes of what a name serves", facts.swaps),
        line("Sequences put back for lack of room", facts.preemptions),
        line("Restarts of the engine", facts.restarts),
        line("Steps", facts.steps),
      ),
    ),
    h("section", { class: "card" }, h("h2", {}, "Memory"), memory),
  );
  return Object.assign(node, {
    /** @param {Record<string, number>} now */
    update(now) {
      say(facts.kv, format.percent(now.kv));
      kv.update(now.kv);
      say(facts.hits, now.queries ? format.percent(now.hits / now.queries) : "–");
      for (const name of /** @type {const} */ (["swaps", "preemptions", "restarts", "steps"]))
        say(facts[name], format.count(now[name]));
      fill(memory, memoryRows(now));
    },
  });
}

/** @param {Record<string, number>} now */
function memoryRows(now) {
  const rows = [
    ["Base weights", now.baseBytes, "resident"],
    ["KV cache", now.kvBytes, "reserved"],
    ["Adapters in the engine", now.deviceBytes, `${format.count(now.device)} versions`],
    ["Adapters in memory beside it", now.hostBytes, `${format.count(now.host)} versions`],
    ["Adapters in the store", now.storeBytes, `${format.count(now.store)} versions, on disk`],
  ];
  const most = Math.max(...rows.map((row) => /** @type {number} */ (row[1])), 1);
  return rows.map(([name, nbytes, note]) => {
    const bar = h("span", { class: "bar" });
    bar.style.width = `${(Number(nbytes) / most) * 100}%`;
    return h(
      "div",
      { class: "memory-row" },
      h("span", {}, name),
      h("b", {}, format.bytes(Number(nbytes))),
      h("span", { class: "muted" }, note),
      h("span", { class: "bar-track" }, bar),
    );
  });
}
