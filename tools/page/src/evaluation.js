// Models side by side: each figure with its standard error and how it differs from the first model's, as `lorashear eval` prints it.
import { errorBar, fixed, legible, signed } from "./charts.js";
import { count, h, short } from "./dom.js";

const NOISY = "≈";
const CHANCE = "°";
const LEGEND = {
  [NOISY]: "within noise: less than 1.96 standard errors of the difference; of speed, half of the rounds lie around 1",
  [CHANCE]: "at chance level: no more than 1.96 standard errors above guessing",
};
const COLOURS = 6;

/** The section with the evaluation of a view. */
export function evaluationView({ models, figures }) {
  const names = told(models.map((model) => model.name));
  const rows = [
    sizes("parameters", models, (model) => model.parameters, count, short),
    sizes("weights", models, (model) => model.bytes, megabytes, bytes),
    ...figures.flatMap((figure) => (MADE[figure.kind] ?? (() => []))(figure)),
  ].filter(Boolean);
  const head = ["", "model", "figure", "± one standard error", `difference from ${names[0]}`];
  const marks = Object.keys(LEGEND).filter((mark) =>
    rows.some((row) => row.cells.some((cell) => `${cell.said}${cell.difference}`.includes(mark))),
  );
  return h(
    "section",
    {},
    h("h2", {}, "Evaluation"),
    h(
      "div",
      { class: "table-box" },
      h(
        "table",
        { class: "evaluation" },
        h(
          "thead",
          {},
          h("tr", {}, ...head.map((text, i) => h("th", { scope: "col", class: i === 2 || i === 4 ? "number" : null }, text))),
        ),
        ...rows.map((row) => body(row, names)),
      ),
    ),
    h(
      "p",
      { class: "faint" },
      "± is a standard error; differences are of the same items and windows. A dashed line in a plot is guessing.",
    ),
    marks.map((mark) => h("p", { class: "faint" }, `${mark} ${LEGEND[mark]}`)),
  );
}

/** Names to tell models apart by: the last part of each path where no two share it. */
function told(names) {
  const last = names.map((name) => name.split("/").filter(Boolean).pop() ?? name);
  const found = names.map((name, i) =>
    last.indexOf(last[i]) === last.lastIndexOf(last[i]) || names.every((other, j) => last[j] !== last[i] || other === name)
      ? last[i]
      : name,
  );
  return found.map((name, i) =>
    found.slice(0, i).includes(name) ? `${name} (${found.slice(0, i).filter((other) => other === name).length + 1})` : name,
  );
}

// --- rows: a name, and a cell for each model with value, error, what is said of them, and the difference ---------------

function sizes(name, models, size, said, scaled = said) {
  const values = models.map(size);
  if (values.some((value) => value === null || value === undefined)) return null;
  return {
    name,
    from: 0,
    scaled,
    cells: values.map((value, i) => ({ value, said: said(value), difference: i ? share(value / values[0] - 1) : "" })),
  };
}

const megabytes = (bytes) => (bytes < 1e9 ? `${fixed(bytes / 1e6, 1)} MB` : `${fixed(bytes / 1e9, 2)} GB`);
const bytes = (value) => short(value, "B");
const share = (value) => (Math.abs(value) < 1e4 ? `${signed(100 * value, 1)} %` : `${(100 * value).toExponential(2)} %`);
const off = (said, error, spelled) => (error === null || error === undefined ? said : `${said} ±${spelled(error)}`);
const noisy = (said, noise) => (noise ? `${said} ${NOISY}` : said);
const digits =
  (n, factor = 1) =>
  (value) =>
    fixed(factor * value, n);

function perplexity({ name, results, differences }) {
  const cells = results.map((result, i) => ({ ...perplexed(result), difference: i ? grown(differences[i]) : "" }));
  const bits = results.map((result, i) => {
    const [d, three] = [differences[i], digits(3)];
    const value = result.bits_per_byte;
    // One error of a paired difference is stated, that of the loss; bits have their own only where tokenizers differ.
    const more = d ? noisy(off(signed(d.bits_per_byte, 3), d.paired ? null : d.error, three), d.noise) : "–";
    return {
      value,
      error: result.bits_error,
      said: value === null ? "not finite" : off(three(value), result.bits_error, three),
      difference: i ? more : "",
    };
  });
  return [
    { name: `${name}: perplexity`, cells },
    { name: `${name}: bits a byte`, cells: bits },
  ];
}

/** A perplexity; its error is known of its logarithm. */
function perplexed({ perplexity: value, error }) {
  if (value === null) return { value: null, said: "over 10^300" };
  if (value >= 1e6) return { value: null, said: value.toExponential(2) };
  const around = error === null || error === undefined ? null : value * error;
  return { value, error: around, said: off(fixed(value, 3), around, digits(3)) };
}

