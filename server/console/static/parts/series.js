/** Lines of charts from what the monitor has seen. */

/** @typedef {import("../monitor.js").Monitor} Monitor */

const TONES = 6;

/** Colours of models, the same in table and charts. */
export class Tones {
  constructor() {
    /** @type {Map<string, number>} */
    this.given = new Map();
  }

  /** 1 to 6, in the order of asking. @param {string} key */
  of(key) {
    if (!this.given.has(key)) this.given.set(key, (this.given.size % TONES) + 1);
    return /** @type {number} */ (this.given.get(key));
  }
}

/**
 * @param {Monitor} monitor
 * @param {string[]} keys rows of the looks
 * @param {"requests" | "tokens" | "ttft" | "itl" | "e2e"} name
 * @param {Tones} tones
 * @param {(key: string) => string} [nameOf]
 * @returns {import("./chart.js").Series[]}
 */
export function figureSeries(monitor, keys, name, tones, nameOf = (key) => key || monitor.last?.model || "base") {
  return keys.map((key) => ({
    name: nameOf(key),
    tone: tones.of(key),
    points: monitor.looks
      .filter((look) => look.figures)
      .map((look) => [look.at, look.figures?.get(key)?.[name] ?? null]),
  }));
}

/** What an empty chart says. @param {Monitor} monitor */
export const waiting = (monitor) =>
  monitor.looks.length < 2 ? "Looking twice, to see what changes" : "No requests yet";
