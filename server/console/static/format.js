/** Numbers and moments as people read them. A dash stands for what is not known. */

const NONE = "–";
const known = (/** @type {unknown} */ value) => typeof value === "number" && Number.isFinite(value);

/** @param {number | null | undefined} value */
export function count(value) {
  if (!known(value)) return NONE;
  const n = /** @type {number} */ (value);
  if (Math.abs(n) >= 1e9) return `${trim(n / 1e9)}G`;
  if (Math.abs(n) >= 1e6) return `${trim(n / 1e6)}M`;
  if (Math.abs(n) >= 1e4) return `${trim(n / 1e3)}k`;
  return n.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

/** @param {number} n */
const trim = (n) => String(Number(n.toFixed(n >= 100 ? 0 : n >= 10 ? 1 : 2)));

/** Something a second. @param {number | null | undefined} value */
export function rate(value) {
  if (!known(value)) return NONE;
  const n = /** @type {number} */ (value);
  return n >= 1e4 ? count(n) : n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(2);
}

/** A short time, given in seconds. @param {number | null | undefined} value */
export function seconds(value) {
  if (!known(value)) return NONE;
  const s = /** @type {number} */ (value);
  if (s < 0.001) return `${(s * 1e6).toFixed(0)} µs`;
  if (s < 0.01) return `${(s * 1e3).toFixed(1)} ms`;
  if (s < 1) return `${(s * 1e3).toFixed(0)} ms`;
  if (s < 10) return `${s.toFixed(2)} s`;
  if (s < 120) return `${s.toFixed(1)} s`;
  return duration(s);
}

/** A long time, given in seconds. @param {number} value */
export function duration(value) {
  const s = Math.max(0, Math.round(value));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60 ? `${s % 60} s` : ""}`.trim();
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** @param {number | null | undefined} value */
export function bytes(value) {
  if (!known(value)) return NONE;
  let n = /** @type {number} */ (value);
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (n < 1000) return `${unit === "B" ? n : trim(n)} ${unit}`;
    n /= 1000;
  }
  return `${trim(n)} TB`;
}

/** @param {number | null | undefined} share 0 to 1 */
export function percent(share) {
  if (!known(share)) return NONE;
  const p = /** @type {number} */ (share) * 100;
  return `${p === 0 || p === 100 || p >= 10 ? p.toFixed(0) : p.toFixed(1)}%`;
}

/** A measured number, such as a loss. @param {number | null | undefined} value */
export function figure(value) {
  if (!known(value)) return NONE;
  const n = /** @type {number} */ (value);
  const size = Math.abs(n);
  if (Number.isInteger(n)) return n.toLocaleString("en-US");
  if (size < 0.001 || size >= 1e5) return n.toExponential(2);
  return n.toFixed(size < 1 ? 4 : size < 100 ? 3 : 1).replace(/\.?0+$/, "");
}

const stamp = new Intl.DateTimeFormat("en-GB", {
  year: "numeric",
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});

/** A moment, given in Unix seconds. @param {number | null | undefined} moment */
export const time = (moment) => (known(moment) ? stamp.format(/** @type {number} */ (moment) * 1000) : NONE);

/** How long ago a moment was, given in Unix seconds. @param {number | null | undefined} moment */
export function ago(moment) {
  if (!known(moment)) return NONE;
  const past = Date.now() / 1000 - /** @type {number} */ (moment);
  if (past < 5) return "just now";
  if (past < 60) return `${Math.round(past)} s ago`;
  if (past < 3600) return `${Math.round(past / 60)} min ago`;
  if (past < 86400) return `${Math.round(past / 3600)} h ago`;
  return `${Math.round(past / 86400)} d ago`;
}

/** The beginning of a digest. @param {string | null | undefined} digest */
export const short = (digest) => (digest ? digest.slice(0, 12) : NONE);
