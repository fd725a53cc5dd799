// Where boxes lie: each open box is laid out by itself, from the inside out.

import dagre from "@dagrejs/dagre";

const HEAD = 26, PAD = 14, LINE = 17, LETTER = 7.1, PORT = 12;
export const DECK = 8; // by how much the boxes behind one that stands for many stick out

/** The text in a closed box. */
export function lines(box) {
  if (box.kind === "run") return [box.label, `${box.members.length} alike`];
  if (box.kind === "module") return [box.label, `${box.count} operators`];
  if (box.kind === "rest") return [`${box.count} operators`, "without weights"];
  if (box.kind === "input") return [box.label, "input"];
  return box.module ? [box.module, box.label] : [box.label];
}

/**
 * Places everything that is seen in a tree.
 *
 * Returns { box, x, y, width, height, children, edges, ports }: x and y of the upper left corner within the parent's, edges as lists of
 * points, ports where values come in from outside.
 */
export function layout(tree) {
  return place(tree, tree.root, reads(tree));
}

/** [producer, consumer] of every use of a value, as boxes of operators. */
function reads(tree) {
  const found = [];
  for (const operator of tree.model.view.program.operators) {
    const box = tree.leaves.get(operator.name);
    for (const name of operator.reads) if (tree.leaves.has(name)) found.push([tree.leaves.get(name), box]);
    if (operator.parts && tree.open.has(operator.name)) inside(tree, operator, found);
  }
  return found;
}

function inside(tree, operator, found) {
  const own = new Map(operator.parts.map((part) => [part.name, tree.leaves.get(part.name === operator.name ? `${part.name}:last` : part.name)]));
  for (const part of operator.parts)
    for (const name of part.reads) {
      const from = own.get(name) ?? tree.leaves.get(name);
      if (from) found.push([from, own.get(part.name)]);
    }
}

function place(tree, box, edges) {
  const texts = lines(box);
  if (box.kind === "run" || !tree.open.has(box.id) || !box.children.length) {
    const deck = box.kind === "run" ? DECK : 0;
    const width = Math.max(70, Math.max(...texts.map((text) => text.length)) * LETTER + 34);
    return { box, texts, deck, width: width + deck, height: 12 + LINE * texts.length + deck, children: [], edges: [], ports: [] };
  }
  const seen = tree.seen(box);
  const owner = new Map();
  for (const child of seen) for (const member of child.members ?? [child]) owner.set(member, child);
  const graph = new dagre.graphlib.Graph().setGraph({ nodesep: 22, ranksep: 26, marginx: PAD, marginy: PAD }).setDefaultEdgeLabel(() => ({}));
  const placed = new Map(seen.map((child) => [child, place(tree, child, edges)]));
  for (const [child, each] of placed) graph.setNode(child.id, { width: each.width, height: each.height });
  const outside = new Map(); // of each box outside, those within that read it
  for (const [from, to] of edges) {
    const target = within(to, box, owner);
    if (!target) continue;
    const source = within(from, box, owner);
    if (source && source !== target) graph.setEdge(source.id, target.id);
    else if (!source && !contains(from, box)) outside.set(from, (outside.get(from) ?? new Set()).add(target.id));
  }
  const ports = new Map(); // values that the same boxes read come in by one port
  for (const [from, targets] of outside) {
    const id = `port ${[...targets].sort().join(" ")}`;
    ports.set(id, [...(ports.get(id) ?? []), from]);
    graph.setNode(id, { width: PORT, height: PORT });
    for (const target of targets) graph.setEdge(id, target);
  }
  dagre.layout(graph);
  const { width, height } = graph.graph();
  const at = (id) => {
    const node = graph.node(id);
    return { x: node.x - node.width / 2, y: node.y - node.height / 2 + HEAD };
  };
  return {
    box,
    texts,
    width: Math.max(width, texts[0].length * LETTER + 50),
    height: height + HEAD,
    children: [...placed].map(([child, each]) => Object.assign(each, at(child.id))),
    edges: graph.edges().map((edge) => graph.edge(edge).points.map((point) => ({ x: point.x, y: point.y + HEAD }))),
    ports: [...ports].map(([id, from]) => ({ ...at(id), size: PORT, from })),
  };
}

/** The child of `box`, as it is seen, in which another box lies; undefined where it lies elsewhere. */
function within(other, box, owner) {
  for (let each = other; each; each = each.parent) if (each.parent === box) return owner.get(each);
  return undefined;
}

function contains(other, box) {
  for (let each = other; each; each = each.parent) if (each === box) return true;
  return false;
}
