// The side "Cut": what a plan removes, and the model before and after it.
import { layerBars, pairBar, signed } from "./charts.js";
import { diffView } from "./diff.js";
import { count, h, s, short } from "./dom.js";
import { grouped, laidOut, layerOf } from "./layers.js";

const FIGURES = [
  ["parameters", "parameters", ""],
  ["bytes", "weights in memory", "B"],
  ["flops", "FLOPs a token", "FLOPs"],
  ["cache", "KV cache a token", "B"],
];
/** A figure in three digits; billions of FLOPs are called G, as of bytes. */
const sized = (value, unit) => short(value, unit).replace("BFLOPs", "GFLOPs").replace("KFLOPs", "kFLOPs");
/** Strips are drawn in so many columns at most; a column of several structures is as high as the share of them that stays. */
const COLUMNS = 600;
const TITLE = 160;

/** The side "Cut" of a view; `open` shows a group in the graph. */
export function cutSide(view, open) {
  if (!view.cut) {
    return h(
      "div",
      { class: "charts-side" },
      h("p", {}, "No plan was given: ", h("code", {}, "lorashear view MODEL --plan PLAN"), " shows here what it removes."),
    );
  }
  return h(
    "div",
    { class: "charts-side" },
    figures(view.cut.figures),
    widths(view, open),
    structures(view, open),
    diffView(view),
  );
}

/** The numbers in a text of ranges: "0-3,7" → [0, 1, 2, 3, 7]. */
export function indices(text) {
  return text
    .split(",")
    .filter(Boolean)
    .flatMap((part) => {
      const [first, last = first] = part.split("-").map(Number);
      return Array.from({ length: last - first + 1 }, (_, i) => first + i);
    });
}

/** A button with a group's name, or what else it is called by, that shows it in the graph. */
export function groupLink(name, open, text = name) {
  return h("button", { class: "link", type: "button", title: `Show ${name} in the graph`, onclick: () => open(name) }, text);
}

// --- figures -----------------------------------------------------------------------------------------------------------

function figures(found) {
  const head = ["", "before", "after", "difference", ""].map((text, i) =>
    h("th", { class: i && i < 4 ? "number" : null, scope: "col" }, text),
  );
  return h(
    "section",
    {},
    h("h2", {}, "Model before and after"),
    h(
      "div",
      { class: "table-box" },
      h(
        "table",
        { class: "figures" },
        h("thead", {}, h("tr", {}, ...head)),
        h("tbody", {}, ...FIGURES.map((each) => figure(found, ...each))),
      ),
    ),
  );
}

function figure(found, key, name, unit) {
  const both = found[key];
  const title = h("th", { scope: "row" }, name);
  if (!both) return h("tr", {}, title, h("td", { class: "faint", colspan: 4 }, "not known of this model"));
  const { before, after } = both;
  const number = (value) => h("td", { class: "number", title: count(value) }, sized(value, unit));
  const change = before ? `${signed(100 * (after / before - 1), 1)} %` : "–";
  const less = `${after < before ? "−" : "+"}${sized(Math.abs(after - before), unit)}`;
  return h(
    "tr",
    {},
    title,
    number(before),
    number(after),
    h("td", { class: "number", title: count(after - before) }, after === before ? "none" : `${less} (${change})`),
    h("td", {}, pairBar(`${name}: ${count(before)} before, ${count(after)} after`, before, after)),
  );
}

// --- widths ------------------------------------------------------------------------------------------------------------

function widths(view, open) {
  const found = view.cut.widths;
  const { layers, rows, apart } = laidOut(view.groups.filter((group) => group.name in found));
  return h(
    "section",
    {},
    h("h2", {}, "Widths", key("before", "after")),
    h("p", { class: "faint" }, "Point at a bar, or use the arrow keys, to read it; a click or Enter shows its group."),
    h("div", { class: "panels" }, ...rows.map((row) => widthPanel(row, layers, found, open))),
    apart.length > 0 && h("h3", {}, "Of all layers"),
    apart.length > 0 &&
      h("table", { class: "figures" }, h("tbody", {}, ...apart.map((group) => widthRow(group, found[group.name], open)))),
  );
}

/** What an outline or hatching means, and what is filled. */
const key = (empty, filled, hatched = false) =>
  h("small", {}, h("span", { class: hatched ? "swatch empty" : "swatch" }), empty, h("span", { class: "swatch filled" }), filled);

function widthPanel(row, layers, found, open) {
  const items = new Map(
    [...row.cells].sort(([a], [b]) => a - b).map(([layer, group]) => [layer, { name: group.name, ...found[group.name] }]),
  );
  const said = `${row.name}: ${change([...items.values()])}`;
  return h(
    "div",
    {},
    h("h3", {}, row.name, h("small", {}, change([...items.values()]), row.kind === "query" && " for each KV head")),
    layerBars({ label: `Widths before and after by layer. ${said}`, layers, items, pick: open }),
  );
}

/** 512 → 358 to 370 in each layer */
function change(items) {
  if (items.every((item) => item.before === item.after)) return `${range(items, "before")}, unchanged`;
  return `${range(items, "before")} → ${range(items, "after")}`;
}

