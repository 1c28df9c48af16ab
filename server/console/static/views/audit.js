/** Who did what, and was refused what. */

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import * as format from "../format.js";
import { field } from "../parts/dialog.js";
import { badge, emptyState, errorBox, skeleton } from "../parts/notices.js";

const PAGE = 50;

/** @param {import("../app.js").Context} context @returns {import("../app.js").View} */
export function auditView({ args }) {
  const problem = h("div", {});
  const list = h("div", {}, skeleton(8));
  const body = h("tbody", {});
  const older = h("button", { type: "button", hidden: true, onclick: () => load(next) }, "Older");
  /** @type {string | null} */
  let next = null;
  let turn = {};

  const form = h(
    "form",
    {
      class: "card fields filters-form",
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        load(null);
      },
      onchange: () => load(null),
    },
    field(
      "Name",
      h("input", { name: "name", value: args[0] ?? "", placeholder: "any", autocomplete: "off", spellcheck: "false" }),
    ),
    field("Who", h("input", { name: "actor", placeholder: "anybody", autocomplete: "off", spellcheck: "false" })),
    field("What", h("input", { name: "action", placeholder: "anything", autocomplete: "off", spellcheck: "false" })),
    field(
      "Outcome",
      h(
        "select",
        { name: "outcome" },
        h("option", { value: "" }, "any"),
        h("option", { value: "done" }, "done"),
        h("option", { value: "refused" }, "refused"),
      ),
    ),
    field("From", h("input", { type: "datetime-local", name: "since" })),
    field("Until", h("input", { type: "datetime-local", name: "until" })),
  );

  function query() {
    const values = Object.fromEntries(new FormData(/** @type {any} */ (form)));
    const moment = (/** @type {any} */ text) => (text ? new Date(text).getTime() / 1000 : undefined);
    return { ...values, since: moment(values.since), until: moment(values.until), limit: PAGE };
  }

  /** @param {string | null} cursor */
  async function load(cursor) {
    const mine = (turn = {});
    older.disabled = true;
    try {
      const page = await get("v1/events", { ...query(), cursor });
      if (mine !== turn) return;
      fill(problem);
      if (!cursor) fill(body);
      body.append(...page.data.map(row));
      next = page.next;
      older.hidden = !next;
      fill(
        list,
        body.children.length
          ? h(
              "div",
              { class: "scroll" },
              h(
                "table",
                { class: "stacks" },
                h("caption", { class: "visually-hidden" }, "Events"),
                h(
                  "thead",
                  {},
                  h(
                    "tr",
                    {},
                    ["When", "What", "Of", "Who", "Details"].map((name) => h("th", { scope: "col" }, name)),
                  ),
                ),
                body,
              ),
            )
          : emptyState("Nothing like that has happened"),
      );
    } catch (error) {
      if (mine !== turn) return;
      fill(problem, errorBox(error, { title: "The events cannot be read", retry: () => load(cursor) }));
      if (!cursor) fill(list);
    }
    older.disabled = false;
  }
  load(null);
  const node = h(
    "div",
    { class: "view" },
    h(
      "div",
      { class: "head" },
      h("h1", {}, "Audit"),
      h("div", { class: "spring" }),
      h("button", { type: "button", onclick: () => load(null) }, "Read again"),
    ),
    form,
    problem,
    h("section", { class: "card flush", "aria-label": "Events" }, list),
    h("div", { class: "row end" }, older),
  );
  return { title: "Audit", node };
}

/** @param {any} event */
function row(event) {
  const detail = Object.entries(event.detail).filter(
    ([, value]) => ![null, "", false].includes(/** @type {any} */ (value)),
  );
  const cell = (/** @type {string} */ label, /** @type {any[]} */ ...children) =>
    h("td", { data: { label } }, ...children);
  const subject = event.name ? `${event.name}${event.version ? `@${event.version}` : ""}` : "";
  return h(
    "tr",
    {},
    h("th", { scope: "row", class: "when" }, format.time(event.time)),
    cell("What", h("span", { class: "row" }, event.action, event.outcome === "refused" && badge("refused", "bad"))),
    cell("Of", h("span", { class: "wrap" }, subject || "–")),
    cell(
      "Who",
      h("span", { class: "wrap" }, event.actor),
      event.address ? h("div", { class: "hint mono" }, event.address) : null,
    ),
    h(
      "td",
      { class: "wide details" },
      detail.map(([name, value]) =>
        h("span", { class: "pair" }, h("span", { class: "muted" }, `${name} `), written(name, value)),
      ),
    ),
  );
}

/** @param {string} name @param {unknown} value */
function written(name, value) {
  if (name === "digest") return h("span", { class: "mono", title: String(value) }, format.short(String(value)));
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
