// Search for a module, an operator, a parameter or a node group by a part of its name.

import { h } from "./dom.js";

const SHOWN = 12;

/** The field and its list; `go` has what to do with a group's name, or with that of an operator or module. */
export function search(model, tree, go) {
  const entries = [
    ...[...model.groups.keys()].map((name) => ({ name, what: "group", act: () => go.group(name) })),
    ...[...tree.boxes].filter(([id, box]) => id && box.kind === "module").map(([id]) => ({ name: id, what: "module", act: () => go.box(id) })),
    ...model.view.program.operators.flatMap((each) => [
      ...each.weights.map((weight) => ({ name: weight, what: "parameter", act: () => go.box(each.name) })),
      { name: `${each.module} ${each.op} ${each.name}`.trim(), what: "operator", act: () => go.box(each.name) },
    ]),
  ];
  let found = [];
  let at = -1;
  const list = h("ul", { class: "found", role: "listbox", id: "found", hidden: true });
  const field = h("input", { type: "search", id: "search", placeholder: "module, parameter or group", "aria-label": "search", role: "combobox", "aria-controls": "found", "aria-expanded": "false", autocomplete: "off", oninput: () => look(), onkeydown: key, onblur: () => setTimeout(close, 150) });

  function look() {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = words.length ? entries.filter((entry) => words.every((word) => entry.name.toLowerCase().includes(word))).slice(0, SHOWN) : [];
    at = found.length ? 0 : -1;
    show();
  }
  function show() {
    const none = field.value.trim() && !found.length;
    list.replaceChildren(
      ...found.map((entry, i) => h("li", { role: "option", id: `found-${i}`, "aria-selected": String(i === at), onpointerdown: (event) => { event.preventDefault(); take(entry); } }, h("span", { class: "kind" }, entry.what), h("span", {}, entry.name))),
      ...(none ? [h("li", { class: "faint" }, "nothing has such a name")] : []),
    );
    list.hidden = !found.length && !none;
    field.setAttribute("aria-expanded", String(!list.hidden));
    if (at >= 0) field.setAttribute("aria-activedescendant", `found-${at}`);
    else field.removeAttribute("aria-activedescendant");
  }
  function key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && found.length) {
      at = (at + step + found.length) % found.length;
      show();
      event.preventDefault();
    }
    if (event.key === "Enter" && at >= 0) take(found[at]);
    if (event.key === "Escape") close();
  }
  function take(entry) {
    close();
    entry.act();
  }
  function close() {
    list.hidden = true;
    field.setAttribute("aria-expanded", "false");
  }
  return h("div", { class: "search" }, field, list);
}
