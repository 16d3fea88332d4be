// Elements. Texts of users and files go through `textContent` and attributes only, never through markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an element.
 * @param {string} tag
 * @param {Object} attributes names and values; true sets an empty attribute, false and null leave it out. `text` is the
 *   text content, functions are listeners of the event of their name.
 * @param {...(Node|string|null)} children
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A thumbnail with the size of its file, so that nothing moves when it has loaded. */
export function thumbnail(source, width, height, alt = "") {
  return make("img", { src: source, alt, width, height, loading: "lazy", decoding: "async", draggable: "false" });
}

export const find = (selector, root = document) => root.querySelector(selector);

const number = new Intl.NumberFormat("en");
export const count = (value, noun, plural = `${noun}s`) => `${number.format(value)} ${value === 1 ? noun : plural}`;
export const percent = (value) => `${Math.round(100 * value)} %`;

let timer = null;
let waiting = [];

/** Says something to screen readers. A pause joins what is said at the same time. */
export function announce(text) {
  clearTimeout(timer);
  waiting.push(text);
  timer = setTimeout(() => {
    find("#live").textContent = waiting.join(". ");
    waiting = [];
  }, 150);
}

/** Runs a function when the calls have paused. */
export function debounced(milliseconds, run) {
  let waiting = null;
  return (...args) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => run(...args), milliseconds);
  };
}

/** Whether a key press goes into a field rather than to the page. */
export function isTyping(event) {
  const target = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return true;
  return target instanceof HTMLElement &&
    (target.isContentEditable || (target.matches("input, textarea, select") && !target.matches("[type=checkbox]")));
}
