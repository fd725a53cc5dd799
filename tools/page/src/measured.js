import { h } from "./dom.js";
export function measuredSide() { return h("p", {}, "soon"); }
