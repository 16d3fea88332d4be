// The keyboard shortcuts.

import { find, icon, make } from "./dom.js";

const KEYS = [
  ["/", "Write a search"],
  ["← ↑ → ↓", "Move between pictures"],
  ["Home End", "First and last picture"],
  ["PgUp PgDn", "A window up or down"],
  ["Enter", "Open a picture; ← and → lead on"],
  ["m", "More like the open picture"],
  ["x", "Select; Shift + x selects up to here"],
  ["Ctrl + a", "Select all results"],
  ["y n u", "While labelling: yes, no, undo"],
  ["s", "Skip the open picture"],
  ["Esc", "Close, then deselect"],
  ["?", "This help"],
];
const WRITTEN = [
  ["red car - night", "Like the one, unlike the other"],
  ['2*"t-shirt" + 0.5*red', "Weights; quotes keep signs in a text"],
  ["beach + picture:17", "A text and a picture of the index"],
];

const table = (rows, tag) => make("dl", {}, ...rows.map(([name, text]) =>
  make("div", {}, make("dt", {}, make(tag, { text: name })), make("dd", { text }))));

export function showHelp() {
  const dialog = find(".help-dialog");
  if (!dialog.children.length) {
    dialog.append(
      make("button", { type: "button", class: "bare close", "aria-label": "Close", click: () => dialog.close() }, icon("close")),
      make("h2", { id: "help-title", text: "Keyboard" }),
      table(KEYS, "kbd"),
      make("h2", { text: "Searches" }),
      table(WRITTEN, "code"),
      make("p", { class: "note", text: "Drop or paste a picture anywhere to search by it; on the search field, it joins the other terms." }),
    );
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
  dialog.showModal();
}
