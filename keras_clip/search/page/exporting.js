// The menu of export formats.

import { download } from "./api.js";
import { announce, make } from "./dom.js";

const FORMATS = [
  ["csv", "CSV table"],
  ["json", "JSON"],
  ["paths", "List of paths"],
  ["tar", "WebDataset tar, to train and evaluate"],
  ["folder", "Folder per class (zip)"],
];

/**
 * A menu that exports what a function returns when a format is chosen.
 * @param {function(): {pictures: ?number[], classes: ?number[]}} chosen
 * @param {string} name of the menu
 */
export function exportMenu(chosen, name = "Export") {
  const summary = make("summary", { class: "tool", text: name });
  const note = make("p", { class: "note", role: "status", hidden: true });
  const menu = make("details", { class: "menu" }, summary);
  const run = async (format, button) => {
    const { pictures, classes } = chosen();
    button.disabled = true;
    note.hidden = false;
    note.textContent = "Preparing…";
    try {
      const file = await download(format, pictures, classes);
      menu.open = false;
      note.hidden = true;
      announce(`Exported to ${file}`);
      summary.focus();
    } catch (error) {
      note.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  };
  const buttons = FORMATS.map(([format, text]) => {
    const button = make("button", { type: "button", "data-format": format, text });
    button.addEventListener("click", () => run(format, button));
    return button;
  });
  menu.append(make("div", { class: "choices" }, ...buttons, note));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    event.stopPropagation();
    menu.open = false;
    summary.focus();
  });
  menu.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
  });
  return menu;
}
