// What is in the index, for a person who has not searched yet: clusters with their names.

import { clusters, thumbnailOf } from "./api.js";
import { count, find, make, thumbnail } from "./dom.js";
import { addressOf, state } from "./state.js";

const CLUSTERS = 24;
/** An index of fewer pictures is seen at a glance. */
const FEWEST = 60;

export class Explore {
  #section = find(".explore");
  #list = find(".clusters");
  #version = null;

  /** Shows the clusters of a version of the index, or hides them. */
  async show(isVisible, index) {
    this.#section.hidden = !isVisible || !index || index.pictures < FEWEST;
    if (this.#section.hidden || this.#version === index.version) return;
    this.#version = index.version;
    if (!this.#list.children.length) {
      this.#list.replaceChildren(...Array.from({ length: 12 }, () => make("li", { class: "waiting", "aria-hidden": "true" })));
    }
    try {
      const found = await clusters(CLUSTERS);
      this.#list.replaceChildren(...found.map((cluster) => this.#card(cluster)));
      if (!found.length) this.#section.hidden = true;
    } catch {
      // The pictures themselves are there without it.
      this.#section.hidden = true;
      this.#version = null;
    }
  }

  #card({ name, pictures, cover, query }) {
    const terms = (query.terms ?? []).map(({ text, picture, weight = 1 }) => (text ? { text, weight } : { picture, weight }));
    const open = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      state.change({ terms });
    };
    return make("li", {},
      make("a", { href: addressOf({ ...state.value, terms, filters: {} }), click: open },
        thumbnail(thumbnailOf(cover), 256, 256),
        make("span", { class: "name", text: name }),
        make("span", { class: "number", text: count(pictures, "picture") })));
  }
}
