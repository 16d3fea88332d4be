// The JSON API of the server, and whether it answers.

/** An answer of the server that is an error. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** No answer: the server has stopped, or the network is gone. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/** Dispatches `lost` when a request gets no answer, and `back` when the server answers again. */
class Connection extends EventTarget {
  #isLost = false;
  #wait = 1000;
  #timer = null;

  get isLost() {
    return this.#isLost;
  }

  lost() {
    if (this.#isLost) return;
    this.#isLost = true;
    this.#wait = 1000;
    this.#timer = setTimeout(() => this.retry(), this.#wait);
    this.dispatchEvent(new Event("lost"));
  }

  async retry() {
    clearTimeout(this.#timer);
    try {
      await fetch("/api/index", { cache: "no-store" });
    } catch {
      this.#wait = Math.min(1.6 * this.#wait, 10000);
      this.#timer = setTimeout(() => this.retry(), this.#wait);
      return;
    }
    this.answered();
  }

  answered() {
    if (!this.#isLost) return;
    clearTimeout(this.#timer);
    this.#isLost = false;
    this.dispatchEvent(new Event("back"));
  }
}

export const connection = new Connection();
addEventListener("online", () => connection.isLost && connection.retry());

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function answer(path, options, tries = 4) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch {
    connection.lost();
    throw new Unreachable();
  }
  connection.answered();
  if (response.ok) return response;
  if (response.status === 503 && tries > 1) {
    await pause(Number(response.headers.get("retry-after")) || 1);
    return answer(path, options, tries - 1);
  }
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy may answer with something else than JSON.
  }
  const message = error.message ?? `The server answered with the error ${response.status}.`;
  throw new ApiError(response.status, error.code ?? "unknown", message);
}

const get = async (path) => (await answer(path)).json();

async function send(method, path, body) {
  const response = await answer(path, {
    method,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return response.status === 204 ? null : response.json();
}

export const index = () => get("/api/index");
export const folders = async () => (await get("/api/folders")).folders;
export const clusters = async (k) => (await get(`/api/clusters?k=${k}`)).clusters;
export const picture = (id) => get(`/api/pictures/${id}`);
export const search = (request) => send("POST", "/api/search", request);

export async function upload(file) {
  return (await answer("/api/uploads", { method: "POST", body: file })).json();
}

export const classes = async () => (await get("/api/classes")).classes;
export const addClass = (fields) => send("POST", "/api/classes", fields);
export const changeClass = (id, fields) => send("PATCH", `/api/classes/${id}`, fields);
export const removeClass = (id) => send("DELETE", `/api/classes/${id}`, {});
export const label = (pictures, classId, value) => send("POST", "/api/labels", { pictures, class: classId, value });
export const probe = (classIds) => send("POST", "/api/probe", { classes: classIds });

/** Requests an export and hands it to the browser as a download. Returns the name of the file. */
export async function download(format, pictures, classIds) {
  const response = await answer("/api/export", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ format, pictures, classes: classIds }),
  });
  const header = response.headers.get("content-disposition") ?? "";
  const encoded = header.match(/filename\*=UTF-8''([^;]+)/i)?.[1];
  const name = encoded ? decodeURIComponent(encoded) : (header.match(/filename="([^"]*)"/)?.[1] ?? `pictures.${format}`);
  const address = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  return name;
}

export const thumbnailOf = (id) => `/pictures/${id}/thumbnail`;
export const viewOf = (id) => `/pictures/${id}/view`;
export const fileOf = (id) => `/pictures/${id}/file`;
export const uploadThumbnail = (token) => `/uploads/${encodeURIComponent(token)}/thumbnail`;