function grown(d) {
  if (!d || !d.paired || d.nll === null) return "–";
  const nats = Math.min(d.nll, 700);
  return noisy(
    off(share(Math.expm1(nats)), d.error, (error) => fixed(100 * Math.exp(nats) * error, 1)),
    d.noise,
  );
}

function choices({ name, results, differences, chance }) {
  return [
    ["accuracy", "accuracy"],
    ["normalised", "accuracy, by length"],
  ].map(([key, what]) => ({
    name: `${name}: ${what}`,
    reference: chance,
    scaled: (value) => `${legible(100 * value)} %`,
    cells: results.map((result, i) => ({
      value: result[key],
      error: result[`${key}_error`],
      said: `${off(fixed(100 * result[key], 1), result[`${key}_error`], digits(1, 100))} %${result[`${key}_at_chance`] ? ` ${CHANCE}` : ""}`,
      difference: i ? pointsOff(differences[i], key) : "",
    })),
  }));
}

const pointsOff = (d, key) =>
  d ? noisy(off(signed(100 * d[key], 1), d[`${key}_error`], digits(1, 100)), d[`${key}_noise`]) : "–";

function harness({ name, results, differences }) {
  return Object.keys(results[0].metrics).map((metric) => ({
    name: `${name}: ${metric}`,
    cells: results.map((result, i) => {
      const [value, error, d, four] = [result.metrics[metric], result.errors[metric], differences[i], digits(4)];
      const more = d ? noisy(off(signed(d.metrics[metric], 4), d.errors[metric], four), d.noise[metric]) : "–";
      return { value, error, said: value === null ? "not finite" : off(four(value), error, four), difference: i ? more : "" };
    }),
  }));
}

const SPEED = [
  ["decode, tokens/s", "decode", "decode_noise", digits(1), legible],
  ["prefill, tokens/s", "prefill", "prefill_noise", digits(0), legible],
  [
    "time to first token",
    "time_to_first_token",
    "prefill_noise",
    (seconds) => `${fixed(1000 * seconds, 1)} ms`,
    (seconds) => `${legible(1000 * seconds)} ms`,
  ],
  ["KV cache", "cache_bytes", null, megabytes, bytes],
  ["peak memory", "peak_bytes", null, megabytes, bytes],
];

function speed({ name, results, differences }) {
  const known = (value) => value !== null && value !== undefined;
  return SPEED.map(([what, key, noise, said, scaled]) => ({
    name: `${name}: ${what}`,
    from: 0,
    scaled,
    cells: results.map((result, i) => {
      const [value, d] = [result[key], differences[i]];
      const ratio = d && known(d[key]) ? noisy(`${fixed(d[key], 2)}×`, noise && d[noise]) : "–";
      return { value: known(value) ? value : null, said: known(value) ? said(value) : "–", difference: i ? ratio : "" };
    }),
  }));
}

const MADE = { perplexity, choices, average: choices, harness, speed };

// --- the table ---------------------------------------------------------------------------------------------------------

function body(row, names) {
  const [low, high] = reach(row);
  const plotted = row.cells.some((cell) => Number.isFinite(cell.value)) && high > low;
  return h(
    "tbody",
    {},
    ...row.cells.map((cell, i) =>
      h(
        "tr",
        {},
        i === 0 && h("th", { scope: "rowgroup", rowspan: row.cells.length }, row.name),
        h("td", {}, h("span", { class: "dot", style: `background: var(--c${i % COLOURS})`, "aria-hidden": "true" }), names[i]),
        h("td", { class: "number" }, cell.said),
        h("td", { class: "plot" }, plotted && plot(row, cell, i, names, low, high)),
        h("td", { class: "number" }, cell.difference),
      ),
    ),
  );
}

function plot(row, { value, error, said }, i, names, low, high) {
  const whole = {
    label: `${row.name}, ${names[i]}: ${said}`,
    low,
    high,
    style: i,
    reference: row.reference,
    said: row.scaled ?? legible,
  };
  return errorBar({ ...whole, value: Number.isFinite(value) ? value : null, error, numbers: i === row.cells.length - 1 });
}

/** The ends of a row's scale: all values with their errors, and guessing. */
function reach({ cells, reference, from }) {
  const ends = cells
    .filter((cell) => Number.isFinite(cell.value))
    .flatMap(({ value, error }) => [value - (error ?? 0), value + (error ?? 0)]);
  const all = [...ends, ...(reference === undefined ? [] : [reference]), ...(from === undefined ? [] : [from])];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const room = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [from === low ? low : low - room, high + room];
}
