// The data of the page, found by name.

/** What a view holds, with the look-ups that its sides need. */
export class Model {
  constructor(view) {
    this.view = view;
    this.axes = view.program.axes;
    this.groups = new Map(view.groups.map((group) => [group.name, group]));
    this.weights = view.program.weights;
    this.places = new Map(this.axes.map((axis, at) => [axis.name, at]));
    this.operators = new Map();
    for (const each of view.program.operators) {
      this.operators.set(each.name, each);
      for (const part of each.parts ?? []) if (part.name !== each.name) this.operators.set(part.name, { ...part, within: each.name });
    }
  }

  /** The operators that stand in a group, composed ones as a whole. */
  standing(name) {
    return this.view.program.operators.filter((each) => each.groups.includes(name));
  }

  /** What structure `structure` of a group owns: [weight, dim, indices], as `Group.slices` of lorashear gives it. */
  slices(group, structure) {
    const axis = this.places.get(group.axis);
    const size = this.axes[axis].size;
    const row = group.blocks > 1 ? Math.floor(structure / size) : null;
    return group.slots.map(([weight, dim]) => [weight, dim, this.owned(this.weights[weight].dims[dim], axis, structure % size, row)]);
  }

  /** The indices of a dim at which an axis stands at `index`, in one block only where `block` is a number. */
  owned(dim, axis, index, block) {
    if (typeof dim === "number") return dim === axis ? [index] : [];
    if (dim["+"]) {
      let begin = 0;
      return dim["+"].flatMap((term) => {
        const found = this.owned(term, axis, index, block).map((at) => begin + at);
        begin += this.size(term);
        return found;
      });
    }
    const sizes = dim.x.map((factor) => this.size(factor));
    const found = new Set();
    dim.x.forEach((factor, position) => {
      const inner = this.owned(factor, axis, index, block);
      if (!inner.length) return;
      const rows = sizes.slice(0, position).reduce((a, b) => a * b, 1);
      const tail = sizes.slice(position + 1).reduce((a, b) => a * b, 1);
      for (let row = block ?? 0; row < (block === null ? rows : block + 1); row++)
        for (const at of inner) for (let j = 0; j < tail; j++) found.add((row * sizes[position] + at) * tail + j);
    });
    return [...found].sort((a, b) => a - b);
  }

  /** How many indices a dim has. */
  size(dim) {
    if (typeof dim === "number") return this.axes[dim].size;
    return dim["+"] ? dim["+"].reduce((sum, term) => sum + this.size(term), 0) : dim.x.reduce((all, factor) => all * this.size(factor), 1);
  }
}
