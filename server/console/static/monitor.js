/** The server's metrics as they change: looked at every few seconds, and kept for some minutes. */

import { getText, mayPass } from "./api.js";
import { EMPTY, Histogram, histograms, parse, sum } from "./prometheus.js";

const SECONDS = 2; // between two looks
const KEPT = 300; // looks
const SMOOTH = 20; // seconds that a point of a chart looks back
const DUTY = 10; // a look that takes long is followed by a pause this many times as long
const TIMES = { ttft: "time_to_first_token", itl: "inter_token_latency", e2e: "e2e_request_latency" };

/**
 * One adapter version, or the base (no adapter): counters since the server's start.
 * @typedef {object} Traffic
 * @property {string} adapter
 * @property {string} version
 * @property {number} requests
 * @property {number} errors
 * @property {number} tokens generated
 * @property {number} prompts tokens of prompts
 * @property {Histogram} ttft
 * @property {Histogram} itl
 * @property {Histogram} e2e
 */

/**
 * The figures of one row over the last seconds; null: nothing to measure.
 * @typedef {{requests: number, tokens: number, ttft: number | null, itl: number | null, e2e: number | null}} Figures
 * One look. `rows` by key; `server` are the figures that have no adapter; `model` is the base's name.
 * @typedef {object} Look
 * @property {number} at Unix seconds
 * @property {string} model
 * @property {Map<string, Traffic>} rows
 * @property {Record<string, number>} server
 * @property {Map<string, Figures>} [figures] from the second look on
 */

const keyOf = (/** @type {Record<string, string>} */ labels) =>
  labels.adapter ? `${labels.adapter}@${labels.version}` : "";

/** @param {string} text @param {number} at seconds @returns {Look} */
export function read(text, at) {
  const metrics = parse(text);
  const rows = new Map();
  const row = (/** @type {Record<string, string>} */ labels) => {
    const key = keyOf(labels);
    if (!rows.has(key)) {
      const none = { requests: 0, errors: 0, tokens: 0, prompts: 0, ttft: EMPTY, itl: EMPTY, e2e: EMPTY };
      rows.set(key, { adapter: labels.adapter ?? "", version: labels.version ?? "", ...none });
    }
    return rows.get(key);
  };
  const counters = {
    requests: "requests_total",
    errors: "errors_total",
    tokens: "generation_tokens_total",
    prompts: "prompt_tokens_total",
  };
  for (const [field, name] of Object.entries(counters)) {
    for (const { labels, value } of metrics.get(`hotswap_${name}`) ?? []) row(labels)[field] += value;
  }
  for (const [field, name] of Object.entries(TIMES)) {
    for (const [key, histogram] of histograms(metrics, `hotswap_${name}_seconds`, keyOf)) {
      if (rows.has(key)) rows.get(key)[field] = histogram;
    }
  }
  const model = metrics.get("hotswap_requests_running")?.[0]?.labels.model ?? "base";
  return { at, model, rows, server: serverFigures(metrics) };
}

/** @param {Map<string, import("./prometheus.js").Sample[]>} metrics @returns {Record<string, number>} */
function serverFigures(metrics) {
  const of = (/** @type {string} */ name) => sum(metrics.get(`hotswap_${name}`));
  const tier = (/** @type {string} */ name, /** @type {string} */ tier) =>
    sum(metrics.get(`hotswap_${name}`), (labels) => labels.tier === tier);
  return {
    running: of("requests_running"),
    waiting: of("requests_waiting"),
    kv: of("kv_cache_usage_ratio"),
    baseBytes: of("base_bytes"),
    kvBytes: of("kv_cache_bytes"),
    deviceBytes: tier("adapter_bytes", "device"),
    hostBytes: tier("adapter_bytes", "host"),
    storeBytes: tier("adapter_bytes", "store"),
    device: tier("adapters_resident", "device"),
    host: tier("adapters_resident", "host"),
    store: tier("adapters_resident", "store"),
    queries: of("prefix_cache_queries_total"),
    hits: of("prefix_cache_hits_total"),
    preemptions: of("preemptions_total"),
    restarts: of("engine_restarts_total"),
    swaps: of("adapter_swaps_total"),
    steps: of("engine_step_seconds_count"),
  };
}

