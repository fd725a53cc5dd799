// Small charts in SVG. Each is an image with a label for who does not see it; a pointer or the arrow keys read its values.
import { count, h, s } from "./dom.js";

const COLOURS = 6;
/** Lines differ in dashes too: colour alone is not enough for every eye. */
const DASHES = ["", "9 4", "2 3", "9 3 2 3", "16 4", "5 2", "14 3 2 3 2 3"];
const DOTS = 40;

// --- numbers ---------------------------------------------------------------------------------------------------------

/** A number in three digits or so: 1,234 · 0.0123 · 4.6e-6. */
export function legible(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "not finite";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e9 || size < 1e-4) return value.toExponential(1);
  if (Number.isInteger(value)) return count(value);
  return size >= 1000 ? count(Math.round(value)) : String(Number(value.toPrecision(3)));
}

/** A number with so many digits behind the point: 1,234.50. */
export const fixed = (value, digits) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** A number with its sign, whichever it has. */
export const signed = (value, digits) =>
  value === null ? "not finite" : `${value < 0 ? "−" : "+"}${fixed(Math.abs(value), digits)}`;

/** Round numbers from low to high, about `most` of them: steps of 1, 2 or 5 times a power of ten. */
export function ticks(low, high, most = 5, whole = false) {
  const rough = (high - low) / most;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(whole ? 1 : 0, power * ([1, 2, 5].find((each) => each * power >= rough * 0.75) ?? 10));
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Round numbers for a logarithmic axis: powers of ten, or 1, 2 and 5 of each where there are few. */
export function logTicks(low, high) {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const powers = Array.from({ length: to - from + 1 }, (_, i) => from + i);
  const every = Math.ceil(powers.length / 6);
  const inside = (values) => values.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  const tens = inside(powers.filter((_, i) => i % every === 0).map((power) => Number(`1e${power}`)));
  if (tens.length >= 3) return tens;
  const finer = inside(powers.flatMap((power) => [1, 2, 5].map((each) => Number(`${each}e${power}`))));
  return finer.length >= 2 ? finer : ticks(low, high);
}

/** Where a value lies between two ends on the screen. */
export function scale(low, high, start, end, log = false) {
  const way = log ? Math.log10 : (value) => value;
  const [a, b] = [way(low), way(high)];
  return (value) => start + ((end - start) * (way(value) - a)) / (b - a || 1);
}

// --- what all charts have ----------------------------------------------------------------------------------------------

/** A box that draws what is in it for the width that it has, and again when that changes; `redraw()` draws it again. */
export function fitted(draw, least = 240) {
  const box = h("div", { class: "fitted" });
  let width = 0;
  box.redraw = () => {
    if (!width) return;
    const focused = box.contains(document.activeElement);
    box.replaceChildren(draw(width));
    if (focused) box.querySelector("[tabindex]")?.focus();
  };
  // Drawn in the next frame: an observer that changes the size that it observes makes the browser report an error.
  new ResizeObserver(([entry]) => {
    const found = Math.floor(entry.contentRect.width);
    if (!found || Math.max(least, found) === width) return;
    width = Math.max(least, found);
    requestAnimationFrame(box.redraw);
  }).observe(box);
  return box;
}

/** An SVG image of this size. */
function image(label, width, height, attributes, ...children) {
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  return s("svg", { class: "chart", role: "img", "aria-label": label, ...size, ...attributes }, ...children);
}

const READ = "Arrow keys read its values";
const PICK = `${READ}, Enter shows the group`;

/** The line below a chart that says what is under the pointer. */
function reader(hint = "") {
  const line = h("p", { class: "readout faint", "aria-live": "polite" }, hint);
  line.say = (text) => {
    const next = text ?? hint;
    if (line.textContent !== next) line.textContent = next;
    line.classList.toggle("faint", text === null);
  };
  return line;
}

/**
 * Lets a pointer or the arrow keys go over the spots of a chart.
 * Each spot has x, y, `said`, and where it can be picked, by a click or Enter, `pick`; `show` marks one, or none.
 */
function explored(root, spots, line, show, flat = false) {
  let at = null;
  const go = (spot) => {
    if (spot === at) return;
    at = spot;
    show(spot);
    line.say(spot ? spot.said : null);
    root.classList.toggle("pickable", Boolean(spot?.pick));
  };
  const under = (event) => {
    const box = root.getBoundingClientRect();
    return nearest(spots, event.clientX - box.left, event.clientY - box.top, flat);
  };
  const listen = (name, act) => root.addEventListener(name, act);
  listen("pointermove", (event) => go(under(event)));
  listen("pointerleave", () => go(null));
  listen("focus", () => root.matches(":focus-visible") && !at && go(spots[0] ?? null));
  listen("blur", () => go(null));
  listen("click", (event) => under(event)?.pick?.());
  listen("keydown", (event) => {
    if (event.key === "Enter") at?.pick?.();
    const next = moved(spots, at, event.key);
    if (!next) return;
    event.preventDefault();
    go(next);
  });
}

/** The spot that is nearest; along x alone where the chart is flat, else none but where the pointer is on one. */
function nearest(spots, x, y, flat) {
  let [found, least] = [null, Infinity];
  for (const spot of spots) {
    if (!flat && (Math.abs(spot.x - x) > spot.width / 2 || Math.abs(spot.y - y) > spot.height / 2)) continue;
    const distance = Math.abs(spot.x - x);
    if (distance < least) [found, least] = [spot, distance];
  }
  return found;
}

const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The next spot that way, or none. */
function moved(spots, from, key) {
  if (key === "Home") return spots[0];
  if (key === "End") return spots.at(-1);
  if (!(key in WAYS)) return null;
  if (!from) return spots[0];
  const [dx, dy] = WAYS[key];
  let [found, least] = [null, Infinity];
  for (const spot of spots) {
    const along = (spot.x - from.x) * dx + (spot.y - from.y) * dy;
    const off = Math.abs((spot.x - from.x) * dy) + Math.abs((spot.y - from.y) * dx);
    if (along > 0.5 && along + 4 * off < least) [found, least] = [spot, along + 4 * off];
  }
  return found;
}

/** The numbers of layers below a chart, as many as have room. */
function layerAxis(layers, place, y, step) {
  const every = [1, 2, 5, 10, 20, 50].find((each) => each * step >= 22) ?? 100;
  return layers
    .filter((_, i) => i % every === 0)
    .map((layer) => s("text", { class: "tick", x: place(layer), y, "text-anchor": "middle" }, layer));
}

// --- lines -------------------------------------------------------------------------------------------------------------

/**
 * Curves over steps.
 * `series` are of `name` and `points` ([x, y]), stairs where `stairs`; `low` and `high` are reached at least; `marks` are vertical
 * lines with names; with `log` a switch for a logarithmic axis stands above, where all values have a place on one.
 */
export function lineChart({ label, series, height = 200, low, high, marks = [], log = false, said = legible, across = "step" }) {
  const shown = series.map((each, i) => {
    const points = each.points.filter(([, y]) => Number.isFinite(y));
    return { ...each, style: i, points: each.stairs ? stairs(points) : points };
  });
  if (!shown.some((each) => each.points.length)) return h("p", { class: "faint" }, "No finite value.");
  const line = reader();
  let logarithmic = false;
  const box = fitted((width) => lines({ label, shown, height, low, high, marks, said, across, logarithmic, line }, width));
  const able = log && shown.every((each) => each.points.every(([, y]) => y > 0));
  const turn = (event) => {
    logarithmic = event.target.checked;
    box.redraw();
  };
  const choice = able && h("label", { class: "switch" }, h("input", { type: "checkbox", onchange: turn }), " logarithmic");
  const legend =
    series.length > 1 && h("ul", { class: "legend" }, ...shown.map((each) => h("li", {}, sample(each.style), each.name)));
  return h("figure", { class: "figure" }, h("div", { class: "legend-row" }, legend, choice), box, line);
}

const stairs = (points) =>
  points.flatMap(([x, y], i) =>
    i
      ? [
          [x, points[i - 1][1]],
          [x, y],
        ]
      : [[x, y]],
  );
const stroke = (style) => ({ class: `curve c${style % COLOURS}`, "stroke-dasharray": DASHES[style % DASHES.length] || null });

function sample(style) {
  return s("svg", { width: 34, height: 10, "aria-hidden": "true" }, s("path", { d: "M1 5H33", ...stroke(style) }));
}

function lines({ label, shown, height, low, high, marks, said, across, logarithmic, line }, width) {
  const points = shown.flatMap((each) => each.points);
  const frame = { left: 58, right: width - 14, top: marks.length ? 24 : 8, bottom: height - 26 };
  const xs = points.map(([x]) => x);
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const [bottom, top] = ends(
    points.map(([, y]) => y),
    logarithmic ? undefined : low,
    logarithmic ? undefined : high,
    logarithmic,
  );
  const x = scale(first, last === first ? first + 1 : last, frame.left, frame.right);
  const y = scale(bottom, top, frame.bottom, frame.top, logarithmic);
  const cursor = s("g", { class: "cursor" });
  const root = image(
    `${label}. ${READ}.`,
    width,
    height,
    { tabindex: 0 },
    ...axes({ frame, x, y, said, across, first, last, bottom, top, logarithmic }),
    ...marks.map((mark) => stageMark(mark, x(mark.x), frame)),
    ...shown.map((each) => curve(each, x, y)),
    cursor,
  );
  const spots = [...new Set(xs)].sort((a, b) => a - b).map((at) => spotAt(at, shown, { x, y, across, said }));
  explored(root, spots, line, (spot) => cursor.replaceChildren(...(spot ? crosshair(spot, frame) : [])), true);
  return root;
}

/** The ends of an axis: the values, with some room, and what is to be reached at least. */
function ends(values, low, high, logarithmic) {
  let [a, b] = [Math.min(...values, low ?? Infinity), Math.max(...values, high ?? -Infinity)];
  if (logarithmic) return a === b ? [a / 2, b * 2] : [a / 1.05, b * 1.05];
  const room = 0.06 * (b - a) || 0.1 * Math.abs(a) || 1;
  if (low === undefined || a < low) a -= room;
  if (high === undefined || b > high) b += room;
  return [a, b];
}

function axes({ frame, x, y, said, across, first, last, bottom, top, logarithmic }) {
  const marks = logarithmic ? logTicks(bottom, top) : ticks(bottom, top, 4);
  const steps = ticks(first, last, Math.max(2, Math.floor((frame.right - frame.left) / 90)), true);
  return [
    ...marks.map((at) => s("path", { class: "grid", d: `M${frame.left} ${y(at)}H${frame.right}` })),
    ...marks.map((at) => s("text", { class: "tick", x: frame.left - 6, y: y(at) + 4, "text-anchor": "end" }, said(at))),
    ...steps.map((at) => s("text", { class: "tick", x: x(at), y: frame.bottom + 17, "text-anchor": "middle" }, count(at))),
    s("text", { class: "tick", x: 2, y: frame.bottom + 17 }, across),
    s("path", { class: "axis", d: `M${frame.left} ${frame.bottom}H${frame.right}` }),
  ];
}

function curve({ points, style, name }, x, y) {
  const kept = points.map(([at, value]) => [x(at), y(value)]);
  const d = kept.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
  const dots = kept.length <= DOTS ? kept.map(([px, py]) => s("circle", { cx: px, cy: py, r: 2.5 })) : [];
  return s("g", { class: `c${style % COLOURS}` }, s("title", {}, name), s("path", { d, ...stroke(style) }), ...dots);
}

/** A vertical line with a name, where a stage begins. */
function stageMark(mark, x, frame) {
  const late = x > (frame.left + frame.right) / 2;
  return s(
    "g",
    {},
    s("path", { class: "mark", d: `M${x} 6V${frame.bottom}` }),
    s("text", { class: "tick", x: late ? x - 4 : x + 4, y: 14, "text-anchor": late ? "end" : "start" }, mark.name),
  );
}

/** What all curves are at one step: those that have a point there. */
function spotAt(at, shown, { x, y, across, said }) {
  // Of stairs, which have two points where they jump, the later one counts.
  const found = shown.map((each) => [each, each.points.findLast(([px]) => px === at)]).filter(([, point]) => point);
  return {
    x: x(at),
    y: 0,
    dots: found.map(([each, point]) => [y(point[1]), each.style]),
    said: `${across} ${count(at)}: ${found.map(([each, point]) => `${each.name} ${said(point[1])}`).join(" · ")}`,
  };
}

function crosshair(spot, frame) {
  return [
    s("path", { class: "mark", d: `M${spot.x} ${frame.top}V${frame.bottom}` }),
    ...spot.dots.map(([y, style]) => s("circle", { class: `c${style % COLOURS}`, cx: spot.x, cy: y, r: 4 })),
  ];
}

// --- bars --------------------------------------------------------------------------------------------------------------

/** One horizontal bar: before as an outline, after filled. */
export function pairBar(label, before, after) {
  const most = Math.max(before, after) || 1;
  const wide = (value) => `${(100 * value) / most}%`;
  return s(
    "svg",
    { class: "chart pair", role: "img", "aria-label": label, width: 180, height: 16 },
    s("title", {}, label),
    s("rect", { class: "after", x: 0, y: 2, width: wide(after), height: 12 }),
    s("rect", { class: "before", x: 0.5, y: 1.5, width: wide(before), height: 13 }),
  );
}

/** Bars before and after for each layer; `items` maps a layer to name, before and after. */
export function layerBars({ label, layers, items, height = 110, pick }) {
  const line = reader();
  const box = fitted((width) => {
    const frame = { left: 48, right: width - 6, top: 8, bottom: height - 20 };
    const most = Math.max(1, ...[...items.values()].map((each) => Math.max(each.before, each.after)));
    const y = scale(0, most, frame.bottom, frame.top);
    const step = Math.min(48, (frame.right - frame.left) / layers.length);
    const place = (layer) => frame.left + step * (layers.indexOf(layer) + 0.5);
    const spots = [...items].map(([layer, each]) => barSpot(layer, each, place(layer), step, frame, pick));
    const cursor = s("g", { class: "cursor" });
    const marks = ticks(0, most, 3, true);
    const root = image(
      `${label}. ${pick ? PICK : READ}.`,
      width,
      height,
      { tabindex: 0 },
      ...marks.map((at) => s("path", { class: "grid", d: `M${frame.left} ${y(at)}H${frame.left + step * layers.length}` })),
      ...marks.map((at) => s("text", { class: "tick", x: frame.left - 6, y: y(at) + 4, "text-anchor": "end" }, count(at))),
      ...[...items].map(([layer, each]) => layerBar(place(layer), step, y, each)),
      ...layerAxis(layers, place, height - 5, step),
      s("text", { class: "tick", x: 2, y: height - 5 }, "layer"),
      cursor,
    );
    explored(root, spots, line, (spot) => cursor.replaceChildren(...(spot ? [outline(spot)] : [])));
    return root;
  });
  return h("figure", { class: "figure" }, box, line);
}

function barSpot(layer, each, x, step, frame, pick) {
  return {
    x,
    y: (frame.top + frame.bottom) / 2,
    width: step,
    height: frame.bottom - frame.top + 2,
    said: `layer ${layer}: ${count(each.before)} → ${count(each.after)} · ${each.name}`,
    pick: pick && (() => pick(each.name)),
  };
}

function layerBar(x, step, y, { before, after }) {
  const wide = Math.max(1, Math.min(26, step - Math.max(1, step * 0.25)));
  const bar = (value, kind, off) =>
    s("rect", {
      class: kind,
      x: x - wide / 2 + off,
      y: y(value) + off,
      width: Math.max(0.5, wide - 2 * off),
      height: Math.max(0, y(0) - y(value) - off),
    });
  return s("g", {}, bar(after, "after", 0), bar(before, "before", 0.5));
}

/** A frame around a spot: of ink, within one of paper, so that it is seen on every colour. */
function outline({ x, y, width, height }) {
  const frame = (kind, by) =>
    s("rect", { class: kind, x: x - width / 2 + by, y: y - height / 2 + by, width: width - 2 * by, height: height - 2 * by });
  return s("g", {}, frame("outline", 0), frame("outline inner", 2));
}

/** A row of a plot of errors: a dot, a bar of one standard error to each side, and on the last row the numbers of the scale. */
export function errorBar({ label, value, error, low, high, style, numbers, reference, said = legible, width = 300 }) {
  const x = scale(low, high, 12, width - 12);
  const marks = ticks(low, high, 4);
  const height = numbers ? 36 : 22;
  const whisker = error ? `M${x(value - error)} 11H${x(value + error)}M${x(value - error)} 7v8M${x(value + error)} 7v8` : null;
  return image(
    label,
    width,
    height,
    { class: "chart errors" },
    s("title", {}, label),
    ...marks.map((at) => s("path", { class: "grid", d: `M${x(at)} 0V22` })),
    reference !== null && reference !== undefined && s("path", { class: "mark", d: `M${x(reference)} 0V22` }),
    whisker && s("path", { class: `whisker c${style % COLOURS}`, d: whisker }),
    value !== null && s("circle", { class: `c${style % COLOURS}`, cx: x(value), cy: 11, r: 4 }),
    ...(numbers ? marks.map((at) => s("text", { class: "tick", x: x(at), y: 33, "text-anchor": "middle" }, said(at))) : []),
  );
}

// --- heat maps ---------------------------------------------------------------------------------------------------------

/**
 * Cells by row and layer, darker (on dark paper: lighter) for more.
 * `rows` have a name and `cells` by layer; `apart` are cells of no one layer, each with a row of its own. A cell has `name`, `share`
 * (0 to 1; null for what is not known), `texts` (of which the first that has room is shown), `said`, and is `starred` or not.
 */
export function heatMap({ label, layers, rows, apart, legend, pick }) {
  const line = reader("Point at a cell, or use the arrow keys, to read it; a click or Enter shows its group.");
  const box = fitted((width) => heat({ label: label(), layers, rows: rows(), apart: apart(), pick, line }, width), 320);
  const figure = h("figure", { class: "figure" }, box, h("div", { class: "legend-row" }, legend), line);
  figure.redraw = box.redraw;
  return figure;
}

const TALL = 28;

function heat({ label, layers, rows, apart, pick, line }, width) {
  const left = Math.min(150, 20 + 7 * Math.max(13, ...[...rows, ...apart].map((row) => row.name.length)));
  const step = Math.min(90, (width - left - 6) / Math.max(1, layers.length));
  const whole = layers.length ? step * layers.length : Math.min(220, width - left - 6);
  const below = TALL * rows.length + (layers.length ? 22 : 0);
  const place = (layer) => left + step * (layers.indexOf(layer) + 0.5);
  const spots = rows.flatMap((row, i) =>
    [...row.cells].map(([layer, cell]) => ({ cell, x: place(layer), y: TALL * (i + 0.5), width: step, height: TALL })),
  );
  spots.push(
    ...apart.map((row, i) => ({ cell: row.cell, x: left + whole / 2, y: below + TALL * (i + 0.5), width: whole, height: TALL })),
  );
  for (const spot of spots) Object.assign(spot, { said: spot.cell.said, pick: pick && (() => pick(spot.cell.name)) });
  const cursor = s("g", { class: "cursor" });
  const name = (text, y) => s("text", { class: "name", x: left - 8, y: y + 4, "text-anchor": "end" }, clipped(text, left - 12));
  const root = image(
    `${label}. ${PICK}.`,
    width,
    below + TALL * apart.length + 2,
    { class: "chart heat", tabindex: 0 },
    ...rows.map((row, i) => name(row.name, TALL * (i + 0.5))),
    ...apart.map((row, i) => name(row.name, below + TALL * (i + 0.5))),
    ...spots.map(heatCell),
    ...layerAxis(layers, place, TALL * rows.length + 14, step),
    layers.length ? s("text", { class: "tick", x: left - 8, y: TALL * rows.length + 14, "text-anchor": "end" }, "layer") : null,
    cursor,
  );
  explored(root, spots, line, (spot) => cursor.replaceChildren(...(spot ? [outline(spot)] : [])));
  return root;
}

function heatCell({ cell, x, y, width, height }) {
  const box = { x: x - width / 2 + 1, y: y - height / 2 + 1, width: Math.max(1, width - 2), height: height - 2 };
  const text = cell.texts.find((each) => textWidth(each) + 4 <= width);
  return s(
    "g",
    { class: cell.share === null ? "cell none" : `cell ${tone(cell.share)}` },
    s("title", {}, cell.said),
    s("rect", { ...box, style: cell.share === null ? null : `--p:${(100 * cell.share).toFixed(1)}%` }),
    cell.starred && s("path", { class: "star", d: `M${box.x + box.width} ${box.y}v9l-9 -9z` }),
    text && s("text", { x, y: y + 4, "text-anchor": "middle" }, text),
  );
}

/** Which ink is read on a cell: between low and high it is black on both papers. */
const tone = (share) => (share < 0.46 ? "low" : share < 0.69 ? "middle" : "high");
const textWidth = (text) => [...text].reduce((sum, sign) => sum + (/[.,\s]/.test(sign) ? 3 : 6.2), 0);
const clipped = (text, room) => (text.length * 6.4 <= room ? text : `…${text.slice(-Math.floor(room / 6.4) + 1)}`);

/** The scale of colours, with numbers at their places: [share, text]. */
export function colourScale(name, marks, extra) {
  const ramp = s(
    "svg",
    { class: "ramp", width: 260, height: 32, "aria-hidden": "true" },
    ...Array.from({ length: 24 }, (_, i) =>
      s("rect", { x: 10 + i * 9.2, y: 2, width: 9.4, height: 12, style: `--p:${(100 * i) / 23}%` }),
    ),
    ...marks.map(([share, text]) => s("text", { class: "tick", x: 10 + 220 * share, y: 28, "text-anchor": "middle" }, text)),
  );
  return h("div", { class: "scale" }, h("span", {}, name), ramp, extra);
}
