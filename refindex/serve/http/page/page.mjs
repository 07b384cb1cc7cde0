// Draws an array of the archive on the landing page.

import { openArrays } from "./zarr.mjs";

const MOST_ELEMENTS = 4e6;
const MOST_CHUNKS = 256;
const COLOURS = [
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
  [170, 220, 50], [253, 231, 37],
];
const SECONDS = { second: 1, minute: 60, hour: 3600, day: 86400 };

const element = (id) => document.getElementById(id);

/** A colour for a number between 0 and 1. */
function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (COLOURS.length - 1);
  const low = Math.min(Math.floor(at), COLOURS.length - 2);
  return COLOURS[low].map((n, channel) => n + (at - low) * (COLOURS[low + 1][channel] - n));
}

function shown(value) {
  if (!Number.isFinite(value)) return String(value);
  return String(Number(value.toPrecision(6)));
}

/** Where an array's values are present, what they add up to, and their least and greatest. */
export function summary(array, values) {
  const missing = new Set(array.missing);
  const present = new Uint8Array(values.length);
  let [count, sum, least, greatest] = [0, 0, Infinity, -Infinity];
  for (let at = 0; at < values.length; at++) {
    const value = values[at];
    if (!Number.isFinite(value) || missing.has(value)) continue;
    present[at] = 1;
    count += 1;
    sum += value;
    least = Math.min(least, value);
    greatest = Math.max(greatest, value);
  }
  return { present, count, sum, least, greatest };
}

/** A value as the attributes of its array say that it is to be unpacked. */
function unpacked(array, value) {
  const { scale_factor: scale = 1, add_offset: offset = 0 } = array.attributes;
  return typeof scale === "number" && typeof offset === "number" ? value * scale + offset : value;
}

class Viewer {
  constructor(arrays) {
    this.arrays = arrays;
    this.picture = element("picture");
    this.index = {};
    this.coordinates = new Map();
  }

  start() {
    const list = element("array");
    for (const path of this.arrays.keys()) list.append(new Option(path, path));
    list.addEventListener("change", () => this.choose(list.value, {}));
    for (const link of document.querySelectorAll("a[data-array]")) {
      if (!this.arrays.has(link.dataset.array)) continue;
      link.addEventListener("click", () => {
        list.value = link.dataset.array;
        this.choose(list.value, {});
      });
    }
    element("controls").hidden = false;
    element("controls").addEventListener("submit", (event) => event.preventDefault());
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    const asked = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    list.value = this.arrays.has(asked.array) ? asked.array : this.best();
    return this.choose(list.value, asked);
  }

  /** The array to begin with: one with as many dimensions as a map over time has. */
  best() {
    const rank = ([path, array]) =>
      Math.min(array.shape.length, 3) - (array.dims.includes(path.split("/").pop()) ? 2 : 0) - (/bnds|bounds/.test(path) ? 2 : 0);
    return [...this.arrays].reduce((one, other) => (rank(other) > rank(one) ? other : one))[0];
  }

  async choose(path, asked) {
    const array = (this.array = this.arrays.get(path));
    const ndim = array.shape.length;
    const index = (this.index = {});
    const sliders = [];
    for (let axis = 0; axis < ndim - 2; axis++) {
      const name = array.dims[axis];
      const wanted = Math.trunc(Number(asked[name] ?? 0)) || 0;
      index[axis] = Math.min(Math.max(wanted, 0), array.shape[axis] - 1);
      const slider = Object.assign(document.createElement("input"), {
        type: "range", min: 0, max: array.shape[axis] - 1, step: 1, value: index[axis],
      });
      const label = document.createElement("label");
      const value = document.createElement("output");
      label.append(name, slider, value);
      const tell = () => this.tell(array, axis, index[axis], value, slider);
      slider.addEventListener("input", () => {
        index[axis] = Number(slider.value);
        tell();
        this.draw();
      });
      tell();
      sliders.push(label);
    }
    element("sliders").replaceChildren(...sliders);
    await this.draw();
  }

