// Which pictures are selected, and the bar that offers what can be done with them.

import { announce, count, find, icon, make } from "./dom.js";
import { exportMenu } from "./exporting.js";

/** Ids of pictures. Dispatches `change`. */
class Selection extends EventTarget {
  #ids = new Set();
  #anchor = null;

  has(id) {
    return this.#ids.has(id);
  }

  get size() {
    return this.#ids.size;
  }

  get ids() {
    return [...this.#ids];
  }

  /** Selects or deselects a result. */
  toggle(items, index) {
    const { id } = items[index];
    if (!this.#ids.delete(id)) this.#ids.add(id);
    this.#anchor = index;
    this.#changed();
  }

  /** Selects the results from the one that was selected last. */
  extend(items, index) {
    const anchor = Math.min(this.#anchor ?? index, items.length - 1);
    const [low, high] = anchor < index ? [anchor, index] : [index, anchor];
    for (const item of items.slice(low, high + 1)) this.#ids.add(item.id);
    this.#changed();
  }

  add(items) {
    for (const item of items) this.#ids.add(item.id);
    this.#changed();
  }

  clear() {
    this.#anchor = null;
    if (!this.size) return;
    this.#ids.clear();
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const selection = new Selection();

/**
 * Shows the bar while something is selected.
 * @param {{selectAll: function(): Promise, total: function(): number, label: function(boolean): void,
 *   activeClass: function(): ?Object}} page
 */
export function showSelectionBar(page) {
  const bar = find(".selection");
  const number = make("span", { class: "number" });
  const all = make("button", { type: "button", class: "tool all", click: () => page.selectAll() });
  const yes = make("button", { type: "button", class: "tool", click: () => page.label(true) });
  const clear = make("button", { type: "button", class: "tool round", "aria-label": "Deselect all", click: () => selection.clear() }, icon("close"));
  bar.append(number, all, yes, exportMenu(() => ({ pictures: selection.ids, classes: null })), clear);
  const show = () => {
    const active = page.activeClass();
    bar.hidden = !selection.size;
    number.textContent = `${count(selection.size, "selected", "selected")}`;
    all.textContent = `Select all ${page.total()?.toLocaleString("en") ?? ""}`;
    all.hidden = selection.size >= page.total();
    yes.hidden = !active;
    yes.textContent = active ? `Label as ${active.name}` : "";
  };
  selection.addEventListener("change", () => {
    show();
    announce(selection.size ? `${count(selection.size, "picture")} selected` : "Nothing selected");
  });
  return show;
}
