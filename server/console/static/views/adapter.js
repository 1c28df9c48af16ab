/** One adapter: its versions, who gets its requests, how they fare, what it is made of, and what happened to it. */

import { change, get, part } from "../api.js";
import { fill, h } from "../dom.js";
import * as format from "../format.js";
import { chart } from "../parts/chart.js";
import { confirm, tick } from "../parts/dialog.js";
import { badge, errorBox, skeleton, toast, trouble } from "../parts/notices.js";
import { poll } from "../parts/polling.js";
import { figureSeries, Tones, waiting } from "../parts/series.js";
import { marks, place } from "./adapters.js";
import { canaryPanel } from "./canary.js";
import { lineage } from "./lineage.js";
import { manifestPanel } from "./manifest.js";
import { editSettings, settingsList } from "./settings.js";
import { uploadPlace } from "./upload.js";
import { versionTable } from "./versions.js";

/** @param {import("../app.js").Context} context @returns {import("../app.js").View} */
export function adapterView({ args: [name], monitor }) {
  const path = `v1/adapters/${part(name)}`;
  const problem = trouble("The adapter cannot be read");
  const done = h("div", {});
  const board = h("div", { class: "stack" }, skeleton(8));
  const title = h("div", { class: "head" });
  /** @type {any} */
  let adapter = null;
  let changes = 0; // what was read before the last one is not shown any more
  let last = Promise.resolve(); // one change after the other: each asks that all is as the one before left it
  let drawn = "";

  /**
   * Do something to the adapter as it was seen last; say what came of it. Throws where `inside` a dialog that shows it.
   * @param {string} what @param {() => Promise<any>} work
   */
  function act(what, work, inside = false) {
    const turn = last.then(() => attempt(what, work, inside));
    last = turn.catch(() => {});
    return turn;
  }

  /** @param {string} what @param {() => Promise<any>} work @param {boolean} inside */
  async function attempt(what, work, inside) {
    fill(done);
    try {
      const body = await work();
      toast(body?.changed === false ? "Nothing had to be changed" : what);
    } catch (error) {
      if (inside) throw error;
      fill(done, errorBox(error, { title: "Not done" }));
    } finally {
      changes += 1;
      await polling.now();
    }
  }

  const actions = {
    /** @param {number} version */
    activate: (version) =>
      act(`Version ${version} is live`, () => change("PATCH", path, { body: { version }, etag: adapter.etag })),
    rollback: () => act("Rolled back", () => change("POST", `${path}/rollback`, { body: {}, etag: adapter.etag })),
    /** @param {boolean} pinned */
    pin: (pinned) =>
      act(pinned ? "Pinned: its versions stay in memory" : "No longer pinned", () =>
        change("PATCH", path, { body: { pinned }, etag: adapter.etag }),
      ),
    settings: () =>
      editSettings(adapter, (body) =>
        act("Settings saved", () => change("PATCH", path, { body, etag: adapter.etag }), true),
      ),
    /** @param {number} version @param {number} weight @param {object} [more] */
    canary: (version, weight, more = {}) =>
      act(`Version ${version} gets ${format.percent(weight)} of the requests`, () =>
        change("PATCH", path, { body: { canary: { version, weight, ...more } }, etag: adapter.etag }),
      ),
    /** @param {number} version */
    promote: (version) =>
      act(`Version ${version} is live`, () =>
        change("POST", `${path}/promote`, { body: { version }, etag: adapter.etag }),
      ),
    /** @param {number} version */
    abort: (version) =>
      act(`Version ${version} gets no more requests`, () =>
        change("POST", `${path}/abort`, { body: { version, reason: "by hand, in the console" }, etag: adapter.etag }),
      ),
    /** @param {number} version */
    removeVersion: (version) =>
      remove(
        `Delete version ${version} of ${name}?`,
        "Its package is deleted too.",
        `${path}/versions/${version}`,
        `Version ${version} is deleted`,
      ),
    remove: () =>
      remove(
        `Delete ${name}?`,
        "No request is answered by it any more, and all of its versions are deleted.",
        path,
        `${name} is deleted`,
      ).then((gone) => gone && (location.hash = "#/adapters")),
    /** @param {number} version */
    manifest: (version) => manifestPanel(name, version),
  };

  /** @param {string} question @param {string} text @param {string} where @param {string} words */
  async function remove(question, text, where, words) {
    let gone = false;
    await confirm({
      title: question,
      text,
      action: "Delete",
      more: tick("End requests that run, instead of letting them finish", { name: "force" }),
      send: async (values) => {
        await act(
          words,
          () =>
            change("DELETE", where, { query: { mode: values.get("force") ? "force" : "drain" }, etag: adapter.etag }),
          true,
        );
        gone = true;
      },
    });
    return gone;
  }

  const figures = trafficCharts(monitor, name);
  const traffic = canaryPanel(actions);
  const versions = versionTable(name, actions);
  const facts = h("div", {});
  const history = lineage(name);

  function show() {
    if (!drawn) {
      fill(
        board,
        traffic,
        versions,
        h("div", { class: "two" }, facts, history),
        figures,
        uploadPlace({ fixed: name, onDone: polling.now }),
      );
    }
    traffic.update(adapter);
    versions.update(adapter);
    const { running, versions: all, traffic: shares, ...decided } = adapter;
    const next = JSON.stringify([decided, all.map((/** @type {any} */ one) => [one.id, one.state]), Boolean(shares)]);
    if (next === drawn) return;
    drawn = next;
    history.update();
    fill(
      facts,
      h(
        "section",
        { class: "card" },
        h(
          "div",
          { class: "card-head" },
          h("h2", {}, "Settings"),
          h("div", { class: "spring" }),
          h(
            "button",
            { type: "button", class: "small", data: { key: "settings" }, onclick: actions.settings },
            "Change",
          ),
        ),
        settingsList(adapter),
      ),
    );
    const before = adapter.versions.length > 1;
    fill(
      title,
      h("div", {}, h("p", { class: "crumbs" }, h("a", { href: "#/adapters" }, "Adapters")), h("h1", {}, name)),
      h(
        "span",
        { class: "badges" },
        adapter.version !== null && badge(`version ${adapter.version} live`, "good"),
        marks(adapter),
      ),
      h("span", { class: "muted" }, place(adapter.residency)),
      h("div", { class: "spring" }),
      h(
        "div",
        { class: "row" },
        h("a", { class: "button", href: `#/playground/${encodeURIComponent(name)}` }, "Try it"),
        h(
          "button",
          { type: "button", data: { key: "back" }, disabled: !before, onclick: actions.rollback },
          "Roll back",
        ),
        h(
          "button",
          {
            type: "button",
            data: { key: "pin" },
            "aria-pressed": String(adapter.pinned),
            onclick: () => actions.pin(!adapter.pinned),
          },
          adapter.pinned ? "Unpin" : "Pin",
        ),
        h("button", { type: "button", class: "danger", data: { key: "delete" }, onclick: actions.remove }, "Delete"),
      ),
    );
  }

  const polling = poll(async () => {
    try {
      const seen = changes;
      const found = await get(path);
      if (seen !== changes) return true;
      adapter = found;
      problem.clear();
      show();
    } catch (error) {
      if (!drawn) fill(board);
      return problem.tell(error);
    }
    return true;
  }, 3);
  const onLook = () => figures.update();
  monitor.addEventListener("look", onLook);
  fill(title, h("div", {}, h("p", { class: "crumbs" }, h("a", { href: "#/adapters" }, "Adapters")), h("h1", {}, name)));
  const stop = () => {
    polling.stop();
    monitor.removeEventListener("look", onLook);
  };
  return { title: name, node: h("div", { class: "view" }, title, problem, done, board), stop };
}

