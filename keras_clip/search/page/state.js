// What the page shows, kept in its address: shareable, and the back button works.

import { parse, write } from "./query.js";

const NUMBERS = ["min_width", "min_height", "min_relevance"];
const TEXTS = ["folder", "taken_after", "taken_before", "words", "label", "not_label"];
/** Of a search, in contrast to what is open beside it. */
const SEARCH = ["terms", "filters", "collapse"];

/**
 * Reads a state from the part of an address after the question mark. What is not understood is left out: an address
 * may come from anywhere.
 */
export function read(address) {
  const values = new URLSearchParams(address);
  const filters = {};
  for (const name of TEXTS) if (values.get(name)) filters[name] = values.get(name);
  for (const name of NUMBERS) if (Number(values.get(name)) > 0) filters[name] = Number(values.get(name));
  let terms = [];
  try {
    terms = parse(values.get("q") ?? "");
  } catch {
    terms = [{ text: values.get("q"), weight: 1 }];
  }
  const collapse = Number(values.get("collapse"));
  return {
    terms,
    filters,
    collapse: collapse > 0 && collapse <= 1 ? collapse : null,
    picture: id(values.get("picture")),
    class: id(values.get("class")),
    panel: ["filters", "classes"].includes(values.get("panel")) ? values.get("panel") : null,
  };
}

const id = (text) => (/^\d{1,15}$/.test(text ?? "") ? Number(text) : null);

/** Returns the address of a state. */
export function addressOf(state) {
  const values = new URLSearchParams();
  if (state.terms.length) values.set("q", write(state.terms));
  for (const name of [...TEXTS, ...NUMBERS]) if (state.filters[name]) values.set(name, state.filters[name]);
  for (const name of ["collapse", "class", "panel", "picture"]) {
    if (state[name] !== null && state[name] !== undefined) values.set(name, state[name]);
  }
  const query = values.toString();
  return query ? `/?${query}` : "/";
}

/** Returns a text that is equal for equal searches. */
export const searchKey = (state) => JSON.stringify(SEARCH.map((name) => state[name]));

/** The state of the page. Dispatches `change`, with the former state, after each change and after back and forward. */
class State extends EventTarget {
  value = read(location.search);

  constructor() {
    super();
    history.scrollRestoration = "manual";
    addEventListener("popstate", (event) => this.#set(read(location.search), event.state?.scroll ?? 0));
  }

  /**
   * Changes some fields.
   * @param {Object} changes
   * @param {{replace?: boolean}} options `replace` makes no entry in the history, for small steps.
   */
  change(changes, { replace = false } = {}) {
    const next = { ...this.value, ...changes };
    if (addressOf(next) === addressOf(this.value)) return;
    const from = history.state ?? {};
    if (replace) history.replaceState(from, "", addressOf(next));
    else {
      history.replaceState({ ...from, scroll: scrollY }, "");
      history.pushState({ depth: (from.depth ?? 0) + 1, opened: next.picture !== null && this.value.picture === null }, "", addressOf(next));
    }
    this.#set(next, null);
  }

  /** Closes the picture: back where it was opened on this page, so that the history does not grow by each look. */
  closePicture() {
    if (history.state?.opened) history.back();
    else this.change({ picture: null }, { replace: true });
  }

  #set(value, scroll) {
    const former = this.value;
    this.value = value;
    this.dispatchEvent(new CustomEvent("change", { detail: { former, scroll } }));
  }
}

export const state = new State();
