// The page: reads the data, shows its three sides, and keeps the address in step with what is looked at.

import { cutSide } from "./cut.js";
import { count, h, short } from "./dom.js";
import { Graph } from "./graph.js";
import { measuredSide } from "./measured.js";
import { Model } from "./model.js";
import { boxPanel, groupList, groupPanel } from "./panel.js";
import { search } from "./search.js";
import { Tree } from "./tree.js";

const view = JSON.parse(document.getElementById("data").textContent);
const model = new Model(view);
const tree = new Tree(model);
const panel = h("aside", { class: "panel", "aria-label": "details" });
let chosen = { group: null, box: null };

const graph = new Graph(tree, { chosen: chooseBox, hovered: (box) => hover(box && [...box.groups]) });
const actions = { choose: chooseGroup, hover: (name) => hover(name && [name]), operator: goTo };

const sides = {
  graph: h("main", { class: "side graph-side", id: "side-graph" }, graph.element, panel),
  cut: h("main", { class: "side text-side", id: "side-cut" }),
  measured: h("main", { class: "side text-side", id: "side-measured" }),
};
const made = { cut: () => cutSide(view, openGroup), measured: () => measuredSide(view, openGroup) };
const NAMES = { graph: "Graph", cut: "Cut", measured: "Measured" };
const tabs = Object.entries(NAMES).map(([side, name]) => h("button", { class: "tab", role: "tab", id: `tab-${side}`, "aria-controls": `side-${side}`, onclick: () => go({ side }) }, name));

document.body.prepend(
  h(
    "header",
    {},
    h("h1", {}, view.model.name),
    h("span", { class: "faint" }, `${view.model.class}, ${short(view.model.parameters)} parameters`),
    h("nav", { role: "tablist" }, tabs),
    search(model, tree, { group: openGroup, box: (name) => { go({ side: "graph" }); goTo(name); } }),
  ),
  ...Object.values(sides),
);
go({ side: "graph" });
graph.draw();
graph.fit();
read();
addEventListener("hashchange", read);

/** Colours what the pointer is on beside what was chosen. */
function hover(groups) {
  const fixed = chosen.group ? [chosen.group] : chosen.box ? [...chosen.box.groups] : [];
  graph.look([...new Set([...fixed, ...(groups ?? [])])], chosen.box);
}

function chooseGroup(name) {
  choose({ group: name, box: null });
}

function chooseBox(box) {
  choose({ group: null, box });
}

function choose(next) {
  chosen = next;
  const { group, box } = chosen;
  panel.replaceChildren(group ? groupPanel(model, model.groups.get(group), actions) : box ? boxPanel(model, box, actions) : groupList(model, actions));
  panel.scrollTop = 0;
  hover(null);
  const said = group ? `group=${encodeURIComponent(group)}` : box && box.id && !box.members ? `at=${encodeURIComponent(box.id)}` : "";
  history.replaceState(null, "", said ? `#${said}` : location.pathname + location.search);
}

/** Shows a group: what it touches is opened where that is in one place only. */
function openGroup(name) {
  go({ side: "graph" });
  chooseGroup(name);
  const boxes = model.standing(name).map((each) => tree.find(each.name));
  const layers = new Set(boxes.map((box) => outermost(box).id));
  if (layers.size === 1 && boxes.length) {
    for (const box of boxes) tree.reveal(box);
    graph.draw();
    graph.show(outermost(boxes[0]));
    graph.bring(boxes[0]);
  }
}

/** The numbered module that a box lies in, as a layer; or the box itself. */
function outermost(box) {
  let found = box;
  for (let each = box; each; each = each.parent) if (tree.runs.has(each.parent?.id)) found = each;
  return found;
}

/** Opens what an operator or module lies in, and shows it. */
function goTo(name) {
  const box = tree.find(name);
  if (!box) return;
  tree.reveal(box);
  graph.draw();
  graph.show(box);
  chooseBox(box);
}

function go({ side }) {
  for (const [name, element] of Object.entries(sides)) {
    element.hidden = name !== side;
    if (name === side && made[name]) {
      element.replaceChildren(made[name]());
      delete made[name];
    }
  }
  for (const tab of tabs) tab.setAttribute("aria-selected", String(tab.id === `tab-${side}`));
}

/** Goes where the address says: #group=NAME, #at=MODULE or %OPERATOR, #side=cut. */
function read() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const side = asked.get("side");
  go({ side: side in sides ? side : "graph" });
  if (model.groups.has(asked.get("group"))) openGroup(asked.get("group"));
  else if (tree.find(asked.get("at") ?? "%")) goTo(asked.get("at"));
  else if (!chosen.group && !chosen.box) choose({ group: null, box: null });
}
