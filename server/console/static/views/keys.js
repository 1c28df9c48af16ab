/** API keys: made, changed, given a new secret, ended. A secret is shown once. */

import { change, get, part } from "../api.js";
import { fill, h } from "../dom.js";
import * as format from "../format.js";
import { ask, confirm, field, open, tick } from "../parts/dialog.js";
import { badge, emptyState, errorBox, since, skeleton, toast } from "../parts/notices.js";
import { segments } from "../parts/segments.js";

const SCOPES = /** @type {const} */ ([
  ["inference", "asks models"],
  ["read-only", "looks at what is served and done"],
  ["fine-tuning", "trains models from files"],
  ["admin", "does everything"],
]);
const LIMITS = /** @type {const} */ ([
  ["requests_per_minute", "Requests a minute"],
  ["tokens_per_minute", "Tokens a minute"],
  ["max_concurrency", "Sequences at once"],
  ["max_queue", "Sequences that wait"],
]);
const STATES = /** @type {Record<string, string>} */ ({ active: "good", expired: "warn", revoked: "bad" });

/** @returns {import("../app.js").View} */
export function keysView() {
  const problem = h("div", {});
  const list = h("div", {}, skeleton(5));
  let state = "active";
  /** @type {any[]} */
  let keys = [];

  async function load() {
    try {
      keys = (await get("v1/keys")).data;
      fill(problem);
      show();
    } catch (error) {
      fill(problem, errorBox(error, { title: "The keys cannot be read", retry: load }));
      fill(list);
    }
  }

  function show() {
    const found = keys.filter((one) => state === "all" || one.state === "active").reverse();
    if (!found.length) {
      return fill(
        list,
        emptyState(
          keys.length ? "No key is active" : "No keys yet",
          "Keys of the server's flags are not listed. " +
            "The first key that is made here closes what was open to all for its scope.",
        ),
      );
    }
    fill(
      list,
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "stacks" },
          h("caption", { class: "visually-hidden" }, "Keys"),
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              ["Name", "May", "Adapters", "Limits", "Used", "Ends"].map((name) => h("th", { scope: "col" }, name)),
              h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Actions")),
            ),
          ),
          h("tbody", {}, found.map(row)),
        ),
      ),
    );
  }

  /** @param {any} key */
  function row(key) {
    const cell = (/** @type {string} */ label, /** @type {any[]} */ ...children) =>
      h("td", { data: { label } }, ...children);
    const button = (/** @type {string} */ label, /** @type {() => void} */ run, kind = "") =>
      h(
        "button",
        {
          type: "button",
          class: `small ${kind}`,
          "aria-label": `${label} ${key.name}`,
          data: { key: `${label}-${key.id}` },
          onclick: run,
        },
        label,
      );
    const limits = LIMITS.filter(([name]) => key.limits[name] !== null).map(
      ([name, label]) => `${format.count(key.limits[name])} ${label.toLowerCase()}`,
    );
    const active = key.state === "active";
    return h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        h("div", { class: "row" }, key.name, !active && badge(key.state, STATES[key.state])),
        h("div", { class: "hint mono" }, `${key.id} ${key.hint}`),
      ),
      cell(
        "May",
        h(
          "span",
          { class: "badges" },
          key.scopes.map((/** @type {string} */ scope) => badge(scope, scope === "admin" ? "warn" : "")),
        ),
      ),
      cell(
        "Adapters",
        key.adapters === null ? "all" : key.adapters.join(", ") || "none",
        key.base ? "" : h("span", { class: "muted" }, " not the base"),
      ),
      cell("Limits", limits.length ? limits.join(", ") : h("span", { class: "muted" }, "the server's")),
      cell("Used", key.last_used === null ? "never" : since(key.last_used)),
      cell(
        "Ends",
        key.expires === null ? "–" : format.time(key.expires),
        key.old_secret_until
          ? h("div", { class: "hint" }, `the old secret works until ${format.time(key.old_secret_until)}`)
          : null,
      ),
      h(
        "td",
        { class: "actions" },
        active
          ? [
              button("Change", () => edit(key)),
              button("Rotate", () => rotate(key)),
              button("Revoke", () => revoke(key), "danger"),
            ]
          : key.state === "revoked"
            ? button("Forget", () => forget(key), "danger")
            : [button("Change", () => edit(key)), button("Revoke", () => revoke(key), "danger")],
      ),
    );
  }

  async function create() {
    const made = await ask({
      title: "New key",
      body: keyFields(),
      action: "Make the key",
      send: (values) => change("POST", "v1/keys", { body: readKey(values) }),
    });
    if (made) showSecret(made);
    load();
  }
  /** @param {any} key */
  async function edit(key) {
    const done = await ask({
      title: `Change ${key.name}`,
      body: keyFields(key),
      action: "Save",
      send: (values) => change("PATCH", `v1/keys/${part(key.id)}`, { body: readKey(values) }),
    });
    if (done) toast("Saved, and in force at once");
    load();
  }
  /** @param {any} key */
  async function rotate(key) {
    const grace = h("input", { type: "number", name: "grace", min: 0, max: 30 * 86400, value: 3600 });
    const made = await ask({
      title: `A new secret for ${key.name}`,
      body: field("The old secret works for, in seconds", grace, "0 ends it at once"),
      action: "Rotate",
      send: (values) =>
        change("POST", `v1/keys/${part(key.id)}/rotate`, { body: { grace_seconds: Number(values.get("grace")) } }),
    });
    if (made) showSecret(made);
    load();
  }
  /** @param {any} key */
  async function revoke(key) {
    await confirm({
      title: `Revoke ${key.name}?`,
      text: "Nobody can use it any more, at once. Requests that run go on.",
      action: "Revoke",
      send: () => change("DELETE", `v1/keys/${part(key.id)}`),
    });
    load();
  }
  /** @param {any} key */
  async function forget(key) {
    await confirm({
      title: `Forget ${key.name}?`,
      text: "Its record goes too. What it did stays in the audit.",
      action: "Forget",
      send: () => change("DELETE", `v1/keys/${part(key.id)}`, { query: { forget: "true" } }),
    });
    load();
  }

  load();
  const node = h(
    "div",
    { class: "view" },
    h(
      "div",
      { class: "head" },
      h("h1", {}, "Keys"),
      h("div", { class: "spring" }),
      segments(
        "Which",
        [
          { name: "Active", value: "active" },
          { name: "All", value: "all" },
        ],
        state,
        (value) => {
          state = value;
          show();
        },
      ),
      h("button", { type: "button", class: "primary", onclick: create }, "New key"),
    ),
    problem,
    h("section", { class: "card flush", "aria-label": "Keys" }, list),
  );
  return { title: "Keys", node };
}

