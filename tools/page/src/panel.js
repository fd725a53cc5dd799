// What is beside the graph: all groups, one group with its weights, or one operator.

import { count, h, s } from "./dom.js";

const SIDE = 150; // pixels that the longest side of a weight takes
const LEAST = 5;

/** All node groups, those of layers that are alike under one head each. */
export function groupList(model, actions) {
  const heads = new Map();
  for (const group of model.groups.values()) {
    const key = group.name.replace(/\d+/g, "*");
    heads.set(key, [...(heads.get(key) ?? []), group]);
  }
  return h(
    "div",
    {},
    h("h2", {}, `${count(model.groups.size)} node groups`),
    h("p", { class: "faint" }, "What can only be removed together. The operators of the one under the pointer are coloured."),
    [...heads].map(([key, groups]) => (groups.length === 1 ? row(groups[0], actions) : family(key, groups, actions))),
  );
}

function family(key, groups, actions) {
  const prunable = groups.filter((group) => group.prunable).length;
  const sizes = [...new Set(groups.map((group) => group.size))];
  return h(
    "details",
    { class: "family" },
    h("summary", {}, h("span", { class: "kind" }, groups[0].kind), ` ${key} `, h("span", { class: "faint" }, `${groups.length} of ${sizes.map(count).join(" or ")}, ${prunable ? (prunable === groups.length ? "prunable" : `${prunable} prunable`) : "not prunable"}`)),
    groups.map((group) => row(group, actions)),
  );
}

function row(group, { choose, hover }) {
  return h(
    "button",
    {
      class: "group", "data-group": group.name, title: group.reason || "prunable",
      onclick: () => choose(group.name), onpointerenter: () => hover(group.name), onpointerleave: () => hover(null), onfocus: () => hover(group.name), onblur: () => hover(null),
    },
    h("span", { class: "kind" }, group.kind),
    h("span", { class: "name" }, group.name),
    h("span", { class: "faint" }, `${count(group.size)}${group.prunable ? "" : ", not prunable"}`),
  );
}

/** One group: its weights to scale, with the rows or columns of one structure marked. */
export function groupPanel(model, group, actions) {
  const weights = h("div", { class: "weights" });
  const input = h("input", { type: "number", id: "structure", min: 0, max: group.size - 1, value: 0, oninput: () => mark() });
  const range = h("input", { type: "range", min: 0, max: group.size - 1, value: 0, "aria-label": "structure", oninput: () => { input.value = range.value; mark(); } });
  const mark = () => {
    const structure = Math.min(group.size - 1, Math.max(0, Number(input.value) || 0));
    range.value = structure;
    weights.replaceChildren(...marked(model, group, structure, actions));
  };
  mark();
  const standing = model.standing(group.name);
  return h(
    "div",
    { "data-selected": group.name },
    back(actions),
    h("h2", {}, group.name),
    h("p", {}, group.prunable ? `${count(group.size)} structures of kind ${group.kind}, each of ${count(group.parameters)} weights. Prunable.` : `${count(group.size)} structures of kind ${group.kind}, each of ${count(group.parameters)} weights. Not prunable: ${group.reason}.`),
    group.blocks > 1 ? h("p", { class: "faint" }, `In ${group.blocks} equal blocks, which must lose equally many: ${count(group.size / group.blocks)} in each.`) : null,
    h("p", {}, h("label", { for: "structure" }, "structure "), input, " ", range),
    weights,
    h("h3", {}, standing.length === 1 ? "1 operator stands in it" : `${standing.length} operators stand in it`),
    h("div", {}, standing.slice(0, 200).map((each) => operatorLink(each, actions)), standing.length > 200 ? h("p", { class: "faint" }, `and ${count(standing.length - 200)} more`) : null),
  );
}

function marked(model, group, structure, actions) {
  const byWeight = new Map();
  for (const [weight, dim, indices] of model.slices(group, structure)) byWeight.set(weight, [...(byWeight.get(weight) ?? []), [dim, indices]]);
  const longest = Math.max(...[...byWeight.keys()].map((weight) => longer(model.weights[weight].shape)));
  return [...byWeight].map(([weight, slots]) => {
    const info = model.weights[weight];
    return h(
      "figure",
      { "data-weight": weight, "data-slices": JSON.stringify(slots) },
      rectangle(info.shape, slots, longest, weight),
      h("figcaption", {}, h("code", {}, weight), h("span", { class: "faint" }, ` ${info.shape.map(count).join(" × ")}`), h("ol", { class: "dims", start: 0 }, info.type.map((type, dim) => h("li", { class: slots.some(([at]) => at === dim) ? "own" : "" }, h("code", {}, type))))),
    );
  });
}

/** The longer side of a weight as it is drawn. */
function longer(shape) {
  const [blocks, rows, columns] = flat(shape);
  return Math.max(rows, blocks * columns);
}

