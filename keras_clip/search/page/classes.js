// The saved classes, and what a person has said about pictures since the page was opened.

import * as api from "./api.js";
import { debounced } from "./dom.js";
import { state } from "./state.js";

/** Dispatches `change` when classes or their counts changed, and `label` when pictures were labelled. */
class Classes extends EventTarget {
  list = [];
  #said = new Map();
  #loadSoon = debounced(500, () => this.load().catch(() => {}));

  async load() {
    this.list = await api.classes();
    this.dispatchEvent(new Event("change"));
  }

  /** The class that is being labelled, or null. */
  get active() {
    return this.list.find(({ id }) => id === state.value.class) ?? null;
  }

  async add(name, prompts) {
    const fields = prompts.length ? { name, prompts } : { name };
    const added = await api.addClass(fields);
    await this.load();
    return added;
  }

  async change(id, fields) {
    await api.changeClass(id, fields);
    await this.load();
  }

  async remove(id) {
    await api.removeClass(id);
    if (state.value.class === id) state.change({ class: null }, { replace: true });
    await this.load();
  }

  /**
   * Says whether pictures belong to a class.
   * @param {number[]} ids
   * @param {number} classId
   * @param {?boolean} value null leaves it to the model
   */
  async label(ids, classId, value) {
    const before = ids.map((id) => this.#said.get(`${id}:${classId}`));
    this.#say(ids, classId, () => value);
    try {
      await api.label(ids, classId, value);
    } catch (error) {
      this.#say(ids, classId, (place) => before[place]);
      throw error;
    }
    this.#loadSoon();
  }

  #say(ids, classId, value) {
    ids.forEach((id, place) => this.#said.set(`${id}:${classId}`, value(place)));
    this.dispatchEvent(new Event("label"));
  }

  /** Returns "yes" or "no" of a person, "model", or null, about a picture and a class. */
  mark(id, each, labels) {
    const said = this.#said.get(`${id}:${each.id}`);
    if (said === true || said === false) return said ? "yes" : "no";
    return labels?.includes(each.name) ? "model" : null;
  }
}

export const classes = new Classes();