  /** The coordinate of a dimension, if there is one beside the array or above it. */
  coordinate(array, axis) {
    const parts = array.path.split("/");
    while (parts.length) {
      parts.pop();
      const found = this.arrays.get([...parts, array.dims[axis]].join("/"));
      if (found && found.shape.length === 1 && found.shape[0] === array.shape[axis]) {
        if (found.shape[0] > 1e6) return null;
        if (!this.coordinates.has(found)) this.coordinates.set(found, found.read([0], found.shape).catch(() => null));
        return { array: found, values: this.coordinates.get(found) };
      }
    }
    return null;
  }

  async tell(array, axis, at, output, slider) {
    const found = this.coordinate(array, axis);
    const values = found && (await found.values);
    if (array !== this.array || this.index[axis] !== at) return;
    output.textContent = `${at}${values ? ` · ${label(found.array, values[at])}` : ""}`;
    slider.setAttribute("aria-valuetext", output.textContent);
  }

  async draw() {
    this.reading?.abort();
    const reading = (this.reading = new AbortController());
    const { array, index, picture } = this;
    picture.dataset.state = "reading";
    try {
      const [start, stop, whole] = box(array, index);
      const values = await array.read(start, stop, reading.signal);
      const rows = array.shape.length > 1 ? this.coordinate(array, array.shape.length - 2) : null;
      const north = rows && (await rows.values);
      if (reading.signal.aborted) return;
      const height = array.shape.length > 1 ? stop.at(-2) - start.at(-2) : 1;
      // Maps have north at the top.
      const flipped = Boolean(north && north[0] < north[north.length - 1] && isNorthward(rows.array));
      this.drawn = { array, values, height, width: stop.at(-1) - start.at(-1), flipped };
      this.show(whole, stop);
      this.remember();
    } catch (error) {
      if (reading.signal.aborted) return;
      picture.dataset.state = "failed";
      element("legend").textContent = `${array.path} cannot be drawn: ${error.message}`;
      picture.setAttribute("aria-label", element("legend").textContent);
    }
  }

  show(whole, stop) {
    const { array, values, height, width, flipped } = this.drawn;
    const found = summary(array, values);
    const span = found.greatest - found.least || 1;
    const context = this.picture.getContext("2d");
    if (array.shape.length > 1) {
      Object.assign(this.picture, { width, height });
      const image = context.createImageData(width, height);
      for (let at = 0; at < values.length; at++) {
        if (!found.present[at]) continue;
        const row = Math.floor(at / width);
        const to = 4 * ((flipped ? height - 1 - row : row) * width + (at % width));
        image.data.set([...colour((values[at] - found.least) / span), 255], to);
      }
      context.putImageData(image, 0, 0);
    } else {
      Object.assign(this.picture, { width: 900, height: 300 });
      this.line(context, values, found, span);
    }
    this.scale(found, array.shape.length > 1);
    const units = array.attributes.units ? ` ${array.attributes.units}` : "";
    const [least, greatest] = [found.least, found.greatest].map((value) => shown(unpacked(array, value)));
    const parts = whole ? "" : ` (the first ${stop.slice(-2).join(" × ")} elements)`;
    const name = array.attributes.long_name ? `${array.path}: ${array.attributes.long_name}` : array.path;
    const range = found.count ? `${least} to ${greatest}${units}` : "no values";
    element("legend").textContent = `${name}, ${range}, ${found.count} of ${values.length} values${parts}`;
    this.picture.setAttribute("aria-label", `picture of ${element("legend").textContent}`);
    Object.assign(this.picture.dataset, {
      array: array.path, sum: found.sum, count: found.count, least: found.least, greatest: found.greatest, state: "drawn",
    });
  }

  line(context, values, found, span) {
    const { width, height } = this.picture;
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent") || "teal";
    context.lineWidth = 2;
    context.beginPath();
    let pen = false;
    for (let at = 0; at < values.length; at++) {
      const x = 4 + (at / Math.max(values.length - 1, 1)) * (width - 8);
      const y = height - 6 - ((values[at] - found.least) / span) * (height - 12);
      if (found.present[at]) context[pen ? "lineTo" : "moveTo"](x, y);
      pen = Boolean(found.present[at]);
    }
    context.stroke();
  }

