// The grid of results. Only the rows near the window are in the document, whatever the number of results.

import { count, icon, make, percent, thumbnail } from "./dom.js";

const GAP = 6;
const DIVIDER = 72;
/** Rows above and below the window. */
const OVERSCAN = 3;
/** Browsers place nothing beyond some height, Firefox at 17 million pixels. */
const TALLEST = 16e6;

/** What the person, or else the model, has said about the class that is being labelled. */
const MARKS = { yes: "marked yes", no: "marked no", model: "yes by the model" };

/** Numbers of rows and places of results: pure arithmetic. */
export class Layout {
  /**
   * @param {number} width in pixels
   * @param {number} total number of results
   * @param {?number} cutoff number of results before the divider; null for no divider
   */
  constructor(width, total, cutoff) {
    const least = width < 480 ? 100 : width < 1000 ? 148 : 172;
    this.columns = Math.max(2, Math.floor((width + GAP) / (least + GAP)));
    this.size = (width - GAP * (this.columns - 1)) / this.columns;
    this.step = this.size + GAP;
    this.hasDivider = cutoff !== null && cutoff < total;
    this.shown = Math.min(total, this.columns * Math.floor(TALLEST / this.step));
    this.first = this.hasDivider ? Math.min(cutoff, this.shown) : this.shown;
    this.firstRows = Math.ceil(this.first / this.columns);
    this.rows = this.firstRows + Math.ceil((this.shown - this.first) / this.columns);
    this.height = Math.max(0, this.rows * this.step - GAP + (this.hasDivider ? DIVIDER : 0));
  }

  rowOf(index) {
    if (index < this.first) return Math.floor(index / this.columns);
    return this.firstRows + Math.floor((index - this.first) / this.columns);
  }

  /** Returns [first, end) of the results of a row. */
  range(row) {
    if (row < this.firstRows) return [row * this.columns, Math.min((row + 1) * this.columns, this.first)];
    const start = this.first + (row - this.firstRows) * this.columns;
    return [start, Math.min(start + this.columns, this.shown)];
  }

  top(row) {
    return row * this.step + (this.hasDivider && row >= this.firstRows ? DIVIDER : 0);
  }

  /** The row at a height, rounded down. */
  at(y) {
    const border = this.firstRows * this.step;
    const row = y < border ? y / this.step : Math.max(this.firstRows, (y - (this.hasDivider ? DIVIDER : 0)) / this.step);
    return Math.max(0, Math.min(this.rows - 1, Math.floor(row)));
  }

  /** The place in the row above or below, in the same column if there is one. */
  beside(index, rows) {
    const row = this.rowOf(index);
    const target = Math.max(0, Math.min(this.rows - 1, row + rows));
    if (target === row) return index;
    const [start, end] = this.range(target);
    return Math.min(start + index - this.range(row)[0], end - 1);
  }
}

/**
 * The view of `Results`.
 * @param {HTMLElement} element with the role grid
 * @param {{open: function(number), toggle: function(number, boolean), isSelected: function(number): boolean,
 *   mark: function(Object): ?string, headerHeight: function(): number}} page
 */
export class Grid {
  #element;
  #page;
  #results = null;
  #layout = null;
  /** Elements by row; the divider stands between two rows. */
  #rows = new Map();
  #active = 0;
  #hasFocus = false;
  #frame = null;
  #width = 0;

