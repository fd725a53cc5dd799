// The side "Measured": what each group is worth, the widths chosen from that, training, recovery and evaluation.
import { colourScale, heatMap, legible, lineChart } from "./charts.js";
import { groupLink } from "./cut.js";
import { count, h, s } from "./dom.js";
import { evaluationView } from "./evaluation.js";
import { laidOut } from "./layers.js";

/** Nats a token; a rise of no more is white: it is less than what the text's choice makes. */
const LEAST = 0.001;
/** Nats that an axis of degradation reaches at least: less shall not look like a mountain. */
const NOTABLE = 0.05;

/** The side "Measured" of a view; `open` shows a group in the graph. */
export function measuredSide(view, open) {
  const found = view.measured;
  if (Object.values(found).every((part) => !part)) {
    return h(
      "div",
      { class: "charts-side" },
      h(
        "p",
        {},
        "No report was given: ",
        h("code", {}, "lorashear view MODEL --report DIR"),
        " shows here what compile, recover or eval measured; DIR is the folder of a result, or a report's file.",
      ),
    );
  }
  return h(
    "div",
    { class: "charts-side" },
    found.knowledge && worth(view, open),
    found.widths && budgets(view, open),
    found.training && training(found.training),
    found.recovery && recovery(found.recovery),
    found.evaluation && evaluationView(found.evaluation),
  );
}

// --- what groups are worth ---------------------------------------------------------------------------------------------

function worth(view, open) {
  const { groups, loss, crucial } = view.measured.knowledge;
  const known = view.groups.filter((group) => group.name in groups);
  const most = Math.max(10 * LEAST, ...known.flatMap((group) => groups[group.name].rise.filter(Number.isFinite)));
  const layout = laidOut(known);
  let share = 0.5;
  const cell = (group) => worthCell(group, groups[group.name], share, most, crucial.includes(group.name));
  const map = heatMap({
    label: () =>
      `Heat map by layer and kind: the rise of the held-out loss, nats a token, when ${percent(share)} of one group alone is removed`,
    layers: layout.layers,
    ...celled(layout, cell),
    legend: colourScale("rise, nats a token", worthMarks(most), crucial.length > 0 && starKey()),
    pick: open,
  });
  const change = (value) => {
    share = value;
    map.redraw();
  };
  return h(
    "section",
    {},
    h("h2", {}, "What each group is worth"),
    h(
      "p",
      {},
      `The rise of the held-out loss, nats a token, when so much of one group alone is removed. The dense model's loss is ${legible(loss)}.`,
    ),
    slider(share, change),
    map,
    crucial.length > 0 &&
      h(
        "div",
        {},
        h("h3", {}, "Crucial groups", h("small", {}, "worth most for each weight; compile --per-layer can leave them whole")),
        h("ul", { class: "names" }, ...crucial.map((name) => h("li", {}, groupLink(name, open)))),
      ),
  );
}

const percent = (share) => `${Math.round(100 * share)} %`;
const starKey = () =>
  h(
    "span",
    {},
    s("svg", { class: "star-sample", width: 22, height: 12, "aria-hidden": "true" }, s("path", { d: "M18 1v9l-9 -9z" })),
    "crucial: its weights are worth most",
  );

/** Rows and apart of a heat map, from groups laid out and what makes a group's cell. */
function celled({ rows, apart }, cell) {
  const cells = (row) => new Map([...row.cells].map(([layer, group]) => [layer, cell(group)]));
  return {
    rows: () => rows.map((row) => ({ name: row.name, cells: cells(row) })),
    apart: () => apart.map((group) => ({ name: group.name, cell: cell(group) })),
  };
}

function slider(share, change) {
  const shown = h("output", {}, percent(share));
  const input = h("input", {
    type: "range",
    min: 5,
    max: 100,
    step: 5,
    value: 100 * share,
    "aria-label": "Share of the group that is removed",
  });
  input.addEventListener("input", () => {
    shown.textContent = percent(input.value / 100);
    input.setAttribute("aria-valuetext", shown.textContent);
    change(input.value / 100);
  });
  return h("label", { class: "asked" }, "Removed of the group", input, shown);
}

function worthCell(group, found, share, most, starred) {
  const units = group.size / group.blocks;
  const removed = Math.round(share * units) * group.blocks;
  const rise = riseAt(found, removed);
  const what = `${group.name}: ${count(removed)} of ${count(group.size)} removed`;
  const rest = `${starred ? " · crucial" : ""}`;
  if (!removed)
    return {
      name: group.name,
      share: null,
      texts: ["–"],
      said: `${what}: too few structures for so small a share${rest}`,
      starred,
    };
  if (rise === null) return { name: group.name, share: null, texts: ["?"], said: `${what}: loss not finite${rest}`, starred };
  return {
    name: group.name,
    share: rank(rise, most),
    texts: [brief(rise), brief(rise).replace(/^0\./, ".")],
    said: `${what}: +${legible(rise)} nats a token${rest}`,
    starred,
  };
}

/** Where a rise lies on the scale of colours, which is logarithmic: most rises are small. */
const rank = (rise, most) => Math.max(0, Math.min(1, Math.log(Math.max(rise, LEAST) / LEAST) / Math.log(most / LEAST)));

/** The rise where so many structures are gone: never falling, and linear between the levels, as compile reads it. */
export function riseAt({ removed, rise }, at) {
  let [from, low] = [0, 0];
  for (const [i, to] of removed.entries()) {
    if (rise[i] === null) return at <= from ? low : null;
    const high = Math.max(low, rise[i]);
    if (at <= to) return low + ((high - low) * (at - from)) / (to - from);
    [from, low] = [to, high];
  }
  return low;
}

