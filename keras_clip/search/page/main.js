// The page: connects the state, the results and their views.

import * as api from "./api.js";
import { classes } from "./classes.js";
import { Detail } from "./detail.js";
import { announce, count, find, isTyping, make } from "./dom.js";
import { Explore } from "./explore.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import { showHelp } from "./help.js";
import { Labels, showLabellingBar } from "./labels.js";
import { showPanel } from "./panel.js";
import { write } from "./query.js";
import { Results } from "./results.js";
import { SearchBar } from "./searchbar.js";
import { selection, showSelectionBar } from "./selection.js";
import { searchKey, state } from "./state.js";
import { takePictures } from "./upload.js";

/** Searches that the back button finds again at once. */
const KEPT = 6;
const LOOK = 60000;

let index = null;
let results = null;
let waitingScroll = null;
const kept = new Map();

const bar = new SearchBar();
const filters = new Filters();
const explore = new Explore();
const grid = new Grid(find("#grid"), {
  open: (place) => detail.openResult(place),
  toggle,
  isSelected: (id) => selection.has(id),
  mark: (item) => (classes.active ? classes.mark(item.id, classes.active, item.labels) : null),
  headerHeight: () => find(".top").offsetHeight + (find(".labelling").hidden ? 0 : find(".labelling").offsetHeight),
});
const detail = new Detail({ results: () => results, focusGrid: (place) => grid.focus(place), toggle });
const labels = new Labels({ openPictures: (list, place) => detail.openList(list, place) });
const updatePanel = showPanel({
  filters: { title: "Filters", content: filters.element },
  classes: { title: "Labels", content: labels.element },
});
const updateLabelling = showLabellingBar({ label: judge });
const updateSelection = showSelectionBar({ selectAll, total: () => results?.total, label: judge, activeClass: () => classes.active });

function toggle(place, isRange = false) {
  if (isRange) selection.extend(results.items, place);
  else selection.toggle(results.items, place);
}

async function selectAll() {
  announce("Selecting all results");
  const chosen = results;
  await chosen.need(chosen.total);
  if (chosen === results) selection.add(results.items);
}

/** Says yes, no or nothing about the selected pictures, or about the one with the focus, which moves on. */
async function judge(value) {
  const { active } = classes;
  const item = results?.items[grid.active];
  if (!active || (!selection.size && !item)) return;
  const isMany = selection.size > 0;
  const ids = isMany ? selection.ids : [item.id];
  // The focus moves on at once: the next key is about the next picture, however long the server takes.
  if (isMany) selection.clear();
  else grid.focus(value === null ? grid.active : grid.active + 1);
  try {
    await classes.label(ids, active.id, value);
  } catch (error) {
    bar.hint(error.message);
    return;
  }
  announce(`${isMany ? "They are" : item.name} ${value === null ? "left to the model" : value ? "labelled yes" : "labelled no"}`);
}

function search() {
  const { terms, filters: chosen, collapse } = state.value;
  const key = searchKey(state.value);
  results?.stop();
  results = kept.get(key) ?? follow(new Results({ terms, filters: chosen, collapse }));
  kept.delete(key);
  kept.set(key, results);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  if (results.error) results.retry();
  selection.clear();
  grid.show(results);
  showStatus();
  if (waitingScroll !== null && results.total !== null) restoreScroll();
}

function follow(made) {
  made.addEventListener("change", () => {
    if (made !== results) return;
    grid.refresh();
    showStatus();
    if (waitingScroll !== null) restoreScroll();
    if (state.value.picture !== null) detail.sync();
  });
  made.addEventListener("expired", () => {
    // The index has changed since the first page: all pages together must be one search.
    for (const [key, value] of kept) if (value === made) kept.delete(key);
    if (made !== results) return;
    waitingScroll = scrollY;
    search();
    announce("The index has changed. The search was repeated.");
  });
  return made;
}

function restoreScroll() {
  scrollTo({ top: waitingScroll, behavior: "instant" });
  waitingScroll = null;
}

function statusText() {
  const { total, cutoff, hasTerms, error } = results;
  if (error && total === null) return "No results";
  if (total === null) return hasTerms ? "Searching…" : "Loading…";
  if (!hasTerms) return count(total, "picture");
  if (cutoff >= total) return count(total, "match", "matches");
  return `${cutoff ? count(cutoff, "clear match", "clear matches") : "No clear match"} in ${count(total, "picture")}`;
}

function showStatus() {
  const text = statusText();
  const place = find(".count");
  if (place.textContent !== text && results.total !== null) announce(text);
  place.textContent = text;
  find(".progress").hidden = !results.isLoading;
  showMessage();
  updateSelection();
  const written = write(state.value.terms.filter((term) => term.text)) || (state.value.terms.length ? "Similar pictures" : "");
  document.title = written ? `${written} · Pictures` : "Pictures";
}

