// The panel beside the pictures, which shows the filters or the labels.

import { find, icon, make } from "./dom.js";
import { state } from "./state.js";

/**
 * @param {Object<string, {title: string, content: HTMLElement}>} contents by the name that the state has
 */
export function showPanel(contents) {
  const panel = find("#panel");
  const buttons = document.querySelectorAll("[data-panel]");
  const title = make("h2", { id: "panel-title", tabindex: -1 });
  const place = make("div", { class: "content" });
  const close = () => {
    const name = state.value.panel;
    state.change({ panel: null }, { replace: true });
    find(`[data-panel="${name}"]`)?.focus();
  };
  panel.append(
    make("div", { class: "head" }, title, make("button", { type: "button", class: "bare", "aria-label": "Close", click: close }, icon("close"))),
    place,
  );
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    event.stopPropagation();
    close();
  });
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const isOpen = state.value.panel === button.dataset.panel;
      state.change({ panel: isOpen ? null : button.dataset.panel }, { replace: true });
      if (!isOpen) title.focus();
    });
  }
  return () => {
    const name = state.value.panel;
    for (const button of buttons) button.setAttribute("aria-expanded", button.dataset.panel === name);
    panel.hidden = !name;
    if (!name || panel.dataset.shows === name) return;
    panel.dataset.shows = name;
    title.textContent = contents[name].title;
    place.replaceChildren(contents[name].content);
  };
}
