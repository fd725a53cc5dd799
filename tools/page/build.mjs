// Bundles the page's script and style into one file each: node build.mjs [FOLDER]
import { copyFileSync } from "node:fs";
import { build } from "esbuild";

const out = process.argv[2] ?? "../../lorashear/viewer/built";
const common = { bundle: true, minify: true, charset: "utf8", legalComments: "inline", logLevel: "warning" };
await build({ ...common, entryPoints: ["src/main.js"], outfile: `${out}/page.js`, format: "iife", target: "es2022" });
await build({ ...common, entryPoints: ["src/page.css"], outfile: `${out}/page.css` });
copyFileSync("src/page.html", `${out}/page.html`);
