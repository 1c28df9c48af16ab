/** Dialogs: the browser's own, which keep the focus inside and close by Escape. */

import { fill, h } from "../dom.js";
import { errorBox } from "./notices.js";

/**
 * Show a form in a dialog. `send` gets the form's values and may be asynchronous: the dialog stays, with the error,
 * while it throws. Resolves to what it returned, or undefined where the dialog was closed.
 * @template T
 * @param {object} options
 * @param {string} options.title
 * @param {import("../dom.js").Child} [options.body]
 * @param {string} options.action what the button says
 * @param {"danger" | ""} [options.kind]
 * @param {(values: FormData) => Promise<T> | T} options.send
 * @returns {Promise<T | undefined>}
 */
export function ask({ title, body, action, kind = "", send }) {
  return new Promise((resolve) => {
    /** @type {T | undefined} */
    let result;
    const problem = h("div", {});
    const submit = h("button", { type: "submit", class: kind || "primary" }, action);
    const form = h(
      "form",
      { class: "stack" },
      body,
      problem,
      h("div", { class: "row end" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), submit),
    );
    const dialog = open(title, form, () => resolve(result));
    form.addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      submit.disabled = true;
      try {
        result = await send(new FormData(/** @type {any} */ (form)));
        dialog.close();
      } catch (error) {
        fill(problem, errorBox(error));
        submit.disabled = false;
      }
    });
  });
}

/**
 * Ask whether something is to be done.
 * @param {object} options
 * @param {string} options.title
 * @param {string} options.text
 * @param {string} options.action
 * @param {(values: FormData) => Promise<any>} options.send
 * @param {import("../dom.js").Child} [options.more]
 */
export const confirm = ({ title, text, action, send, more }) =>
  ask({ title, body: [h("p", {}, text), more], action, kind: "danger", send });

/**
 * Show a dialog with `body`.
 * @param {string} title
 * @param {import("../dom.js").Child} body
 * @param {() => void} [onClose]
 * @returns {HTMLDialogElement}
 */
export function open(title, body, onClose) {
  const dialog = /** @type {any} */ (
    h(
      "dialog",
      { "aria-labelledby": "dialog-title" },
      h(
        "header",
        {},
        h("h2", { id: "dialog-title" }, title),
        h("button", { type: "button", class: "ghost icon", "aria-label": "Close", onclick: () => dialog.close() }, "✕"),
      ),
      h("div", { class: "dialog-body" }, body),
    )
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector(".dialog-body input, .dialog-body select, .dialog-body textarea, .dialog-body button")?.focus();
  return dialog;
}

let fields = 0;

/**
 * A labelled field; `hint` explains it.
 * @param {string} label
 * @param {HTMLElement} control
 * @param {string} [hint]
 */
export function field(label, control, hint) {
  const id = `field-${++fields}`;
  control.id ||= id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return h(
    "div",
    { class: "field" },
    h("label", { for: control.id }, label),
    control,
    hint && h("p", { class: "hint", id: `${id}-hint` }, hint),
  );
}

/** A labelled box to tick. @param {string} label @param {Record<string, any>} props */
export const tick = (label, props) =>
  h("label", { class: "tick-box" }, h("input", { type: "checkbox", ...props }), h("span", {}, label));
