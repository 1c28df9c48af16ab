/** Bringing a package: dropped or chosen, sent with its progress, and what the server found when it verified it. */

import { upload } from "../api.js";
import { fill, h, say } from "../dom.js";
import * as format from "../format.js";
import { field, tick } from "../parts/dialog.js";
import { badge, errorBox } from "../parts/notices.js";

/** @typedef {{files: {file: File, name: string}[], name: string}} Package */

/** What an archive or a folder would be called. @param {string} name */
export const nameFor = (name) =>
  name
    .replace(/\.(tar\.gz|tgz|tar|zip|tar\.zst|tar\.xz|tar\.bz2)$/i, "")
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .replace(/^[^A-Za-z0-9]+/, "")
    .slice(0, 128);

/** All files below what was dropped. @param {FileSystemEntry} entry @returns {Promise<File[]>} */
async function filesOf(entry) {
  if (entry.isFile)
    return [await new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject))];
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  const found = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    for (const one of some) found.push(...(await filesOf(one)));
  }
  return found;
}

/** @param {DataTransfer} dropped @returns {Promise<Package>} */
async function packageOf(dropped) {
  const entries = [...dropped.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  if (!entries.length) return packageOfInput(dropped.files); // not of a file system
  const files = (await Promise.all(entries.map(filesOf))).flat();
  return { files: files.map((file) => ({ file, name: file.name })), name: nameFor(entries[0]?.name ?? "") };
}

/** @param {FileList} list @returns {Package} */
function packageOfInput(list) {
  const files = [...list];
  const folder = files[0]?.webkitRelativePath.split("/")[0];
  return {
    files: files.map((file) => ({ file, name: file.name })),
    name: nameFor(folder || (files.length === 1 ? files[0].name : "")),
  };
}

/**
 * A place to drop packages on. `fixed`: the name they become versions of.
 * @param {{fixed?: string, onDone: (body: any) => void}} options
 */
export function uploadPlace({ fixed, onDone }) {
  const stage = h("div", { class: "stack" });
  const chooser = (/** @type {string} */ label, /** @type {Record<string, any>} */ props) =>
    h(
      "label",
      { class: "button small" },
      label,
      h("input", {
        type: "file",
        ...props,
        onchange: (/** @type {Event} */ event) => {
          const input = /** @type {HTMLInputElement} */ (event.target);
          if (input.files?.length) prepare(packageOfInput(input.files));
          input.value = "";
        },
      }),
    );
  const drop = h(
    "div",
    { class: "drop" },
    h(
      "p",
      {},
      h(
        "strong",
        {},
        fixed ? `Drop a package here to make it the next version of ${fixed}` : "Drop an adapter package here",
      ),
      h("br"),
      "an archive, or the folder that training or peft wrote",
    ),
    h(
      "div",
      { class: "row" },
      chooser("Choose an archive", { "aria-label": "Choose an archive", accept: ".tar,.gz,.tgz,.zip,.zst,.xz,.bz2" }),
      chooser("Choose a folder", { "aria-label": "Choose a folder", webkitdirectory: true }),
    ),
  );
  const node = h("section", { class: "stack", "aria-label": "Upload" }, drop, stage);
  for (const type of ["dragenter", "dragover"]) {
    drop.addEventListener(type, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener(
    "dragleave",
    (event) => drop.contains(/** @type {Node} */ (event.relatedTarget)) || drop.classList.remove("over"),
  );
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer) prepare(await packageOf(event.dataTransfer));
  });

  /** @param {Package} found */
  function prepare(found) {
    if (!found.files.length) {
      fill(
        stage,
        h(
          "div",
          { class: "notice bad", role: "alert" },
          h("p", {}, "That holds no file. Drop an archive (tar, tar.gz, zip), or the folder with adapter_config.json."),
        ),
      );
      return;
    }
    const bytes = found.files.reduce((total, { file }) => total + file.size, 0);
    const name = h("input", {
      name: "name",
      value: fixed ?? found.name,
      required: true,
      readonly: Boolean(fixed),
      autocomplete: "off",
      spellcheck: "false",
      pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,127}",
      title: "letters, digits, '.', '_' and '-'",
    });
    const form = h(
      "form",
      {
        class: "card stack",
        onsubmit: (/** @type {SubmitEvent} */ event) => {
          event.preventDefault();
          send(found, new FormData(/** @type {any} */ (form)), bytes);
        },
      },
      h(
        "div",
        {},
        h("strong", {}, found.files.length === 1 ? found.files[0].name : `${found.files.length} files`),
        h("span", { class: "muted" }, ` ${format.bytes(bytes)}`),
      ),
      field("Name", name, fixed ? undefined : "What requests call it in `model`."),
      h(
        "div",
        { class: "stack tight" },
        tick("Make it live at once (otherwise it waits as a candidate, asked as NAME@VERSION)", {
          name: "activate",
          checked: true,
        }),
        !fixed && tick("If the name exists, add a version to it", { name: "replace", checked: true }),
        tick("Accept an adapter that answers exactly as the base does", { name: "allow_noop" }),
      ),
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", onclick: () => fill(stage) }, "Cancel"),
        h("button", { type: "submit", class: "primary" }, "Upload"),
      ),
    );
    fill(stage, form);
    name.focus();
  }

  /** @param {Package} found @param {FormData} chosen @param {number} bytes */
  async function send(found, chosen, bytes) {
    const form = new FormData();
    form.set("name", String(chosen.get("name")));
    form.set("replace", fixed || chosen.get("replace") ? "true" : "false");
    form.set("activate", chosen.get("activate") ? "true" : "false");
    form.set("allow_noop", chosen.get("allow_noop") ? "true" : "false");
    for (const { file, name } of found.files) form.append("file", file, name);
    const bar = h("span", {});
    const track = h(
      "div",
      { class: "progress", role: "progressbar", "aria-label": "Upload", "aria-valuemin": 0, "aria-valuemax": 100 },
      bar,
    );
    const words = h("span", { role: "status" }, "Sending");
    const stopping = new AbortController();
    fill(
      stage,
      h(
        "div",
        { class: "card stack" },
        h(
          "div",
          { class: "row" },
          words,
          h("div", { class: "spring" }),
          h("button", { type: "button", class: "small", onclick: () => stopping.abort() }, "Stop"),
        ),
        track,
      ),
    );
    const began = performance.now();
    try {
      const body = await upload(
        "v1/adapters",
        form,
        (sent, total) => {
          const share = total ? sent / total : 0;
          bar.style.width = `${share * 100}%`;
          track.setAttribute("aria-valuenow", (share * 100).toFixed(0));
          track.classList.toggle("busy", share >= 1);
          say(
            words,
            share >= 1
              ? "Verifying: shapes, numbers, recorded answers"
              : `Sending ${format.bytes(Math.min(sent, bytes))} of ${format.bytes(bytes)}`,
          );
        },
        stopping.signal,
      );
      fill(
        stage,
        report(body, (performance.now() - began) / 1000, () => fill(stage)),
      );
      onDone(body);
    } catch (error) {
      fill(
        stage,
        errorBox(error, {
          title: "The server did not take the package, and serves what it did before",
          retry: () => prepare(found),
        }),
      );
    }
  }
  return node;
}