/** Its versions side by side. @param {import("../monitor.js").Monitor} monitor @param {string} name */
function trafficCharts(monitor, name) {
  const tones = new Tones();
  const x = (/** @type {number} */ at) => new Date(at * 1000).toTimeString().slice(0, 8);
  const titles = /** @type {const} */ ({
    requests: "Requests a second",
    ttft: "First token, p95",
    itl: "Between tokens, p95",
    e2e: "Whole request, p95",
  });
  const charts = Object.entries(titles).map(([field, label]) => ({
    field,
    node: chart({
      label: `${label} of ${name}`,
      x,
      y: field === "requests" ? format.rate : format.seconds,
      zero: true,
      height: 150,
      named: true,
      empty: () => waiting(monitor),
    }),
    label,
  }));
  const node = h(
    "div",
    { class: "charts" },
    charts.map(({ label, node }) => h("section", { class: "card" }, h("h2", {}, label), node)),
  );
  return Object.assign(node, {
    update() {
      const rows = [...(monitor.last?.rows.values() ?? [])]
        .filter((row) => row.adapter === name && row.requests)
        .sort((a, b) => Number(b.version) - Number(a.version))
        .slice(0, 4);
      const keys = rows.map((row) => `${row.adapter}@${row.version}`);
      for (const { field, node: one } of charts)
        one.update(
          figureSeries(
            monitor,
            keys,
            /** @type {any} */ (field),
            tones,
            (key) => `version ${key.slice(key.lastIndexOf("@") + 1)}`,
          ),
        );
    },
  });
}
