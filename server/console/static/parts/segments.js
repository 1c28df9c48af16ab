/** One of a few choices, side by side: radio buttons that look like one button. */

import { h } from "../dom.js";

let groups = 0;

/**
 * @template T
 * @param {string} label
 * @param {{name: string, value: T}[]} choices
 * @param {T} chosen
 * @param {(value: T) => void} onChange
 */
export function segments(label, choices, chosen, onChange) {
  const group = `segments-${++groups}`;
  return h(
    "div",
    { class: "segments", role: "radiogroup", "aria-label": label },
    choices.map(({ name, value }) =>
      h(
        "label",
        {},
        h("input", { type: "radio", name: group, checked: value === chosen, onchange: () => onChange(value) }),
        h("span", {}, name),
      ),
    ),
  );
}
