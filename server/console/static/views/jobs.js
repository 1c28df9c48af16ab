/** Fine-tuning jobs: which there are, and a new one of an uploaded file. */

import { change, get, upload } from "../api.js";
import { fill, h, keyed } from "../dom.js";
import * as format from "../format.js";
import { ask, field } from "../parts/dialog.js";
import { badge, emptyState, skeleton, toast, trouble } from "../parts/notices.js";
import { poll } from "../parts/polling.js";

const KINDS = /** @type {Record<string, string>} */ ({
  succeeded: "good",
  failed: "bad",
  cancelled: "",
  running: "info",
  paused: "warn",
  queued: "",
  validating_files: "",
});

/** @param {{status: string, paused: boolean}} job */
export function statusBadge(job) {
  const status = job.paused ? "paused" : job.status;
  return badge(status.replaceAll("_", " "), KINDS[status] ?? "");
}

/** @returns {import("../app.js").View} */
export function jobsView() {
  const problem = trouble("The jobs cannot be read");
  const list = h("div", {}, skeleton(5));
  const body = h("tbody", {});
  const table = h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "stacks" },
      h("caption", { class: "visually-hidden" }, "Fine-tuning jobs"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Job", "From", "Method", "Made", "Result"].map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      body,
    ),
  );
  const older = h(
    "button",
    {
      type: "button",
      hidden: true,
      onclick: async () => {
        pages += 1;
        await polling.now();
      },
    },
    "Older",
  );
  let pages = 1;
  let drawn = "";
  const polling = poll(async () => {
    try {
      const { jobs, more } = await read(pages);
      problem.clear();
      const state = jobs.length ? "some" : "none";
      if (state !== drawn)
        fill(
          list,
          state === "some"
            ? table
            : emptyState(
                "No fine-tuning jobs yet",
                "A file of conversations becomes an adapter that is served at once.",
              ),
        );
      drawn = state;
      keyed(body, jobs, (job) => job.id, row);
      older.hidden = !more;
    } catch (error) {
      if (!drawn) fill(list);
      return problem.tell(error);
    }
    return true;
  }, 4);
  const node = h(
    "div",
    { class: "view" },
    h(
      "div",
      { class: "head" },
      h("h1", {}, "Fine-tuning"),
      h("div", { class: "spring" }),
      h("button", { type: "button", class: "primary", onclick: () => newJob().then(polling.now) }, "New job"),
    ),
    problem,
    h("section", { class: "card flush", "aria-label": "Jobs" }, list),
    h("div", { class: "row end" }, older),
  );
  return { title: "Fine-tuning", node, stop: polling.stop };
}

/** @param {number} pages */
async function read(pages) {
  const jobs = [];
  let more = true;
  for (let i = 0; i < pages && more; i += 1) {
    const page = await get("v1/fine_tuning/jobs", { limit: 50, after: jobs.at(-1)?.id });
    jobs.push(...page.data);
    more = page.has_more;
  }
  return { jobs, more };
}

/** @param {any} first */
function row(first) {
  const status = h("span", {});
  const result = h("td", { data: { label: "Result" }, class: "wide" });
  const made = h("td", { data: { label: "Made" } });
  let drawn = "";
  const node = h(
    "tr",
    {},
    h(
      "th",
      { scope: "row" },
      h("div", { class: "row" }, h("a", { class: "mono", href: `#/jobs/${first.id}` }, first.id), status),
    ),
    h("td", { data: { label: "From" }, class: "name-cell" }, first.model),
    h("td", { data: { label: "Method" } }, first.method.type),
    made,
    result,
  );
  return Object.assign(node, {
    /** @param {any} job */
    update(job) {
      fill(made, format.ago(job.created_at));
      const next = JSON.stringify([job.status, job.paused, job.fine_tuned_model, job.error]);
      if (next === drawn) return;
      drawn = next;
      fill(status, statusBadge(job));
      fill(
        result,
        job.fine_tuned_model
          ? h(
              "a",
              { class: "name-cell", href: `#/adapters/${encodeURIComponent(job.fine_tuned_model)}` },
              job.fine_tuned_model,
            )
          : job.error
            ? h("span", { class: "muted" }, job.error.message)
            : "–",
      );
    },
  });
}

async function newJob() {
  const models = await get("v1/models").then(
    (body) => body.data,
    () => [],
  );
  const bar = h("span", {});
  const track = h("div", { class: "progress", hidden: true }, bar);
  const body = h(
    "div",
    { class: "stack" },
    field(
      "Start from",
      h(
        "select",
        { name: "model" },
        models.map((/** @type {any} */ one) => h("option", { value: one.id }, one.id)),
      ),
      "the base, or a LoRA adapter to go on with",
    ),
    field(
      "Training file",
      h("input", { type: "file", name: "training", accept: ".jsonl", required: true }),
      'JSONL, a conversation a line: {"messages": [...]}, or preferences for dpo',
    ),
    field("Validation file", h("input", { type: "file", name: "validation", accept: ".jsonl" }), "optional"),
    h(
      "div",
      { class: "fields" },
      field(
        "Method",
        h(
          "select",
          { name: "method" },
          h("option", { value: "supervised" }, "supervised"),
          h("option", { value: "dpo" }, "dpo"),
        ),
      ),
      field(
        "Suffix",
        h("input", { name: "suffix", maxlength: 64, pattern: "[A-Za-z0-9._\\-]*", placeholder: "of its name" }),
      ),
      field("Epochs", h("input", { type: "number", name: "n_epochs", min: 1, max: 50, placeholder: "auto" })),
      field("Batch size", h("input", { type: "number", name: "batch_size", min: 1, max: 256, placeholder: "auto" })),
      field(
        "Learning rate ×",
        h("input", {
          type: "number",
          name: "learning_rate_multiplier",
          min: 0.01,
          max: 100,
          step: "any",
          placeholder: "auto",
        }),
      ),
    ),
    track,
  );
  const job = await ask({
    title: "New fine-tuning job",
    body,
    action: "Begin",
    send: async (values) => {
      const send = async (/** @type {FormDataEntryValue | null} */ file) => {
        const form = new FormData();
        form.set("purpose", "fine-tune");
        form.set("file", /** @type {File} */ (file));
        track.hidden = false;
        return (await upload("v1/files", form, (sent, total) => (bar.style.width = `${(sent / (total || 1)) * 100}%`)))
          .id;
      };
      const numbers = Object.fromEntries(
        ["n_epochs", "batch_size", "learning_rate_multiplier"]
          .filter((name) => values.get(name))
          .map((name) => [name, Number(values.get(name))]),
      );
      const method = String(values.get("method"));
      const validation = values.get("validation");
      return change("POST", "v1/fine_tuning/jobs", {
        body: {
          model: values.get("model"),
          training_file: await send(values.get("training")),
          ...(validation instanceof File && validation.size ? { validation_file: await send(validation) } : {}),
          ...(values.get("suffix") ? { suffix: values.get("suffix") } : {}),
          method: { type: method, [method]: { hyperparameters: numbers } },
        },
      });
    },
  });
  if (job) {
    toast("The job has begun");
    location.hash = `#/jobs/${job.id}`;
  }
}
