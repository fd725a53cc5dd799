// The graph: boxes drawn where the layout puts them, coloured by the groups that are looked at; panned, zoomed, walked by keyboard.

import { h, s } from "./dom.js";
import { layout } from "./layout.js";

const COLOURS = 6;

export class Graph {
  /** `chosen(box)` is called when a box is chosen, `hovered(box or null)` when the pointer rests on one. */
  constructor(tree, { chosen, hovered }) {
    Object.assign(this, { tree, chosen, hovered, active: [], selected: null });
    this.view = { x: 0, y: 0, scale: 1 };
    this.scene = s("g");
    this.svg = s("svg", { class: "graph", tabindex: 0, role: "group", "aria-label": "The program as boxes; arrow keys move the picture, plus and minus zoom" }, arrow(), this.scene);
    const button = (label, title, act) => h("button", { title, "aria-label": title, onclick: act }, label);
    this.element = h(
      "div",
      { class: "canvas" },
      this.svg,
      h("div", { class: "tools" }, button("+", "zoom in", () => this.zoom(1.25)), button("−", "zoom out", () => this.zoom(0.8)), button("⤢", "fit the picture to the window", () => this.fit())),
    );
    this.listen();
  }

  listen() {
    this.svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 500), event.offsetX, event.offsetY);
    }, { passive: false });
    let from = null;
    this.svg.addEventListener("pointerdown", (event) => { from = { x: event.clientX - this.view.x, y: event.clientY - this.view.y, id: event.pointerId, moved: false, at: [event.clientX, event.clientY] }; });
    this.svg.addEventListener("pointermove", (event) => {
      if (!from) return;
      if (!from.moved && Math.hypot(event.clientX - from.at[0], event.clientY - from.at[1]) < 4) return;
      if (!from.moved) this.svg.setPointerCapture(from.id);
      from.moved = true;
      Object.assign(this.view, { x: event.clientX - from.x, y: event.clientY - from.y });
      this.move();
    });
    const end = () => { from = null; };
    this.svg.addEventListener("pointerup", end);
    this.svg.addEventListener("pointercancel", end);
    this.svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
      if (step) { this.view.x += step[0]; this.view.y += step[1]; this.move(); event.preventDefault(); }
      if (event.key === "+" || event.key === "=") this.zoom(1.25);
      if (event.key === "-") this.zoom(0.8);
      if (event.key === "0") this.fit();
    });
  }

  /** Draws everything anew; `keep` is a box that stays where it is on the screen. */
  draw(keep = null) {
    const before = keep && this.spot(keep.id);
    const focused = document.activeElement?.closest?.("[data-box]")?.dataset.box;
    this.placed = layout(this.tree);
    this.spots = new Map();
    this.scene.replaceChildren(this.boxed(this.placed, 0, 0));
    const after = before && this.spot(keep.id);
    if (after) {
      this.view.x += (before.x - after.x) * this.view.scale;
      this.view.y += (before.y - after.y) * this.view.scale;
    }
    this.move();
    this.colour();
    if (focused) this.scene.querySelector(`[data-box="${CSS.escape(focused)}"] > .face`)?.focus({ preventScroll: true });
  }

  spot(id) {
    return this.spots?.get(id);
  }

  boxed(each, left, top) {
    const { box, texts, deck = 0 } = each;
    const width = each.width - deck, height = each.height - deck;
    const x = left + (each.x ?? 0), y = top + (each.y ?? 0);
    const open = each.children.length > 0;
    this.spots.set(box.id, { x, y, width, height });
    for (const member of box.members ?? []) this.spots.set(member.id, { x, y, width, height });
    const act = (event) => {
      event.stopPropagation();
      this.choose(box);
    };
    const face = s(
      "g",
      {
        class: "face", tabindex: 0, role: "button",
        "aria-label": `${texts.join(", ")}${box.opens ? (open ? ", open" : ", closed") : ""}`,
        "aria-expanded": box.opens ? String(open) : null,
        onclick: act,
        onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(event); } },
        onpointerenter: () => this.hovered(box),
        onpointerleave: () => this.hovered(null),
        onfocus: () => this.hovered(box),
        onblur: () => this.hovered(null),
      },
      s("title", {}, box.operator ? `${box.operator.name} ${box.operator.type.join(" ")}` : box.id || box.label),
      deck ? [deck, deck / 2].map((out) => s("rect", { class: "behind", x: out, y: deck - out, width, height, rx: 6 })) : null,
      s("rect", { class: "body", y: deck, width, height, rx: 6 }),
      s("g", { class: "stripes", transform: `translate(0 ${deck})` }),
      open
        ? s("text", { class: "head", x: 10, y: 17 }, `▾ ${texts[0]}`)
        : texts.map((text, i) => s("text", { class: i ? "second" : "first", x: width / 2, y: deck + 6 + 17 * i + 12, "text-anchor": "middle" }, i === 0 && box.opens ? `▸ ${text}` : text)),
    );
    return s(
      "g",
      { class: `box ${box.kind}${open ? " open" : ""}`, "data-box": box.id, transform: `translate(${each.x ?? 0} ${each.y ?? 0})` },
      face,
      each.edges.map((points) => s("path", { class: "edge", d: curve(points), "marker-end": "url(#arrow)" })),
      each.ports.map((port) => s("circle", { class: "port", cx: port.x + port.size / 2, cy: port.y + port.size / 2, r: port.size / 2 - 1 }, s("title", {}, port.from.map(origin).join("\n")))),
      each.children.map((child) => this.boxed(child, x, y)),
    );
  }

  /** Opens or closes a box that has something inside, and chooses it. */
  choose(box) {
    if (box.opens) {
      this.tree.toggle(box);
      this.draw(box.kind === "run" ? box.members[0] : box);
    }
    this.chosen(box);
  }

  /** The groups that are looked at, the first in the first colour; and the box that is chosen. */
  look(active, selected = this.selected) {
    Object.assign(this, { active, selected });
    this.colour();
  }

  colour() {
    this.svg.classList.toggle("looking", this.active.length > 0);
    for (const element of this.scene.querySelectorAll("[data-box]")) {
      const id = element.dataset.box;
      const box = this.boxOf(id);
      const lit = this.active.map((name, i) => [name, i % COLOURS]).filter(([name]) => box.groups.has(name));
      const face = element.querySelector(":scope > .face");
      element.classList.toggle("lit", lit.length > 0);
      element.classList.toggle("selected", this.selected !== null && (box === this.selected || (box.members ?? []).includes(this.selected)));
      element.dataset.lit = lit.map(([name]) => name).join(" ");
      const { width, height } = this.spots.get(id);
      const open = element.classList.contains("open");
      const tall = open ? 26 : height;
      const stripes = lit.map(([, colour], i) => s("rect", { class: `stripe k${colour}`, x: 1.5, y: 1.5 + ((tall - 3) * i) / lit.length, width: open ? 7 : width - 3, height: (tall - 3) / lit.length, rx: lit.length === 1 ? 5 : 0 }));
      face.querySelector(".stripes").replaceChildren(...stripes);
    }
  }

  boxOf(id) {
    return this.seen(this.placed, id);
  }

  seen(each, id) {
    if (!this.known || this.knownFor !== this.placed) {
      this.known = new Map();
      const walk = (one) => { this.known.set(one.box.id, one.box); one.children.forEach(walk); };
      walk(this.placed);
      this.knownFor = this.placed;
    }
    return this.known.get(id);
  }

  move() {
    this.scene.setAttribute("transform", `translate(${this.view.x} ${this.view.y}) scale(${this.view.scale})`);
  }

  zoom(by, x = this.svg.clientWidth / 2, y = this.svg.clientHeight / 2) {
    const scale = Math.min(4, Math.max(0.05, this.view.scale * by));
    const real = scale / this.view.scale;
    Object.assign(this.view, { scale, x: x - (x - this.view.x) * real, y: y - (y - this.view.y) * real });
    this.move();
  }

  /** All of the picture in the window, or as much of its top as can be read. */
  fit() {
    const { clientWidth: width, clientHeight: height } = this.svg;
    const scale = Math.min(1.2, Math.max(0.55, Math.min((width - 40) / this.placed.width, (height - 40) / this.placed.height)));
    Object.assign(this.view, { scale, x: Math.max(20, (width - this.placed.width * scale) / 2), y: 20 });
    this.move();
  }

  /** Brings a box into the window. */
  show(box) {
    const spot = this.spot(box.id);
    if (!spot) return;
    const { clientWidth: width, clientHeight: height } = this.svg;
    const scale = Math.max(this.view.scale, 0.7);
    Object.assign(this.view, { scale, x: width / 2 - (spot.x + Math.min(spot.width, width) / 2) * scale, y: height / 2 - (spot.y + Math.min(spot.height, height * 0.8) / 2) * scale });
    this.move();
  }
}

function arrow() {
  return s("defs", {}, s("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, s("path", { d: "M0 0 L8 4 L0 8 z", class: "tip" })));
}

/** Where a value comes from, in words. */
function origin(box) {
  return `from ${box.module ?? box.label}${box.parent?.id ? ` in ${box.parent.id}` : ""}`;
}

/** A smooth line through points. */
function curve(points) {
  const [first, ...rest] = points;
  let path = `M${first.x} ${first.y}`;
  for (let i = 0; i < rest.length - 1; i++) {
    const middle = i === rest.length - 2 ? rest[i + 1] : { x: (rest[i].x + rest[i + 1].x) / 2, y: (rest[i].y + rest[i + 1].y) / 2 };
    path += ` Q${rest[i].x} ${rest[i].y} ${middle.x} ${middle.y}`;
  }
  return rest.length === 1 ? `${path} L${rest[0].x} ${rest[0].y}` : path;
}
