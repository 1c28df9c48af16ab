/** The console: its frame, and which view is shown. */

import { getText } from "./api.js";
import { fill, h, say, svg } from "./dom.js";
import { Monitor } from "./monitor.js";
import { field, open } from "./parts/dialog.js";
import { errorBox, keepTime } from "./parts/notices.js";
import { session, theme, THEMES } from "./session.js";
import { adapterView } from "./views/adapter.js";
import { adaptersView } from "./views/adapters.js";
import { auditView } from "./views/audit.js";
import { jobView } from "./views/job.js";
import { jobsView } from "./views/jobs.js";
import { keysView } from "./views/keys.js";
import { liveView } from "./views/live.js";
import { playgroundView } from "./views/playground.js";

/**
 * What a view is given: the words of its address behind its own, and what looks at the metrics.
 * @typedef {{args: string[], monitor: Monitor}} Context
 * @typedef {{title: string, node: HTMLElement, stop?: () => void}} View
 * @typedef {(context: Context) => View} MakeView
 */

/** @type {{word: string, name: string, icon: string, make: MakeView}[]} */
const VIEWS = [
  { word: "", name: "Live", icon: "M3 12h4l3-8 4 16 3-8h4", make: liveView },
  {
    word: "adapters",
    name: "Adapters",
    icon: "M12 3 3 8l9 5 9-5zM3 13l9 5 9-5",
    make: (context) => (context.args.length ? adapterView(context) : adaptersView()),
  },
  { word: "playground", name: "Playground", icon: "M4 5h16v11H9l-5 4zM8 9h8M8 12h5", make: playgroundView },
  {
    word: "jobs",
    name: "Fine-tuning",
    icon: "M4 6h10M18 6h2M4 12h3M11 12h9M4 18h12M20 18h0M14 4v4M7 10v4M16 16v4",
    make: (context) => (context.args.length ? jobView(context) : jobsView()),
  },
  {
    word: "keys",
    name: "Keys",
    icon: "M8 15a4 4 0 1 1 3.500-5.900L21 9v3h-2v3h-3v-3h-4.500A4 4 0 0 1 8 15z",
    make: keysView,
  },
  { word: "audit", name: "Audit", icon: "M5 4h14v16H5zM9 9h6M9 13h6M9 17h3", make: auditView },
];

const monitor = new Monitor();
const main = h("main", { id: "main", tabindex: -1 });
const links = VIEWS.map(({ word, name, icon }) =>
  h("a", { href: `#/${word}`, data: { word } }, glyph(icon), h("span", {}, name)),
);
const nav = h("nav", { "aria-label": "Views" }, links);
const version = h("span", { class: "version" });
const reach = h("span", { class: "reach", role: "status" });
/** @type {View | null} */
let shown = null;

/** @param {string} path */
function glyph(path) {
  return svg("svg", { viewBox: "0 0 24 24", class: "glyph", "aria-hidden": "true" }, svg("path", { d: path }));
}

const keyButton = h("button", { type: "button", class: "ghost", onclick: enterKey });
const themeChoice = h(
  "select",
  {
    "aria-label": "Colours",
    value: theme.now,
    class: "quiet",
    onchange: (/** @type {Event} */ event) => (theme.now = /** @type {HTMLSelectElement} */ (event.target).value),
  },
  THEMES.map((name) =>
    h("option", { value: name }, name === "system" ? "Auto" : name === "light" ? "Light" : "Dark"),
  ),
);

function showKey() {
  say(keyButton, session.key ? `Key ${session.shownKey}` : "Enter a key");
}

function enterKey() {
  const input = h("input", {
    type: "password",
    name: "key",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: session.key ? `now ${session.shownKey}` : "",
  });
  const form = h(
    "form",
    {
      class: "stack",
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        if (input.value.trim()) session.key = input.value.trim();
        dialog.close();
      },
    },
    field(
      "API key",
      input,
      "It stays in this tab alone until the tab is closed, and goes to this server only. " +
        "An admin key may do everything here, a read-only key looks, an inference key uses the playground.",
    ),
    h(
      "div",
      { class: "row end" },
      session.key &&
        h(
          "button",
          {
            type: "button",
            class: "danger",
            onclick: () => {
              session.key = "";
              dialog.close();
            },
          },
          "Forget the key",
        ),
      h("button", { type: "submit", class: "primary" }, "Use the key"),
    ),
  );
  const dialog = open("Key", form);
}

/** What a part of the address means; one that somebody broke, as it is. @param {string} part */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show() {
  const [word = "", ...args] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const view = VIEWS.find((one) => one.word === word) ?? VIEWS[0];
  shown?.stop?.();
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  for (const link of links) {
    if (link.dataset.word !== view.word) link.removeAttribute("aria-current");
    else {
      link.setAttribute("aria-current", "page");
      nav.scrollLeft = link.offsetLeft - nav.clientWidth / 2; // on a narrow page they may not all be seen
    }
  }
  try {
    shown = view.make({ args: args.filter(Boolean), monitor });
  } catch (error) {
    shown = { title: view.name, node: errorBox(error, { title: "This view cannot be shown" }) };
  }
  document.title = `${shown.title} · hotswap`;
  fill(main, shown.node);
  window.scrollTo(0, 0);
}

async function showVersion() {
  try {
    say(version, JSON.parse(await getText("version")).version);
  } catch {
    say(version, ""); // the views say why nothing answers
  }
}

monitor.addEventListener("look", () => {
  const error = /** @type {any} */ (monitor.error);
  reach.className = `reach ${!error ? "good" : error.status === 0 || error.status >= 500 ? "bad" : "warn"}`;
  say(
    reach,
    !error
      ? "connected"
      : error.status === 0
        ? "no answer"
        : error.status === 401
          ? "no key"
          : error.status === 403
            ? "no metrics"
            : "not ready",
  );
});

document
  .getElementById("app")
  ?.replaceWith(
    h(
      "div",
      { class: "frame" },
      h(
        "header",
        { class: "side" },
        h(
          "a",
          { class: "brand", href: "#/" },
          h("img", { src: "console/mark.svg", alt: "", width: 26, height: 26 }),
          h("span", {}, "hotswap"),
        ),
        nav,
        h("div", { class: "foot" }, reach, keyButton, themeChoice, version),
      ),
      main,
    ),
  );

document.addEventListener("wantkey", enterKey);
document.addEventListener("keychange", () => {
  showKey();
  show();
});
window.addEventListener("hashchange", () => {
  show();
  main.focus({ preventScroll: true });
});
setInterval(keepTime, 10_000);
showKey();
showVersion();
show();
monitor.restart();
