// Pictures from elsewhere as queries: dropped, pasted, or chosen.

import { upload } from "./api.js";
import { find } from "./dom.js";
import { state } from "./state.js";

const MOST_BYTES = 10 * 2 ** 20;
/** Pixels of the longer side of a picture that was too large to send. */
const SMALLER = 1600;

/**
 * Sends a picture to the server and searches for similar ones.
 * @param {File|Blob} file
 * @param {boolean} isAdded whether the other terms stay
 * @param {function(?string): void} hint shows a message, or none
 */
async function searchBy(file, isAdded, hint) {
  hint("Reading the picture…");
  try {
    const { upload: token } = await upload(file.size > MOST_BYTES ? await smaller(file) : file);
    hint(null);
    const kept = isAdded ? state.value.terms : [];
    state.change({ terms: [...kept, { upload: token, weight: 1 }], picture: null });
  } catch (error) {
    hint(error.message);
  }
}

async function smaller(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("This file is larger than 10 MB and no picture that the browser can make smaller.");
  }
  const factor = Math.min(1, SMALLER / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.max(1, factor * bitmap.width), Math.max(1, factor * bitmap.height));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}

const hasFiles = (transfer) => [...(transfer?.types ?? [])].includes("Files");

/** Takes pictures by drag and drop, paste and the file button. */
export function takePictures(hint) {
  const drop = find(".drop");
  const chooser = find(".file");
  let depth = 0;
  const hide = () => {
    depth = 0;
    drop.hidden = true;
  };
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event.dataTransfer)) return;
    depth++;
    drop.hidden = false;
  });
  addEventListener("dragleave", () => --depth <= 0 && hide());
  addEventListener("dragover", (event) => hasFiles(event.dataTransfer) && event.preventDefault());
  addEventListener("drop", (event) => {
    hide();
    const [file] = event.dataTransfer?.files ?? [];
    if (!file) return;
    event.preventDefault();
    searchBy(file, event.shiftKey || Boolean(event.target.closest?.(".search")), hint);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    searchBy(file, Boolean(event.target.closest?.(".search")), hint);
  });
  find(".pick-file").addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    if (chooser.files[0]) searchBy(chooser.files[0], false, hint);
    chooser.value = "";
  });
}
