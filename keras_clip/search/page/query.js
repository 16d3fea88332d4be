// The written form of a query, as `keras_clip.search.parse` reads it: red car - 0.5*night + picture:17.

const PLUS = "+＋";
const MINUS = "-−－";
const QUOTES = { '"': '"', "“": "”", "„": "“”", "«": "»", "「": "」", "＂": "＂" };
const NUMBER = "(?:\\p{Nd}+(?:[.,]\\p{Nd}+)?|[.,]\\p{Nd}+)";
const WEIGHT = new RegExp(`^\\s*(${NUMBER})\\s*[*＊]\\s*`, "u");
const PICTURE = /^(picture|upload)[:：](\S*)$/iu;
const SPACE = /\s/u;

/**
 * Reads a query. Beyond Python's syntax, `upload:TOKEN` is a picture that was sent to the server.
 * @param {string} text
 * @returns {Array<{text?: string, picture?: number, upload?: string, weight: number}>}
 * @throws {Error} with a message for people
 */
export function parse(text) {
  return split(text).map(([sign, part]) => term(sign, part));
}

function split(text) {
  const parts = [];
  let [sign, start, isFirst, close] = [1, 0, true, null];
  for (let place = 0; place < text.length; place++) {
    const character = text[place];
    if (close) {
      if (isEscape(text, place, close)) place++;
      else if (close.includes(character)) close = null;
    } else if (character in QUOTES && opens(text, start, place)) {
      close = QUOTES[character];
    } else if (isOperator(text, place)) {
      const part = text.slice(start, place);
      if (part.trim()) parts.push([sign, part]);
      else if (!isFirst) throw new Error("Write something between two signs, or put quotes around a sign that is part of the text.");
      [sign, start, isFirst] = [PLUS.includes(character) ? 1 : -1, place + 1, false];
    }
  }
  if (text.slice(start).trim()) parts.push([sign, text.slice(start)]);
  else if (!isFirst) throw new Error("Write something after the last plus or minus.");
  return parts;
}

function opens(text, start, place) {
  const before = text.slice(start, place);
  if (!before.trim() || before.match(WEIGHT)?.[0].length === before.length) return true;
  const rest = [...text.slice(place + 1)];
  return SPACE.test(before.at(-1)) && rest.some((character) => QUOTES[text[place]].includes(character));
}

function isOperator(text, place) {
  if (!(PLUS + MINUS).includes(text[place]) || (place && !SPACE.test(text[place - 1]))) return false;
  const after = text.slice(place + 1);
  return !/^[\p{Nd}.,+＋\-−－]/u.test(after) || WEIGHT.test(after);
}

function isEscape(text, place, close) {
  return text[place] === "\\" && place + 1 < text.length && `${close}\\`.includes(text[place + 1]);
}

function term(sign, part) {
  const weight = part.match(WEIGHT);
  const value = (weight ? part.slice(weight[0].length) : part).trim();
  const factor = weight ? Number(weight[1].replace(",", ".")) : 1;
  if (!value) throw new Error('A weight needs a term after the asterisk, as in 2*"red car".');
  if (!factor || !Number.isFinite(factor)) throw new Error("A weight must be a number above 0.");
  const quoted = unquoted(value);
  if (quoted !== null) return { text: quoted, weight: sign * factor };
  const special = value.match(PICTURE);
  if (special?.[2]) {
    if (special[1].toLowerCase() === "upload") return { upload: special[2], weight: sign * factor };
    if (!/^\d+$/.test(special[2])) throw new Error(`A picture is picture: and its number, as in picture:17. To search for these words, put quotes around them.`);
    return { picture: Number(special[2]), weight: sign * factor };
  }
  if (/^picture[:：]\S/iu.test(value)) throw new Error("A picture is picture: and its number; + or - joins it with other terms.");
  return { text: value, weight: sign * factor };
}

function unquoted(value) {
  if (!(value[0] in QUOTES)) return null;
  const close = QUOTES[value[0]];
  let place = 1;
  while (place < value.length && !close.includes(value[place])) {
    place += isEscape(value, place, close) ? 2 : 1;
  }
  if (place >= value.length) throw new Error("A term that begins with a quote must end with one.");
  if (place !== value.length - 1) return null;
  const text = value.slice(1, -1).replace(/\\(.)/gsu, (pair, next) => (`${close}\\`.includes(next) ? next : pair));
  if (!text.trim()) throw new Error("Write something inside the quotes.");
  return text;
}

/** Writes terms so that `parse` reads the same terms. */
export function write(terms) {
  return terms
    .map((each, place) => {
      const sign = each.weight < 0 ? "- " : place ? "+ " : "";
      const size = Math.abs(each.weight);
      return `${sign}${size === 1 ? "" : `${size}*`}${name(each)}`;
    })
    .join(" ");
}

function name({ text, picture, upload }) {
  if (picture !== undefined) return `picture:${picture}`;
  if (upload !== undefined) return `upload:${upload}`;
  try {
    const [only, ...others] = parse(text);
    const hasQuote = Object.keys(QUOTES).some((quote) => text.includes(quote));
    if (only.text === text && only.weight === 1 && !others.length && !hasQuote) return text;
  } catch {
    // Quotes keep what would be an error.
  }
  return `"${text.replace(/["\\]/gu, "\\$&")}"`;
}
