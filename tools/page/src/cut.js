import { h } from "./dom.js";
export function cutSide() { return h("p", {}, "soon"); }