/**
 * What happened between two looks; the earlier one may be missing (all since the start), or of another process.
 * @param {Look} now
 * @param {Look | undefined} then
 * @param {(row: Traffic) => boolean} [accepts] which rows are added up
 */
export function between(now, then, accepts = () => true) {
  const span = then ? Math.max(now.at - then.at, 0.001) : 0;
  const total = { requests: 0, errors: 0, tokens: 0, prompts: 0, ttft: EMPTY, itl: EMPTY, e2e: EMPTY };
  for (const [key, row] of now.rows) {
    if (!accepts(row)) continue;
    const before = then?.rows.get(key);
    const grown = (/** @type {"requests" | "errors" | "tokens" | "prompts"} */ field) =>
      before && before[field] <= row[field] ? row[field] - before[field] : row[field];
    for (const field of /** @type {const} */ (["requests", "errors", "tokens", "prompts"]))
      total[field] += grown(field);
    for (const field of /** @type {const} */ (["ttft", "itl", "e2e"]))
      total[field] = total[field].plus(row[field].since(before?.[field]));
  }
  return { span, ...total };
}

/**
 * The figures of every row at `now`, of what came since `then`.
 * @param {Look} now
 * @param {Look} then
 * @returns {Map<string, Figures>}
 */
function figuresOf(now, then) {
  return new Map(
    Array.from(now.rows, ([key, row]) => {
      const grown = between(now, then, (one) => one === row);
      const [ttft, itl, e2e] = [grown.ttft, grown.itl, grown.e2e].map((one) => one.quantile(0.95));
      return [key, { requests: grown.requests / grown.span, tokens: grown.tokens / grown.span, ttft, itl, e2e }];
    }),
  );
}

/** Asks again and again while the page is seen and its key will do, and tells each look, or why there is none. */
export class Monitor extends EventTarget {
  constructor() {
    super();
    /** @type {Look[]} oldest first */
    this.looks = [];
    /** @type {Error | null} */
    this.error = null;
    this.timer = 0;
    document.addEventListener("keychange", () => this.restart());
    document.addEventListener("visibilitychange", () => document.hidden || this.restart(true));
  }

  get last() {
    return this.looks.at(-1);
  }

  /**
   * The look that was made about `seconds` before the last one; the first, if there is none so old.
   * @param {number} seconds
   */
  back(seconds) {
    const last = this.last;
    if (!last || this.looks.length < 2) return undefined;
    const found = this.looks.findLast((look) => look.at <= last.at - seconds + 0.5);
    return found ?? this.looks[0];
  }

  /** Begin, or begin anew with another key. */
  restart(keep = false) {
    if (!keep) this.looks = [];
    clearTimeout(this.timer);
    this.look();
  }

  async look() {
    const began = performance.now();
    const turn = (this.turn = {});
    try {
      const text = await getText("metrics");
      if (turn !== this.turn) return;
      const look = read(text, Date.now() / 1000);
      const then = this.looks.find((one) => one.at >= look.at - SMOOTH - 0.5);
      if (then) look.figures = figuresOf(look, then);
      this.looks = [...this.looks, look].slice(-KEPT);
      this.error = null;
    } catch (error) {
      if (turn !== this.turn) return;
      this.error = /** @type {Error} */ (error);
    }
    this.dispatchEvent(new Event("look"));
    const pause = Math.max(SECONDS * 1000, (performance.now() - began) * DUTY);
    if (!document.hidden && mayPass(this.error)) this.timer = setTimeout(() => this.look(), pause);
  }
}
