// The results of one search, fetched page by page as they are needed.

import { ApiError, Unreachable, search } from "./api.js";

const FIRST = 100;
const MOST = 1000;

/**
 * Results are known up to some place; a cursor leads to the next page. Dispatches `change` when there are more or an
 * error, and `expired` when the cursor no longer leads on, because the index has changed.
 */
export class Results extends EventTarget {
  items = [];
  total = null;
  cutoff = 0;
  error = null;
  #request;
  #cursor = null;
  #wanted = 0;
  #loading = null;

  constructor(request) {
    super();
    this.#request = request;
  }

  get hasTerms() {
    return this.#request.terms.length > 0;
  }

  get isComplete() {
    return this.total !== null && this.#cursor === null;
  }

  get isLoading() {
    return this.#loading !== null;
  }

  /** Fetches pages until there are `end` results, or all. */
  async need(end) {
    this.#wanted = Math.max(this.#wanted, end);
    if (this.#isEnough || this.error) return;
    this.#loading ??= this.#load();
    await this.#loading;
  }

  get #isEnough() {
    return this.isComplete || this.items.length >= this.#wanted;
  }

  async #load() {
    try {
      while (!this.#isEnough) await this.#next();
    } catch (error) {
      if (this.#cursor && error instanceof ApiError && /cursor/.test(error.code)) {
        this.dispatchEvent(new Event("expired"));
        return;
      }
      this.error = error;
    } finally {
      this.#loading = null;
    }
    this.dispatchEvent(new Event("change"));
  }

  async #next() {
    const limit = this.total === null ? FIRST : Math.min(Math.max(this.#wanted - this.items.length, FIRST), MOST);
    const page = await search({ ...this.#request, limit, cursor: this.#cursor });
    this.items.push(...page.results);
    this.total = page.cursor === null ? this.items.length : page.total;
    this.cutoff = page.cutoff ?? this.total;
    this.#cursor = page.cursor;
    this.dispatchEvent(new Event("change"));
  }

  /** Tries again after an error. */
  retry() {
    this.error = null;
    this.need(this.#wanted);
  }

  /** Whether an answer is missing because the server was gone. */
  get isWaiting() {
    return this.error instanceof Unreachable;
  }

  /** Fetches no further pages until they are needed again. */
  stop() {
    this.#wanted = 0;
  }
}
