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
    h("h3", {}, `${standing.length} operators stand in it`),
    h("div", {}, standing.slice(0, 200).map((each) => operatorLink(each, actions)), standing.length > 200 ? h("p", { class: "faint" }, `and ${count(standing.length - 200)} more`) : null),
  );
}

function marked(model, group, structure, actions) {
  const byWeight = new Map();
  for (const [weight, dim, indices] of model.slices(group, structure)) byWeight.set(weight, [...(byWeight.get(weight) ?? []), [dim, indices]]);
  const longest = Math.max(...[...byWeight.keys()].map((weight) => Math.max(...flat(model.weights[weight].shape))));
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

/** A shape as rows and columns: leading dims are rows of rows, as they lie in memory. */
function flat(shape) {
  const columns = shape.length > 1 ? shape.at(-1) : 1;
  return [shape.reduce((a, b) => a * b, 1) / columns, columns];
}

/** A weight to scale. Thin marks are drawn a pixel wide at least, since one column of thousands would not be seen. */
function rectangle(shape, slots, longest, weight) {
  const [rows, columns] = flat(shape);
  const scale = SIDE / longest;
  const [width, height] = [Math.max(columns * scale, LEAST), Math.max(rows * scale, LEAST)];
  const marks = slots.flatMap(([dim, indices]) => {
    const last = dim === shape.length - 1 && shape.length > 1;
    if (last) return runs(indices).map(([a, b]) => s("rect", { class: "mark", x: (a / columns) * width, y: 0, width: Math.max(((b - a) / columns) * width, 1), height }));
    const tail = shape.slice(dim + 1, shape.length > 1 ? -1 : undefined).reduce((a, b) => a * b, 1);
    const outer = shape.slice(0, dim).reduce((a, b) => a * b, 1);
    const found = [];
    for (let o = 0; o < outer; o++) for (const [a, b] of runs(indices)) found.push([(o * shape[dim] + a) * tail, (o * shape[dim] + b) * tail]);
    return found.slice(0, 2000).map(([a, b]) => s("rect", { class: "mark", x: 0, y: (a / rows) * height, width, height: Math.max(((b - a) / rows) * height, 1) }));
  });
  return s("svg", { class: "weight", width: width + 2, height: height + 2, viewBox: `-1 -1 ${width + 2} ${height + 2}`, role: "img", "aria-label": `${weight}: ${slots.map(([dim, indices]) => `${indices.length} of ${shape[dim]} along dim ${dim}`).join(", ")}` }, s("rect", { class: "whole", width, height }), marks);
}

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
