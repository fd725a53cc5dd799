// The page: reads the data, and shows its three sides.
import { h } from "./dom.js";

const view = JSON.parse(document.getElementById("data").textContent);
document.body.append(h("h1", {}, view.model.name));
