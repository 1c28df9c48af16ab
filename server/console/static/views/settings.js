/** The settings of a name: shown, and changed. */

import { h } from "../dom.js";
import * as format from "../format.js";
import { ask, field, tick } from "../parts/dialog.js";

const LIMITS = /** @type {const} */ ([
  ["requests_per_minute", "Requests a minute"],
  ["tokens_per_minute", "Tokens a minute"],
  ["max_concurrency", "Sequences at once"],
  ["max_queue", "Sequences that wait"],
]);

/** @param {any} adapter */
export function settingsList(adapter) {
  const usual = h("span", { class: "muted" }, "as the server's default");
  const or = (/** @type {any} */ value, /** @type {(v: any) => string} */ write = format.count) =>
    value === null ? usual.cloneNode(true) : value === 0 ? "any" : write(value);
  const lines = [
    ["Stays in memory", adapter.pinned ? "yes, pinned" : "while there is room"],
    ["Share where many want to run", String(adapter.weight)],
    ["Priority", String(adapter.priority)],
    ["Versions kept", or(adapter.retention)],
    ["Leaves memory when idle for", or(adapter.idle_ttl_seconds, format.duration)],
    ...LIMITS.map(([name, label]) => [label, or(adapter.limits[name])]),
  ];
  return h(
    "dl",
    { class: "facts-list" },
    lines.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/** @param {any} adapter @param {(body: any) => Promise<void>} save */
export function editSettings(adapter, save) {
  const number = (/** @type {string} */ name, /** @type {any} */ value, more = {}) =>
    h("input", { type: "number", name, value: value ?? "", min: 0, placeholder: "default", ...more });
  const body = h(
    "div",
    { class: "stack" },
    tick("Pinned: its versions stay in memory", { name: "pinned", checked: adapter.pinned }),
    h(
      "div",
      { class: "fields" },
      field(
        "Weight",
        number("weight", adapter.weight, { min: 0.001, max: 1000, step: "any", required: true }),
        "share where many want to run",
      ),
      field(
        "Priority",
        number("priority", adapter.priority, { min: -1000, max: 1000, step: 1, required: true }),
        "higher ones run first",
      ),
      field("Versions kept", number("retention", adapter.retention), "0: all"),
      field(
        "Idle seconds",
        number("idle_ttl_seconds", adapter.idle_ttl_seconds, { step: "any" }),
        "until it leaves memory",
      ),
    ),
    h(
      "fieldset",
      {},
      h("legend", {}, "Limits of all requests to it"),
      h(
        "div",
        { class: "fields" },
        LIMITS.map(([name, label]) => field(label, number(name, adapter.limits[name], { step: 1 }), "0: any")),
      ),
    ),
  );
  return ask({
    title: `Settings of ${adapter.name}`,
    body,
    action: "Save",
    send: (values) => save(changed(adapter, values)),
  });
}

/**
 * What differs from what was shown; an empty field gives a setting back to the server's default.
 * @param {any} adapter
 * @param {FormData} values
 */
function changed(adapter, values) {
  const read = (/** @type {string} */ name) =>
    String(values.get(name) ?? "").trim() === "" ? null : Number(values.get(name));
  /** @type {Record<string, any>} */
  const body = { pinned: values.get("pinned") !== null };
  for (const name of ["weight", "priority", "retention", "idle_ttl_seconds"]) body[name] = read(name);
  for (const name of Object.keys(body)) if (body[name] === adapter[name]) delete body[name];
  const limits = LIMITS.map(([name]) => [name, read(name)]).filter(([name, value]) => value !== adapter.limits[name]);
  if (limits.length) body.limits = Object.fromEntries(limits);
  if (!Object.keys(body).length) body.pinned = adapter.pinned; // nothing to change: say so
  return body;
}
