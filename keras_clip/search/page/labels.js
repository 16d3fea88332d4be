// The panel of the saved classes: counts, thresholds, exports and the probe; and the bar while a class is labelled.

import { probe, thumbnailOf } from "./api.js";
import { classes } from "./classes.js";
import { announce, count, find, make, percent, thumbnail } from "./dom.js";
import { exportMenu } from "./exporting.js";
import { state } from "./state.js";

const SVG = "http://www.w3.org/2000/svg";
const BARS = 40;
// Pictures of each list of a probe: after so many labels, another probe suggests better ones.
const SUGGESTED = 12;

function histogram({ low = 0, high = 1, counts = [] }, threshold) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${BARS} 16`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "histogram");
  svg.setAttribute("aria-hidden", "true");
  // Square roots keep the few pictures of a class visible beside the many others.
  const heights = counts.map(Math.sqrt);
  const most = Math.max(1, ...heights);
  heights.forEach((height, place) => {
    const bar = document.createElementNS(SVG, "rect");
    const middle = low + ((place + 0.5) / counts.length) * (high - low);
    bar.setAttribute("x", (place * BARS) / counts.length);
    bar.setAttribute("width", (0.8 * BARS) / counts.length);
    bar.setAttribute("y", 16 - (16 * height) / most);
    bar.setAttribute("height", (16 * height) / most);
    if (middle >= threshold) bar.setAttribute("class", "over");
    svg.append(bar);
  });
  return svg;
}

/** The range in which there are pictures, for the slider and the bars. */
function spread(value) {
  const { low, high, counts } = Array.isArray(value) ? { low: 0, high: 1, counts: value } : value;
  const first = Math.max(0, counts.findIndex(Boolean));
  const last = Math.max(first, counts.findLastIndex(Boolean));
  const step = (high - low) / counts.length;
  return { low: low + first * step, high: low + (last + 1) * step, counts: counts.slice(first, last + 1) };
}

export class Labels {
  element;
  #list = make("ul", { class: "classes" });
  #note = make("p", { class: "note", role: "status" });
  #name = make("input", { name: "name", type: "text", maxlength: 200, required: true, autocomplete: "off", placeholder: "Name of a class", "aria-label": "Name of a new class" });
  #probe = make("div", { class: "probe" });
  #more = make("div", { class: "more" });
  #openPicture;
  #open = new Set();

  /** @param {{openPictures: function(Array, number): void}} page */
  constructor(page) {
    this.#openPicture = page.openPictures;
    const add = make("form", { class: "add", submit: (event) => (event.preventDefault(), this.#add()) }, this.#name, make("button", { type: "submit", class: "primary", text: "Add" }));
    const train = make("button", { type: "button", class: "tool train", text: "Train a probe", click: () => this.#train(train) });
    const all = () => ({ pictures: null, classes: classes.list.map(({ id }) => id) });
    this.#more.append(make("div", { class: "actions" }, exportMenu(all, "Export all"), train), this.#probe);
    this.element = make("div", { class: "labels" }, add, this.#note, this.#list, this.#more);
    classes.addEventListener("change", () => this.show());
  }

  /** Shows the classes and their counts. */
  show() {
    const texts = state.value.terms.filter((term) => term.text && term.weight > 0).map((term) => term.text);
    if (texts.length === 1 && !this.#name.value && !classes.list.some(({ name }) => name === texts[0])) this.#name.placeholder = texts[0];
    else this.#name.placeholder = "Name of a class";
    this.#more.hidden = !classes.list.length;
    this.#note.textContent = classes.list.length ? "" : "A class is a name with a description. The model labels every picture; you correct it while you look, and export the result.";
    const focused = document.activeElement?.closest?.("[data-key]")?.dataset.key;
    this.#list.replaceChildren(...classes.list.map((each) => this.#row(each)));
    if (focused) this.#list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  async #run(action) {
    try {
      await action();
      this.#note.textContent = "";
    } catch (error) {
      this.#note.textContent = error.message;
    }
  }

  #add() {
    const name = this.#name.value.trim();
    if (!name) return;
    this.#run(async () => {
      const added = await classes.add(name, []);
      this.#name.value = "";
      announce(`${name}: ${count(added.pictures, "picture")}`);
    });
  }

  #row(each) {
    const review = make("button", { type: "button", class: "tool", "data-key": `review-${each.id}`, text: "Review", "aria-label": `Review ${each.name}`, click: () => startLabelling(each) });
    const name = make("button", {
      type: "button", class: "name", "data-key": `name-${each.id}`,
      title: "Show the pictures with this label",
      click: () => state.change({ terms: [], filters: { label: each.name }, class: null }),
    }, make("span", { class: "text", text: each.name }), make("span", { class: "number", text: each.pictures.toLocaleString("en") }));
    const summary = make("summary", { "data-key": `more-${each.id}`, title: `Settings of ${each.name}` }, `${each.by_hand} by hand`);
    const details = make("details", { open: this.#open.has(each.id) }, summary, this.#settings(each));
    details.addEventListener("toggle", () => (details.open ? this.#open.add(each.id) : this.#open.delete(each.id)));
    return make("li", { "data-class": each.id }, make("div", { class: "line" }, name, review), details);
  }

  #settings(each) {
    const { low, high, counts } = spread(each.histogram ?? []);
    const step = (high - low) / 200 || 0.005;
    const place = make("div", { class: "bars" }, histogram({ low, high, counts }, each.threshold));
    const threshold = make("input", { type: "range", "data-key": `threshold-${each.id}`, min: low, max: high, step, value: each.threshold, "aria-label": `Threshold of ${each.name}` });
    threshold.addEventListener("input", () => place.replaceChildren(histogram({ low, high, counts }, Number(threshold.value))));
    threshold.addEventListener("change", () => this.#run(() => classes.change(each.id, { threshold: Number(threshold.value) })));
    const prompts = make("textarea", { rows: 2, "aria-label": `Descriptions of ${each.name}, one a line` });
    prompts.value = each.prompts.join("\n");
    const written = () => prompts.value.split("\n").map((line) => line.trim()).filter(Boolean);
    prompts.addEventListener("change", () => written().length && this.#run(() => classes.change(each.id, { prompts: written() })));
    const name = make("input", { type: "text", value: each.name, maxlength: 200, "aria-label": `Name of ${each.name}` });
    name.addEventListener("change", () => name.value.trim() && this.#run(() => classes.change(each.id, { name: name.value.trim() })));
    const remove = make("button", { type: "button", class: "tool", text: "Delete", "aria-label": `Delete ${each.name}` });
    remove.addEventListener("click", () => {
      // A second press confirms; labels by hand are work that is not undone lightly.
      if (remove.dataset.asked) this.#run(() => classes.remove(each.id));
      else {
        remove.dataset.asked = "";
        remove.textContent = `Delete with ${each.by_hand} by hand?`;
        remove.removeAttribute("aria-label");
      }
    });
    return make("div", { class: "settings" },
      place, threshold,
      make("label", { class: "field" }, make("span", { text: "Name" }), name),
      make("label", { class: "field" }, make("span", { text: "Descriptions, one a line" }), prompts),
      make("div", { class: "actions" }, exportMenu(() => ({ pictures: null, classes: [each.id] })), remove));
  }

  async #train(button) {
    button.disabled = true;
    this.#probe.replaceChildren(make("p", { class: "note", role: "status", text: "Training on the pictures labelled by hand…" }));
    try {
      const labelled = classes.list.filter((each) => each.by_hand);
      const found = await probe((labelled.length ? labelled : classes.list).map(({ id }) => id));
      this.#showProbe(found);
    } catch (error) {
      this.#probe.replaceChildren(make("p", { class: "note", role: "status", text: error.message }));
    } finally {
      button.disabled = false;
    }
  }

  #showProbe({ accuracy, low, high, pictures, suggestions, uncertain }) {
    const interval = low === undefined || low === null ? "" : ` (${percent(low)} to ${percent(high)})`;
    this.#probe.replaceChildren(
      make("p", { role: "status" }, make("strong", { text: `${percent(accuracy)} correct` }), `${interval}, on ${count(pictures, "picture")} labelled by hand.`),
      ...this.#suggested("Labelling these would help most:", uncertain),
      ...this.#suggested("The probe contradicts the label of these:", suggestions),
    );
  }

  /** A heading and the pictures below it; nothing without pictures. */
  #suggested(heading, found) {
    if (!found.length) return [];
    const suggestions = found.slice(0, SUGGESTED);
    const names = new Map(classes.list.map(({ id, name }) => [id, name]));
    const list = suggestions.map(({ picture, class: id }) => ({ id: picture, class: id }));
    return [
      make("p", { class: "note", text: heading }),
      make("ul", { class: "suggestions", "aria-label": heading.replace(":", "") }, ...suggestions.map(({ picture, class: id, probability }, place) => {
        const text = `${names.get(id) ?? id}, ${percent(probability)}`;
        const open = make("button", { type: "button", "aria-label": `Is it ${text}?`, click: () => this.#openPicture(list, place) }, thumbnail(thumbnailOf(picture), 256, 256), make("span", { text }));
        return make("li", {}, open);
      })),
    ];
  }
}

/** Searches for a class and begins to label it. */
export function startLabelling(each) {
  const text = each.prompts[0] ?? each.name;
  const isSmall = matchMedia("(max-width: 960px)").matches;
  state.change({ class: each.id, terms: [{ text, weight: 1 }], filters: {}, panel: isSmall ? null : state.value.panel });
}

/**
 * Keeps the bar that is shown while a class is labelled.
 * @param {{label: function(?boolean): void}} page
 */
export function showLabellingBar(page) {
  const bar = find(".labelling");
  const name = make("strong");
  const number = make("span", { class: "number" });
  const button = (key, text, value) => make("button", { type: "button", class: "tool", "aria-keyshortcuts": key, click: () => page.label(value) }, `${text} `, make("kbd", { text: key }));
  const done = make("button", { type: "button", class: "tool", text: "Done", click: () => state.change({ class: null }, { replace: true }) });
  bar.append(
    make("p", {}, "Is it ", name, "?", number),
    make("div", { class: "actions" }, button("y", "Yes", true), button("n", "No", false), button("u", "Undo", null), done),
  );
  return () => {
    const { active } = classes;
    bar.hidden = !active;
    if (!active) return;
    name.textContent = active.name;
    number.textContent = `${active.by_hand.toLocaleString("en")} by hand`;
  };
}