/** @param {any} [key] */
function keyFields(key) {
  const ends = key?.expires
    ? new Date((key.expires - new Date(key.expires * 1000).getTimezoneOffset() * 60) * 1000).toISOString().slice(0, 16)
    : "";
  return h(
    "div",
    { class: "stack" },
    field(
      "Name",
      h("input", { name: "name", required: true, value: key?.name ?? "", maxlength: 128, autocomplete: "off" }),
      "what people call it",
    ),
    h(
      "fieldset",
      {},
      h("legend", {}, "What it may"),
      SCOPES.map(([scope, text]) =>
        h(
          "div",
          {},
          tick(`${scope}: ${text}`, {
            name: "scopes",
            value: scope,
            checked: key ? key.scopes.includes(scope) : scope === "inference",
          }),
        ),
      ),
    ),
    field(
      "Adapters",
      h("input", {
        name: "adapters",
        value: key?.adapters?.join(", ") ?? "",
        placeholder: "all",
        autocomplete: "off",
        spellcheck: "false",
      }),
      "names and patterns such as team-*, with commas between",
    ),
    tick("It may ask the base too", { name: "base", checked: key?.base ?? true }),
    h(
      "fieldset",
      {},
      h("legend", {}, "Limits"),
      h(
        "div",
        { class: "fields" },
        LIMITS.map(([name, label]) =>
          field(
            label,
            h("input", {
              type: "number",
              name,
              min: name === "max_queue" ? 0 : 1,
              step: 1,
              value: key?.limits[name] ?? "",
              placeholder: "the server's",
            }),
          ),
        ),
      ),
    ),
    field("Ends", h("input", { type: "datetime-local", name: "expires", value: ends }), "empty: never"),
  );
}

/** @param {FormData} values */
function readKey(values) {
  const patterns = String(values.get("adapters") ?? "")
    .split(",")
    .map((one) => one.trim())
    .filter(Boolean);
  const expires = String(values.get("expires") ?? "");
  const number = (/** @type {string} */ name) =>
    String(values.get(name) ?? "") === "" ? null : Number(values.get(name));
  return {
    name: String(values.get("name")),
    scopes: values.getAll("scopes"),
    adapters: patterns.length ? patterns : null,
    base: values.get("base") !== null,
    limits: Object.fromEntries(LIMITS.map(([name]) => [name, number(name)])),
    expires: expires ? new Date(expires).getTime() / 1000 : null,
  };
}

/** The only time that a secret is seen. @param {any} key */
function showSecret(key) {
  const secret = h("input", { value: key.key, readonly: true, class: "mono", "aria-label": "The secret" });
  const copy = h(
    "button",
    {
      type: "button",
      class: "primary",
      onclick: async () => {
        secret.select();
        try {
          await navigator.clipboard.writeText(key.key);
          toast("Copied");
        } catch {
          toast("It is selected: copy it by hand", "bad"); // only pages of https and of this machine may copy
        }
      },
    },
    "Copy",
  );
  const dialog = open(
    `The secret of ${key.name}`,
    h(
      "div",
      { class: "stack" },
      h(
        "div",
        { class: "notice warn" },
        h("p", {}, "It is shown now, and never again: the server keeps only what recognises it."),
      ),
      secret,
      h("div", { class: "row end" }, copy, h("button", { type: "button", onclick: () => dialog.close() }, "I have it")),
    ),
    () => (secret.value = ""),
  );
}
