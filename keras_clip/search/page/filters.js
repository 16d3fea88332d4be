// The form of the filters, and the chips of those that are set.

import { count, find, icon, make, percent } from "./dom.js";
import { state } from "./state.js";

const COPIES = 0.95;
const NAMES = {
  folder: (value, names) => names.get(value) ?? value,
  taken_after: (value) => `from ${value}`,
  taken_before: (value) => `until ${value}`,
  min_width: (value) => `at least ${value} wide`,
  min_height: (value) => `at least ${value} high`,
  words: (value) => `“${value}”`,
  label: (value) => value,
  not_label: (value) => `not ${value}`,
  min_relevance: (value) => `relevance from ${percent(value)}`,
};

const field = (label, ...controls) => make("label", { class: "field" }, make("span", { text: label }), ...controls);
const input = (name, attributes) => make("input", { name, ...attributes });

export class Filters {
  element;
  #folders = new Map();
  #fields = {};
  #collapse = make("input", { type: "checkbox", id: "collapse" });
  #threshold = input("threshold", { type: "range", min: 0.9, max: 1, step: 0.01, value: COPIES, "aria-label": "Similarity of near-duplicates" });
  #outputs = { relevance: make("output"), threshold: make("output") };

  constructor() {
    const fields = this.#fields;
    fields.folder = make("select", { name: "folder" });
    fields.words = input("words", { type: "search", placeholder: "In names and captions" });
    fields.taken_after = input("taken_after", { type: "date" });
    fields.taken_before = input("taken_before", { type: "date" });
    fields.min_width = input("min_width", { type: "number", min: 0, step: 1, inputmode: "numeric", placeholder: "any" });
    fields.min_height = input("min_height", { type: "number", min: 0, step: 1, inputmode: "numeric", placeholder: "any" });
    fields.label = make("select", { name: "label" });
    fields.not_label = make("select", { name: "not_label" });
    fields.min_relevance = input("min_relevance", { type: "range", min: 0, max: 1, step: 0.05, value: 0 });
    this.element = make(
      "form",
      { class: "filters", submit: (event) => event.preventDefault() },
      field("Folder", fields.folder),
      field("Words", fields.words),
      make("div", { class: "pair" }, field("From", fields.taken_after), field("Until", fields.taken_before)),
      make("div", { class: "pair" }, field("Least width", fields.min_width), field("Least height", fields.min_height)),
      make("div", { class: "pair" }, field("Labelled", fields.label), field("Not labelled", fields.not_label)),
      field("Least relevance", make("span", { class: "line" }, fields.min_relevance, this.#outputs.relevance)),
      make("div", { class: "field" },
        make("label", { class: "check", for: "collapse" }, this.#collapse, make("span", { text: "Show near-duplicates once" })),
        make("span", { class: "line" }, this.#threshold, this.#outputs.threshold)),
      make("button", { type: "button", class: "tool reset", text: "Remove all filters", click: () => state.change({ filters: {}, collapse: null }) }),
    );
    this.element.addEventListener("change", () => this.#apply());
    this.element.addEventListener("input", () => this.#show());
  }

  /** Offers the folders of the index. */
  setFolders(folders, roots) {
    const names = new Map(roots.map((root) => [root.id, root.name]));
    const options = folders.map(({ root, path, pictures }) => {
      const value = `${root}:${path}`;
      const name = path || names.get(root) || "All folders";
      this.#folders.set(value, roots.length > 1 && path ? `${names.get(root)}/${path}` : name);
      return make("option", { value, text: `${this.#folders.get(value)} (${pictures})` });
    });
    this.#fields.folder.replaceChildren(make("option", { value: "", text: "All folders" }), ...options);
    this.show();
  }

  /** Offers the saved classes. */
  setClasses(classes) {
    for (const select of [this.#fields.label, this.#fields.not_label]) {
      const options = classes.map(({ name }) => make("option", { value: name, text: name }));
      select.replaceChildren(make("option", { value: "", text: "any" }), ...options);
    }
    this.show();
  }

  /** Bounds the dates by those of the pictures. */
  setDates(oldest, newest) {
    for (const name of ["taken_after", "taken_before"]) {
      if (oldest) this.#fields[name].min = oldest.slice(0, 10);
      if (newest) this.#fields[name].max = newest.slice(0, 10);
    }
  }

  /** Shows the filters of the state. */
  show() {
    const { filters, collapse, terms } = state.value;
    for (const [name, control] of Object.entries(this.#fields)) {
      const value = filters[name] ?? (name === "min_relevance" ? 0 : "");
      if (control.tagName === "SELECT" && value && ![...control.options].some((option) => option.value === value)) {
        control.append(make("option", { value, text: value }));
      }
      control.value = value;
    }
    this.#fields.min_relevance.disabled = !terms.length;
    this.#collapse.checked = collapse !== null;
    if (collapse !== null) this.#threshold.value = collapse;
    this.#show();
    this.#showActive();
  }

  #show() {
    this.#outputs.relevance.textContent = percent(this.#fields.min_relevance.value);
    this.#outputs.threshold.textContent = percent(this.#threshold.value);
    this.#threshold.disabled = !this.#collapse.checked;
  }

  #apply() {
    const filters = {};
    for (const [name, control] of Object.entries(this.#fields)) {
      const value = control.type === "range" || control.type === "number" ? Number(control.value) : control.value.trim();
      if (value && control.validity.valid) filters[name] = value;
    }
    state.change({ filters, collapse: this.#collapse.checked ? Number(this.#threshold.value) : null });
  }

  #showActive() {
    const { filters, collapse } = state.value;
    const chip = (text, changes) => make("li", {},
      make("span", { text }),
      make("button", { type: "button", class: "remove", "aria-label": `Remove the filter ${text}`, click: () => (state.change(changes), find(".count").focus?.()) }, icon("close")));
    const chips = Object.entries(filters).map(([name, value]) => {
      const { [name]: _, ...others } = filters;
      return chip(NAMES[name](value, this.#folders), { filters: others });
    });
    if (collapse !== null) chips.push(chip("near-duplicates once", { collapse: null }));
    find(".active-filters").replaceChildren(...chips);
    find('[data-panel="filters"]').classList.toggle("active", chips.length > 0);
    const label = chips.length ? `Filters, ${count(chips.length, "active", "active")}` : "Filters";
    find('[data-panel="filters"]').setAttribute("aria-label", label);
  }
}