  constructor(element, page) {
    this.#element = element;
    this.#page = page;
    element.addEventListener("click", (event) => this.#click(event));
    element.addEventListener("keydown", (event) => this.#key(event));
    element.addEventListener("focusin", (event) => {
      this.#hasFocus = true;
      const tile = event.target.closest(".tile");
      if (tile) this.#activate(Number(tile.dataset.index));
    });
    element.addEventListener("focusout", () => (this.#hasFocus = false));
    addEventListener("scroll", () => this.schedule(), { passive: true });
    addEventListener("resize", () => this.schedule());
    new ResizeObserver(() => {
      if (element.clientWidth !== this.#width) this.refresh();
    }).observe(element);
  }

  get active() {
    return this.#active;
  }

  get hasFocus() {
    return this.#hasFocus;
  }

  get shown() {
    return this.#layout?.shown ?? 0;
  }

  /** Shows other results from the beginning. */
  show(results) {
    this.#results = results;
    this.#active = 0;
    this.refresh();
  }

  /** Lays out anew: the width, the number of results or the cut-off changed. */
  refresh() {
    if (!this.#results) return;
    const { total, cutoff, hasTerms } = this.#results;
    this.#width = this.#element.clientWidth;
    if (!this.#width) return;
    const before = this.#layout;
    // While the number is unknown, a window of empty places stands where the pictures will be.
    this.#layout = new Layout(this.#width, total ?? 60, total !== null && hasTerms ? cutoff : null);
    const isSame = before && ["columns", "size", "shown", "first"].every((name) => before[name] === this.#layout[name]);
    if (!isSame) {
      this.#rows.forEach((row) => row.remove());
      this.#rows.clear();
    }
    this.#element.style.setProperty("--columns", this.#layout.columns);
    this.#element.style.setProperty("--tile", `${this.#layout.size}px`);
    this.#element.style.height = `${this.#layout.height}px`;
    this.#element.setAttribute("aria-rowcount", this.#layout.rows + (this.#layout.hasDivider ? 1 : 0));
    this.#element.setAttribute("aria-colcount", this.#layout.columns);
    this.#element.setAttribute("aria-busy", total === null);
    this.#active = Math.max(0, Math.min(this.#active, this.#layout.shown - 1));
    this.#render();
  }

  schedule() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.#render();
    });
  }

  /** Fills the tiles anew: selections or labels changed. */
  update() {
    for (const tile of this.#element.querySelectorAll(".tile")) this.#fill(tile);
  }

  #render() {
    const layout = this.#layout;
    if (!layout || !this.#results) return;
    const top = -this.#element.getBoundingClientRect().top;
    const low = layout.rows ? Math.max(0, layout.at(top) - OVERSCAN) : 0;
    const high = layout.rows ? Math.min(layout.rows - 1, layout.at(top + innerHeight) + OVERSCAN) : -1;
    const activeRow = layout.rows ? layout.rowOf(this.#active) : -1;
    const wanted = new Set();
    for (let row = low; row <= high; row++) wanted.add(row);
    // The tile with the focus, or where Tab leads, stays in the document.
    if (activeRow >= 0) wanted.add(activeRow);
    if (layout.hasDivider && wanted.has(layout.firstRows)) wanted.add(layout.firstRows - 0.5);
    for (const [row, element] of this.#rows) {
      if (wanted.has(row)) continue;
      element.remove();
      this.#rows.delete(row);
    }
    for (const row of [...wanted].sort((a, b) => a - b)) {
      if (this.#rows.has(row)) this.#complete(this.#rows.get(row));
      else this.#insert(row, Number.isInteger(row) ? this.#row(row) : this.#divider());
    }
    if (high >= 0) this.#results.need(Math.min(layout.range(high)[1], layout.shown));
  }

  #insert(row, element) {
    this.#rows.set(row, element);
    const next = [...this.#rows.keys()].filter((other) => other > row).sort((a, b) => a - b)[0];
    this.#element.insertBefore(element, next === undefined ? null : this.#rows.get(next));
  }

  #row(row) {
    const [start, end] = this.#layout.range(row);
    const isBelow = this.#layout.hasDivider && row >= this.#layout.firstRows;
    const element = make("div", { role: "row", class: `row${isBelow && this.#layout.first ? " below" : ""}`, "aria-rowindex": row + 1 + isBelow });
    element.style.transform = `translateY(${this.#layout.top(row)}px)`;
    for (let index = start; index < end; index++) {
      const tile = make("div", {
        role: "gridcell",
        class: "tile",
        tabindex: index === this.#active ? 0 : -1,
        "aria-colindex": index - start + 1,
        "data-index": index,
      });
      this.#fill(tile);
      element.append(tile);
    }
    return element;
  }

  #divider() {
    const { first, firstRows, columns, step } = this.#layout;
    const text = first ? "The pictures below are unlikely to match" : "No picture is likely to match. These are the nearest";
    const cell = make("div", { role: "gridcell", "aria-colindex": 1, "aria-colspan": columns, text });
    const element = make("div", { role: "row", class: "divider", "aria-rowindex": firstRows + 1 }, cell);
    element.style.transform = `translateY(${Math.max(0, firstRows * step - GAP)}px)`;
    return element;
  }

  /** Fills the tiles of a row whose results have come since. */
  #complete(row) {
    for (const tile of row.querySelectorAll(".tile[aria-busy]")) if (this.#results.items[tile.dataset.index]) this.#fill(tile);
  }

  #fill(tile) {
    const item = this.#results.items[tile.dataset.index];
    if (!item) {
      tile.setAttribute("aria-busy", "true");
      tile.setAttribute("aria-label", "Loading");
      tile.replaceChildren();
      return;
    }
    const isSelected = this.#page.isSelected(item.id);
    const mark = this.#page.mark(item);
    if (Number(tile.dataset.id) !== item.id || !tile.firstChild) {
      tile.dataset.id = item.id;
      tile.removeAttribute("aria-busy");
      const pick = make("span", { class: "pick", title: "Select (x)" }, icon("check"));
      tile.replaceChildren(thumbnail(item.thumbnail, item.width, item.height), pick);
      if (item.copies > 1) tile.append(make("span", { class: "copies", title: `${item.copies} near-duplicates`, text: item.copies }));
      tile.append(make("span", { class: "caption", text: item.name }));
    }
    tile.setAttribute("aria-selected", isSelected);
    if (mark) tile.dataset.mark = mark;
    else delete tile.dataset.mark;
    tile.setAttribute("aria-label", this.#describe(item, mark));
  }

  #describe(item, mark) {
    return [
      item.name,
      this.#results.hasTerms && `relevance ${percent(item.relevance)}`,
      item.copies > 1 && count(item.copies, "near-duplicate"),
      item.labels?.length && `labelled ${item.labels.join(", ")}`,
      MARKS[mark],
    ].filter(Boolean).join(", ");
  }

  #tile(index) {
    const row = this.#rows.get(this.#layout.rowOf(index));
    return row?.children[index - this.#layout.range(this.#layout.rowOf(index))[0]];
  }

  #activate(index) {
    if (index === this.#active) return;
    this.#tile(this.#active)?.setAttribute("tabindex", -1);
    this.#active = index;
    this.#tile(index)?.setAttribute("tabindex", 0);
  }

  /** Moves the focus to a result, and the window to it. */
  focus(index) {
    if (!this.shown) return;
    this.#activate(Math.max(0, Math.min(index, this.shown - 1)));
    this.reveal(this.#active);
    this.#render();
    this.#tile(this.#active)?.focus({ preventScroll: true });
  }

  /** Scrolls as little as needed to show a result whole. */
  reveal(index) {
    const layout = this.#layout;
    const top = this.#element.getBoundingClientRect().top + layout.top(layout.rowOf(index));
    const above = top - this.#page.headerHeight() - GAP;
    const below = top + layout.step - innerHeight;
    if (above < 0) scrollBy({ top: layout.rowOf(index) ? above : -scrollY, behavior: "instant" });
    else if (below > 0) scrollBy({ top: below, behavior: "instant" });
  }

  #click(event) {
    const tile = event.target.closest(".tile");
    if (!tile || tile.hasAttribute("aria-busy")) return;
    const index = Number(tile.dataset.index);
    this.#activate(index);
    tile.focus({ preventScroll: true });
    if (event.shiftKey) this.#page.toggle(index, true);
    else if (event.ctrlKey || event.metaKey || event.target.closest(".pick")) this.#page.toggle(index, false);
    else this.#page.open(index);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !event.target.closest(".tile")) return;
    const { rows, step } = this.#layout;
    const page = Math.max(1, Math.floor((innerHeight - this.#page.headerHeight()) / step));
    const moves = {
      ArrowRight: () => this.#active + 1,
      ArrowLeft: () => this.#active - 1,
      ArrowDown: () => this.#layout.beside(this.#active, 1),
      ArrowUp: () => this.#layout.beside(this.#active, -1),
      PageDown: () => this.#layout.beside(this.#active, Math.min(page, rows)),
      PageUp: () => this.#layout.beside(this.#active, -page),
      Home: () => 0,
      End: () => this.shown - 1,
    };
    const isLoaded = Boolean(this.#results.items[this.#active]);
    if (event.key in moves) this.focus(moves[event.key]());
    else if (event.key === "Enter" && isLoaded) this.#page.open(this.#active);
    else if (event.key.toLowerCase() === "x" && isLoaded) this.#page.toggle(this.#active, event.shiftKey);
    else return;
    event.preventDefault();
  }
}