/** A rise in a narrow cell: what is less than half a thousandth is 0. */
function brief(rise) {
  if (rise < 0.0005) return "0";
  return rise < 0.1 ? rise.toFixed(3) : rise.toFixed(rise < 10 ? 2 : rise < 100 ? 1 : 0);
}

function worthMarks(most) {
  const found = [[0, `≤ ${LEAST}`]];
  for (let at = 10 * LEAST; rank(at, most) < 0.85; at *= 10) found.push([rank(at, most), legible(Number(at.toPrecision(3)))]);
  return [...found, [1, legible(most)]];
}

// --- budgets -----------------------------------------------------------------------------------------------------------

function budgets(view, open) {
  const found = view.measured.widths;
  const layout = laidOut(view.groups.filter((group) => group.name in found));
  const crucial = view.measured.knowledge?.crucial ?? [];
  const cell = (group) => budgetCell(group, found[group.name], crucial.includes(group.name));
  return h(
    "section",
    {},
    h("h2", {}, "Widths chosen"),
    h("p", {}, "How much of each group the compilation removed. The number is the width that is left."),
    heatMap({
      label: () => "Heat map by layer and kind: the share of each group that was removed",
      layers: layout.layers,
      ...celled(layout, cell),
      legend: colourScale(
        "removed",
        [
          [0, "0 %"],
          [0.5, "50 %"],
          [1, "100 %"],
        ],
        crucial.length > 0 && starKey(),
      ),
      pick: open,
    }),
  );
}

function budgetCell(group, { before, after }, starred) {
  const gone = before ? 1 - after / before : 0;
  const said = `${group.name}: ${count(before)} → ${count(after)}${group.kind === "query" ? " for each KV head" : ""}, ${percent(gone)} removed${starred ? " · crucial" : ""}`;
  return { name: group.name, share: gone, texts: [count(after), String(after), `${Math.round(after / 1000)}k`], said, starred };
}

// --- training ----------------------------------------------------------------------------------------------------------

function training(curves) {
  const [loss, text, rate, removed] = ["loss", "text", "rate", "removed"].map((key) =>
    (curves[key] ?? []).filter(([, value]) => Number.isFinite(value)),
  );
  const losses = [
    { name: "total", points: loss },
    { name: "of the text alone", points: text },
  ].filter((each) => each.points.length);
  const changing = new Set(removed.map(([, value]) => value)).size > 1;
  const panel = (title, series, more) =>
    h("div", {}, h("h3", {}, title), lineChart({ label: `Line chart: ${title}, by step`, series, ...more }));
  if (!losses.length && !rate.length && !removed.length) return null;
  return h(
    "section",
    {},
    h("h2", {}, "Training"),
    h(
      "div",
      { class: "panels" },
      losses.length > 0 && panel("Loss, nats a token", losses, { log: true }),
      rate.length > 0 && panel("Learning rate", [{ name: "rate", points: rate }], { low: 0 }),
      changing && panel("Structures removed", [{ name: "removed", points: removed, stairs: true }], { low: 0 }),
    ),
    removed.length > 0 && !changing && h("p", { class: "faint" }, `${count(removed[0][1])} structures are removed throughout.`),
  );
}

// --- recovery ----------------------------------------------------------------------------------------------------------

function recovery({ stages, subsets, dense }) {
  const turns = inTurn(stages ?? []);
  if (!turns.length) return null;
  const against = turns.some(({ measured }) => measured.some((each) => each.degradation));
  const values = (key) => subsets.map((name) => ({ name, points: turns.flatMap((turn) => pointsOf(turn, key, name)) }));
  const curves = values(against ? "degradation" : "loss");
  const shares = subsets.map((name) => ({ name, points: turns.flatMap((turn) => sharesOf(turn, name)), stairs: true }));
  const marks = turns.length > 1 ? turns.map(({ name, first }) => ({ name, x: first })) : [];
  const title = against ? "Degradation, nats a token" : "Held-out loss, nats a token";
  const what = against
    ? `How much higher the held-out loss is than that of ${dense || "the dense model"}, and`
    : "The held-out loss, and";
  const panel = (title, series, more) =>
    h(
      "div",
      {},
      h("h3", {}, title),
      lineChart({ label: `Line chart: ${title}, of each subset by step`, series, marks, ...more }),
    );
  return h(
    "section",
    {},
    h("h2", {}, "Recovery"),
    h("p", {}, `${what} how much each subset is drawn, by subset of the text.`),
    h(
      "div",
      { class: "panels" },
      curves.some((each) => each.points.length) && panel(title, curves, against ? { low: 0, high: NOTABLE } : { log: true }),
      shares.some((each) => each.points.length) && panel("Share of what is drawn", shares, { low: 0, high: 1, said: percent }),
    ),
  );
}

/** The stages one after another, with their first and last steps in the whole recovery. */
function inTurn(stages) {
  let first = 0;
  return stages.map(({ name, steps, stopped, measured }) => {
    const last = first + Math.max(steps, ...measured.map((each) => each.step));
    const turn = { name: stopped ? `${name}, stopped early` : name, first, last, measured };
    first = last;
    return turn;
  });
}

const pointsOf = ({ first, measured }, key, subset) =>
  measured.map((each) => [first + each.step, each[key]?.[subset]]).filter(([, value]) => Number.isFinite(value));

/** A subset's share, which stays until the next measurement, or until the stage ends. */
function sharesOf(turn, subset) {
  const points = pointsOf(turn, "share", subset);
  const drawn = points.filter(([step]) => step < turn.last);
  const kept = drawn.length ? drawn : points.slice(0, 1);
  return kept.length ? [...kept, [turn.last, kept.at(-1)[1]]] : [];
}
