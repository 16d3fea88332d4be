// One picture, large, with its facts and labels.

import { ApiError, fileOf, picture as fetchPicture, thumbnailOf, viewOf } from "./api.js";
import { classes } from "./classes.js";
import { announce, count, find, icon, isTyping, make, percent, thumbnail } from "./dom.js";
import { state } from "./state.js";

/** Pixels of the longer side below which a picture is small. */
const SMALL = 512;
const UNITS = ["B", "kB", "MB", "GB"];

function bytes(size) {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(size, 1)) / 3));
  const value = size / 1000 ** power;
  return `${power && value < 10 ? value.toFixed(1) : Math.round(value)} ${UNITS[power]}`;
}

function date(text) {
  const value = new Date(text);
  return Number.isNaN(value.getTime()) ? text : value.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" });
}

export class Detail {
  #dialog = find("dialog.detail");
  #page;
  #facts = make("div", { class: "facts" });
  #image = make("img", { alt: "", decoding: "async" });
  #figure;
  #previous;
  #next;
  /** The pictures that previous and next lead through: an array of {id, class}, or null for the results. */
  #list = null;
  #place = null;
  #shown = null;
  #entry = null;

  /** @param {{results: function(): Results, focusGrid: function(number): void, toggle: function(number): void}} page */
  constructor(page) {
    this.#page = page;
    const step = (offset, text, name) => make("button", { type: "button", class: `bare step ${name}`, "aria-label": text, click: () => this.#step(offset) }, icon(name));
    this.#previous = step(-1, "Previous picture", "left");
    this.#next = step(1, "Next picture", "right");
    this.#figure = make("figure", { tabindex: -1 }, this.#image);
    this.#dialog.append(
      make("div", { class: "stage" }, this.#figure, this.#previous, this.#next),
      make("button", { type: "button", class: "bare close", "aria-label": "Close", click: () => state.closePicture() }, icon("close")),
      this.#facts,
    );
    this.#dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      state.closePicture();
    });
    this.#dialog.addEventListener("keydown", (event) => this.#key(event));
    this.#image.addEventListener("error", () => this.#figure.classList.add("broken"));
    for (const type of ["label", "change"]) classes.addEventListener(type, () => this.#entry && this.#showLabels());
  }

  /** Opens a result. */
  openResult(index) {
    this.#list = null;
    this.#place = index;
    state.change({ picture: this.#page.results().items[index].id });
  }

  /** Opens pictures that are not the results, such as suggestions: an array of {id, class}. */
  openList(list, place) {
    this.#list = list;
    this.#place = place;
    state.change({ picture: list[place].id, class: list[place].class ?? state.value.class });
  }

  /** Follows the state: opens, changes or closes. */
  sync() {
    const id = state.value.picture;
    if (id === null) {
      if (!this.#dialog.open) return;
      this.#dialog.close();
      this.#shown = this.#entry = null;
      if (!this.#list && this.#place !== null) this.#page.focusGrid(this.#place);
      this.#list = this.#place = null;
      return;
    }
    if (id === this.#shown) return;
    this.#shown = id;
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#load(id);
  }

  async #load(id) {
    const items = this.#page.results().items;
    if (!this.#list && items[this.#place]?.id !== id) {
      const found = items.findIndex((item) => item.id === id);
      this.#place = found < 0 ? null : found;
    }
    this.#steps();
    this.#figure.classList.remove("broken");
    const known = this.#list ? null : items[this.#place];
    this.#entry = null;
    this.#image.removeAttribute("src");
    if (known) this.#showImage(known);
    this.#facts.replaceChildren(make("h2", { id: "detail-name", text: known?.name ?? "Picture" }));
    this.#figure.focus({ preventScroll: true });
    let entry;
    try {
      entry = await fetchPicture(id);
    } catch (error) {
      if (id === this.#shown) this.#showError(error);
      return;
    }
    if (id !== this.#shown) return;
    this.#entry = entry;
    if (!known) this.#showImage(entry);
    this.#showFacts(entry);
    announce(`${entry.name}${this.#place === null ? "" : `, ${this.#place + 1} of ${this.#length()}`}`);
    const after = this.#at(this.#place + 1);
    if (after) new Image().src = viewOf(after.id);
  }

  #showImage({ id, name, width, height }) {
    this.#image.width = width;
    this.#image.height = height;
    this.#image.alt = name;
    // The thumbnail, which is there already, stands in until the large one is.
    this.#figure.style.setProperty("--thumbnail", `url("${thumbnailOf(id)}")`);
    // Small pictures are shown larger, up to four times.
    const factor = Math.min(4, Math.max(1, SMALL / Math.max(width, height)));
    for (const [name, value] of Object.entries({ width, height, factor })) this.#figure.style.setProperty(`--${name}`, value);
    this.#image.src = viewOf(id);
  }

  #showError(error) {
    const isGone = error instanceof ApiError && [404, 410].includes(error.status);
    const text = isGone ? "This picture is not in the index any more." : error.message;
    const retry = make("button", { type: "button", class: "tool", text: "Try again", click: () => this.#load(this.#shown) });
    this.#facts.replaceChildren(make("h2", { id: "detail-name", text: isGone ? "No picture" : "An error" }), make("p", { role: "alert", text }), isGone ? "" : retry);
  }

  /** Loads again what failed while the server was gone. */
  retry() {
    if (this.#shown !== null && !this.#entry) this.#load(this.#shown);
  }

  #showFacts(entry) {
    const rows = [
      ["Folder", entry.folder?.replace(/^\d+:/, "") || null],
      ["Taken", entry.taken && date(entry.taken)],
      ["Size", `${entry.width} × ${entry.height}${entry.size ? `, ${bytes(entry.size)}` : ""}${entry.format ? `, ${entry.format}` : ""}`],
    ].filter(([, value]) => value);
    const known = this.#list ? null : this.#page.results().items[this.#place];
    if (known && this.#page.results().hasTerms) rows.push(["Relevance", `${percent(known.relevance)} (cosine ${known.score.toFixed(3)})`]);
    const copies = entry.copies ?? [];
    this.#facts.replaceChildren(
      make("h2", { id: "detail-name", text: entry.name }),
      entry.caption ? make("p", { class: "words", text: entry.caption }) : "",
      make("div", { class: "actions" },
        make("button", { type: "button", class: "primary", "aria-keyshortcuts": "m", text: "More like this", click: () => this.#moreLikeThis() }),
        make("a", { class: "tool", href: fileOf(entry.id), download: entry.name, text: "Download" })),
      make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })])),
      make("div", { class: "detail-labels" }),
      copies.length ? make("div", {}, make("h3", { text: count(copies.length, "near-duplicate") }),
        make("ul", { class: "strip" }, ...copies.map((copy) => make("li", {},
          make("button", { type: "button", "aria-label": copy.name ?? `picture ${copy.id}`, click: () => state.change({ picture: copy.id }, { replace: true }) }, thumbnail(thumbnailOf(copy.id), 256, 256)))))) : "",
    );
    this.#showLabels();
  }

  #showLabels() {
    const place = find(".detail-labels", this.#facts);
    if (!place) return;
    const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const byHand = new Map((this.#entry.labels ?? []).map((each) => [each.name, each]));
    const scores = new Map((this.#entry.best_classes ?? []).map(({ name, score }) => [name, score]));
    const rank = ({ id, name }) => (id === state.value.class ? 9 : byHand.has(name) ? 5 : (scores.get(name) ?? -1));
    const sorted = [...classes.list].sort((a, b) => rank(b) - rank(a));
    place.replaceChildren(
      sorted.length ? make("h3", { text: "Labels" }) : "",
      make("ul", { class: "verdicts" }, ...sorted.map((each) => this.#verdict(each, byHand.get(each.name)))),
    );
    if (focused) place.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  #verdict(each, label) {
    let mark = classes.mark(this.#entry.id, each, label ? [each.name] : []);
    if (mark === "model" && label?.by_hand) mark = "yes";
    const isActive = each.id === state.value.class;
    const button = (value, text, name, key) => make("button", {
      type: "button", class: "bare", "data-key": `${each.id}-${name}`, "aria-pressed": mark === name,
      "aria-label": `${text} ${each.name}`, title: isActive ? key : null,
      click: () => this.#label(each.id, mark === name ? null : value),
    }, icon(value ? "check" : "close"));
    return make("li", { "data-mark": mark, class: isActive ? "current" : null },
      make("span", { class: "text", text: each.name }),
      mark === "model" ? make("span", { class: "note", text: "by the model" }) : "",
      button(true, "It is", "yes", "y"), button(false, "It is not", "no", "n"));
  }

  async #label(classId, value) {
    try {
      await classes.label([this.#entry.id], classId, value);
    } catch (error) {
      this.#facts.append(make("p", { role: "alert", text: error.message }));
    }
  }

  #judge(value) {
    const { active } = classes;
    if (!active || !this.#entry) return;
    this.#label(active.id, value);
    if (value !== null) this.#step(1);
  }

  #moreLikeThis() {
    const id = this.#shown;
    this.#list = this.#place = null;
    state.change({ picture: null, terms: [{ picture: id, weight: 1 }] });
    scrollTo(0, 0);
  }

  #length() {
    return this.#list ? this.#list.length : (this.#page.results().total ?? 0);
  }

  #at(place) {
    return this.#list ? this.#list[place] : this.#page.results().items[place];
  }

  #steps() {
    const isKnown = this.#place !== null;
    this.#previous.disabled = !isKnown || this.#place <= 0;
    this.#next.disabled = !isKnown || this.#place >= this.#length() - 1;
  }

  async #step(offset) {
    if (this.#place === null) return;
    const place = this.#place + offset;
    if (place < 0 || place >= this.#length()) return;
    if (!this.#list) await this.#page.results().need(place + 2);
    const target = this.#at(place);
    if (!target) return;
    this.#place = place;
    state.change({ picture: target.id, class: target.class ?? state.value.class }, { replace: true });
  }

  #key(event) {
    if (isTyping(event)) return;
    const keys = {
      ArrowLeft: () => this.#step(-1),
      ArrowRight: () => this.#step(1),
      y: () => this.#judge(true),
      n: () => this.#judge(false),
      u: () => this.#judge(null),
      s: () => this.#step(1),
      m: () => this.#moreLikeThis(),
      x: () => !this.#list && this.#place !== null && this.#page.toggle(this.#place),
    };
    const run = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!run) return;
    event.preventDefault();
    event.stopPropagation();
    run();
  }
}
