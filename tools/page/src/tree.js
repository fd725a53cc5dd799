// The program as boxes within boxes: modules, composed operators, operators; layers that are alike are one box until one is opened.

/** A box. `kind`: module, composed, operator, rest (operators that touch no weight), run (layers that are alike), input. */
export class Box {
  constructor(kind, id, label, parent = null) {
    Object.assign(this, { kind, id, label, parent, children: [], operator: null, groups: new Set(), count: 0 });
  }

  /** Whether there is something inside to see. */
  get opens() {
    return this.children.length > 0 || this.kind === "run";
  }
}

export class Tree {
  constructor(model) {
    this.model = model;
    this.root = new Box("module", "", model.view.model.class);
    this.leaves = new Map(); // of each operator and input, by name
    this.boxes = new Map([["", this.root]]);
    this.runs = new Map();
    for (const run of model.view.program.alike) this.runs.set(run.module, [...(this.runs.get(run.module) ?? []), run]);
    for (const [name, given] of Object.entries(model.view.program.given)) if (given.role === "input") this.input(name, given);
    for (const operator of model.view.program.operators) this.add(operator, this.module(operator.module));
    this.bundle(this.root);
    this.merge(this.root);
    this.sum(this.root);
    this.open = new Set([""]);
    for (let box = this.root; box; box = box.children.find((child) => child.kind === "module" && child.count > this.root.count / 2 && !this.runs.has(child.id)))
      this.open.add(box.id);
    for (const module of this.runs.keys()) this.open.add(module);
  }

  input(name, given) {
    const box = new Box("input", name, given.path, this.root);
    this.put(box);
    this.leaves.set(name, box);
  }

  put(box) {
    box.parent.children.push(box);
    this.boxes.set(box.id, box);
    return box;
  }

  /** The box of a module's path. */
  module(path) {
    if (this.boxes.has(path)) return this.boxes.get(path);
    const cut = path.lastIndexOf(".");
    const parent = this.module(cut < 0 ? "" : path.slice(0, cut));
    return this.put(new Box("module", path, path.slice(cut + 1), parent));
  }

  add(operator, parent) {
    const box = new Box(operator.parts ? "composed" : "operator", operator.name, operator.op, parent);
    Object.assign(box, { operator, groups: new Set(operator.groups) });
    this.put(box);
    this.leaves.set(operator.name, box);
    for (const part of operator.parts ?? []) {
      const id = part.name === operator.name ? `${part.name}:last` : part.name;
      const inner = new Box("operator", id, part.op, box);
      Object.assign(inner, { operator: part, groups: new Set(part.groups) });
      this.put(inner);
      this.leaves.set(id, inner);
    }
  }

  /** Operators that touch no weight, as masks are made by, become one box in each module that has many. */
  bundle(box) {
    const rest = box.kind === "module" ? box.children.filter((c) => c.kind === "operator" && !c.groups.size && !c.operator.weights.length) : [];
    if (rest.length > 3 && rest.length < box.children.length) {
      const made = new Box("rest", `${box.id}:rest`, "without weights", box);
      const at = box.children.indexOf(rest[0]);
      box.children = box.children.filter((child) => !rest.includes(child));
      box.children.splice(at, 0, made);
      this.boxes.set(made.id, made);
      for (const child of rest) made.children.push(Object.assign(child, { parent: made }));
    }
    for (const child of box.children) this.bundle(child);
  }

  /** A module that is one operator only is that operator, under the module's name. */
  merge(box) {
    for (const child of box.children) this.merge(child);
    box.children = box.children.map((child) => {
      const [only, ...more] = child.children;
      if (child.kind !== "module" || more.length || !only || only.kind === "module" || only.kind === "rest") return child;
      Object.assign(only, { parent: box, module: child.label });
      this.boxes.set(child.id, only);
      return only;
    });
  }

  sum(box) {
    box.count = box.kind === "operator" ? 1 : 0;
    for (const child of box.children) {
      this.sum(child);
      box.count += child.count;
      for (const group of child.groups) box.groups.add(group);
    }
  }

  /** What is seen in an open box: its children, closed neighbours that are alike as one. */
  seen(box) {
    const runs = this.runs.get(box.id) ?? [];
    const result = [];
    for (const child of box.children) {
      const number = Number(child.id.slice(box.id.length + 1));
      const run = this.open.has(child.id) ? null : runs.find((each) => each.first <= number && number <= each.last);
      const last = result.at(-1);
      if (run && last?.run === run && last.last === number - 1) {
        last.last = number;
        last.members.push(child);
        for (const group of child.groups) last.groups.add(group);
        last.count += child.count;
      } else if (run) {
        const made = new Box("run", "", "", box);
        result.push(Object.assign(made, { run, first: number, last: number, members: [child], groups: new Set(child.groups), count: child.count }));
      } else result.push(child);
    }
    return result.map((each) => (each.kind === "run" ? this.named(each) : each));
  }

  named(run) {
    if (run.members.length === 1) return run.members[0];
    const name = run.parent.label;
    return Object.assign(run, { id: `${run.parent.id}.${run.first}-${run.last}`, label: `${name} ${run.first} – ${run.last}` });
  }

  /** Opens a box, of layers that are alike the first; or closes it. */
  toggle(box) {
    const id = box.kind === "run" ? box.members[0].id : box.id;
    if (this.open.has(id)) this.open.delete(id);
    else this.open.add(id);
  }

  /** Opens all that a box lies in, so that it is seen. */
  reveal(box) {
    for (let each = box.parent; each; each = each.parent) this.open.add(each.id);
  }

  /** The box of an operator, an input or a module, by its name. */
  find(name) {
    return this.leaves.get(name) ?? this.boxes.get(name);
  }
}