  scale(found, wanted) {
    element("scale").hidden = !wanted || !found.count;
    const bar = element("bar").getContext("2d");
    const image = bar.createImageData(256, 1);
    for (let at = 0; at < 256; at++) image.data.set([...colour(at / 255), 255], 4 * at);
    bar.putImageData(image, 0, 0);
    element("least").textContent = shown(unpacked(this.array, found.least));
    element("greatest").textContent = shown(unpacked(this.array, found.greatest));
  }

  /** What is under the pointer. */
  point(event) {
    const { array, values, height, width, flipped } = this.drawn ?? {};
    if (!array || array.shape.length < 2) return;
    const frame = this.picture.getBoundingClientRect();
    // The picture keeps its proportions within its frame.
    const zoom = Math.min(frame.width / width, frame.height / height);
    const x = Math.floor((event.clientX - frame.left - (frame.width - width * zoom) / 2) / zoom);
    const y = Math.floor((event.clientY - frame.top - (frame.height - height * zoom) / 2) / zoom);
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    const row = flipped ? height - 1 - y : y;
    const value = values[row * width + x];
    const text = array.missing.includes(value) ? "missing" : shown(unpacked(array, value));
    this.picture.title = `${array.dims.at(-2)} ${row}, ${array.dims.at(-1)} ${x}: ${text}`;
  }

  /** Keep what is drawn in the page's address. */
  remember() {
    const chosen = new URLSearchParams({ array: this.array.path });
    for (const [axis, at] of Object.entries(this.index)) chosen.set(this.array.dims[axis], at);
    history.replaceState(null, "", `#${chosen}`);
  }
}

/** What is drawn of an array: start, stop, and whether that is all of the last two dimensions. */
function box(array, index) {
  const ndim = array.shape.length;
  const start = array.shape.map((_, axis) => index[axis] ?? 0);
  const stop = array.shape.map((n, axis) => (axis in index ? index[axis] + 1 : n));
  const elements = () => stop.reduce((product, end, axis) => product * (end - start[axis]), 1);
  let whole = true;
  while (elements() > MOST_ELEMENTS || array.chunksIn(start, stop) > MOST_CHUNKS) {
    // Half of the longer one of the two dimensions that are drawn.
    const drawn = [ndim - 1, ndim - 2].filter((axis) => axis >= 0 && stop[axis] - start[axis] > 1);
    if (!drawn.length) break;
    const axis = drawn.reduce((one, other) => (stop[other] - start[other] > stop[one] - start[one] ? other : one));
    stop[axis] = start[axis] + Math.ceil((stop[axis] - start[axis]) / 2);
    whole = false;
  }
  return [start, stop, whole];
}

function isNorthward(array) {
  return /^degrees?_?n(orth)?$/i.test(array.attributes.units ?? "") || /(^|\/)(lat|latitude|y)$/i.test(array.path);
}

/** A coordinate's value for people. */
function label(array, value) {
  const units = String(array.attributes.units ?? "");
  const since = /^(second|minute|hour|day)s? since (\d{4}-\d{1,2}-\d{1,2})(?:[T ](\d{1,2}:\d{2}(?::\d{2})?)(?:\.\d+)?)?(?: ?(?:UTC|Z))?$/.exec(units);
  const usual = ["standard", "gregorian", "proleptic_gregorian", undefined].includes(array.attributes.calendar);
  if (since && usual) {
    const [year, month, day] = since[2].split("-").map(Number);
    const [hour = 0, minute = 0, second = 0] = (since[3] ?? "").split(":").map(Number);
    const date = new Date(Date.UTC(year, month - 1, day, hour, minute, second) + 1000 * SECONDS[since[1]] * value);
    if (!Number.isNaN(date.getTime())) return date.toISOString().replace(/T00:00:00.000Z$|:\d\d\.\d{3}Z$/, "").replace("T", " ");
  }
  return `${shown(unpacked(array, value))}${units ? ` ${units}` : ""}`;
}

/** Show the page's arrays; resolves when the first one is drawn. */
export async function main() {
  try {
    const arrays = await openArrays(new URL(document.body.dataset.zarr, document.baseURI).href);
    if (arrays.size) await new Viewer(arrays).start();
    else element("legend").textContent = "No array here has numbers that can be drawn.";
  } catch (error) {
    element("picture").dataset.state = "failed";
    element("legend").textContent = `The archive cannot be read: ${error.message}`;
  }
}

await main();
