/** The text that /metrics answers, read; and what its histograms say. */

/** @typedef {{labels: Record<string, string>, value: number}} Sample */

const LINE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = /** @type {Record<string, string>} */ ({ n: "\n" });

/**
 * Every sample, by the name of its metric.
 * @param {string} text
 * @returns {Map<string, Sample[]>}
 */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    /** @type {Record<string, string>} */
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, char) => ESCAPES[char] ?? char);
    }
    const value = match[3] === "+Inf" ? Infinity : match[3] === "-Inf" ? -Infinity : Number(match[3]);
    const samples = found.get(match[1]);
    if (samples) samples.push({ labels, value });
    else found.set(match[1], [{ labels, value }]);
  }
  return found;
}

/** The sum of all samples of a metric for which `accepts` holds. @param {Sample[] | undefined} samples */
export function sum(samples, accepts = (/** @type {Record<string, string>} */ _labels) => true) {
  let total = 0;
  for (const { labels, value } of samples ?? []) if (accepts(labels)) total += value;
  return total;
}

/** Cumulative counts by upper bound, in the order of the bounds. */
export class Histogram {
  /** @param {number[]} bounds @param {number[]} counts */
  constructor(bounds, counts) {
    this.bounds = bounds;
    this.counts = counts;
  }

  /** How much there is in all. */
  get count() {
    return this.counts.at(-1) ?? 0;
  }

  /**
   * What came since `earlier`; all, where that is none, or counts of another process.
   * @param {Histogram | undefined} earlier
   */
  since(earlier) {
    if (!earlier || earlier.bounds.length !== this.bounds.length || earlier.count > this.count) return this;
    return new Histogram(
      this.bounds,
      this.counts.map((count, i) => count - earlier.counts[i]),
    );
  }

  /** Both together. @param {Histogram} other */
  plus(other) {
    if (!this.bounds.length) return other;
    return new Histogram(
      this.bounds,
      this.counts.map((count, i) => count + (other.counts[i] ?? 0)),
    );
  }

  /**
   * The value below which the share `q` lies, as Prometheus computes it: evenly spread within a bucket.
   * @param {number} q 0 to 1
   * @returns {number | null} null without values
   */
  quantile(q) {
    if (!this.count) return null;
    const rank = q * this.count;
    const i = this.counts.findIndex((count) => count >= rank);
    if (this.bounds[i] === Infinity) return this.bounds.at(-2) ?? null;
    const low = i ? this.bounds[i - 1] : 0;
    const before = i ? this.counts[i - 1] : 0;
    const inside = this.counts[i] - before;
    return inside ? low + ((this.bounds[i] - low) * (rank - before)) / inside : this.bounds[i];
  }
}

export const EMPTY = new Histogram([], []);

/**
 * The histograms of one metric, by the key that `keyOf` makes of their labels.
 * @param {Map<string, Sample[]>} metrics
 * @param {string} name
 * @param {(labels: Record<string, string>) => string} keyOf
 * @returns {Map<string, Histogram>}
 */
export function histograms(metrics, name, keyOf) {
  /** @type {Map<string, [number, number][]>} */
  const buckets = new Map();
  for (const { labels, value } of metrics.get(`${name}_bucket`) ?? []) {
    const key = keyOf(labels);
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    const known = buckets.get(key);
    if (known) known.push([bound, value]);
    else buckets.set(key, [[bound, value]]);
  }
  return new Map(
    Array.from(buckets, ([key, pairs]) => {
      pairs.sort((a, b) => a[0] - b[0]);
      return [
        key,
        new Histogram(
          pairs.map((pair) => pair[0]),
          pairs.map((pair) => pair[1]),
        ),
      ];
    }),
  );
}
