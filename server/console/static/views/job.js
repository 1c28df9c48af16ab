/** One fine-tuning job as it goes: its loss, its events, and what may be done. */

import { ask, change, events, get, part, url } from "../api.js";
import { fill, h } from "../dom.js";
import * as format from "../format.js";
import { chart } from "../parts/chart.js";
import { confirm } from "../parts/dialog.js";
import { emptyState, errorBox, skeleton, toast, trouble } from "../parts/notices.js";
import { poll } from "../parts/polling.js";
import { statusBadge } from "./jobs.js";

const MOST = 200; // events in the list; all are in the chart
const ENDED = ["succeeded", "failed", "cancelled"];

/** @param {import("../app.js").Context} context @returns {import("../app.js").View} */
export function jobView({ args: [id] }) {
  const path = `v1/fine_tuning/jobs/${part(id)}`;
  const problem = trouble("The job cannot be read");
  const done = h("div", {});
  const title = h("div", { class: "head" }, h("h1", { class: "mono" }, id));
  const facts = h("section", { class: "card" }, h("h2", {}, "Job"), skeleton(5));
  const loss = chart({
    label: "Loss by step",
    x: (step) => `step ${format.count(step)}`,
    y: format.figure,
    height: 220,
    named: true,
    empty: () => "No step has been taken yet",
  });
  const log = h("ol", { class: "timeline" });
  const none = emptyState("Nothing has happened yet");
  /** @type {Map<number, number>[]} loss by step, of training and validation */
  const losses = [new Map(), new Map()];
  const streaming = new AbortController();
  let drawn = "";

  /** @param {"cancel" | "pause" | "resume"} verb @param {string} words */
  async function act(verb, words) {
    fill(done);
    try {
      await change("POST", `${path}/${verb}`);
      toast(words);
    } catch (error) {
      fill(done, errorBox(error, { title: "Not done" }));
    }
    polling.now();
  }

  /** @param {any} job */
  function show(job) {
    const next = JSON.stringify(job);
    if (next === drawn) return;
    drawn = next;
    const ended = ENDED.includes(job.status);
    fill(
      title,
      h(
        "div",
        {},
        h("p", { class: "crumbs" }, h("a", { href: "#/jobs" }, "Fine-tuning")),
        h("h1", { class: "mono" }, id),
      ),
      statusBadge(job),
      h("div", { class: "spring" }),
      !ended &&
        h(
          "div",
          { class: "row" },
          job.paused
            ? h(
                "button",
                {
                  type: "button",
                  data: { key: "resume" },
                  onclick: () => act("resume", "It goes on where it stopped"),
                },
                "Resume",
              )
            : h(
                "button",
                { type: "button", data: { key: "pause" }, onclick: () => act("pause", "It pauses after its step") },
                "Pause",
              ),
          h(
            "button",
            {
              type: "button",
              class: "danger",
              data: { key: "cancel" },
              onclick: () =>
                confirm({
                  title: "Cancel the job?",
                  text: "It ends at once, and nothing of it is served.",
                  action: "Cancel the job",
                  send: () => change("POST", `${path}/cancel`).then(() => polling.now()),
                }),
            },
            "Cancel",
          ),
        ),
    );
    const numbers = Object.entries(job.hyperparameters)
      .map(([name, value]) => `${name} ${value}`)
      .join(", ");
    const lines = [
      [
        "Result",
        job.fine_tuned_model &&
          h(
            "a",
            { class: "name-cell", href: `#/adapters/${encodeURIComponent(job.fine_tuned_model)}` },
            job.fine_tuned_model,
          ),
      ],
      ["From", job.model],
      ["Method", job.method.type],
      ["Hyperparameters", numbers],
      ["Seed", job.seed],
      ["Training file", h("span", { class: "mono" }, job.training_file)],
      ["Validation file", job.validation_file && h("span", { class: "mono" }, job.validation_file)],
      ["Trained tokens", job.trained_tokens !== null && format.count(job.trained_tokens)],
      ["Made", format.time(job.created_at)],
      ["Ends about", job.estimated_finish && format.time(job.estimated_finish)],
      ["Ended", job.finished_at && format.time(job.finished_at)],
      ["Metadata", job.metadata && JSON.stringify(job.metadata)],
    ];
    fill(
      facts,
      h("h2", {}, "Job"),
      h(
        "dl",
        { class: "facts-list named" },
        lines
          .filter(([, value]) => value !== null && value !== undefined && value !== false)
          .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
      ),
      job.error && h("div", { class: "notice bad" }, h("strong", {}, job.error.code), h("p", {}, job.error.message)),
    );
  }

  /** @param {any} event */
  function take(event) {
    none.hidden = true;
    log.prepend(
      h(
        "li",
        { class: event.level === "error" ? "refused" : "" },
        h("div", {}, event.message),
        h("div", { class: "muted" }, format.time(event.created_at)),
      ),
    );
    if (log.children.length > MOST) log.lastElementChild?.remove();
    ["train_loss", "valid_loss"].forEach(
      (name, i) => event.data[name] !== undefined && losses[i].set(event.data.step, event.data[name]),
    );
    if (event.type === "metrics") draw();
  }
  let drawing = 0;
  function draw() {
    cancelAnimationFrame(drawing);
    drawing = requestAnimationFrame(() =>
      loss.update(
        losses
          .map((points, i) => ({
            name: i ? "validation" : "training",
            tone: i + 1,
            dots: i === 1,
            points: [...points].sort((a, b) => a[0] - b[0]),
          }))
          .filter((one) => one.points.length),
      ),
    );
  }

  async function follow() {
    try {
      const response = await ask("GET", url(`${path}/events`, { stream: "true" }), { signal: streaming.signal });
      for await (const event of events(response)) take(event);
      polling.now();
    } catch (error) {
      if (!streaming.signal.aborted)
        fill(
          done,
          errorBox(error, {
            title: "The events cannot be followed",
            retry: () => {
              fill(done);
              fill(log);
              follow();
            },
          }),
        );
    }
  }
  const polling = poll(async () => {
    try {
      show(await get(path));
      problem.clear();
    } catch (error) {
      return problem.tell(error);
    }
    return true;
  }, 3);
  loss.update([]);
  follow();
  const node = h(
    "div",
    { class: "view" },
    title,
    problem,
    done,
    h("section", { class: "card" }, h("h2", {}, "Loss"), loss),
    h(
      "div",
      { class: "two" },
      facts,
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Events"),
        none,
        h("div", { class: "tall", tabindex: 0, role: "region", "aria-label": "Events" }, log),
      ),
    ),
  );
  const stop = () => {
    polling.stop();
    streaming.abort();
  };
  return { title: id, node, stop };
}