function range(items, side) {
  const values = items.map((item) => item[side]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low === high ? count(low) : `${count(low)} to ${count(high)}`;
}

function widthRow(group, { before, after }, open) {
  return h(
    "tr",
    {},
    h("td", {}, groupLink(group.name, open)),
    h("td", { class: "number" }, count(before)),
    h("td", { class: "number" }, count(after)),
    h("td", {}, before === after ? "unchanged" : `${signed(100 * (after / before - 1), 1)} %`),
    h("td", {}, pairBar(`${group.name}: ${count(before)} before, ${count(after)} after`, before, after)),
  );
}

// --- which structures stay ---------------------------------------------------------------------------------------------

function structures(view, open) {
  const prunable = view.groups.filter((group) => group.prunable);
  const kinds = [...grouped(prunable, (group) => group.kind)];
  const gone = new Map(prunable.map((group) => [group.name, goneOf(group, view)]));
  const touched = kinds.filter(([, groups]) => groups.some((group) => gone.get(group.name).size > 0));
  const rest = kinds.filter((kind) => !touched.includes(kind)).map(([kind]) => kind);
  return h(
    "section",
    {},
    h("h2", {}, "Structures that stay", key("removed", "kept", true)),
    h(
      "p",
      { class: "faint" },
      "Structure 0 is on the left. Where a column stands for several, its height is the share of them that is kept.",
    ),
    ...touched.map(([kind, groups], i) => stripsOfKind(kind, groups, gone, open, i < 4)),
    rest.length > 0 && h("p", {}, `Nothing is removed of: ${rest.join(", ")}.`),
  );
}

/** What goes of a group: what the plan says, and what goes with the structures that hold it, as queries with their KV head. */
function goneOf(group, view) {
  const found = new Set(indices(view.cut.removed[group.name] ?? ""));
  const holder =
    group.blocks > 1 &&
    view.groups.find((other) => other !== group && other.size === group.blocks && owner(other) === owner(group));
  const each = group.size / group.blocks;
  for (const block of holder ? indices(view.cut.removed[holder.name] ?? "") : []) {
    for (let i = 0; i < each; i++) found.add(block * each + i);
  }
  return found;
}

const owner = (group) => group.name.slice(0, group.name.lastIndexOf("."));

function stripsOfKind(kind, groups, gone, open, opened) {
  const kept = groups.reduce((sum, group) => sum + group.size - gone.get(group.name).size, 0);
  const all = groups.reduce((sum, group) => sum + group.size, 0);
  return h(
    "details",
    { class: "fold", open: opened },
    h("summary", {}, kind, h("small", {}, `${count(kept)} of ${count(all)} kept`)),
    h(
      "div",
      { class: groups.length > 12 ? "strips many" : "strips" },
      ...groups.flatMap((group) => strip(group, gone.get(group.name), several(groups), open)),
    ),
  );
}

/** Whether a layer's number is not enough to tell groups apart. */
const several = (groups) =>
  new Set(groups.map((group) => layerOf(group.name))).size < groups.length ||
  groups.some((group) => layerOf(group.name) === null);

function strip(group, gone, long, open) {
  const kept = group.size - gone.size;
  const said = `${group.name}: ${count(kept)} of ${count(group.size)} kept; removed: ${told(gone)}`;
  const columns = Math.min(group.size, COLUMNS);
  const picture = s(
    "svg",
    { class: "strip", role: "img", "aria-label": said, viewBox: `0 0 ${columns} 1`, preserveAspectRatio: "none" },
    s("title", {}, said),
    s("path", { d: keptPath(group.size, gone, columns) }),
  );
  return [
    groupLink(group.name, open, long ? group.name : `layer ${layerOf(group.name)}`),
    picture,
    h("span", { class: "number" }, `${count(kept)} / ${count(group.size)}`),
  ];
}

function told(gone) {
  if (!gone.size) return "none";
  const runs = [];
  for (const at of [...gone].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && last[1] === at - 1) last[1] = at;
    else runs.push([at, at]);
  }
  const text = runs.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(", ");
  return text.length <= TITLE ? text : `${text.slice(0, TITLE)}…`;
}

/** All that stays, as one path: a rectangle for each run of columns that keep the same share. */
function keptPath(size, gone, columns) {
  const left = new Float64Array(columns);
  const whole = new Float64Array(columns);
  for (let i = 0; i < size; i++) {
    const column = Math.floor((i * columns) / size);
    whole[column]++;
    if (!gone.has(i)) left[column]++;
  }
  const gap = columns <= 100 ? Math.min(0.06, columns / 900) : 0; // few structures are told apart, many are one area
  let d = "";
  for (let from = 0, to; from < columns; from = to) {
    const share = left[from] / whole[from];
    to = from + 1;
    while (!gap && to < columns && left[to] / whole[to] === share) to++;
    if (share) d += `M${from + gap} ${1 - share}H${to - gap}V1H${from + gap}z`;
  }
  return d;
}
