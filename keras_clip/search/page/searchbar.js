// The search field. Terms are chips to read and to weigh; with the focus in the field, texts are written.

import { thumbnailOf, uploadThumbnail } from "./api.js";
import { find, icon, make } from "./dom.js";
import { parse, write } from "./query.js";
import { state } from "./state.js";

const STEP = 0.25;
const STRONGEST = 4;
const isText = (term) => term.text !== undefined;
const nameOf = (term) => term.text ?? (term.picture !== undefined ? `picture ${term.picture}` : "your picture");

export class SearchBar {
  #chips = find(".chips");
  #draft = find(".draft");
  #clear = find(".clear");
  #editor = find(".chip-editor");
  #isWriting = false;

  constructor() {
    const form = find(".search");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    form.addEventListener("click", (event) => event.target.closest("button, input, .chips li") || this.focus());
    this.#draft.addEventListener("focus", () => this.#write());
    this.#draft.addEventListener("blur", () => this.#draft.value === this.#written() && this.show());
    this.#draft.addEventListener("keydown", (event) => this.#key(event));
    this.#draft.addEventListener("input", () => this.hint(null));
    this.#clear.addEventListener("click", () => {
      state.change({ terms: [] });
      this.focus();
    });
  }

  focus() {
    this.#draft.focus();
    this.#draft.select();
  }

  /** Shows a message below the field, or none. */
  hint(text) {
    const hint = find("#hint");
    hint.hidden = !text;
    hint.textContent = text ?? "";
    this.#draft.setAttribute("aria-invalid", Boolean(text) && this.#isWriting);
  }

  /** Shows the terms of the state as chips. */
  show() {
    this.#isWriting = false;
    this.#draft.value = "";
    this.#draw(state.value.terms);
  }

  #written() {
    return write(state.value.terms.filter(isText));
  }

  #write() {
    if (this.#isWriting) return;
    this.#isWriting = true;
    this.#draft.value = this.#written();
    this.#draw(state.value.terms.filter((term) => !isText(term)));
    this.#draft.select();
  }

  #submit() {
    let terms;
    try {
      terms = parse(this.#draft.value);
    } catch (error) {
      this.hint(error.message);
      return;
    }
    this.hint(null);
    const kept = state.value.terms.filter((term) => !isText(term));
    this.#isWriting = false;
    state.change({ terms: [...kept, ...terms] });
    this.show();
    // The texts stay in the field, so that the next search begins with them.
    if (document.activeElement === this.#draft) this.#write();
    this.#draft.setSelectionRange(this.#draft.value.length, this.#draft.value.length);
  }

  #key(event) {
    if (event.isComposing) return;
    const { terms } = state.value;
    if (event.key === "Escape") {
      event.stopPropagation();
      this.hint(null);
      this.show();
      this.#draft.blur();
    } else if (event.key === "ArrowDown") {
      event.preventDefault();
      this.leave();
    } else if (event.key === "Backspace" && !this.#draft.value) {
      const last = terms.findLastIndex((term) => !isText(term));
      if (last >= 0) {
        state.change({ terms: terms.filter((_, place) => place !== last) });
        this.#isWriting = false;
        this.#write();
      }
    }
  }

  /** Set by the page: where the focus goes below the field. */
  leave = () => {};

  #draw(terms) {
    const all = state.value.terms;
    this.#chips.replaceChildren(...terms.map((term) => this.#chip(term, all.indexOf(term))));
    this.#chips.hidden = !terms.length;
    this.#clear.hidden = !all.length;
    this.#draft.placeholder = all.length ? "" : "Describe a picture";
  }

  #chip(term, place) {
    const size = Math.abs(term.weight);
    const sign = term.weight < 0 ? "−" : place ? "+" : "";
    const edit = make(
      "button",
      { type: "button", class: "term", title: "Edit; arrows up and down change the weight", "aria-haspopup": "dialog" },
      sign && make("span", { class: "sign", text: sign }),
      isText(term) ? make("span", { class: "text", text: term.text }) : this.#picture(term),
      size === 1 ? null : make("span", { class: "weight", text: `×${size}` }),
    );
    edit.addEventListener("click", () => this.#edit(edit, place));
    edit.addEventListener("keydown", (event) => this.#chipKey(event, place));
    const remove = make("button", { type: "button", class: "remove", "aria-label": `Remove ${nameOf(term)}`, click: () => this.#remove(place) }, icon("close"));
    return make("li", { "data-sign": term.weight < 0 ? "minus" : "plus" }, edit, remove);
  }

  #picture(term) {
    const source = term.picture !== undefined ? thumbnailOf(term.picture) : uploadThumbnail(term.upload);
    return make("img", { src: source, alt: nameOf(term), width: 28, height: 28 });
  }

  #replace(place, term, replace = false) {
    state.change({ terms: state.value.terms.map((other, at) => (at === place ? term : other)) }, { replace });
    this.#chips.children[place]?.querySelector(".term").focus();
  }

  #remove(place) {
    state.change({ terms: state.value.terms.filter((_, at) => at !== place) });
    (this.#chips.children[Math.max(0, place - 1)]?.querySelector(".term") ?? this.#draft).focus();
  }

  #chipKey(event, place) {
    const term = state.value.terms[place];
    const step = { ArrowUp: STEP, ArrowDown: -STEP }[event.key];
    if (step) {
      const weight = term.weight + step || term.weight + 2 * step;
      this.#replace(place, { ...term, weight: Math.max(-STRONGEST, Math.min(STRONGEST, weight)) }, true);
    } else if (["Delete", "Backspace"].includes(event.key)) this.#remove(place);
    else return;
    event.preventDefault();
  }

  #edit(button, place) {
    const term = state.value.terms[place];
    const strength = make("input", { type: "range", min: STEP, max: STRONGEST, step: STEP, value: Math.abs(term.weight), id: "term-strength" });
    const output = make("output", { for: "term-strength", text: `×${Math.abs(term.weight)}` });
    const side = make(
      "select",
      { "aria-label": "More or less of it" },
      make("option", { value: 1, text: "+ like this" }),
      make("option", { value: -1, text: "− unlike this" }),
    );
    side.value = Math.sign(term.weight);
    const text = isText(term) ? make("input", { type: "text", value: term.text, "aria-label": "Text of the term" }) : null;
    const apply = () => {
      const changed = text?.value.trim() ? { text: text.value.trim() } : {};
      this.#editor.hidePopover();
      this.#replace(place, { ...term, ...changed, weight: Number(side.value) * Number(strength.value) });
    };
    strength.addEventListener("input", () => (output.textContent = `×${strength.value}`));
    const form = make(
      "form",
      { method: "dialog", submit: (event) => (event.preventDefault(), apply()) },
      text,
      side,
      make("label", { for: "term-strength", text: "Strength" }),
      make("div", { class: "line" }, strength, output),
      make("button", { type: "submit", class: "primary", text: "Apply" }),
    );
    this.#editor.replaceChildren(form);
    this.#editor.showPopover();
    const { left, bottom } = button.getBoundingClientRect();
    this.#editor.style.left = `${Math.max(8, Math.min(left, innerWidth - this.#editor.offsetWidth - 8))}px`;
    this.#editor.style.top = `${bottom + 8}px`;
    (text ?? side).focus();
  }
}
