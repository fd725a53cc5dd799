// Elements of HTML and SVG, made from a name, attributes and children.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Attributes whose names begin with "on" are listeners; those that are null or false are left out. */
export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An SVG element. */
export function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** 1,234,567 */
export const count = (number) => number.toLocaleString("en-US");

/** 1.23 B, 45.6 M: three digits and a unit. */
export function short(number, unit = "") {
  for (const [size, sign] of [[1e12, "T"], [1e9, unit === "B" ? "G" : "B"], [1e6, "M"], [1e3, unit === "B" ? "k" : "K"]]) {
    if (Math.abs(number) >= size * 0.9995) {
      const scaled = number / size;
      return `${scaled.toPrecision(Math.abs(scaled) >= 999.5 ? 4 : 3)} ${sign}${unit}`;
    }
  }
  return `${Number.isInteger(number) ? number : number.toPrecision(3)} ${unit}`.trim();
}
