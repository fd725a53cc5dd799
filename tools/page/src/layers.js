// Which layer a group is in, and groups laid out as rows of one kind with a place for each layer.

const NUMBER = /(?:^|\.)(\d+)(?=\.|$)/;

/** The layer in a group's name: model.layers.17.mlp.ffn → 17; null where there is none. */
export function layerOf(name) {
  const found = NUMBER.exec(name);
  return found ? Number(found[1]) : null;
}

/** Groups by kind and layer: `rows` of groups by layer, and groups `apart`, which are of no one layer. */
export function laidOut(groups) {
  const inLayers = groups.filter((group) => layerOf(group.name) !== null);
  const layers = [...new Set(inLayers.map((group) => layerOf(group.name)))].sort((a, b) => a - b);
  const rows = [...grouped(inLayers, (group) => group.kind).values()].flatMap(rowsOfKind);
  return { layers, rows, apart: groups.filter((group) => layerOf(group.name) === null) };
}

/** One row, or one for each place where a layer has several groups of the kind, as routed and shared experts. */
function rowsOfKind(groups) {
  const kind = groups[0].kind;
  if (new Set(groups.map((group) => layerOf(group.name))).size === groups.length) return [row(kind, kind, groups)];
  const places = grouped(groups, (group) => group.name.replace(NUMBER, (found) => found.replace(/\d+/, "*")));
  const tails = [...places.keys()].map((place) => place.split("*.").pop());
  const told = new Set(tails).size === tails.length ? tails : [...places.keys()];
  return [...places.values()].map((found, i) => row(told[i].replace(new RegExp(`\\.?${kind}$`), ` ${kind}`).trim(), kind, found));
}

const row = (name, kind, groups) => ({ name, kind, cells: new Map(groups.map((group) => [layerOf(group.name), group])) });

/** A map from what `key` says to the items that it says it of. */
export function grouped(items, key) {
  const found = new Map();
  for (const item of items) {
    const at = key(item);
    if (found.has(at)) found.get(at).push(item);
    else found.set(at, [item]);
  }
  return found;
}

/** Numbers for a reader: [1, 2, 3, 7] → "1 to 3, 7". */
export function spans(numbers) {
  const found = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = found.at(-1);
    if (last && number === last[1] + 1) last[1] = number;
    else found.push([number, number]);
  }
  return found.map(([a, b]) => (a === b ? `${a}` : b === a + 1 ? `${a}, ${b}` : `${a} to ${b}`)).join(", ");
}
