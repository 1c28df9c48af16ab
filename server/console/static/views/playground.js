/** The same words to the base and to several adapters, side by side. */

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { field, tick } from "../parts/dialog.js";
import { emptyState, errorBox, skeleton } from "../parts/notices.js";
import { segments } from "../parts/segments.js";
import { answerPanel } from "./answer.js";

const MOST = 6; // answers side by side
const FEW = 12; // models that are offered as buttons; the others are found by their names

/** @param {import("../app.js").Context} context @returns {import("../app.js").View} */
export function playgroundView({ args }) {
  const chips = h("div", { class: "chips" }, skeleton(1));
  const problem = h("div", {});
  const panels = h("div", { class: "panels" });
  /** @type {Map<string, ReturnType<typeof answerPanel>>} */
  const shown = new Map();
  let mode = /** @type {"chat" | "text"} */ ("chat");

  const system = h("textarea", { rows: 2, placeholder: "You are …" });
  const systemField = field("System message", system);
  const words = h("textarea", { rows: 3, required: true, placeholder: "Ask all of them at once" });
  const numbers = {
    max_tokens: number(128, { min: 1, step: 1 }),
    temperature: number(0, { min: 0, max: 2, step: 0.1 }),
    seed: number("", { step: 1, placeholder: "any" }),
  };
  const logprobs = tick("Colour tokens by how likely they were", { checked: true });
  const send = h("button", { type: "submit", class: "primary" }, "Send");
  const stop = h(
    "button",
    { type: "button", disabled: true, onclick: () => shown.forEach((panel) => panel.stop()) },
    "Stop",
  );
  const clear = h("button", { type: "button", onclick: () => shown.forEach((panel) => panel.clear()) }, "Clear");
  const modes = segments(
    "Form",
    [
      { name: "Chat", value: "chat" },
      { name: "Plain text", value: "text" },
    ],
    mode,
    (value) => {
      mode = /** @type {"chat" | "text"} */ (value);
      systemField.hidden = mode === "text";
      shown.forEach((panel) => panel.clear());
    },
  );
  const names = h("datalist", { id: "models" });
  const other = h("input", {
    list: "models",
    placeholder: "name@3, or a:0.7+b:0.3",
    "aria-label": "Another model",
    spellcheck: "false",
    autocomplete: "off",
  });
  const more = h(
    "form",
    {
      class: "row other",
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        if (other.value.trim()) choose(other.value.trim(), true);
        other.value = "";
      },
    },
    other,
    names,
    h("button", { type: "submit", class: "small" }, "Add"),
  );

  const form = h(
    "form",
    {
      class: "card stack",
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        ask();
      },
    },
    systemField,
    field("Message", words, "Ctrl+Enter sends"),
    h(
      "div",
      { class: "fields" },
      field("Most tokens", numbers.max_tokens),
      field("Temperature", numbers.temperature),
      field("Seed", numbers.seed),
    ),
    h("div", { class: "row" }, logprobs, h("div", { class: "spring" }), clear, stop, send),
  );
  words.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });

  /** @param {string} model @param {boolean} on */
  function choose(model, on) {
    if (on && !shown.has(model) && shown.size < MOST) shown.set(model, answerPanel(model));
    else if (!on) {
      shown.get(model)?.stop();
      shown.delete(model);
    }
    if (on && !chips.querySelector(`[data-model="${CSS.escape(model)}"]`)) chips.append(chip(model));
    for (const box of chips.querySelectorAll("input")) {
      box.checked = shown.has(box.dataset.model ?? "");
      box.disabled = !box.checked && shown.size >= MOST;
    }
    const wanted = [...shown.values()].map((panel) => panel.node);
    for (const node of [...panels.children]) if (!wanted.includes(/** @type {any} */ (node))) node.remove();
    panels.append(...wanted.filter((node) => node.parentNode !== panels));
    if (!wanted.length)
      fill(
        panels,
        emptyState("No model is chosen", "Choose the base and an adapter above, to see what the adapter changes."),
      );
    send.disabled = !wanted.length;
  }

  /** @param {string} model */
  function chip(model) {
    return h(
      "label",
      { class: "chip" },
      h("input", {
        type: "checkbox",
        data: { model },
        onchange: (/** @type {Event} */ event) => choose(model, /** @type {HTMLInputElement} */ (event.target).checked),
      }),
      h("span", {}, model),
    );
  }

  async function ask() {
    const options = Object.fromEntries(
      Object.entries(numbers)
        .filter(([, input]) => input.value !== "")
        .map(([name, input]) => [name, Number(input.value)]),
    );
    const question = {
      mode,
      text: words.value,
      system: system.value.trim(),
      options,
      logprobs: logprobs.querySelector("input")?.checked ?? false,
    };
    send.disabled = true;
    stop.disabled = false;
    await Promise.all([...shown.values()].map((panel) => panel.ask(question)));
    stop.disabled = true;
    send.disabled = !shown.size;
    if (mode === "chat") words.select();
  }

  async function load() {
    try {
      const models = (await get("v1/models")).data;
      fill(problem);
      fill(
        chips,
        models.slice(0, FEW).map((/** @type {any} */ one) => chip(one.id)),
        models.length > FEW && h("span", { class: "muted" }, `and ${models.length - FEW} more, by name`),
      );
      fill(
        names,
        models.map((/** @type {any} */ one) => h("option", { value: one.id })),
      );
      const wanted = args.length
        ? [models[0]?.id, args[0]]
        : models.slice(0, 2).map((/** @type {any} */ one) => one.id);
      for (const model of new Set(wanted.filter(Boolean))) choose(model, true);
      if (!models.length) fill(panels, emptyState("This key sees no model"));
    } catch (error) {
      fill(chips);
      fill(problem, errorBox(error, { title: "The models cannot be read", retry: load }));
    }
  }
  load();
  const legend = h(
    "div",
    { class: "likely", "aria-hidden": "true" },
    "likely",
    [0, 1, 2, 3, 4].map((level) => h("i", { class: `token level-${level}` })),
    "unlikely",
  );
  const node = h(
    "div",
    { class: "view" },
    h("div", { class: "head" }, h("h1", {}, "Playground"), h("div", { class: "spring" }), modes),
    problem,
    h("section", { class: "card", "aria-label": "Models" }, h("div", { class: "row spread" }, chips, more)),
    form,
    h("div", { class: "row" }, h("h2", {}, "Answers"), h("div", { class: "spring" }), legend),
    panels,
  );
  return { title: "Playground", node, stop: () => shown.forEach((panel) => panel.stop()) };
}

/** @param {string | number} value @param {Record<string, any>} props */
const number = (value, props) => h("input", { type: "number", value, ...props });
