/** What the console says: errors with what to do, empty places, words in passing. */

import { ApiError, mayPass } from "../api.js";
import { fill, h, say } from "../dom.js";
import * as format from "../format.js";

/** What somebody may do about an error, beside what the server itself says. @type {Record<string, string>} */
const ADVICE = {
  invalid_api_key: "Enter a key that this server knows.",
  insufficient_permissions: "Use another key: what this one may do is under Keys, for whoever has an admin key.",
  admin_disabled: "The console shows what it may: the playground works with an inference key.",
  origin_not_allowed:
    "Open the console from the server's own machine (for instance through an ssh tunnel), or enter a key.",
  precondition_failed: "Somebody else changed it. It has been read again: look at it, and decide anew.",
  live_version_changed: "Somebody else changed it. It has been read again: look at it, and decide anew.",
  unreachable: "Look whether the server runs and this machine reaches it. The console goes on asking.",
  engine_unavailable: "It is starting or draining. The console goes on asking.",
};

/** @param {ApiError} error */
function advice(error) {
  if (error.code && ADVICE[error.code]) return ADVICE[error.code];
  if (error.status === 429) return "Wait a moment, and try again.";
  if (error.status >= 500)
    return error.requestId
      ? `The server's log says more under the request ${error.requestId}.`
      : "The server's log says more.";
  return "";
}

/**
 * An error in full.
 * @param {unknown} error
 * @param {{title?: string, retry?: () => void}} [options]
 */
export function errorBox(error, { title, retry } = {}) {
  const known = error instanceof ApiError ? error : new ApiError(0, { message: String(error), code: "console_error" });
  const facts = [
    known.status && `HTTP ${known.status}`,
    known.code,
    known.param && `field ${known.param}`,
    known.requestId && `request ${known.requestId}`,
  ];
  const what = advice(known);
  const needsKey = known.status === 401 || known.status === 403;
  return h(
    "div",
    { class: "notice bad", role: "alert" },
    title && h("strong", {}, title),
    h("p", {}, known.message),
    what && h("p", { class: "advice" }, what),
    h("p", { class: "facts" }, facts.filter(Boolean).join(" · ")),
    (needsKey || retry) &&
      h(
        "p",
        { class: "row" },
        needsKey &&
          h(
            "button",
            { type: "button", class: "small", onclick: () => document.dispatchEvent(new CustomEvent("wantkey")) },
            "Enter a key",
          ),
        retry && h("button", { type: "button", class: "small", onclick: retry }, "Try again"),
      ),
  );
}

/**
 * A place for the error of what is read again and again. The same error once more changes nothing there: it would be
 * read out each time. `seen` tells of which moment is what the page still shows.
 * @param {string} title
 */
export function trouble(title) {
  const node = h("div", {});
  let said = "";
  let seen = 0;
  return Object.assign(node, {
    /** All is well. */
    clear() {
      seen = Date.now() / 1000;
      said = "";
      if (node.hasChildNodes()) fill(node);
    },
    /** Whether there is a point in asking again. @param {unknown} error */
    tell(error) {
      const { status, code, message } = /** @type {any} */ (error);
      const next = [status, code, message].join(" ");
      const old = seen ? `${title}; what is shown is of ${format.time(seen)}` : title;
      if (next !== said) fill(node, errorBox(error, { title: old }));
      said = next;
      return mayPass(error);
    },
  });
}

/** @param {string} title @param {...import("../dom.js").Child} more */
export function emptyState(title, ...more) {
  return h(
    "div",
    { class: "empty" },
    h("p", { class: "empty-title" }, title),
    more.length ? h("p", {}, ...more) : null,
  );
}

/** Grey lines while something loads. */
export function skeleton(lines = 4) {
  return h(
    "div",
    { class: "skeleton", role: "status", "aria-label": "Loading" },
    Array.from({ length: lines }, () => h("span")),
  );
}

const region = h("div", { class: "toasts", role: "status", "aria-live": "polite" });

/** Say something in passing. @param {string} text @param {"good" | "bad"} [kind] */
export function toast(text, kind = "good") {
  if (!region.isConnected) document.body.append(region);
  const node = h("div", { class: `toast ${kind}` }, text);
  region.append(node);
  setTimeout(() => node.remove(), 5000);
}

/** How long ago a moment was, which `keepTime` keeps true. @param {number} moment Unix seconds */
export const since = (moment) =>
  h("time", { data: { since: moment }, title: format.time(moment) }, format.ago(moment));

/** Let all that say how long ago something was say it as it is by now. */
export function keepTime() {
  for (const node of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("time[data-since]")))
    say(node, format.ago(Number(node.dataset.since)));
}

/** A word with a colour. @param {string} text @param {string} [kind] good, warn, bad, info or nothing */
export const badge = (text, kind = "") => h("span", { class: `badge ${kind}` }, text);