/** What stands in the place of pictures that are not there. */
function messageOf() {
  const { total, error } = results;
  const button = (text, click) => make("button", { type: "button", class: "primary", text, click });
  if (error && !results.isWaiting) {
    return [error instanceof api.ApiError ? error.message : "The page could not show this.", button("Try again", () => results.retry())];
  }
  if (error && total === null) return ["The pictures are shown when the server answers again."];
  if (total !== 0) return null;
  const hasFilters = Object.keys(state.value.filters).length > 0;
  if (hasFilters) return ["No picture passes these filters.", button("Remove the filters", () => state.change({ filters: {} }))];
  return ["There are no pictures in this index yet. Add some with:", make("code", { text: "python examples/search.py index photos/" })];
}

function showMessage() {
  const message = messageOf();
  const place = find(".message");
  place.hidden = !message;
  find("#grid").hidden = Boolean(message) && !results.items.length;
  if (!message) return place.replaceChildren();
  const [text, action] = message;
  if (place.textContent.startsWith(text)) return;
  place.replaceChildren(make("p", { text }), action ?? "");
}

function showMissingPage() {
  document.title = "Not found · Pictures";
  for (const part of document.querySelectorAll(".top, .explore, .status, .grid")) part.hidden = true;
  find(".message").hidden = false;
  find(".message").replaceChildren(make("p", { text: "There is nothing at this address." }), make("a", { class: "primary", href: "/", text: "To the pictures" }));
}

function update({ former, scroll }) {
  if (searchKey(former) !== searchKey(state.value)) {
    waitingScroll = scroll;
    if (scroll === null) scrollTo({ top: 0, behavior: "instant" });
    search();
    bar.show();
  } else if (scroll !== null && former.picture === state.value.picture) {
    scrollTo({ top: scroll, behavior: "instant" });
  }
  show();
}

function show() {
  const { terms, filters: chosen } = state.value;
  explore.show(!terms.length && !Object.keys(chosen).length, index);
  filters.show();
  updatePanel();
  updateLabelling();
  updateSelection();
  labels.show();
  detail.sync();
  grid.update();
}

async function loadIndex() {
  const former = index;
  index = await api.index();
  filters.setDates(index.oldest, index.newest);
  filters.setFolders(await api.folders(), index.roots);
  await classes.load();
  if (former && former.version !== index.version) {
    kept.clear();
    waitingScroll = scrollY;
    search();
  }
  show();
}

const loadQuietly = () => loadIndex().catch(() => {});

function watchConnection() {
  const banner = find(".offline");
  api.connection.addEventListener("lost", () => {
    const retry = make("button", { type: "button", class: "tool", text: "Try now", click: () => api.connection.retry() });
    banner.replaceChildren(make("p", { text: "The server does not answer. Start it again; the page goes on by itself." }), retry);
    banner.hidden = false;
  });
  api.connection.addEventListener("back", () => {
    banner.hidden = true;
    announce("The server answers again");
    if (results?.error) results.retry();
    detail.retry();
    for (const image of document.images) {
      if (image.complete && !image.naturalWidth && image.getAttribute("src")) image.src = image.getAttribute("src");
    }
    loadQuietly();
  });
  setInterval(() => document.hidden || loadIndexIfChanged(), LOOK);
  document.addEventListener("visibilitychange", () => document.hidden || loadIndexIfChanged());
}

async function loadIndexIfChanged() {
  try {
    if ((await api.index()).version !== index?.version) await loadIndex();
  } catch {
    // The banner says so.
  }
}

function watchKeys() {
  addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "a" && grid.hasFocus) {
      event.preventDefault();
      selectAll();
      return;
    }
    if (event.defaultPrevented || isTyping(event) || find("dialog[open]")) return;
    const keys = {
      "/": () => bar.focus(),
      "?": showHelp,
      Escape: () => selection.clear(),
      y: () => judge(true),
      n: () => judge(false),
      u: () => judge(null),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
}

function watchTheme() {
  const button = find(".theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => button.setAttribute("aria-pressed", isDark());
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", document.documentElement.dataset.theme);
    } catch {
      // Without storage, the choice lasts until the page is left.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}

/** Bars that stick below the header need its height, which grows with the terms of a search. */
function watchHeader() {
  const header = find(".top");
  new ResizeObserver(() => document.documentElement.style.setProperty("--header", `${header.offsetHeight}px`)).observe(header);
}

function start() {
  watchHeader();
  watchTheme();
  find(".help").addEventListener("click", showHelp);
  watchConnection();
  if (location.pathname !== "/") return showMissingPage();
  bar.leave = () => grid.focus(grid.active);
  takePictures((text) => bar.hint(text));
  watchKeys();
  state.addEventListener("change", (event) => update(event.detail));
  selection.addEventListener("change", () => grid.update());
  classes.addEventListener("change", () => (filters.setClasses(classes.list), updateLabelling(), updateSelection(), grid.update()));
  classes.addEventListener("label", () => grid.update());
  find("#grid").addEventListener("error", (event) => event.target.closest(".tile")?.setAttribute("data-broken", ""), true);
  find("#grid").addEventListener("load", (event) => event.target.closest(".tile")?.removeAttribute("data-broken"), true);
  bar.show();
  search();
  show();
  loadQuietly();
}

start();
