// The graph before and after a plan, as a diff in which what repeats from layer to layer is folded.
import { count, h } from "./dom.js";
import { layerOf, spans } from "./layers.js";

/** Lines that are in the page before somebody asks for more. */
const SHOWN = 250;
/** What repeats has no more lines than this. */
const PERIOD = 96;
const WORTH = 4;

/** The section with the diff of a view. */
export function diffView(view) {
  const lines = view.cut.diff.slice(2); // behind the names of the two sides
  if (!lines.length) return h("section", {}, h("h2", {}, "Graph, before and after"), h("p", {}, "The graph does not change."));
  const layers = layersOf(view.groups);
  const parts = folded(lines, lines.map(alike));
  const box = h("div", { class: "lines" });
  fill(
    box,
    parts.map((part) => (part.fold ? fold(part, layers) : row(part.line))),
  );
  const added = lines.filter((line) => line.startsWith("+")).length;
  const removed = lines.filter((line) => line.startsWith("-")).length;
  return h(
    "section",
    {},
    h("h2", {}, "Graph, before and after"),
    h(
      "details",
      { class: "fold", open: true },
      h(
        "summary",
        {},
        "Diff of the typed graph",
        h("small", {}, `− ${count(removed)} lines before, + ${count(added)} lines after`),
      ),
      h("div", { class: "diff", tabindex: 0, role: "region", "aria-label": "Diff of the typed graph" }, box),
    ),
  );
}

/** A line with the numbers taken out that only count layers and values: names, axes and modules, but no sizes. */
export function alike(line) {
  if (line.startsWith("@@")) return "@@";
  // Not those of functions, which stand before a bracket: attention.0( is another program than attention.1(.
  return line.replace(/(?<=[A-Za-z_][._])\d+(?![\d(])/g, "#");
}

/**
 * Lines and folds: { line }, or { fold: lines that repeat those before them, times }.
 * At each line, the period whose repeats cover most is taken.
 */
export function folded(lines, keys) {
  const found = [];
  for (let at = 0; at < lines.length;) {
    const { period, times } = longest(keys, at);
    if (!times) {
      found.push({ line: lines[at++] });
      continue;
    }
    found.push(...lines.slice(at, at + period).map((line) => ({ line })), {
      fold: lines.slice(at + period, at + period * (times + 1)),
      times,
    });
    at += period * (times + 1);
  }
  return found;
}

/** The period that repeats farthest from here, and how many times it comes again. */
function longest(keys, at) {
  let best = { period: 0, times: 0 };
  for (let period = 1; period <= PERIOD && at + 2 * period <= keys.length; period++) {
    let same = 0;
    while (at + period + same < keys.length && keys[at + same] === keys[at + period + same]) same++;
    const times = Math.floor(same / period);
    if (times * period >= WORTH && times * period > best.times * best.period) best = { period, times };
  }
  return best;
}

/** A line that stands for the same of other layers, which are put into the page when it is opened. */
function fold({ fold: lines, times }, layers) {
  const found = [...numbers(lines, layers)];
  const said = found.length
    ? `the same for layer${found.length > 1 ? "s" : ""} ${spans(found)}`
    : `the same ${times > 1 ? `${times} more times` : "once more"}`;
  const details = h("details", {}, h("summary", {}, `⋯ ${said} (${count(lines.length)} lines)`));
  details.addEventListener("toggle", () => details.open && fill(details, lines.map(row)), { once: true });
  return details;
}

/** The layers that lines are of, by their modules or else their axes. */
function numbers(lines, layers) {
  const modules = lines.flatMap((line) => [...line.matchAll(/"([\w.]+)"/g)].map((match) => layerOf(match[1])));
  const axes = lines.flatMap((line) => [...line.matchAll(/^[-+ ]axis (\S+)/g)].map((match) => layers.get(match[1])));
  return new Set([...modules, ...axes].filter((layer) => layer !== null && layer !== undefined));
}

const layersOf = (groups) => new Map(groups.map((group) => [group.axis, layerOf(group.name)]));

const KINDS = { "+": "added", "-": "removed", "@": "at" };
const row = (line) => h("div", { class: KINDS[line[0]] ?? null }, line || " ");

/** Rows, the first few hundred at once and the others when asked for. */
function fill(box, rows) {
  box.append(...rows.slice(0, SHOWN));
  const rest = rows.slice(SHOWN);
  if (!rest.length) return;
  const more = h(
    "button",
    {
      type: "button",
      onclick: () => {
        more.remove();
        fill(box, rest);
      },
    },
    `Show ${count(Math.min(SHOWN, rest.length))} more of ${count(rest.length)}`,
  );
  box.append(more);
}