/** What the server found. @param {any} body @param {number} seconds @param {() => void} close */
function report(body, seconds, close) {
  const facts = [
    ["State", body.state],
    ["Kind", body.kind],
    ["Weight", format.bytes(body.bytes)],
    ["Virtual tokens", body.num_virtual_tokens || null],
    ["Digest", body.digest],
    ["Base", body.base_fingerprint],
    ["Gave place to it", body.evicted?.map((/** @type {number} */ n) => `version ${n}`).join(", ")],
  ];
  return h(
    "div",
    { class: "notice good report", role: "status" },
    h(
      "div",
      { class: "row" },
      h("strong", {}, `${body.id} was verified`),
      badge(body.state, body.state === "live" ? "good" : "info"),
      h("span", { class: "muted" }, `in ${format.seconds(seconds)}`),
      h("div", { class: "spring" }),
      h("button", { type: "button", class: "ghost small", onclick: close }, "Dismiss"),
    ),
    h(
      "p",
      {},
      "It fits the base, all of its numbers are finite, and it answers as recorded, where its package says how.",
    ),
    body.warnings?.map((/** @type {string} */ warning) => h("p", {}, badge("warning", "warn"), " ", warning)),
    h(
      "details",
      {},
      h("summary", {}, "The report"),
      h(
        "dl",
        { class: "facts-list named" },
        facts
          .filter(([, value]) => value !== null && value !== undefined && value !== "")
          .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { class: "mono" }, value))),
      ),
    ),
  );
}
