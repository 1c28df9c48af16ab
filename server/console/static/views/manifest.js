/** What the trainer recorded in a version's package: data, settings, figures, the loss as it fell. */

import { get, part } from "../api.js";
import { fill, h } from "../dom.js";
import * as format from "../format.js";
import { chart } from "../parts/chart.js";
import { open } from "../parts/dialog.js";
import { badge, emptyState, errorBox, skeleton } from "../parts/notices.js";

/** Show it in a dialog. @param {string} name @param {number} version */
export async function manifestPanel(name, version) {
  const body = h("div", { class: "stack" }, skeleton(6));
  open(`${name}@${version}`, body);
  try {
    const found = await get(`v1/adapters/${part(name)}/versions/${version}`);
    fill(
      body,
      facts([
        ["State", badge(found.state)],
        ["Kind", found.kind],
        ["Weight", format.bytes(found.bytes)],
        ["Uploaded", format.time(found.created)],
        ["Digest", h("span", { class: "mono" }, found.digest)],
      ]),
      manifest(found.manifest),
    );
  } catch (error) {
    fill(body, errorBox(error));
  }
}

/** @param {[string, any][]} pairs */
function facts(pairs) {
  return h(
    "dl",
    { class: "facts-list named" },
    pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/** @param {any} made */
function manifest(made) {
  if (!made)
    return emptyState(
      "No manifest",
      "Whoever made this package recorded nothing of how. Packages of `hotswap train` have one.",
    );
  const settings = Object.entries(made.training).filter(
    ([, value]) => value !== null && (typeof value !== "object" || Array.isArray(value)),
  );
  return [
    lossCurve(made.losses),
    Object.keys(made.metrics).length
      ? [
          h("h3", {}, "Figures of the run"),
          facts(
            Object.entries(made.metrics).map(([name, value]) => [name, format.figure(/** @type {number} */ (value))]),
          ),
        ]
      : null,
    h("h3", {}, "Made of"),
    facts([
      ["Base", made.base.name],
      ["Base fingerprint", h("span", { class: "mono" }, made.base.fingerprint)],
      ["Data, SHA-256", made.data && h("span", { class: "mono" }, made.data.sha256)],
      ["Rows", made.data && format.count(made.data.rows)],
      ["Seed", made.seed],
      ["Made", format.time(Date.parse(made.created) / 1000)],
      [
        "Chat template",
        made.chat_template_sha256 && h("span", { class: "mono" }, format.short(made.chat_template_sha256)),
      ],
      ["Labels", made.pooled?.labels?.join(", ")],
    ]),
    settings.length
      ? h(
          "details",
          {},
          h("summary", {}, "Settings of the training"),
          facts(settings.map(([name, value]) => [name, String(value)])),
        )
      : null,
    h(
      "details",
      {},
      h("summary", {}, "The manifest as it is"),
      h("pre", { tabindex: 0 }, JSON.stringify(made, null, 2)),
    ),
  ];
}

/** @param {any} losses {train: [step, loss][], validation: [step, loss][]} */
export function lossCurve(losses) {
  const series = [
    { name: "training", tone: 1, points: losses?.train ?? [] },
    { name: "validation", tone: 2, points: losses?.validation ?? [], dots: true },
  ].filter((one) => one.points.length);
  if (!series.length) return null;
  const drawn = chart({
    label: "Loss by step",
    x: (step) => `step ${format.count(step)}`,
    y: format.figure,
    height: 190,
    named: true,
  });
  drawn.update(series);
  return h("div", {}, h("h3", {}, "Loss"), drawn);
}