/**
 * How a shape is drawn, as [blocks, rows, columns]: a matrix as it is, matrices of experts side by side, and a kernel of a convolution
 * with a row for each output channel.
 */
function flat(shape) {
  const all = (sizes) => sizes.reduce((a, b) => a * b, 1);
  if (shape.length > 3) return [1, shape[0], all(shape.slice(1))];
  const [rows, columns] = shape.length > 1 ? shape.slice(-2) : [shape[0] ?? 1, 1];
  return [all(shape.slice(0, -2)), rows, columns];
}

/** A weight to scale. Thin marks are drawn a pixel wide at least, since one column of thousands would not be seen. */
function rectangle(shape, slots, longest, weight) {
  const [blocks, rows, columns] = flat(shape);
  const scale = SIDE / longest;
  const [width, height] = [Math.max(blocks * columns * scale, LEAST), Math.max(rows * scale, LEAST)];
  const one = width / blocks;
  const across = (block, [a, b]) => s("rect", { class: "mark", x: block * one + (a / columns) * one, y: 0, width: Math.max(((b - a) / columns) * one, 1), height });
  const down = ([a, b]) => s("rect", { class: "mark", x: 0, y: (a / rows) * height, width, height: Math.max(((b - a) / rows) * height, 1) });
  const marks = slots.flatMap(([dim, indices]) => {
    if (dim === Math.max(0, shape.length > 3 ? 0 : shape.length - 2)) return runs(indices).map(down);
    if (shape.length > 3) return runs(within(shape, dim, indices)).map((span) => across(0, span));
    if (dim === shape.length - 1) return upTo(blocks).flatMap((block) => runs(indices).map((span) => across(block, span)));
    return indices.map((block) => across(block, [0, columns]));
  });
  const borders = upTo(Math.min(blocks, 64)).slice(1).map((block) => s("line", { class: "border", x1: block * one, x2: block * one, y1: 0, y2: height }));
  return s("svg", { class: "weight", width: width + 2, height: height + 2, viewBox: `-1 -1 ${width + 2} ${height + 2}`, role: "img", "aria-label": `${weight}: ${slots.map(([dim, indices]) => `${indices.length} of ${shape[dim]} along dim ${dim}`).join(", ")}` }, s("rect", { class: "whole", width, height }), borders, marks);
}

/** The places of indices of one dim among all dims but the first, which lie in one row. */
function within(shape, dim, indices) {
  const chosen = new Set(indices);
  const tail = shape.slice(dim + 1).reduce((a, b) => a * b, 1);
  const row = shape.slice(1).reduce((a, b) => a * b, 1);
  return upTo(row).filter((at) => chosen.has(Math.floor(at / tail) % shape[dim]));
}

const upTo = (number) => [...Array(number).keys()];

/** Neighbours together: [first, after the last]. */
function runs(indices) {
  const found = [];
  for (const at of indices) {
    if (found.length && found.at(-1)[1] === at) found.at(-1)[1]++;
    else found.push([at, at + 1]);
  }
  return found;
}

/** One operator, or module: what it reads, its weights and their types, the groups that it stands in. */
export function boxPanel(model, box, actions) {
  const operator = box.operator;
  const names = [...box.groups];
  return h(
    "div",
    {},
    back(actions),
    h("h2", {}, operator ? `${operator.op}${operator.module ? ` in ${operator.module}` : ""}` : box.members ? `${box.parent.id}.${box.first} to ${box.last}, alike` : box.id || box.label),
    operator
      ? h("table", {}, [["name", [operator.name]], ["type", operator.type], ["reads", operator.reads]].map(([what, said]) => h("tr", {}, h("th", {}, what), h("td", {}, said.map((each) => h("div", {}, h("code", {}, each)))))), operator.weights.map((weight) => h("tr", {}, h("th", {}, "weight"), h("td", {}, h("code", {}, weight), h("div", {}, h("code", { class: "faint" }, `(${model.weights[weight].type.join(", ")})`))))))
      : h("p", {}, `${count(box.count)} operators.`),
    h("h3", {}, names.length ? `Stands in ${names.length} group${names.length > 1 ? "s" : ""}` : "Stands in no group: it touches no weight that could go"),
    h("div", { class: "legend" }, names.slice(0, 60).map((name, i) => h("div", { class: "entry" }, h("span", { class: `swatch k${i % 6}` }), row(model.groups.get(name), actions))), names.length > 60 ? h("p", { class: "faint" }, `and ${names.length - 60} more`) : null),
  );
}

function operatorLink(operator, { operator: go }) {
  return h("button", { class: "group", "data-operator": operator.name, onclick: () => go(operator.name) }, h("span", { class: "kind" }, operator.op), h("span", { class: "name" }, operator.module || operator.name));
}

function back({ choose }) {
  return h("button", { class: "back", onclick: () => choose(null) }, "← all groups");
}
