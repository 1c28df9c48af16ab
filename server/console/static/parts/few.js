/** The first of many rows, and a button for the rest. */

import { h, say } from "../dom.js";

/**
 * `of` gives what is to be shown of some items: the first `most` and those that `keep` wants, or all once they are asked
 * for. The node is the button.
 * @param {number} most
 * @param {() => void} show draws again
 * @param {(item: any) => boolean} [keep]
 */
export function few(most, show, keep = () => false) {
  let all = false;
  const button = h("button", {
    type: "button",
    class: "small",
    onclick: () => {
      all = !all;
      show();
    },
  });
  return Object.assign(h("div", { class: "row more", hidden: true }, button), {
    /** @template T @param {T[]} items @returns {T[]} */
    of(items) {
      const first = items.filter((item, i) => i < most || keep(item));
      this.hidden = first.length === items.length;
      say(button, all ? "Show fewer" : `Show all ${items.length}`);
      return all ? items : first;
    },
  });
}
