/** Line charts, drawn as SVG. */

import { fill, h, svg } from "../dom.js";

const LEFT = 52,
  RIGHT = 12,
  TOP = 10,
  BOTTOM = 22;

/**
 * Points by x; null: a gap.
 * @typedef {{name: string, tone: number, points: [number, number | null][], dots?: boolean}} Series
 * @typedef {object} ChartOptions
 * @property {string} label what is drawn, for those who do not see it
 * @property {(value: number) => string} y how a value is written
 * @property {(x: number) => string} x how a place is written
 * @property {number} [height]
 * @property {boolean} [zero] whether the axis begins at 0
 * @property {() => string} [empty] what is said where there is nothing to draw
 * @property {boolean} [named] whether a legend stands below
 */

/** Round steps for an axis from `low` to `high`. @param {number} low @param {number} high @param {number} most */
export function ticks(low, high, most) {
  const raw = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = /** @type {number} */ ([1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999));
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

/** A round number without its last zeros. @param {string} text */
const tidy = (text) => (/^0(\.0+)?\D*$/.test(text) ? "0" : text.replace(/(\.\d*?[1-9])0+(?!\d)|\.0+(?!\d)/, "$1"));

/**
 * A chart that is as wide as its place; `update` draws other series.
 * @param {ChartOptions} options
 */
export function chart(options) {
  const height = options.height ?? 180;
  const plot = h("div", { class: "plot" });
  plot.style.height = `${height}px`;
  const readout = h("div", { class: "readout", hidden: true });
  const names = h("ul", { class: "legend" });
  const node = h("figure", { class: "chart" }, plot, readout, options.named && names);
  /** @type {Series[]} */
  let series = [];
  let width = 0;

  const draw = () => {
    if (!width) return;
    const values = series.flatMap((one) => one.points.map((point) => point[1])).filter((v) => v !== null);
    if (!values.length) {
      fill(plot, h("p", { class: "chart-empty" }, options.empty?.() ?? "Nothing to draw yet"));
      return fill(names);
    }
    if (options.named)
      fill(
        names,
        series.map((one) => h("li", {}, h("i", { class: `dot tone-${one.tone}` }), one.name)),
      );
    fill(plot, picture(series, /** @type {number[]} */ (values), width, height, options));
  };
  new ResizeObserver(([entry]) => {
    const next = Math.round(entry.contentRect.width);
    if (next !== width) {
      width = next;
      draw();
    }
  }).observe(plot);

  plot.addEventListener("pointermove", (event) => point(event));
  plot.addEventListener("pointerleave", () => {
    readout.hidden = true;
    plot.querySelector(".cross")?.setAttribute("visibility", "hidden");
  });

  /** @param {PointerEvent} event */
  function point(event) {
    const xs = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))].sort((a, b) => a - b);
    if (!xs.length || !plot.querySelector("svg")) return;
    const place = event.clientX - plot.getBoundingClientRect().left;
    const scale = scaleX(xs, width);
    const x = xs.reduce((best, one) => (Math.abs(scale(one) - place) < Math.abs(scale(best) - place) ? one : best));
    const rows = series
      .map((one) => ({ one, value: one.points.find((p) => p[0] === x)?.[1] }))
      .filter(({ value }) => value !== null && value !== undefined);
    const cross = plot.querySelector(".cross");
    cross?.setAttribute("transform", `translate(${scale(x).toFixed(1)} 0)`);
    cross?.setAttribute("visibility", rows.length ? "visible" : "hidden");
    readout.hidden = !rows.length;
    fill(
      readout,
      h("b", {}, options.x(x)),
      rows.map(({ one, value }) =>
        h(
          "span",
          {},
          h("i", { class: `dot tone-${one.tone}` }),
          ` ${one.name} `,
          h("b", {}, options.y(/** @type {number} */ (value))),
        ),
      ),
    );
    readout.classList.toggle("left", scale(x) > width / 2);
  }

  return Object.assign(node, {
    /** @param {Series[]} next */
    update(next) {
      series = next;
      draw();
    },
  });
}

/** @param {number[]} xs @param {number} width */
function scaleX(xs, width) {
  const low = Math.min(...xs),
    span = Math.max(...xs) - low;
  return (/** @type {number} */ x) =>
    span ? LEFT + ((x - low) / span) * (width - LEFT - RIGHT) : (LEFT + width - RIGHT) / 2;
}

/**
 * @param {Series[]} series
 * @param {number[]} values
 * @param {number} width
 * @param {number} height
 * @param {ChartOptions} options
 */
function picture(series, values, width, height, options) {
  const xs = series.flatMap((one) => one.points.map((point) => point[0]));
  const low = options.zero ? 0 : Math.min(...values);
  const high = Math.max(...values);
  const marks = ticks(low, high > low ? high : low + (Math.abs(low) || 1), height < 150 ? 3 : 4);
  const [bottom, top] = [marks[0], /** @type {number} */ (marks.at(-1))];
  const x = scaleX(xs, width);
  const y = (/** @type {number} */ value) => TOP + (1 - (value - bottom) / (top - bottom)) * (height - TOP - BOTTOM);
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const names = series.map((one) => `${one.name} ${options.y(one.points.findLast((p) => p[1] !== null)?.[1] ?? NaN)}`);
  return svg(
    "svg",
    {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `${options.label}: ${names.join(", ")}`,
    },
    marks.map((mark) => [
      svg("line", { class: mark === bottom ? "axis" : "grid", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark) }),
      svg("text", { class: "tick", x: LEFT - 8, y: y(mark) + 3.5, "text-anchor": "end" }, tidy(options.y(mark))),
    ]),
    svg("text", { class: "tick", x: LEFT, y: height - 5 }, options.x(first)),
    last > first &&
      svg("text", { class: "tick", x: width - RIGHT, y: height - 5, "text-anchor": "end" }, options.x(last)),
    svg("g", { class: "cross", visibility: "hidden" }, svg("line", { y1: TOP, y2: height - BOTTOM })),
    series.map((one) => line(one, x, y)),
  );
}

/** @param {Series} one @param {(x: number) => number} x @param {(y: number) => number} y */
function line(one, x, y) {
  let path = "",
    pen = "M";
  /** @type {SVGElement[]} */
  const alone = [];
  one.points.forEach(([place, value], i) => {
    if (value === null) {
      pen = "M";
      return;
    }
    path += `${pen}${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
    const isAlone = pen === "M" && (one.points[i + 1]?.[1] ?? null) === null;
    if (one.dots || isAlone)
      alone.push(svg("circle", { class: `point tone-${one.tone}`, cx: x(place), cy: y(value), r: 2.5 }));
    pen = "L";
  });
  return svg("g", {}, svg("path", { class: `line tone-${one.tone}`, d: path }), alone);
}

/** A share of something, as a bar. @param {number} share 0 to 1 @param {string} label */
export function meter(share, label) {
  const bar = h("span", { class: "meter-fill" });
  const node = h(
    "span",
    { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 },
    bar,
  );
  const update = (/** @type {number} */ next) => {
    const shown = Math.max(0, Math.min(1, next || 0)) * 100;
    bar.style.width = `${shown}%`;
    node.setAttribute("aria-valuenow", shown.toFixed(0));
  };
  update(share);
  return Object.assign(node, { update });
}
